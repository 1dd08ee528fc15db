//! The memory area: every frame of the box, registered as the UMEM of every queue.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use afxdp::mmap_area::{MmapArea, MmapAreaOptions};

use super::error::XskError;
use super::frame::{Buf, Frame, Mark};

const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a frame, headroom included. A packet can have 256 bytes fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// 2048 bytes: packets up to 1,792.
    Half = 2048,
    /// 4096 bytes: packets up to 3,840.
    Page = 4096,
}

impl FrameSize {
    /// The size with that many bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            2048 => Some(Self::Half),
            4096 => Some(Self::Page),
            _ => None,
        }
    }
}

/// The memory of all frames. It lives as long as the process: frames are `'static`.
pub struct Area {
    mmap: Arc<MmapArea<'static, Mark>>,
    /// A copy of every frame as it was at first, from which a frame that a lost ring held is made again.
    templates: Box<[MaybeUninit<Buf>]>,
    frame_size: usize,
    huge: bool,
}

impl Area {
    /// Maps `frames` frames of `frame_size` bytes (2048 or 4096) and hands them out. With `huge`, tries huge pages
    /// (then the number of frames is rounded up to whole pages of 2 MiB) and falls back to plain ones.
    ///
    /// # Errors
    /// [`XskError::FrameSize`], [`XskError::NoFrames`], and [`XskError::Memory`] when the kernel has not that much.
    pub fn new(frames: usize, frame_size: usize, huge: bool) -> Result<(Arc<Self>, Vec<Frame>), XskError> {
        if FrameSize::from_bytes(frame_size).is_none() {
            return Err(XskError::FrameSize { asked: frame_size });
        }
        let bytes = frames.checked_mul(frame_size).filter(|bytes| *bytes <= isize::MAX as usize / 2);
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else {
            return Err(XskError::NoFrames { asked: frames });
        };
        if huge {
            let rounded = bytes.next_multiple_of(HUGE_PAGE) / frame_size;
            if let Ok(made) = Self::map(rounded, frame_size, true) {
                return Ok(made);
            }
            tracing::warn!("no huge pages for {bytes} bytes of frames: using plain pages");
        }
        Self::map(frames, frame_size, false)
    }

    fn map(frames: usize, frame_size: usize, huge: bool) -> Result<(Arc<Self>, Vec<Frame>), XskError> {
        let options = MmapAreaOptions { huge_tlb: huge };
        let (mmap, bufs) = MmapArea::<'static, Mark>::new(frames, frame_size, options).map_err(|_| {
            XskError::Memory { bytes: frames * frame_size, source: std::io::Error::last_os_error() }
        })?;
        // Frames are 'static, so the mapping must never go: one reference is kept for good.
        std::mem::forget(mmap.clone());
        let templates = bufs.iter().map(copy_of).collect();
        let area = Self { mmap, templates, frame_size, huge };
        Ok((Arc::new(area), bufs.into_iter().map(Frame::new).collect()))
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.templates.len()
    }

    /// Bytes of a frame, headroom included.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// Whether the memory is of huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    pub(super) fn mmap(&self) -> Arc<MmapArea<'static, Mark>> {
        self.mmap.clone()
    }

    /// The number of the frame at `address`. An address outside the area gives a number that no frame has.
    #[inline]
    pub(super) fn index_of(&self, address: usize) -> usize {
        // A shift: the size is a power of two, and this is done for every frame that crosses a ring.
        address.wrapping_sub(self.mmap.get_ptr() as usize) >> self.frame_size.trailing_zeros()
    }

    /// Makes a frame anew that a ring took with it.
    ///
    /// # Safety
    /// No `Frame` with this number exists, and neither user space nor the kernel will touch its bytes any more.
    pub(super) unsafe fn remake(&self, index: usize) -> Option<Frame> {
        let template = self.templates.get(index)?;
        // SAFETY: every template was initialized from a live buffer in `map`; it holds no resource, and the caller says
        // that no other owner of the same bytes exists.
        let buf = unsafe { template.assume_init_read() };
        Some(Frame::new(buf))
    }
}

/// The bytes of a buffer's handle, not the handle: no second owner comes to be.
fn copy_of(buf: &Buf) -> MaybeUninit<Buf> {
    let mut copy = MaybeUninit::<Buf>::uninit();
    // SAFETY: source and destination are valid for one Buf and do not overlap; a MaybeUninit of it asserts nothing.
    unsafe { std::ptr::copy_nonoverlapping(buf, copy.as_mut_ptr(), 1) };
    copy
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area")
            .field("frames", &self.frames())
            .field("frame_size", &self.frame_size)
            .field("huge", &self.huge)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_that_cannot_be_is_refused() {
        for size in [0, 1024, 1500, 2047, 8192] {
            assert!(
                matches!(Area::new(64, size, false), Err(XskError::FrameSize { asked }) if asked == size)
            );
        }
        for frames in [0, usize::MAX, usize::MAX / 2048] {
            assert!(
                matches!(Area::new(frames, 2048, false), Err(XskError::NoFrames { asked }) if asked == frames)
            );
        }
        // More than any machine has of address space, less than the bound above.
        let error = Area::new((isize::MAX as usize / 4) / 4096, 4096, false).unwrap_err();
        assert!(matches!(error, XskError::Memory { .. }), "{error}");
    }

    #[test]
    fn area_of_huge_pages_has_at_least_what_was_asked_for() {
        let (area, frames) = Area::new(100, 2048, true).unwrap();
        assert_eq!(frames.len(), area.frames());
        assert_eq!(area.frames(), if area.is_huge() { 1024 } else { 100 });
        std::mem::forget(frames);
    }

    #[test]
    fn frame_made_again_is_the_one_that_was_lost() {
        let (area, mut frames) = Area::new(8, 4096, false).unwrap();
        let mut lost = frames.remove(5);
        lost.set_len(100);
        let address = lost.address();
        assert_eq!(area.index_of(address), 5);
        let _ = lost.into_buf();
        // SAFETY: the frame was taken apart on the line before, and no ring knows this area.
        let again = unsafe { area.remake(5) }.unwrap();
        assert_eq!((again.address(), again.len()), (address, 0));
        // SAFETY: there is no such frame.
        assert!(unsafe { area.remake(8) }.is_none());
        std::mem::forget((frames, again));
    }
}
