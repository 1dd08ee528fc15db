//! One frame of the memory area: a packet, or room for one.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

use afxdp::buf::Buf as _;
use afxdp::buf_mmap::BufMmap;

/// What the afxdp crate calls a frame.
pub(super) type Buf = BufMmap<'static, ()>;

/// Bytes at the start of every chunk that the kernel keeps for drivers (XDP_PACKET_HEADROOM).
pub(super) const HEADROOM: usize = 256;

static LOST: AtomicU64 = AtomicU64::new(0);

/// How many frames were dropped instead of given back, since the process started. Anything but 0 is a bug in the
/// caller: the frame cannot be used again.
pub fn frames_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// A frame and its sole owner. Hand it to `Queue::send`, `Queue::fill` or back to the free list; dropping it loses it.
pub struct Frame {
    buf: ManuallyDrop<Buf>,
}

impl Frame {
    pub(super) fn new(buf: Buf) -> Self {
        Self { buf: ManuallyDrop::new(buf) }
    }

    /// The crate's frame, to be put in a ring.
    pub(super) fn into_buf(self) -> Buf {
        let mut frame = ManuallyDrop::new(self);
        // SAFETY: `frame` is never dropped nor read again, so the buffer is moved out exactly once.
        unsafe { ManuallyDrop::take(&mut frame.buf) }
    }

    /// Where the frame's bytes are: how a queue tells its frames apart.
    pub(super) fn address(&self) -> usize {
        self.buf.get_data().as_ptr() as usize
    }

    /// The packet: the first [`Frame::len`] bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let len = self.len();
        self.buf.get_data().get(..len).unwrap_or_default()
    }

    /// The packet, to be rewritten in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        self.buf.get_data_mut().get_mut(..len).unwrap_or_default()
    }

    /// All the room there is, [`Frame::capacity`] bytes: for building a packet; then say how long it is.
    #[inline]
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        let capacity = self.capacity();
        self.buf.get_data_mut().get_mut(..capacity).unwrap_or_default()
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.buf.get_len()).min(self.capacity())
    }

    /// No packet in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets the packet's length; more than fits is cut to the capacity.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        let len = len.min(self.capacity());
        // A chunk is at most a page (Area::new), so this fits and the crate does not panic.
        self.buf.set_len(u16::try_from(len).unwrap_or(0));
    }

    /// The most bytes a packet in this frame can have.
    ///
    /// The crate takes the driver's packet to start HEADROOM bytes into the chunk. One that starts later has less room:
    /// chunks are aligned to their power-of-two size, so the address says how much.
    #[inline]
    pub fn capacity(&self) -> usize {
        let room = self.buf.get_data().len();
        let chunk = room + HEADROOM;
        let offset = self.address() % chunk;
        room.min(chunk - offset)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("address", &self.address()).field("len", &self.len()).finish()
    }
}
