//! TCP options (IANA "TCP Option Kind Numbers").

use super::seq::Seq;
use crate::wire::{get_u16, get_u32};

const END: u8 = 0;
pub const NOP: u8 = 1;
pub const MSS: u8 = 2;
pub const WINDOW_SCALE: u8 = 3;
pub const SACK_PERMITTED: u8 = 4;
/// Selective acknowledgment blocks (RFC 2018 section 3).
pub const SACK: u8 = 5;
/// Timestamps (RFC 7323 section 3.2).
pub const TIMESTAMPS: u8 = 8;
/// Length of the timestamps option.
pub const TIMESTAMPS_LEN: usize = 10;
/// How it begins in the layout of RFC 7323 appendix A: two NOPs, kind, length.
pub const ALIGNED_TIMESTAMPS: [u8; 4] = [NOP, NOP, TIMESTAMPS, TIMESTAMPS_LEN as u8];
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

/// The two values of a timestamps option (RFC 7323 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub val: u32,
    /// TSecr: the peer's TSval that is echoed; meaningful only with ACK.
    pub ecr: u32,
}

impl Timestamps {
    /// What the option that starts at `at` holds.
    fn at(options: &[u8], at: usize) -> Option<Self> {
        Some(Self { val: get_u32(options, at + 2)?, ecr: get_u32(options, at + 6)? })
    }
}

/// The timestamps among a segment's options; of several, the last, as the kernel's `tcp_parse_options` has it.
#[inline]
pub fn timestamps(options: &[u8]) -> Option<Timestamps> {
    // The layout of RFC 7323 appendix A, which nearly every segment has.
    if options.len() == 2 + TIMESTAMPS_LEN && options.starts_with(&ALIGNED_TIMESTAMPS) {
        return Timestamps::at(options, 2);
    }
    let found = walk(options).filter(|o| o.kind == TIMESTAMPS && o.len == TIMESTAMPS_LEN).last()?;
    Timestamps::at(options, found.at)
}

/// What the options of a SYN or SYN-ACK say, as far as a connection needs it. Of several of a kind, the last counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size (RFC 9293 section 3.7.1), in octets; 0 says nothing and is `None`.
    pub mss: Option<u16>,
    /// Shift count of the window scale option, at most 14 (RFC 7323 section 2.3).
    pub window_scale: Option<u8>,
    /// SACK-permitted (RFC 2018 section 2).
    pub sack: bool,
    pub timestamps: Option<Timestamps>,
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
                MSS if option.len == 4 => {
                    found.mss = get_u16(options, option.at + 2).filter(|mss| *mss != 0).or(found.mss);
                }
                SACK_PERMITTED if option.len == 2 => found.sack = true,
                TIMESTAMPS if option.len == TIMESTAMPS_LEN => {
                    found.timestamps = Timestamps::at(options, option.at);
                }
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

/// The most that a window is shifted by (RFC 7323 section 2.3).
pub const MAX_SHIFT: u8 = 14;

/// The window a segment offers: its right edge.
#[inline]
pub fn right_edge(ack: Seq, window: u16, shift: u8) -> Seq {
    ack.add(u32::from(window) << shift.min(MAX_SHIFT))
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

    #[test]
    fn syn_options_of_linux_are_all_read() {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0, 1, 3, 3, 7];
        let expected = SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack: true,
            timestamps: Some(Timestamps { val: 258, ecr: 0 }),
            ..SynOptions::default()
        };
        assert_eq!(SynOptions::read(&options), expected);
    }

    #[test]
    fn syn_options_of_wrong_length_say_nothing() {
        let options = [2, 3, 5, 4, 3, 0, 8, 9, 0, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0];
        assert_eq!(SynOptions::read(&options), SynOptions::default());
        assert_eq!(timestamps(&options), None);
    }

    #[test]
    fn timestamps_are_found_in_any_layout() {
        let option = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        let expected = Some(Timestamps { val: 0x0102_0304, ecr: 0x0506_0708 });
        let sack = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        for (before, after) in
            [(&[1, 1][..], &[][..]), (&[], &[1, 1]), (&[1], &[0]), (&sack, &[]), (&[1, 1], &sack)]
        {
            let options = [before, &option, after].concat();
            assert_eq!(timestamps(&options), expected, "{options:?}");
        }
        for cut in 0..12 {
            assert_eq!(timestamps(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8][..cut]), None);
        }
        assert_eq!(timestamps(&[0, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]), None);
    }
}
