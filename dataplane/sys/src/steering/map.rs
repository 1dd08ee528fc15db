//! A map of the program by its descriptor: typed, shareable between threads, no lock.
//!
//! aya's own map types want `&mut` for a store. The kernel does not, and workers that hand flows to it should not meet
//! at a lock; so once aya has made the maps, their descriptors are used through libbpf's calls.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use aya::maps::MapData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::SteeringError;

/// A map with keys `K` and values `V`, whose sizes were compared with the kernel's.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: Arc<OwnedFd>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { fd: self.fd.clone(), types: PhantomData }
    }
}

impl<K, V> Map<K, V>
where
    K: IntoBytes + FromBytes + Immutable,
    V: IntoBytes + FromBytes + Immutable,
{
    /// A second descriptor of the map.
    pub fn new(name: &'static str, data: &MapData) -> Result<Self, SteeringError> {
        let failed = |source| SteeringError::Map { map: name, action: "opening", source };
        let info = data.info().map_err(|error| failed(io::Error::other(error)))?;
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
            return Err(SteeringError::Layout { map: name });
        }
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { fd: Arc::new(fd), types: PhantomData })
    }

    /// Another descriptor of it, for another process.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Stores a value, replacing one that is there.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: key and value are initialized and as long as the map's (compared in `new`); the call only reads them.
        let code = unsafe { libbpf_sys::bpf_map_update_elem(self.raw(), as_bytes(key), as_bytes(value), 0) };
        done(code)
    }

    /// The value at a key.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let place = std::ptr::from_mut(&mut value).cast();
        // SAFETY: as in `set`, and `value` has room for what the call writes; any bytes are a V.
        let code = unsafe { libbpf_sys::bpf_map_lookup_elem(self.raw(), as_bytes(key), place) };
        Ok(found(code)?.then_some(value))
    }

    /// Removes a key; whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: as in `set`.
        found(unsafe { libbpf_sys::bpf_map_delete_elem(self.raw(), as_bytes(key)) })
    }

    /// Removes a key and returns what was there.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let place = std::ptr::from_mut(&mut value).cast();
        // SAFETY: as in `get`.
        let code = unsafe { libbpf_sys::bpf_map_lookup_and_delete_elem(self.raw(), as_bytes(key), place) };
        Ok(found(code)?.then_some(value))
    }

    /// Stores as many values, from the first on, as the map takes: how many, and why not all. One system call.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
        let mut count = keys.len().min(values.len()) as u32;
        if count == 0 {
            return (0, Ok(()));
        }
        let (key, value) = (first_of(keys), first_of(values));
        // SAFETY: both slices have `count` elements of the map's sizes (compared in `new`), which the call only reads.
        let code =
            unsafe { libbpf_sys::bpf_map_update_batch(self.raw(), key, value, &mut count, std::ptr::null()) };
        (count as usize, done(code))
    }

    /// Removes keys, those that are there. One system call, and one more for each that is not.
    pub fn remove_all(&self, mut keys: &[K]) -> io::Result<()> {
        while !keys.is_empty() {
            let mut count = keys.len() as u32;
            // SAFETY: as in `set_all`.
            let code = unsafe {
                libbpf_sys::bpf_map_delete_batch(self.raw(), first_of(keys), &mut count, std::ptr::null())
            };
            if found(code)? {
                return Ok(());
            }
            keys = keys.get(count as usize + 1..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads on from `at` (from the start: `None`), as many entries as the slices have room for: how many they are, and where
    /// to go on, if there may be more. Of a hash map; a room below 4,096 may be too small for it (ENOSPC).
    pub fn read_all(
        &self,
        at: Option<u32>,
        keys: &mut [K],
        values: &mut [V],
    ) -> io::Result<(usize, Option<u32>)> {
        let mut from = at.unwrap_or_default();
        let mut next = 0_u32;
        let mut count = keys.len().min(values.len()) as u32;
        let from = at.map_or(std::ptr::null_mut(), |_| std::ptr::from_mut(&mut from).cast());
        // SAFETY: both slices have room for `count` elements of the map's sizes (compared in `new`), of any bytes; a cursor of a
        // hash map is a u32.
        let code = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                self.raw(),
                from,
                std::ptr::from_mut(&mut next).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        Ok(if found(code)? { (count as usize, Some(next)) } else { (count as usize, None) })
    }

    /// How many entries it can hold.
    pub fn room(name: &'static str, data: &MapData) -> Result<u32, SteeringError> {
        let failed = |error| SteeringError::of_map(name, "opening")(io::Error::other(error));
        Ok(data.info().map_err(failed)?.max_entries())
    }

    /// The key after this one in the kernel's order, or the first. A key that has gone starts over.
    pub fn key_after(&self, key: Option<&K>) -> io::Result<Option<K>> {
        let mut next = K::new_zeroed();
        let from = key.map_or(std::ptr::null(), as_bytes);
        let place = std::ptr::from_mut(&mut next).cast();
        // SAFETY: as in `get`; a null key asks for the first.
        let code = unsafe { libbpf_sys::bpf_map_get_next_key(self.raw(), from, place) };
        Ok(found(code)?.then_some(next))
    }

    /// Removes everything.
    pub fn clear(&self) -> io::Result<()> {
        while let Some(key) = self.key_after(None)? {
            self.remove(&key)?;
        }
        Ok(())
    }

    fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// A map of another layout: keys `K`, and values that begin with a `V` and may be longer.
#[derive(Debug)]
pub(crate) struct Headed<K, V> {
    fd: Arc<OwnedFd>,
    value_size: usize,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Headed<K, V> {
    fn clone(&self) -> Self {
        Self { fd: self.fd.clone(), value_size: self.value_size, types: PhantomData }
    }
}

/// Room for entries of a [`Headed`] map, and those that were read last.
#[derive(Debug)]
pub(crate) struct Room<K, V> {
    keys: Vec<K>,
    values: Vec<u8>,
    value_size: usize,
    read: usize,
    types: PhantomData<fn() -> V>,
}

impl<K: Copy, V: FromBytes> Room<K, V> {
    /// What was read.
    pub fn entries(&self) -> impl Iterator<Item = (K, V)> + '_ {
        let values = self.values.chunks_exact(self.value_size);
        let heads = values.filter_map(|value| V::read_from_prefix(value).ok().map(|(head, _)| head));
        self.keys.iter().copied().zip(heads).take(self.read)
    }
}

impl<K, V> Headed<K, V>
where
    K: IntoBytes + FromBytes + Immutable + Clone,
    V: FromBytes,
{
    /// A second descriptor of a hash map.
    pub fn new(name: &'static str, data: &MapData) -> Result<Self, SteeringError> {
        let failed = |source| SteeringError::Map { map: name, action: "opening", source };
        let info = data.info().map_err(|error| failed(io::Error::other(error)))?;
        let value_size = info.value_size() as usize;
        if info.key_size() as usize != size_of::<K>() || value_size < size_of::<V>() {
            return Err(SteeringError::Layout { map: name });
        }
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { fd: Arc::new(fd), value_size, types: PhantomData })
    }

    /// The head of the value at a key.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0_u8; self.value_size];
        let place = value.as_mut_ptr().cast();
        // SAFETY: the key is initialized and as long as the map's (compared in `new`); `value` has room for what the call writes.
        let code = unsafe { libbpf_sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), as_bytes(key), place) };
        let head = || V::read_from_prefix(&value).ok().map(|(head, _)| head);
        Ok(found(code)?.then(head).flatten())
    }

    /// Removes a key; whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: as in `get`.
        found(unsafe { libbpf_sys::bpf_map_delete_elem(self.fd.as_raw_fd(), as_bytes(key)) })
    }

    /// Room for so many entries: at least 4,096, since the kernel reads whole buckets.
    pub fn room(&self, entries: usize) -> Room<K, V> {
        let values = vec![0; entries * self.value_size];
        Room {
            keys: vec![K::new_zeroed(); entries],
            values,
            value_size: self.value_size,
            read: 0,
            types: PhantomData,
        }
    }

    /// Reads on from `at` (from the start: `None`); where to go on, if there may be more.
    pub fn read(&self, at: Option<u32>, room: &mut Room<K, V>) -> io::Result<Option<u32>> {
        room.read = 0;
        if room.value_size != self.value_size {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut from = at.unwrap_or_default();
        let mut next = 0_u32;
        let mut count = room.keys.len() as u32;
        let from = at.map_or(std::ptr::null_mut(), |_| std::ptr::from_mut(&mut from).cast());
        // SAFETY: the room has `count` keys and values of the map's sizes (compared in `new`, and above), of any bytes; a cursor of a hash map is a u32.
        let code = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                self.fd.as_raw_fd(),
                from,
                std::ptr::from_mut(&mut next).cast(),
                room.keys.as_mut_ptr().cast(),
                room.values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        let has_more = found(code)?;
        room.read = count as usize;
        Ok(has_more.then_some(next))
    }
}

fn as_bytes<T: IntoBytes + Immutable>(value: &T) -> *const libc::c_void {
    value.as_bytes().as_ptr().cast()
}

/// For libbpf's calls on many, which do not write through these.
fn first_of<T>(slice: &[T]) -> *mut libc::c_void {
    slice.as_ptr().cast_mut().cast()
}

fn done(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn found(code: i32) -> io::Result<bool> {
    match done(code) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
