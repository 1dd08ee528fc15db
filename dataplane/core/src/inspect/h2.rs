//! The first request of HTTP/2 without TLS, by a client that knows in advance that the server speaks it (RFC 9113
//! section 3.3), so that this is no way around a rule on names.
//!
//! Frames before the first HEADERS are skipped by their length; the header block (HEADERS and its CONTINUATIONs) is
//! read once, when all of it is there. Frames over 2^14 octets cannot come before the server has allowed them.

use super::cursor::{Cursor, Piece};
use super::{Alpn, Found, Outcome, hpack};
use crate::policy::Protocol;

/// What such a client sends first (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER: usize = 9;
const MAX_FRAME: usize = 1 << 14;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Stream dependency and weight.
const PRIORITY_LEN: usize = 5;
const H2C: &[u8] = b"\x03h2c";

/// How far the frames have been read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    /// Where the header of the first frame stands that is not yet there in full; 0 at the start.
    next: u32,
    /// Where the HEADERS frame stands; 0 before it came.
    headers: u32,
    /// Octets of the header block before `next`.
    block: u32,
}

impl Frames {
    pub(super) fn inspect(&mut self, prefix: &[u8], limit: usize) -> Outcome {
        loop {
            let at = (self.next as usize).max(PREFACE.len());
            let Some(frame) = Frame::read(prefix, at) else {
                return Outcome::More;
            };
            let next = at.saturating_add(FRAME_HEADER).saturating_add(frame.len);
            if frame.len > MAX_FRAME || next > limit {
                return Outcome::OTHER;
            }
            // From HEADERS to END_HEADERS nothing but CONTINUATION may come, and it nowhere else.
            if (frame.kind == CONTINUATION) != (self.headers != 0) {
                return Outcome::OTHER;
            }
            if next > prefix.len() {
                return Outcome::More;
            }
            self.next = u32::try_from(next).unwrap_or(u32::MAX);
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                let Some(piece) = piece(prefix, at) else {
                    return Outcome::OTHER;
                };
                if self.headers == 0 {
                    self.headers = u32::try_from(at).unwrap_or(u32::MAX);
                }
                self.block = self.block.saturating_add(u32::try_from(piece.data.len()).unwrap_or(u32::MAX));
                if frame.flags & END_HEADERS != 0 {
                    let block = Cursor::new(prefix, self.headers as usize, self.block as usize, self::piece);
                    return Outcome::Done(read(block));
                }
            }
        }
    }
}

fn read(block: Cursor<'_>) -> Found {
    match (hpack::authority(block), Alpn::from_wire(H2C)) {
        (Some(asked), Some(alpn)) => Found::named(Protocol::Http, asked, alpn),
        _ => Found::OTHER,
    }
}

struct Frame {
    len: usize,
    kind: u8,
    flags: u8,
}

impl Frame {
    fn read(stream: &[u8], at: usize) -> Option<Self> {
        let header: &[u8; FRAME_HEADER] = stream.get(at..at.checked_add(FRAME_HEADER)?)?.try_into().ok()?;
        let [l0, l1, l2, kind, flags, _, _, _, _] = *header;
        Some(Self { len: u32::from_be_bytes([0, l0, l1, l2]) as usize, kind, flags })
    }
}

/// The part of the header block in the frame that stands at `at`. `None` when padding and priority do not fit in it.
fn piece(stream: &[u8], at: usize) -> Option<Piece> {
    let frame = Frame::read(stream, at)?;
    let mut start = at.checked_add(FRAME_HEADER)?;
    let next = start.checked_add(frame.len)?;
    let mut end = next;
    if frame.kind == HEADERS {
        if frame.flags & PADDED != 0 {
            end = end.checked_sub(usize::from(*stream.get(start)?))?;
            start = start.checked_add(1)?;
        }
        if frame.flags & PRIORITY != 0 {
            start = start.checked_add(PRIORITY_LEN)?;
        }
    }
    (start <= end).then_some(Piece { data: start..end, next })
}
