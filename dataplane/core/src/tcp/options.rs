//! TCP options of a SYN (IANA "TCP Option Kind Numbers").

use super::seq::Seq;

const END: u8 = 0;
pub(crate) const NOP: u8 = 1;
pub(crate) const MSS: u8 = 2;
pub(crate) const WINDOW_SCALE: u8 = 3;
pub(crate) const SACK_PERMITTED: u8 = 4;
pub(crate) const TIMESTAMPS: u8 = 8;
const MD5: u8 = 19;
const AO: u8 = 29;
const MPTCP: u8 = 30;
const FAST_OPEN: u8 = 34;
const EXPERIMENT_1: u8 = 253;
const EXPERIMENT_2: u8 = 254;
/// RFC 7413's experiment identifier of Fast Open.
const FAST_OPEN_EXID: [u8; 2] = [0xf9, 0x89];

/// One option: where it stands in the options' octets, its kind and its whole length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption {
    pub at: usize,
    pub kind: u8,
    pub len: usize,
}

/// Walks the options; stops at the end-of-list option and at the first one whose length is impossible.
pub fn walk(options: &[u8]) -> impl Iterator<Item = TcpOption> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            match *options.get(at)? {
                END => return None,
                NOP => at += 1,
                kind => {
                    let len = usize::from(*options.get(at + 1)?);
                    if len < 2 || at + len > options.len() {
                        return None;
                    }
                    let option = TcpOption { at, kind, len };
                    at += len;
                    return Some(option);
                }
            }
        }
    })
}

/// TSval and TSecr of the timestamps option (RFC 7323 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    pub val: u32,
    pub ecr: u32,
}

/// What the options of a SYN or SYN-ACK say, as far as a connection that passes through needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Shift count of the window scale option, at most 14 (RFC 7323 section 2.3).
    pub window_scale: Option<u8>,
    /// TCP-MD5 or TCP-AO: the segment is signed.
    pub md5: bool,
    pub ao: bool,
    /// An option that would let data pass beside the inspection: MPTCP or a Fast Open cookie.
    pub strip: bool,
}

impl SynOptions {
    pub fn read(options: &[u8]) -> Self {
        let mut found = Self::default();
        for option in walk(options) {
            match option.kind {
                WINDOW_SCALE => found.window_scale = options.get(option.at + 2).map(|s| (*s).min(14)),
                MD5 => found.md5 = true,
                AO => found.ao = true,
                _ if goes_around(options, option) => found.strip = true,
                _ => {}
            }
        }
        found
    }
}

/// Whether this option of a SYN lets data pass beside the inspection.
pub fn goes_around(options: &[u8], option: TcpOption) -> bool {
    match option.kind {
        MPTCP | FAST_OPEN => true,
        EXPERIMENT_1 | EXPERIMENT_2 => {
            options.get(option.at + 2..option.at + 4).is_some_and(|id| id == FAST_OPEN_EXID)
        }
        _ => false,
    }
}

/// Overwrites such options with NOPs. The caller mends the checksum.
pub fn strip(options: &mut [u8]) {
    // An option's bytes are collected before they are overwritten; 40 octets hold at most 20 options.
    let mut found = [None; 20];
    for (slot, option) in found.iter_mut().zip(walk(options).filter(|o| goes_around(options, *o))) {
        *slot = Some(option);
    }
    for option in found.into_iter().flatten() {
        if let Some(bytes) = options.get_mut(option.at..option.at + option.len) {
            bytes.fill(NOP);
        }
    }
}

/// The window a segment offers: its right edge.
#[inline]
pub fn right_edge(ack: Seq, window: u16, shift: u8) -> Seq {
    ack.add(u32::from(window) << shift.min(14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walk_stops_at_impossible_lengths() {
        for bad in [&[2_u8, 0][..], &[2, 1], &[2, 5, 0], &[3], &[30, 255]] {
            assert_eq!(walk(bad).count(), 0, "{bad:?}");
        }
        let good = [2, 4, 5, 0xb4, 1, 3, 3, 7, 0, 8, 10];
        assert_eq!(walk(&good).map(|o| o.kind).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(SynOptions::read(&good).window_scale, Some(7));
    }

    #[test]
    fn strip_mptcp_and_fast_open_leaves_the_rest() {
        let mut options =
            vec![2, 4, 5, 0xb4, 30, 4, 0, 1, 34, 2, 254, 4, 0xf9, 0x89, 254, 4, 1, 2, 3, 3, 14, 1];
        assert!(SynOptions::read(&options).strip);
        strip(&mut options);
        assert_eq!(options, [2, 4, 5, 0xb4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 254, 4, 1, 2, 3, 3, 14, 1]);
        assert!(!SynOptions::read(&options).strip);
    }
}
