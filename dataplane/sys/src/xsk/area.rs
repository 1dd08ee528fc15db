//! The memory area: every frame of the box, registered as the UMEM of every queue.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use afxdp::mmap_area::{MmapArea, MmapAreaOptions};

use super::error::XskError;
use super::frame::{Buf, Frame};

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
    mmap: Arc<MmapArea<'static, ()>>,
    /// A copy of every frame as it was at first, from which a frame that a lost ring held is made again.
    templates: Box<[MaybeUninit<Buf>]>,
    frame_size: usize,
    huge: bool,
}

// SAFETY: the templates are bytes until `Area::remake` reads one, and its caller vouches that the frame has no owner.
// The mapping itself is Sync by the crate.
unsafe impl Sync for Area {}

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
        let (mmap, bufs) = MmapArea::<'static, ()>::new(frames, frame_size, options).map_err(|_| {
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

    pub(super) fn mmap(&self) -> Arc<MmapArea<'static, ()>> {
        self.mmap.clone()
    }

    /// The number of the frame at `address`. An address outside the area gives a number that no frame has.
    #[inline]
    pub(super) fn index_of(&self, address: usize) -> usize {
        address.wrapping_sub(self.mmap.get_ptr() as usize) / self.frame_size
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
