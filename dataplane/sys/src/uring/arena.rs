//! The memory that the kernel reads and writes on a ring's behalf: equal buffers in one mapping.

use std::io;
use std::ptr::NonNull;

/// One buffer of a [`super::Ring`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(u32);

/// What the kernel is doing with a buffer.
#[derive(Clone, Debug, Default)]
struct Use {
    /// Operations that may touch it.
    pending: u32,
    /// The part that a receive may be writing: start and end.
    writing: Option<(u32, u32)>,
    taken: bool,
    /// Pages of it are resident, as far as we know.
    touched: bool,
}

/// The mapping. Pages are resident only once used; [`Arena::trim`] gives those of free buffers back.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    size: u32,
    uses: Vec<Use>,
    free: Vec<u32>,
}

// SAFETY: the mapping is private to this value and nothing in it is tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// `count` buffers of `size` octets. Source: mmap(2).
    pub fn new(count: u32, size: u32) -> io::Result<Self> {
        let total = (count as usize).checked_mul(size as usize).filter(|n| *n > 0);
        let total = total.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        let free = (0..count).rev().collect();
        Ok(Self { base, size, uses: vec![Use::default(); count as usize], free })
    }

    pub fn take(&mut self) -> Option<BufferId> {
        let index = self.free.pop()?;
        let used = &mut self.uses[index as usize];
        used.taken = true;
        used.touched = true;
        Some(BufferId(index))
    }

    /// The buffer is free once the last operation on it has completed.
    pub fn give_back(&mut self, id: BufferId) {
        let used = &mut self.uses[id.0 as usize];
        if std::mem::replace(&mut used.taken, false) && used.pending == 0 {
            self.free.push(id.0);
        }
    }

    /// Buffers not taken, and not waiting for an operation.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Marks the part as in use by one operation and yields its address; `None` when the part is not in the buffer, or
    /// when the operation writes and another that writes is under way on the buffer.
    pub fn begin(&mut self, id: BufferId, at: u32, len: u32, writes: bool) -> Option<*mut u8> {
        let end = at.checked_add(len).filter(|end| *end <= self.size)?;
        let used = self.uses.get_mut(id.0 as usize).filter(|used| used.taken)?;
        if writes {
            if used.writing.is_some() {
                return None;
            }
            used.writing = Some((at, end));
        }
        used.pending += 1;
        // SAFETY: at is within buffer id, which is within the mapping.
        Some(unsafe { self.base.as_ptr().add(id.0 as usize * self.size as usize + at as usize) })
    }

    /// The operation that [`Arena::begin`] marked has completed.
    pub fn end(&mut self, id: BufferId, writes: bool) {
        let used = &mut self.uses[id.0 as usize];
        if writes {
            used.writing = None;
        }
        used.pending -= 1;
        if used.pending == 0 && !used.taken {
            self.free.push(id.0);
        }
    }

    /// Octets of a buffer; `None` where the kernel may be writing.
    pub fn bytes(&self, id: BufferId, at: u32, len: u32) -> Option<&[u8]> {
        let end = at.checked_add(len).filter(|end| *end <= self.size)?;
        let used = self.uses.get(id.0 as usize)?;
        if used.writing.is_some_and(|(from, to)| at < to && from < end) {
            return None;
        }
        let offset = id.0 as usize * self.size as usize + at as usize;
        // SAFETY: within the mapping, which is initialised (zero pages) and lives as long as self. No operation that
        // writes there is under way (above), and none can begin while the slice borrows self: begin() takes &mut self.
        Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), len as usize) })
    }

    /// Gives the pages of free buffers back to the system, but for `keep` of them.
    pub fn trim(&mut self, keep: usize) {
        // The end of the list is taken next: its pages are worth keeping.
        let cold = self.free.len().saturating_sub(keep);
        for &index in &self.free[..cold] {
            let used = &mut self.uses[index as usize];
            if !std::mem::replace(&mut used.touched, false) {
                continue;
            }
            let offset = index as usize * self.size as usize;
            // SAFETY: the range is one buffer of our mapping. It is free: nothing borrows it (bytes() borrows self) and
            // no operation is under way on it. On failure the pages merely stay.
            unsafe {
                libc::madvise(self.base.as_ptr().add(offset).cast(), self.size as usize, libc::MADV_DONTNEED)
            };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping of new(); Ring drops its arena only when no operation is under way.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.uses.len() * self.size as usize) };
    }
}
