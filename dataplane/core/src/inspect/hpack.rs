//! As much of HPACK (RFC 7541) as it takes to find `:authority` and `host` in a connection's first header block.
//!
//! The dynamic table is empty when that block begins. What the block itself adds is only counted: a later reference
//! to it is skipped while nothing with a name of ours was added, and makes the block unidentified otherwise.

use super::Asked;
use super::cursor::Cursor;

/// Indices of the static table (RFC 7541 appendix A).
const AUTHORITY: usize = 1;
const HOST: usize = 38;
const STATIC: usize = 61;
/// A host name, a colon and a port with room to spare; what is longer is no authority.
const MAX_VALUE: usize = 264;
/// `:authority`
const MAX_FIELD_NAME: usize = 10;

/// What the block asks for. `:authority` and `host` must agree (RFC 9113 section 8.3.1). `None` when the block is
/// malformed or cannot be read with certainty.
pub(super) fn authority(mut block: Cursor<'_>) -> Option<Asked> {
    let mut asked = Asked::Nothing;
    let mut table = Added::default();
    while block.left() > 0 {
        let first = block.u8()?;
        if first & 0x80 != 0 {
            let index = integer(&mut block, first, 7)?;
            // The static table has no value for either of the two.
            if table.is_ours(index)? {
                asked = asked.and(Asked::Unreadable);
            }
        } else if first & 0xe0 == 0x20 {
            let _size = integer(&mut block, first, 5)?;
        } else {
            let indexed = first & 0xc0 == 0x40;
            let index = integer(&mut block, first, if indexed { 6 } else { 4 })?;
            let ours = match index {
                0 => is_our_name(string(&mut block)?),
                index => table.is_ours(index)?,
            };
            let value = string(&mut block)?;
            if ours {
                asked = asked.and(value_of(value));
            }
            if indexed {
                table.count = table.count.saturating_add(1);
                table.ours |= ours;
            }
        }
    }
    Some(asked)
}

/// What the block has added to the dynamic table.
#[derive(Default)]
struct Added {
    count: usize,
    /// One of them has a name of ours.
    ours: bool,
}

impl Added {
    /// Whether an index refers to a name of ours; `None` for an index of nothing, and where it cannot be told.
    fn is_ours(&self, index: usize) -> Option<bool> {
        match index {
            AUTHORITY | HOST => Some(true),
            1..=STATIC => Some(false),
            _ if self.ours || index > STATIC.saturating_add(self.count) => None,
            0 => None,
            _ => Some(false),
        }
    }
}

/// An integer with a prefix of `bits` bits in `first` (RFC 7541 section 5.1), as far as four more octets reach.
fn integer(block: &mut Cursor<'_>, first: u8, bits: u32) -> Option<usize> {
    let mask = (1u8 << bits).wrapping_sub(1);
    let mut value = usize::from(first & mask);
    if value < usize::from(mask) {
        return Some(value);
    }
    for shift in [0u32, 7, 14, 21] {
        let octet = block.u8()?;
        value = value.checked_add(usize::from(octet & 0x7f) << shift)?;
        if octet & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string literal (RFC 7541 section 5.2), not yet decoded.
struct Literal<'a> {
    huffman: bool,
    bytes: Cursor<'a>,
}

fn string<'a>(block: &mut Cursor<'a>) -> Option<Literal<'a>> {
    let first = block.u8()?;
    let len = integer(block, first, 7)?;
    Some(Literal { huffman: first & 0x80 != 0, bytes: block.take(len)? })
}

impl Literal<'_> {
    /// Decodes into `room`; `None` when it does not fit or has characters that no host name has.
    fn decode(mut self, room: &mut [u8]) -> Option<&[u8]> {
        if !self.huffman {
            let text = room.get_mut(..self.bytes.left())?;
            self.bytes.copy(text)?;
            return Some(text);
        }
        let mut len = 0usize;
        // Bits not yet used, the last `pending` of them.
        let mut bits = 0u32;
        let mut pending = 0u32;
        while self.bytes.left() > 0 || pending >= SHORTEST {
            while pending <= 24 && self.bytes.left() > 0 {
                bits = bits << 8 | u32::from(self.bytes.u8()?);
                pending += 8;
            }
            let Some((symbol, used)) = symbol(bits, pending) else {
                break;
            };
            *room.get_mut(len)? = symbol;
            len += 1;
            pending = pending.saturating_sub(used);
        }
        // Padding is the beginning of the end-of-string code: less than eight ones.
        let padding = (1u32 << pending.min(31)).wrapping_sub(1);
        (self.bytes.left() == 0 && pending < 8 && bits & padding == padding).then_some(())?;
        room.get(..len)
    }
}

fn is_our_name(name: Literal<'_>) -> bool {
    let mut room = [0; MAX_FIELD_NAME];
    let name = name.decode(&mut room).unwrap_or_default();
    name.eq_ignore_ascii_case(b":authority") || name.eq_ignore_ascii_case(b"host")
}

fn value_of(value: Literal<'_>) -> Asked {
    let mut room = [0; MAX_VALUE];
    value.decode(&mut room).map_or(Asked::Unreadable, Asked::authority)
}

const SHORTEST: u32 = 5;

/// The Huffman code (RFC 7541 appendix B) is canonical: codes of one length are consecutive, in the order of their
/// symbols. One row a length: bits, first code, symbols. Longer codes belong to octets that no host name has.
const CODES: [(u32, u32, &[u8]); 8] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (10, 0x3f8, b"!\"()?"),
    (11, 0x7fa, b"'+|"),
    (12, 0xffa, b"#>"),
    (13, 0x1ff8, b"\0$@[]~"),
];

/// The symbol whose code begins the last `pending` of `bits`, and the code's length.
fn symbol(bits: u32, pending: u32) -> Option<(u8, u32)> {
    for (len, first, symbols) in CODES {
        let shift = pending.checked_sub(len)?;
        let code = (bits >> shift) & ((1 << len) - 1);
        let place = code.checked_sub(first)?;
        if let Some(symbol) = symbols.get(place as usize) {
            return Some((*symbol, len));
        }
    }
    None
}
