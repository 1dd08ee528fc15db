//! The addresses by which the gateway calls itself when it opens connections of its own, from a dump of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

/// The first global IPv4 address of a device that is not secondary: what the kernel takes (inet_select_addr), where a
/// route does not say.
pub fn primary_v4(addresses: &[AddressMessage], ifindex: u32) -> Option<Ipv4Addr> {
    let global = |m: &&AddressMessage| m.header.index == ifindex && m.header.scope == AddressScope::Universe;
    let primary = |m: &&AddressMessage| !m.header.flags.contains(AddressHeaderFlags::Secondary);
    let addresses = addresses.iter().filter(global).filter(primary);
    addresses.filter_map(local).find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

/// The first global IPv6 address of a device that is neither temporary nor still being checked for duplicates; one that is
/// deprecated only where there is no other (RFC 6724 section 5, rules 3 and 7, the latter turned round: servers and their
/// logs should know the gateway again).
pub fn primary_v6(addresses: &[AddressMessage], ifindex: u32) -> Option<Ipv6Addr> {
    // IFA_F_TEMPORARY is the same bit as IFA_F_SECONDARY.
    let unfit = AddressFlags::Secondary | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let global = |m: &&AddressMessage| m.header.index == ifindex && m.header.scope == AddressScope::Universe;
    let fit = addresses.iter().filter(global).filter_map(|message| {
        let flags = flags(message);
        match local(message)? {
            IpAddr::V6(address) if !flags.intersects(unfit) => {
                Some((flags.contains(AddressFlags::Deprecated), address))
            }
            _ => None,
        }
    });
    // The first of the least: those that are not deprecated.
    fit.min_by_key(|(deprecated, _)| *deprecated).map(|(_, address)| address)
}

/// The device's own address: on a point-to-point link IFA_ADDRESS is the other end's.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    of(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None })
        .or_else(|| of(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None }))
}

/// All of the flags; the header has the first eight.
fn flags(message: &AddressMessage) -> AddressFlags {
    let header = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let all = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.map_or(header, |all| all | header)
}
