//! What the lists of a million entries that are measured consist of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_control::lists::idn;

/// Of each list.
pub const ENTRIES: u32 = 1_000_000;

/// Numbers that look random, each once (a permutation of 32 bits).
pub fn scramble(i: u32) -> u32 {
    let x = (i ^ (i >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The i-th name: of 15 to 27 octets, like those of blocklists.
pub fn name(i: u32) -> String {
    let x = scramble(i);
    let middle = ["track", "ads", "metrics", "cdn-edge"][(x % 4) as usize];
    format!("{middle}{x:x}.host{}.example", x % 977)
}

/// The first address of the i-th IPv4 prefix: one of 24 bits.
pub fn v4(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(scramble(i) & !0xff)
}

/// The first address of the i-th IPv6 prefix: one of 64 bits.
pub fn v6(i: u32) -> Ipv6Addr {
    Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(scramble(i)) << 64))
}

/// A list that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Lines of a hosts file.
    Names,
    /// `*.name`.
    Wildcards,
    /// Lines of hosts files of both families, plain names, both kinds of wildcards, international names, and comments.
    Mixed,
    V4,
    V6,
    /// Prefixes of both families, and comments of both kinds.
    Prefixes,
}

impl List {
    pub const ALL: [Self; 6] =
        [Self::Names, Self::Wildcards, Self::Mixed, Self::V4, Self::V6, Self::Prefixes];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Wildcards => "wildcards",
            Self::Mixed => "mixed",
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Prefixes => "prefixes",
        }
    }

    pub const fn is_of_prefixes(self) -> bool {
        matches!(self, Self::V4 | Self::V6 | Self::Prefixes)
    }

    /// The lines of the i-th entry: one, and in lists that people keep a comment before some.
    pub fn lines(self, i: u32) -> String {
        match self {
            Self::Names => format!("0.0.0.0 {}\n", name(i)),
            Self::Wildcards => format!("*.{}\n", name(i)),
            Self::V4 => format!("{}/24\n", v4(i)),
            Self::V6 => format!("{}/64\n", v6(i)),
            Self::Mixed => mixed(i),
            Self::Prefixes => match i % 16 {
                0 => format!("; {i} and more\n{}/24  # all of it\n", v4(i)),
                1 => format!("\n{}/64 ; all of it\n", v6(i)),
                even if even % 2 == 0 => format!("{}/24\n", v4(i)),
                _ => format!("{}/64\n", v6(i)),
            },
        }
    }

    /// What a client asks for that the i-th entry takes.
    pub fn host(self, i: u32) -> String {
        let name = name(i);
        match (self, i % 20) {
            (Self::Wildcards, _) | (Self::Mixed, 14..=16) => format!("www.{name}"),
            (Self::Mixed, 19) => idn::to_ascii(&international(i)).map_or(name, |ascii| ascii.into_owned()),
            _ => name,
        }
    }

    /// An address that the i-th prefix has.
    pub fn address(self, i: u32) -> IpAddr {
        match self {
            Self::V6 => v6(i).into(),
            Self::Prefixes if i % 2 == 1 => v6(i).into(),
            _ => v4(i).into(),
        }
    }
}

/// Blocklists come as hosts files most of the time; few of their names are international.
fn mixed(i: u32) -> String {
    let name = name(i);
    match i % 20 {
        0 => format!("# {i} and more\n\n0.0.0.0 {name}\n"),
        1..=7 => format!("0.0.0.0 {name}\n"),
        8 | 9 => format!(":: {name}  # by IPv6\n"),
        10..=13 => format!("{name}\n"),
        14..=16 => format!("*.{name}\n"),
        17 | 18 => format!(".{name}\n"),
        _ => international(i) + "\n",
    }
}

fn international(i: u32) -> String {
    format!("b\u{fc}cher-{}", name(i))
}

#[cfg(test)]
mod tests {
    use weir_control::lists::{self, Content, Kind};

    use super::*;

    #[test]
    fn every_entry_of_every_list_takes_what_is_asked_for_and_the_next_is_not_there() {
        const MOST: u32 = 2000;
        for list in List::ALL {
            let path =
                std::env::temp_dir().join(format!("weir-entries-{}-{}", std::process::id(), list.name()));
            std::fs::write(&path, (0..MOST).map(|i| list.lines(i)).collect::<String>()).unwrap();
            let kind = if list.is_of_prefixes() { Kind::Prefixes } else { Kind::Names };
            let read = lists::load(&path, kind).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!((read.content.entries(), read.bad.count), (MOST as usize, 0), "{list:?}");
            let has = |i| match &read.content {
                Content::Names(names) => names.contains(&list.host(i)),
                Content::Prefixes(prefixes) => prefixes.contains(list.address(i)),
            };
            assert!((0..MOST).all(has) && !(MOST..2 * MOST).any(has), "{list:?}");
        }
    }
}
