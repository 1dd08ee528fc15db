//! The mirror of dataplane/bpf/maps.h: what the program and user space agree on, byte for byte.
//!
//! The sizes here are asserted against the header's (which asserts its own), and `Steering::load` compares them with
//! those of the maps that the kernel made. The express lane's part is in express/layout.rs.

use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of this layout; part of the names of pins.
pub const LAYOUT: u32 = 10;
/// The layout since which the lane's devices and next hops are as they are; part of the names of their pins.
pub const WAYS_LAYOUT: u32 = 8;
/// Ports of a box.
pub const MAX_PORTS: u32 = 32;
/// Queues of a port.
pub const MAX_QUEUES: u32 = 64;
/// Ports and VLANs of them; these are numbered from [`MAX_PORTS`] on.
pub const MAX_LINKS: u32 = 255;

/// Slots of the map `config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Config {
    Enabled = 0,
    Heartbeat,
    Limit,
    Closed,
    Generation,
    RelayMask,
    RelayMask1,
    Cookies,
    CookiesAlways,
    CookiesAlways1,
    CookiesAuto,
    CookiesAuto1,
    CookiesRedirected,
    Doubt,
    Translated,
    Translated1,
    Express,
}

/// Slots of the map `syns`: what could be answered, and, by port, what was.
pub(super) const SYNS_SEEN: u32 = 0;
pub(super) const SYNS_ANSWERED: u32 = 1;

/// Entries of the map `cookies`: a period's is at its number modulo this.
pub(super) const COOKIE_KEYS: u64 = 2;

/// A byte-for-byte key of an address: IPv4 as ::ffff:a.b.c.d, network order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Address(pub [u8; 16]);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.0).to_canonical()
    }
}

/// A flow: its two endpoints, the lower (address, then port, as byte strings) first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FlowKey {
    pub low: Address,
    pub high: Address,
    pub low_port: [u8; 2],
    pub high_port: [u8; 2],
}

impl FlowKey {
    /// The key of the flow between two endpoints, in any order.
    pub fn new(a: SocketAddr, b: SocketAddr) -> Self {
        let end = |of: SocketAddr| (Address::from(of.ip()), of.port().to_be_bytes());
        let (low, high) = if end(a) <= end(b) { (end(a), end(b)) } else { (end(b), end(a)) };
        Self { low: low.0, high: high.0, low_port: low.1, high_port: high.1 }
    }

    /// The endpoints, the lower one first.
    pub fn endpoints(&self) -> (SocketAddr, SocketAddr) {
        let end = |address: Address, port: [u8; 2]| SocketAddr::new(address.into(), u16::from_be_bytes(port));
        (end(self.low, self.low_port), end(self.high, self.high_port))
    }
}

/// What the program notes of a flow that was given to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Flow {
    pub last_seen: u64,
    pub fin_from_low: u8,
    pub fin_from_high: u8,
    pub rst: u8,
    pub went_on: u8,
    pub reserved: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Prefix4 {
    pub length: u32,
    pub bytes: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Prefix6 {
    pub length: u32,
    pub bytes: [u8; 16],
}

/// The tags of a VLAN of a device: EtherTypes as in the frame, and numbers; an inner one of zeros is none. All zeros: the device has
/// VLANs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct VlanKey {
    pub ifindex: u32,
    pub outer: [u8; 2],
    pub outer_id: u16,
    pub inner: [u8; 2],
    pub inner_id: u16,
}

/// A VLAN: its number, and the kernel's sub-interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct VlanValue {
    pub link: u32,
    pub ifindex: u32,
}

/// The endpoint of a pool's server; with port 0 its address, for what has no ports.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct PoolKey {
    pub address: Address,
    pub port: [u8; 2],
}

/// The gateway is the source of connections to the server.
pub(super) const POOL_GATEWAY: u32 = 1;
/// The entry is of the address.
pub(super) const POOL_ADDRESS: u32 = 2;

/// A pool's server: what of it, and the ports that the gateway connects from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PoolValue {
    pub flags: u32,
    pub first: u16,
    pub last: u16,
}

/// What cookies of one period are made with, and what is promised with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Cookies {
    pub period: u64,
    pub key: [u64; 2],
    pub clock: [u64; 2],
    pub mss4: u16,
    pub mss6: u16,
    pub window: u16,
    pub reserved: u16,
}

/// One bit per intercept, for both generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Bits {
    pub of: [u64; 2],
}

const _: () = {
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<FlowKey>() == 36);
    assert!(offset_of!(FlowKey, high) == 16);
    assert!(offset_of!(FlowKey, low_port) == 32);
    assert!(offset_of!(FlowKey, high_port) == 34);
    assert!(size_of::<Flow>() == 16);
    assert!(offset_of!(Flow, fin_from_low) == 8);
    assert!(offset_of!(Flow, fin_from_high) == 9);
    assert!(offset_of!(Flow, rst) == 10);
    assert!(offset_of!(Flow, went_on) == 11);
    assert!(size_of::<PoolKey>() == 18);
    assert!(offset_of!(PoolKey, port) == 16);
    assert!(size_of::<PoolValue>() == 8);
    assert!(offset_of!(PoolValue, first) == 4);
    assert!(offset_of!(PoolValue, last) == 6);
    assert!(size_of::<Cookies>() == 48);
    assert!(offset_of!(Cookies, clock) == 24);
    assert!(offset_of!(Cookies, window) == 44);
    assert!(size_of::<Prefix4>() == 8);
    assert!(offset_of!(Prefix4, bytes) == 4);
    assert!(size_of::<Prefix6>() == 20);
    assert!(offset_of!(Prefix6, bytes) == 4);
    assert!(size_of::<VlanKey>() == 12);
    assert!(offset_of!(VlanKey, inner) == 8);
    assert!(size_of::<VlanValue>() == 8);
    assert!(size_of::<Bits>() == 16);
};

#[cfg(test)]
mod tests {
    use super::super::express::layout as express;
    use super::FlowKey;

    #[test]
    fn key_of_both_directions_is_one() {
        for (a, b) in [
            ("10.1.0.2:40000", "192.0.2.10:443"),
            ("10.1.0.2:443", "10.1.0.2:40000"),
            ("[fd00::2]:40000", "[2001:db8::10]:443"),
        ] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(FlowKey::new(a, b), FlowKey::new(b, a));
            assert_eq!(FlowKey::new(a, b).endpoints(), if a < b { (a, b) } else { (b, a) });
        }
    }

    /// Every name of the header's enums and every number of its constants, so that the two files cannot drift apart.
    #[test]
    fn header_and_mirror_agree() {
        let header = include_str!("../../../bpf/maps.h");
        for (name, value) in [
            ("WEIR_LAYOUT", super::LAYOUT),
            ("WEIR_WAYS_LAYOUT", super::WAYS_LAYOUT),
            ("WEIR_MAX_PORTS", super::MAX_PORTS),
            ("WEIR_MAX_QUEUES", super::MAX_QUEUES),
            ("WEIR_MAX_LINKS", super::MAX_LINKS),
            ("WEIR_POOL_GATEWAY", super::POOL_GATEWAY),
            ("WEIR_POOL_ADDRESS", super::POOL_ADDRESS),
            ("WEIR_COOKIE_KEYS", super::COOKIE_KEYS as u32),
            ("WEIR_EXPRESS_HOPS", express::HOPS),
            ("WEIR_EXPRESS_LINKS", express::LINKS),
            ("WEIR_EXPRESS_STANDBY", u32::from(express::STANDBY)),
            ("WEIR_EXPRESS_STRAY", u32::from(express::STRAY)),
            ("WEIR_EXPRESS_CHANGES", u32::from(express::CHANGES)),
            ("WEIR_EXPRESS_SAID", u32::from(express::SAID)),
            ("WEIR_EXPRESS_UNFINISHED_SUMS", u32::from(express::UNFINISHED_SUMS)),
            ("WEIR_EXPRESS_TO_CLIENT", u32::from(express::TO_CLIENT)),
            ("WEIR_EXPRESS_READDRESS", u32::from(express::READDRESS)),
            ("WEIR_EXPRESS_TIMESTAMPS", u32::from(express::TIMESTAMPS)),
            ("WEIR_EXPRESS_SACK_MAP", u32::from(express::SACK_MAP)),
            ("WEIR_EXPRESS_SACK_REMOVE", u32::from(express::SACK_REMOVE)),
            ("WEIR_EXPRESS_CLEAR_ECN", u32::from(express::CLEAR_ECN)),
            ("WEIR_EXPRESS_TRANSLATED", u32::from(express::TRANSLATED)),
            ("WEIR_EXPRESS_VOID", u32::from(express::VOID)),
        ] {
            let line = format!("#define {name} {value}");
            let is =
                |text: &str| text.strip_prefix(&line).is_some_and(|rest| !rest.starts_with(char::is_numeric));
            assert!(header.lines().any(is), "{name}");
        }
        let outcomes = names(header, "enum weir_outcome {");
        let ours =
            super::super::Outcome::ALL.map(|outcome| format!("WEIR_{}", outcome.name().to_uppercase()));
        assert_eq!(outcomes[..outcomes.len() - 1], ours, "the last is the count");
        let slots = names(header, "enum weir_config {");
        assert_eq!(slots[super::Config::RelayMask as usize], "WEIR_CONFIG_RELAY_MASK");
        assert_eq!(slots[super::Config::RelayMask1 as usize], "WEIR_CONFIG_RELAY_MASK_1");
        assert_eq!(slots[super::Config::Cookies as usize], "WEIR_CONFIG_COOKIES");
        assert_eq!(slots[super::Config::CookiesAlways as usize], "WEIR_CONFIG_COOKIES_ALWAYS");
        assert_eq!(slots[super::Config::CookiesAlways1 as usize], "WEIR_CONFIG_COOKIES_ALWAYS_1");
        assert_eq!(slots[super::Config::CookiesAuto as usize], "WEIR_CONFIG_COOKIES_AUTO");
        assert_eq!(slots[super::Config::CookiesAuto1 as usize], "WEIR_CONFIG_COOKIES_AUTO_1");
        assert_eq!(slots[super::Config::CookiesRedirected as usize], "WEIR_CONFIG_COOKIES_REDIRECTED");
        assert_eq!(slots[super::Config::Doubt as usize], "WEIR_CONFIG_DOUBT");
        assert_eq!(slots[super::Config::Translated as usize], "WEIR_CONFIG_TRANSLATED");
        assert_eq!(slots[super::Config::Translated1 as usize], "WEIR_CONFIG_TRANSLATED_1");
        assert_eq!(slots[super::Config::Express as usize], "WEIR_CONFIG_EXPRESS");
        assert_eq!(slots[super::Config::Heartbeat as usize], "WEIR_CONFIG_HEARTBEAT");
        assert_eq!(slots[super::Config::Limit as usize], "WEIR_CONFIG_LIMIT");
        assert_eq!(slots[super::Config::Closed as usize], "WEIR_CONFIG_CLOSED");
        assert_eq!(slots[super::Config::Generation as usize], "WEIR_CONFIG_GENERATION");
    }

    fn names(header: &str, start: &str) -> Vec<String> {
        let body = header.split_once(start).unwrap().1.split_once('}').unwrap().0;
        body.split('\n')
            .filter_map(|line| line.trim().split([',', ' ', '\t']).next())
            .filter(|name| name.starts_with("WEIR_"))
            .map(str::to_owned)
            .collect()
    }
}
