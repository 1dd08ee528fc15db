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
