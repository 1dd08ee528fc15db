use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::fib::{Link, VlanLink, Vlans};
use crate::ids::{InterceptId, PortId, PortSet};
use crate::vlan::Vlan;

/// What the steering program does: longest prefix of the address, then three words and-ed.
fn as_the_program_does(table: &SteeringTable, from: PortId, server: IpAddr, port: u16) -> u64 {
    let longest = match server {
        IpAddr::V4(a) => {
            let held = table.v4.iter().filter(|(p, _)| p.contains(&a));
            held.max_by_key(|(p, _)| p.prefix_len()).map(|(_, bits)| *bits)
        }
        IpAddr::V6(a) => {
            let held = table.v6.iter().filter(|(p, _)| p.contains(&a));
            held.max_by_key(|(p, _)| p.prefix_len()).map(|(_, bits)| *bits)
        }
    };
    let ports = table.ports.iter().find(|(p, _)| *p == port).map_or(0, |(_, bits)| *bits);
    table.from.get(usize::from(from.0)).copied().unwrap_or(0) & longest.unwrap_or(0) & ports
}

/// What the configuration says, word by word.
fn as_written(specs: &[InterceptSpec], from: PortId, server: IpAddr, port: u16) -> u64 {
    let takes = |spec: &InterceptSpec| {
        spec.from.contains(from)
            && spec.to.iter().any(|p| p.contains(&server))
            && spec.tcp.iter().any(|range| range.contains(&port))
    };
    (0..).zip(specs).filter(|(_, spec)| takes(spec)).fold(0, |bits, (i, _)| bits | 1 << i)
}

/// Addresses out of few, so that prefixes nest and tuples hit.
fn address(random: &mut Random) -> IpAddr {
    if random.below(2) == 0 {
        let octet = |r: &mut Random| *r.pick(&[0u8, 1, 127, 128, 255]);
        IpAddr::V4(Ipv4Addr::new(10, octet(random), octet(random), octet(random)))
    } else {
        let word = |r: &mut Random| *r.pick(&[0u16, 1, 0x7fff, 0x8000, 0xffff]);
        IpAddr::V6(Ipv6Addr::new(0xfd77, word(random), 0, word(random), 0, 0, 0, word(random)))
    }
}

fn prefix(random: &mut Random) -> IpNet {
    let address = address(random);
    let length = if address.is_ipv4() { random.below(33) } else { random.below(129) };
    IpNet::new(address, length as u8).unwrap().trunc()
}

fn spec(random: &mut Random) -> InterceptSpec {
    let mut spec = InterceptSpec::new("i");
    spec.from = PortSet::of_bits(random.below(1 << 32) as u32 & random.below(1 << 32) as u32);
    spec.to = (0..=random.below(6)).map(|_| prefix(random)).collect();
    spec.tcp = (0..=random.below(3))
        .map(|_| {
            let start = *random.pick(&[1, 79, 80, 443, 8000, 65000]);
            start..=start + random.below(500) as u16
        })
        .collect();
    spec.handshake = *random.pick(&[Handshake::Through, Handshake::Relay]);
    spec
}

#[test]
fn table_policy_and_configuration_agree_on_random_tuples() {
    for seed in 0..40 {
        let random = &mut Random(seed);
        let specs: Vec<InterceptSpec> = (0..1 + random.below(64)).map(|_| spec(random)).collect();
        let builder = specs.iter().cloned().fold(PolicyBuilder::new(1), PolicyBuilder::intercept);
        let policy = builder.build().unwrap();
        let table = policy.steering();
        for _ in 0..500 {
            let from = PortId(random.below(34) as u8);
            let server = address(random);
            let port = *random.pick(&[0, 1, 80, 81, 443, 8000, 8099, 65000, 65500, 65535]);
            let expected = as_written(&specs, from, server, port);
            let at = format!("seed {seed}: {server}:{port} from port {}", from.0);
            assert_eq!(as_the_program_does(&table, from, server, port), expected, "{at}");
            let first = (expected != 0).then(|| InterceptId(expected.trailing_zeros() as u8));
            assert_eq!(policy.intercept(from, server, port), first, "{at}");
            assert_eq!(policy.intercept_of_server(from, server, port), first, "{at}");
        }
        let relays = (0..).zip(&specs).filter(|(_, spec)| spec.handshake == Handshake::Relay);
        assert_eq!(table.relay_mask, relays.fold(0, |mask, (i, _)| mask | 1u64 << i), "seed {seed}");
    }
}

#[test]
fn overlapping_intercepts_first_in_the_list_wins() {
    let policy = PolicyBuilder::new(7)
        .intercept(InterceptSpec::new("one").from_port(PortId(0)).to([net("10.1.0.0/16")]).tcp([443]))
        .intercept(
            InterceptSpec::new("all").from_port(PortId(0)).from_port(PortId(1)).to_any().tcp([80, 443]),
        )
        .build()
        .unwrap();
    let rows = [
        (0, "10.1.0.1", 443, Some("one")),
        (0, "10.1.0.1", 80, Some("all")),
        (1, "10.1.0.1", 443, Some("all")),
        (0, "10.2.0.1", 443, Some("all")),
        (0, "2001:db8::1", 443, Some("all")),
        (2, "10.1.0.1", 443, None),
        (0, "10.1.0.1", 22, None),
    ];
    for (from, server, port, expected) in rows {
        let found = policy.intercept(PortId(from), ip(server), port).and_then(|id| policy.get(id));
        assert_eq!(found.map(|i| i.name.as_str()), expected, "{server}:{port} from port {from}");
    }
    assert_eq!(policy.epoch, 7);
    assert_eq!(
        policy.steering().v4,
        [("0.0.0.0/0".parse().unwrap(), 0b10), ("10.1.0.0/16".parse().unwrap(), 0b11)]
    );
}

#[test]
fn vlans_of_a_port_are_an_intercepts_as_it_chooses_and_when_they_are_there() {
    let choose =
        |vlan| InterceptSpec { vlan, ..InterceptSpec::new("i").from_port(PortId(0)).to_any().tcp([80]) };
    let link = |port, vlan| VlanLink {
        port: PortId(port),
        vlan,
        link: Link { mac: [2; 6], mtu: 1500, up: true, v4: None, v6: None },
    };
    let mut vlans = Vlans::default();
    vlans.insert(PortId(32), link(0, Vlan::new(10)));
    vlans.insert(PortId(40), link(0, Vlan::stacked(100, 10)));
    vlans.insert(PortId(254), link(1, Vlan::new(10)));
    vlans.insert(PortId(255), link(0, Vlan::new(11)));
    vlans.insert(PortId(31), link(0, Vlan::new(12)));
    let ids = |ids: &[u16]| ids.iter().map(|id| *id..=*id).collect::<Vec<_>>();
    let tagged = |numbers: &[u16], stacked: &[(u16, u16)]| VlanChoice {
        ids: ids(numbers),
        stacked: stacked.to_vec(),
        ..VlanChoice::NONE
    };
    for (choice, takes) in [
        (VlanChoice::default(), [0_u8].as_slice()),
        (VlanChoice::ALL, &[0, 32, 40]),
        (tagged(&[10], &[]), &[32]),
        (tagged(&[10, 20], &[(100, 10)]), &[32, 40]),
        (tagged(&[11, 12, 100], &[(10, 100)]), &[]),
    ] {
        let without = PolicyBuilder::new(1).intercept(choose(choice.clone())).build().unwrap();
        let with = without.with_vlans(&vlans);
        for from in 0..=u8::MAX {
            let expected = takes.contains(&from).then_some(InterceptId(0));
            let at = format!("{choice:?} from {from}");
            assert_eq!(with.intercept(PortId(from), ip("192.0.2.1"), 80), expected, "{at}");
            assert_eq!(with.is_from(InterceptId(0), PortId(from)), expected.is_some(), "{at}");
            let early = expected.filter(|_| from < 32);
            assert_eq!(without.intercept(PortId(from), ip("192.0.2.1"), 80), early, "{at}, before they came");
            assert_eq!(with.steering().from[usize::from(from)], u64::from(expected.is_some()), "{at}");
        }
    }
}
