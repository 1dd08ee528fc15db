//! PROXY protocol headers, which tell a server who its client is (HAProxy's `proxy-protocol.txt`, versions 1 and 2).
//!
//! The verdict `send` writes one before the client's first octet, where the pool says so. Both versions name the client
//! and the destination that it asked for. Version 2 carries the host name as PP2_TYPE_AUTHORITY and a protocol name as
//! PP2_TYPE_ALPN (section 2.2), and no checksum.

use std::io::Write;
use std::net::Ipv6Addr;

use crate::policy::ProxyVersion;
use crate::wire::addr::Endpoint;

/// Octets of the longest header: version 2 for IPv6 with two TLVs of [`MAX_TLV`].
pub const MAX_PROXY_HEADER: usize = V2_SIGNATURE.len() + 4 + V2_IPV6_ADDRESSES + 2 * (TLV_HEADER + MAX_TLV);

/// Longest value of a TLV here: a name of DNS or of ALPN is no longer.
const MAX_TLV: usize = 255;
/// Type and length.
const TLV_HEADER: usize = 3;
/// Section 2.2.1.
const PP2_TYPE_ALPN: u8 = 0x01;
/// Section 2.2.2.
const PP2_TYPE_AUTHORITY: u8 = 0x02;

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const V2_PROXY: u8 = 0x21;
/// AF_INET, STREAM.
const V2_TCP4: u8 = 0x11;
/// AF_INET6, STREAM.
const V2_TCP6: u8 = 0x21;
/// Two addresses and two ports.
const V2_IPV4_ADDRESSES: usize = 12;
const V2_IPV6_ADDRESSES: usize = 36;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader<'a> {
    pub version: ProxyVersion,
    pub client: Endpoint,
    /// Where the client wanted to go.
    pub destination: Endpoint,
    /// The name that the client asked for. Version 1 has no place for it.
    pub host: Option<&'a str>,
    /// One protocol name of ALPN (RFC 7301), without its length octet. Version 1 has no place for it.
    pub alpn: Option<&'a [u8]>,
}

impl ProxyHeader<'_> {
    /// Writes the header and gives its length in octets; `None` when it does not fit. Of version 2, a name that is empty,
    /// longer than 255 octets or beyond the room left is left out, the host name after the other.
    ///
    /// An IPv4 endpoint beside an IPv6 one is written in IPv6 form.
    pub fn write(&self, into: &mut [u8]) -> Option<usize> {
        match self.version {
            ProxyVersion::V1 => self.write_v1(into),
            ProxyVersion::V2 => self.write_v2(into),
        }
    }

    fn is_v4(&self) -> bool {
        self.client.addr.is_v4() && self.destination.addr.is_v4()
    }

    /// Section 2.1.
    fn write_v1(&self, into: &mut [u8]) -> Option<usize> {
        let room = into.len();
        let mut rest = into;
        let (client, destination) = (self.client, self.destination);
        let ports = format_args!("{} {}\r\n", client.port, destination.port);
        if self.is_v4() {
            write!(rest, "PROXY TCP4 {} {} {ports}", client.addr.ip(), destination.addr.ip()).ok()?;
        } else {
            let (from, to) = (Ipv6Addr::from(client.addr.0), Ipv6Addr::from(destination.addr.0));
            write!(rest, "PROXY TCP6 {from} {to} {ports}").ok()?;
        }
        Some(room - rest.len())
    }

    /// Section 2.2.
    fn write_v2(&self, into: &mut [u8]) -> Option<usize> {
        let mut header = Written { into, len: 0 };
        header.put(&V2_SIGNATURE)?;
        let (from, to) = (self.client.addr.0, self.destination.addr.0);
        let (family, octets) =
            if self.is_v4() { (V2_TCP4, V2_IPV4_ADDRESSES) } else { (V2_TCP6, V2_IPV6_ADDRESSES) };
        header.put(&[V2_PROXY, family, 0, 0])?;
        let counted = header.len;
        if self.is_v4() {
            // The last four octets of the IPv4-mapped form.
            header.put(from.last_chunk::<4>()?)?;
            header.put(to.last_chunk::<4>()?)?;
        } else {
            header.put(&from)?;
            header.put(&to)?;
        }
        header.put(&self.client.port.to_be_bytes())?;
        header.put(&self.destination.port.to_be_bytes())?;
        debug_assert_eq!(header.len, counted + octets);
        header.put_tlv(PP2_TYPE_ALPN, self.alpn);
        header.put_tlv(PP2_TYPE_AUTHORITY, self.host.map(str::as_bytes));
        let length = u16::try_from(header.len - counted).ok()?;
        header.into.get_mut(counted - 2..counted)?.copy_from_slice(&length.to_be_bytes());
        Some(header.len)
    }
}

/// The octets written so far.
struct Written<'b> {
    into: &'b mut [u8],
    len: usize,
}

impl Written<'_> {
    fn put(&mut self, octets: &[u8]) -> Option<()> {
        let end = self.len + octets.len();
        self.into.get_mut(self.len..end)?.copy_from_slice(octets);
        self.len = end;
        Some(())
    }

    /// Writes a TLV whole or not at all.
    fn put_tlv(&mut self, kind: u8, value: Option<&[u8]>) {
        let Some(value) = value.filter(|value| (1..=MAX_TLV).contains(&value.len())) else { return };
        if self.into.len() - self.len >= TLV_HEADER + value.len() {
            let [high, low] = (value.len() as u16).to_be_bytes();
            let _ = self.put(&[kind, high, low]).and_then(|()| self.put(value));
        }
    }
}

#[cfg(test)]
mod tests;
