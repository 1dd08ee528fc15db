//! A message that lies in pieces of a stream: a handshake message in TLS records, a header block in HTTP/2 frames.

use std::ops::Range;

/// One piece: where its part of the message is, and where the header of the next piece stands.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) data: Range<usize>,
    pub(super) next: usize,
}

/// Finds the piece whose header stands at an offset of the stream; `None` when the header is not there in full or
/// is no header of a piece.
pub(super) type FindPiece = fn(&[u8], usize) -> Option<Piece>;

/// Reads a message through its pieces without putting them together. Every method gives `None` past the message's
/// end, or past the stream's.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    stream: &'a [u8],
    find: FindPiece,
    piece: Piece,
    /// Octets of the message that are still to be read.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// A message of `len` octets whose first piece's header stands at `header`.
    pub(super) fn new(stream: &'a [u8], header: usize, len: usize, find: FindPiece) -> Self {
        Self { stream, find, piece: Piece { data: 0..0, next: header }, left: len }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The next octets that lie together: at least one, at most `most`.
    fn chunk(&mut self, most: usize) -> Option<&'a [u8]> {
        while self.piece.data.is_empty() {
            self.piece = (self.find)(self.stream, self.piece.next)?;
        }
        let len = self.piece.data.len().min(most).min(self.left);
        let end = self.piece.data.start.saturating_add(len);
        let chunk = self.stream.get(self.piece.data.start..end)?;
        self.piece.data.start = end;
        self.left = self.left.saturating_sub(len);
        (!chunk.is_empty()).then_some(chunk)
    }

    pub(super) fn skip(&mut self, len: usize) -> Option<()> {
        let mut left = len;
        while left > 0 {
            left = left.saturating_sub(self.chunk(left)?.len());
        }
        Some(())
    }

    pub(super) fn copy(&mut self, mut room: &mut [u8]) -> Option<()> {
        while !room.is_empty() {
            let chunk = self.chunk(room.len())?;
            let (head, tail) = room.split_at_mut_checked(chunk.len())?;
            head.copy_from_slice(chunk);
            room = tail;
        }
        Some(())
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.chunk(1)?.first().copied()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// Three octets, as lengths of handshake messages are.
    pub(super) fn u24(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes([0, self.u8()?, self.u8()?, self.u8()?]))
    }

    /// The next `len` octets as a message of their own; this one goes on behind them.
    pub(super) fn take(&mut self, len: usize) -> Option<Self> {
        let mut part = self.clone();
        self.skip(len)?;
        part.left = len;
        Some(part)
    }
}
