//! The Internet checksum: computed (RFC 1071) and updated (RFC 1624, equation 3).

use super::IPPROTO_TCP;
use super::addr::Addr;

/// The one's complement sum of `bytes` added to `sum`, not folded. An odd last octet counts as its high half.
#[inline]
pub fn sum(bytes: &[u8], mut sum: u64) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        if let Ok(word) = <[u8; 4]>::try_from(chunk) {
            sum += u64::from(u32::from_be_bytes(word));
        }
    }
    match *chunks.remainder() {
        [a] => sum + u64::from(u16::from_be_bytes([a, 0])),
        [a, b] => sum + u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => sum + u64::from(u32::from_be_bytes([a, b, c, 0])),
        _ => sum,
    }
}

/// The same sum for what has a fixed length of whole words, in whatever order of octets: only good for [`is_right`]
/// (RFC 1071 section 2, B).
#[inline]
pub fn sum_of<const N: usize>(bytes: &[u8; N]) -> u64 {
    const { assert!(N.is_multiple_of(4)) };
    bytes.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Whether a sum folds to 0xffff, as it does where the checksum in it is right. The octets were not all zero.
#[inline]
pub const fn is_right(sum: u64) -> bool {
    sum.is_multiple_of(0xffff)
}

/// Folds an accumulated sum to 16 bits (not complemented).
#[inline]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The sum of TCP's pseudo header (RFC 9293 section 3.1; RFC 8200 section 8.1), not folded.
#[inline]
pub fn pseudo(src: &Addr, dst: &Addr, tcp_len: usize) -> u64 {
    pseudo_of(IPPROTO_TCP, src, dst, tcp_len)
}

/// As [`pseudo`], for any protocol.
#[inline]
pub fn pseudo_of(protocol: u8, src: &Addr, dst: &Addr, len: usize) -> u64 {
    let addresses = match (src.is_v4(), dst.is_v4()) {
        (true, true) => {
            let tail = |a: &Addr| a.0.last_chunk::<4>().map_or(0, |b| u64::from(u32::from_be_bytes(*b)));
            tail(src) + tail(dst)
        }
        _ => sum(&dst.0, sum(&src.0, 0)),
    };
    addresses + u64::from(protocol) + len as u64
}

/// A checksum field after the 16-bit word `old` in its data became `new` (RFC 1624: HC' = ~(~HC + ~m + m')).
#[inline]
pub const fn update(field: u16, old: u16, new: u16) -> u16 {
    !fold(!field as u64 + !old as u64 + new as u64)
}

/// As [`update`], for a 32-bit word on an even offset.
#[inline]
pub const fn update32(field: u16, old: u32, new: u32) -> u16 {
    let removed = (!old >> 16) as u64 + (!old & 0xffff) as u64;
    !fold(!field as u64 + removed + (new >> 16) as u64 + (new & 0xffff) as u64)
}

/// What a number of edits do to one checksum, collected to be written once (RFC 1624, equation 3). A checksum that was
/// right stays right, and one that was wrong stays wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    pub const NONE: Self = Self(0);

    /// A 16-bit word became another.
    #[inline]
    pub const fn of_u16(old: u16, new: u16) -> Self {
        if old == new {
            return Self::NONE;
        }
        Self(!old as u64 + new as u64)
    }

    /// As [`Change::of_u16`], for a 32-bit word on an even offset.
    #[inline]
    pub const fn of_u32(old: u32, new: u32) -> Self {
        if old == new {
            return Self::NONE;
        }
        Self((!old >> 16) as u64 + (!old & 0xffff) as u64 + (new >> 16) as u64 + (new & 0xffff) as u64)
    }

    /// Octets from an even offset on became others, of the same number or with both numbers even.
    #[inline]
    pub fn of(old: &[u8], new: &[u8]) -> Self {
        if old == new {
            return Self::NONE;
        }
        Self(u64::from(!fold(sum(old, 0))) + u64::from(fold(sum(new, 0))))
    }

    /// The checksum field after these edits.
    #[inline]
    pub const fn apply(self, field: u16) -> u16 {
        if self.0 == 0 {
            return field;
        }
        !fold(!field as u64 + self.0)
    }
}

impl std::ops::Add for Change {
    type Output = Self;
    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for Change {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_after_edit_equals_recomputation() {
        let mut data = *b"weir holds no water back, only bytes it is asked about";
        let before = !fold(sum(&data, 0));
        let old = u16::from_be_bytes([data[10], data[11]]);
        data[10] = 0xde;
        data[11] = 0xad;
        assert_eq!(update(before, old, 0xdead), !fold(sum(&data, 0)));
        let middle = !fold(sum(&data, 0));
        let old = u32::from_be_bytes([data[4], data[5], data[6], data[7]]);
        data[4..8].copy_from_slice(&0x0102_fffe_u32.to_be_bytes());
        assert_eq!(update32(middle, old, 0x0102_fffe), !fold(sum(&data, 0)));
    }

    #[test]
    fn sum_odd_lengths_match_rfc_1071() {
        for len in 0..9 {
            let data: Vec<u8> = (1..=len).collect();
            let mut padded = data.clone();
            if padded.len() % 2 == 1 {
                padded.push(0);
            }
            let slow: u64 = padded.chunks(2).map(|c| u64::from(u16::from_be_bytes([c[0], c[1]]))).sum();
            assert_eq!(fold(sum(&data, 0)), fold(slow), "length {len}");
        }
    }
}
