//! Which frames a queue's rings hold: one bit per frame of the area.

/// A set of frame numbers.
#[derive(Debug)]
pub(super) struct Held {
    words: Box<[u64]>,
    count: usize,
}

impl Held {
    /// An empty set for frames 0 to `frames - 1`.
    pub fn new(frames: usize) -> Self {
        Self { words: vec![0; frames.div_ceil(64)].into(), count: 0 }
    }

    /// Adds a frame. A number that no frame has is ignored.
    #[inline]
    pub fn add(&mut self, frame: usize) {
        if let Some(word) = self.words.get_mut(frame / 64) {
            let bit = 1 << (frame % 64);
            self.count += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Takes a frame out; whether it was in.
    #[inline]
    pub fn remove(&mut self, frame: usize) -> bool {
        let Some(word) = self.words.get_mut(frame / 64) else { return false };
        let bit = 1 << (frame % 64);
        let was_in = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(was_in);
        was_in
    }

    /// How many are in it.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Empties the set, lowest number first.
    pub fn drain(&mut self) -> impl Iterator<Item = usize> + '_ {
        self.count = 0;
        self.words.iter_mut().enumerate().flat_map(|(place, word)| {
            let mut bits = std::mem::take(word);
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(place * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Held;

    #[test]
    fn held_drained_gives_every_frame_once() {
        let mut held = Held::new(130);
        for frame in [0, 63, 64, 129, 64] {
            held.add(frame);
        }
        assert_eq!(held.len(), 4);
        assert!(held.remove(63));
        assert!(!held.remove(63));
        assert_eq!(held.drain().collect::<Vec<_>>(), [0, 64, 129]);
        assert_eq!(held.len(), 0);
        assert_eq!(held.drain().count(), 0);
    }

    #[test]
    fn held_frame_outside_the_area_is_ignored() {
        let mut held = Held::new(64);
        held.add(64);
        held.add(usize::MAX);
        assert_eq!(held.len(), 0);
        assert!(!held.remove(usize::MAX));
    }
}
