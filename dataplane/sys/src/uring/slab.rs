//! Numbered places that remember how often they were reused, so that a late key finds nothing.

/// A place in a [`Slab`] and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub index: u32,
    pub generation: u32,
}

impl Key {
    /// Both numbers in one word, for a ring's user data.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Places that are allocated together: a full slab grows by so many, and none of them ever moves.
const BLOCK: usize = 64;

/// Values by key. Places are reused, last freed first; memory grows to the largest number of values held at once.
#[derive(Debug)]
pub struct Slab<T> {
    blocks: Vec<Box<[Place<T>]>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// Generations wrap at this many bits, so that a key fits beside a caller's tag in 64 bits.
    pub const GENERATION_BITS: u32 = 24;

    pub fn new() -> Self {
        Self { blocks: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        self.len += 1;
        let place = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        place.value = Some(value);
        Key { index, generation: place.generation }
    }

    fn grow(&mut self) -> u32 {
        let first = (self.blocks.len() * BLOCK) as u32;
        self.blocks.push((0..BLOCK).map(|_| Place { generation: 0, value: None }).collect());
        self.free.extend((first + 1..first + BLOCK as u32).rev());
        first
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.place_mut(key)?;
        let value = place.value.take()?;
        place.generation = (place.generation + 1) & ((1 << Self::GENERATION_BITS) - 1);
        self.free.push(key.index);
        self.len -= 1;
        Some(value)
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.place(key.index)?;
        place.value.as_ref().filter(|_| place.generation == key.generation)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.place_mut(key)?.value.as_mut()
    }

    /// The key of the value in a place, if one is there.
    pub fn key(&self, index: u32) -> Option<Key> {
        let place = self.place(index)?;
        place.value.is_some().then_some(Key { index, generation: place.generation })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(self.blocks.iter().flatten()).filter_map(|(index, Place { generation, value })| {
            Some((Key { index, generation: *generation }, value.as_ref()?))
        })
    }

    fn place(&self, index: u32) -> Option<&Place<T>> {
        self.blocks.get(index as usize / BLOCK)?.get(index as usize % BLOCK)
    }

    fn place_mut(&mut self, key: Key) -> Option<&mut Place<T>> {
        let place = self.blocks.get_mut(key.index as usize / BLOCK)?.get_mut(key.index as usize % BLOCK)?;
        (place.generation == key.generation).then_some(place)
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}
