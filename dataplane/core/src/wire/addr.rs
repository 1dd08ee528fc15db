//! Addresses and endpoints in one form for both families: IPv4 as v4-mapped IPv6 (RFC 4291 section 2.5.5.2).

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address of either family, 16 octets.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Addr(pub [u8; 16]);

/// Compared and hashed as the number that it is: each packet does so.
impl Ord for Addr {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for Addr {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Addr {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

impl Addr {
    /// From the four octets of an IPv4 address.
    #[inline]
    pub const fn v4(octets: [u8; 4]) -> Self {
        // Made as two words, not as sixteen octets.
        Self(((u32::from_le_bytes(octets) as u128) << 96 | 0xffff << 80).to_le_bytes())
    }

    #[inline]
    pub const fn is_v4(&self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }

    /// Whether no packet on a wire may come from this address (RFC 1812 section 5.3.7; RFC 4291 sections 2.5 and 2.7): what
    /// the kernel's `ip_route_input_slow`, `ip6_rcv_core` and `ip6_forward` do not forward either.
    #[inline]
    pub const fn is_martian(&self) -> bool {
        let bits = u128::from_be_bytes(self.0);
        if bits >> 32 == 0xffff {
            return is_martian_v4(bits as u32);
        }
        // Unspecified, loopback; multicast, link-local.
        bits <= 1 || bits >> 120 == 0xff || bits >> 118 == 0xfe80 >> 6
    }

    /// Whether this is an address of the kinds that nearly all unicast is of: global unicast or unique local (RFC 4291 section
    /// 2.5.4, RFC 4193). None of them is a martian; who says no need not be one.
    #[inline]
    pub const fn is_unicast_v6(&self) -> bool {
        let first = self.0[0];
        first & 0xe0 == 0x20 || first & 0xfe == 0xfc
    }

    #[inline]
    pub fn ip(&self) -> IpAddr {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            o => Ipv6Addr::from(o).into(),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(a) => Self::v4(a.octets()),
            IpAddr::V6(a) => Self(a.octets()),
        }
    }
}

impl std::fmt::Debug for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.ip())
    }
}

/// As [`Addr::is_martian`], of an IPv4 address.
#[inline]
pub const fn is_martian_v4(bits: u32) -> bool {
    let net = bits >> 24;
    // This host, loopback, multicast; the limited broadcast.
    net == 0 || net == 127 || net >> 4 == 14 || bits == u32::MAX
}

/// An address and a TCP port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Endpoint {
    pub addr: Addr,
    pub port: u16,
}

impl Endpoint {
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.addr.ip(), self.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(s: SocketAddr) -> Self {
        Self { addr: s.ip().into(), port: s.port() }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.socket_addr())
    }
}
