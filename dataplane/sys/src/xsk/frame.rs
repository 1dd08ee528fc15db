//! One frame of the memory area: a packet, or room for one.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

use afxdp::buf::Buf as _;
use afxdp::buf_mmap::BufMmap;

/// What the owner of a frame notes with it.
pub(super) type Mark = u16;

/// What the afxdp crate calls a frame.
pub(super) type Buf = BufMmap<'static, Mark>;

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

    /// What was noted with the packet; 0 of one that was received and of which nobody has noted anything.
    #[inline]
    pub fn mark(&self) -> Mark {
        *self.buf.get_user()
    }

    /// Notes something with the packet.
    #[inline]
    pub fn set_mark(&mut self, mark: Mark) {
        *self.buf.get_user_mut() = mark;
    }

    /// The most bytes a packet in this frame can have.
    ///
    /// The crate takes the driver's packet to start HEADROOM bytes into the chunk. One that starts later has less room:
    /// chunks are aligned to their size, a power of two (Area::new), so the address says how much.
    #[inline]
    pub fn capacity(&self) -> usize {
        let room = self.buf.get_data().len();
        let chunk = room + HEADROOM;
        let offset = self.address() & (chunk - 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xsk::Area;

    #[test]
    fn frame_length_is_cut_to_the_capacity() {
        for (size, capacity) in [(2048, 1792), (4096, 3840)] {
            let (_area, mut frames) = Area::new(4, size, false).unwrap();
            for frame in &mut frames {
                assert!(frame.is_empty());
                assert_eq!((frame.capacity(), frame.buffer_mut().len()), (capacity, capacity));
                for len in [0, 1, 60, capacity, capacity + 1, usize::MAX] {
                    frame.set_len(len);
                    let expected = len.min(capacity);
                    assert_eq!((frame.len(), frame.data().len()), (expected, expected));
                    assert_eq!(frame.data_mut().len(), expected);
                }
            }
            std::mem::forget(frames);
        }
    }

    #[test]
    fn frames_written_to_their_ends_do_not_touch_one_another() {
        let (_area, mut frames) = Area::new(64, 2048, false).unwrap();
        for (number, frame) in frames.iter_mut().enumerate() {
            frame.buffer_mut().fill(number as u8);
            frame.set_len(usize::MAX);
        }
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.data().iter().all(|byte| *byte == number as u8), "frame {number}");
        }
        std::mem::forget(frames);
    }

    #[test]
    fn frame_dropped_is_counted_as_lost() {
        // No other unit test of this crate drops a frame.
        let before = frames_lost();
        let (_area, frames) = Area::new(3, 2048, false).unwrap();
        drop(frames);
        assert_eq!(frames_lost() - before, 3);
    }
}
