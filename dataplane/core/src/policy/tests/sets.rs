use super::*;

#[test]
fn prefixes_hold_addresses_of_both_families() {
    let set: Prefixes = ["10.1.9.0/24", "10.1.9.7/32", "192.0.2.1/32", "fd77:1::/64", "2001:db8::1/128"]
        .map(net)
        .into_iter()
        .collect();
    let rows = [
        ("10.1.9.0", true),
        ("10.1.9.255", true),
        ("10.1.10.0", false),
        ("192.0.2.1", true),
        ("192.0.2.2", false),
        ("fd77:1::ffff", true),
        ("fd77:2::1", false),
        ("2001:db8::1", true),
        ("2001:db8::2", false),
        ("::ffff:10.1.9.1", false),
    ];
    for (address, expected) in rows {
        assert_eq!(set.contains(ip(address)), expected, "{address}");
    }
}

#[test]
fn prefixes_default_routes_hold_one_family_each() {
    let v4: Prefixes = [net("0.0.0.0/0")].into_iter().collect();
    let v6: Prefixes = [net("::/0")].into_iter().collect();
    assert!(v4.contains(ip("255.255.255.255")) && !v4.contains(ip("::1")));
    assert!(v6.contains(ip("ffff::")) && !v6.contains(ip("0.0.0.0")));
}

#[test]
fn prefixes_cover_and_overlap() {
    let rows: &[(&[&str], &[&str], bool, bool)] = &[
        (&["10.0.0.0/8"], &["10.1.0.0/16"], true, true),
        (&["10.1.0.0/16"], &["10.0.0.0/8"], false, true),
        (&["10.0.0.0/8"], &["fd77::/16"], false, false),
        (&["10.0.0.0/8", "::/0"], &["fd77::/16", "10.2.0.0/16"], true, true),
        (&["10.0.0.0/9", "10.128.0.0/9"], &["10.0.0.0/8"], false, true),
        (&["fd77::/16"], &["fd78::/16"], false, false),
    ];
    for (mine, theirs, covers, overlaps) in rows {
        let [mine, theirs]: [Prefixes; 2] = [mine, theirs].map(|list| list.iter().map(|p| net(p)).collect());
        assert_eq!(mine.covers(&theirs), *covers, "{mine:?} over {theirs:?}");
        assert_eq!(mine.overlaps(&theirs), *overlaps, "{mine:?} and {theirs:?}");
    }
}

#[test]
fn prefixes_that_others_hold_are_kept_once() {
    let set: Prefixes =
        ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/24", "fd77:1::/64", "fd77::/16"]
            .map(net)
            .into_iter()
            .collect();
    assert_eq!(set.iter().collect::<Vec<_>>(), ["10.0.0.0/8", "fd77::/16"].map(net));
    assert_eq!(set.len(), 2);
    // Bits behind the length do not count.
    let set: Prefixes = [IpNet::new(ip("10.1.2.3"), 8).unwrap()].into_iter().collect();
    assert!(set.contains(ip("10.255.0.1")));
}

/// As the prefixes say it one by one.
#[test]
fn random_prefixes_agree_with_the_definition() {
    let mut random = Random(11);
    // At the front of an address, and in the middle of an IPv6 one, where its halves meet.
    for shift in [116, 58].repeat(500) {
        let list = |random: &mut Random| -> Vec<IpNet> {
            (0..random.below(8))
                .map(|_| {
                    let (bits, v6) = (random.below(1 << 12) as u128, random.below(2) == 0);
                    let address = if v6 {
                        IpAddr::V6((bits << shift).into())
                    } else {
                        IpAddr::V4(((bits as u32) << 20).into())
                    };
                    let before = if v6 { 116 - shift as u8 } else { 0 };
                    IpNet::new(address, before + random.below(13) as u8).unwrap().trunc()
                })
                .collect()
        };
        let (mine, theirs) = (list(&mut random), list(&mut random));
        let [a, b]: [Prefixes; 2] = [&mine, &theirs].map(|list| list.iter().copied().collect());
        let within = |outer: &[IpNet], p: &IpNet| outer.iter().any(|o| o.contains(p));
        assert_eq!(a.covers(&b), theirs.iter().all(|p| within(&mine, p)), "{mine:?} over {theirs:?}");
        let overlap = theirs.iter().any(|p| within(&mine, p)) || mine.iter().any(|p| within(&theirs, p));
        assert_eq!(a.overlaps(&b), overlap, "{mine:?} and {theirs:?}");
        for bits in 0..64 {
            for address in
                [IpAddr::V6(((bits as u128) << (shift + 6)).into()), IpAddr::V4((bits << 26).into())]
            {
                assert_eq!(a.contains(address), within(&mine, &address.into()), "{address} in {mine:?}");
            }
        }
    }
}

#[test]
fn million_prefixes_of_each_family_are_found() {
    let v4 = (0..1_000_000_u32).map(|i| IpNet::new(IpAddr::V4((i * 4096).into()), 24).unwrap());
    let v6 = (0..1_000_000_u128)
        .map(|i| IpNet::new(IpAddr::V6(((0x2000 << 112) + (i << 64)).into()), 64).unwrap());
    for (set, host_bits) in [(v4.collect::<Prefixes>(), 8), (v6.collect::<Prefixes>(), 64)] {
        assert_eq!(set.len(), 1_000_000);
        assert!(set.memory() < 20 << 20, "{} octets", set.memory());
        for prefix in set.iter().step_by(997) {
            assert!(set.contains(prefix.addr()) && set.contains(prefix.broadcast()), "{prefix}");
            if host_bits == 8 {
                let beside = match prefix.broadcast() {
                    IpAddr::V4(a) => IpAddr::V4((u32::from(a) + 1).into()),
                    v6 => v6,
                };
                assert!(!set.contains(beside), "{beside}");
            }
        }
        assert!(!set.contains(ip("255.255.255.255")) && !set.contains(ip("3000::")));
    }
}

#[test]
fn ports_merge_into_ranges() {
    let ports: TcpPorts = [443..=443, 8000..=8099, 80..=80, 8100..=8100, 65535..=65535].into_iter().collect();
    assert_eq!(ports.ranges(), [80..=80, 443..=443, 8000..=8100, 65535..=65535]);
    for (port, expected) in
        [(0, false), (79, false), (80, true), (8000, true), (8100, true), (8101, false), (65535, true)]
    {
        assert_eq!(ports.contains(port), expected, "{port}");
    }
    let https: TcpPorts = std::iter::once(443..=443).collect();
    assert!(ports.covers(&https) && !https.covers(&ports) && ports.overlaps(&https));
    assert!(TcpPorts::default().is_empty() && !TcpPorts::default().overlaps(&https));
}
