//! Names that clients asked for, and lists of ALPN names that they offered, each kept once however many flows carry it, in
//! a store of fixed size.

use hashbrown::HashTable;

use crate::footprint::index_octets;

use super::key::FlowHasher;

/// A stored name; `NONE` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRef(u32);

impl NameRef {
    pub const NONE: Self = Self(u32::MAX);
}

const SLOT: usize = 256;

/// Names with a count of their users. When it is full a new name is not kept: the flow shows none, nothing else changes.
#[derive(Debug)]
pub struct NameStore {
    hasher: FlowHasher,
    index: HashTable<u32>,
    /// Per slot one length octet and the name.
    bytes: Vec<u8>,
    users: Vec<u32>,
    free: Vec<u32>,
}

impl NameStore {
    pub fn new(capacity: usize, hasher: FlowHasher) -> Self {
        let capacity = capacity.min(u32::MAX as usize - 1);
        Self {
            hasher,
            // Twice the slots: see the flow table.
            index: HashTable::with_capacity(capacity * 2),
            bytes: vec![0; capacity * SLOT],
            users: vec![0; capacity],
            free: (0..capacity as u32).rev().collect(),
        }
    }

    /// Octets that a store of this capacity holds.
    pub const fn octets(capacity: usize) -> usize {
        let slot = SLOT + 2 * size_of::<u32>();
        index_octets(capacity.saturating_mul(2)).saturating_add(capacity.saturating_mul(slot))
    }

    /// Keeps `name` (at most 255 octets) for one more user.
    pub fn intern(&mut self, name: &str) -> NameRef {
        self.intern_bytes(name.as_bytes())
    }

    /// As [`Self::intern`], for what need not be text.
    pub fn intern_bytes(&mut self, name: &[u8]) -> NameRef {
        let hash = self.hasher.hash_any(&name);
        if let Some(&slot) = self.index.find(hash, |&s| get(&self.bytes, s) == name) {
            if let Some(n) = self.users.get_mut(slot as usize) {
                *n += 1;
            }
            return NameRef(slot);
        }
        let (Ok(len), Some(slot)) = (u8::try_from(name.len()), self.free.pop()) else {
            return NameRef::NONE;
        };
        let at = slot as usize * SLOT;
        crate::wire::put(&mut self.bytes, at, &[len]);
        crate::wire::put(&mut self.bytes, at + 1, name);
        if let Some(n) = self.users.get_mut(slot as usize) {
            *n = 1;
        }
        let (hasher, bytes) = (&self.hasher, &self.bytes);
        self.index.insert_unique(hash, slot, |&s| hasher.hash_any(&get(bytes, s)));
        NameRef(slot)
    }

    /// One user less.
    pub fn release(&mut self, name: NameRef) {
        let Some(users) = self.users.get_mut(name.0 as usize) else { return };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return;
        }
        let hash = self.hasher.hash_any(&get(&self.bytes, name.0));
        if let Ok(entry) = self.index.find_entry(hash, |&s| s == name.0) {
            entry.remove();
            self.free.push(name.0);
        }
    }

    pub fn get(&self, name: NameRef) -> Option<&str> {
        self.get_bytes(name).map(|bytes| std::str::from_utf8(bytes).unwrap_or(""))
    }

    pub fn get_bytes(&self, name: NameRef) -> Option<&[u8]> {
        (name != NameRef::NONE).then(|| get(&self.bytes, name.0))
    }
}

fn get(bytes: &[u8], slot: u32) -> &[u8] {
    let at = slot as usize * SLOT;
    let len = usize::from(bytes.get(at).copied().unwrap_or(0));
    bytes.get(at + 1..at + 1 + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intern_at_capacity_keeps_no_more_and_release_frees() {
        let mut store = NameStore::new(2, FlowHasher::new(1));
        let a = store.intern("a.example");
        assert_eq!(store.intern("a.example"), a);
        let b = store.intern("b.example");
        assert_eq!(store.intern("c.example"), NameRef::NONE);
        assert_eq!(store.get(b), Some("b.example"));
        store.release(a);
        assert_eq!(store.get(a), Some("a.example"), "one user is left");
        store.release(a);
        let c = store.intern("c.example");
        assert_eq!(store.get(c), Some("c.example"));
        assert_eq!(store.get(NameRef::NONE), None);
    }
}
