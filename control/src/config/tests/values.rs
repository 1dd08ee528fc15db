use weir_core::ids::Nanos;
use weir_core::pace::Rate;

use super::super::model::Mark;
use super::super::values::*;

/// Rows of what is written and what it means; `Err` holds a fragment of the message.
fn table<T: PartialEq + std::fmt::Debug>(
    parse: impl Fn(&str) -> Result<T, String>,
    rows: impl IntoIterator<Item = (&'static str, Result<T, &'static str>)>,
) {
    for (text, expected) in rows {
        match (parse(text), expected) {
            (Ok(value), Ok(expected)) => assert_eq!(value, expected, "{text}"),
            (Err(message), Err(fragment)) => assert!(message.contains(fragment), "{text}: {message}"),
            (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn sizes() {
    table(
        size,
        [
            ("0B", Ok(0)),
            ("512B", Ok(512)),
            ("16KiB", Ok(16384)),
            ("16 KiB", Ok(16384)),
            ("1MiB", Ok(1 << 20)),
            ("3GiB", Ok(3 << 30)),
            ("16", Err("no unit; allowed: B, KiB, MiB, GiB")),
            ("16KB", Err("`KB` in `16KB` is no unit")),
            ("16kib", Err("no unit of size")),
            ("KiB", Err("is no size")),
            ("", Err("is no size")),
            ("-1KiB", Err("is no size")),
            ("1.5KiB", Err("no unit of size")),
            ("99999999999999999999B", Err("is no size")),
            ("18446744073709551615KiB", Err("too large")),
        ],
    );
}

#[test]
fn rates() {
    table(
        rate,
        [
            ("64kbit/s", Ok(Rate(8000))),
            ("10Mbit/s", Ok(Rate(1_250_000))),
            ("100 Gbit/s", Ok(Rate(12_500_000_000))),
            ("63kbit/s", Err("64kbit/s to 1000Gbit/s")),
            ("10MB/s", Err("no unit of bandwidth; allowed: kbit/s, Mbit/s, Gbit/s")),
            ("fast", Err("is no bandwidth")),
        ],
    );
}

#[test]
fn times() {
    table(
        time,
        [
            ("0s", Ok(Nanos(0))),
            ("250us", Ok(Nanos(250_000))),
            ("500ms", Ok(Nanos::from_millis(500))),
            ("3s", Ok(Nanos::from_secs(3))),
            ("5m", Ok(Nanos::from_secs(300))),
            ("24h", Ok(Nanos::from_secs(86_400))),
            ("3", Err("no unit; allowed: us, ms, s, m, h")),
            ("3 sec", Err("`sec` in `3 sec` is no unit of time")),
            ("s", Err("is no time")),
            ("", Err("is no time")),
            ("99999999999999h", Err("too long")),
        ],
    );
}

#[test]
fn marks() {
    table(
        mark,
        [
            ("0x77/0xff", Ok(Mark { value: 0x77, mask: 0xff })),
            ("119/255", Ok(Mark { value: 0x77, mask: 0xff })),
            ("0x80000000/0xffffffff", Ok(Mark { value: 1 << 31, mask: u32::MAX })),
            ("0x77", Err("has no mask")),
            ("0/0xff", Err("mark 0")),
            ("0x0/0x0", Err("mark 0")),
            ("0x177/0xff", Err("mark 0x177 has bits outside its mask 0xff")),
            ("0x77/", Err("`` is no number")),
            ("x/0xff", Err("`x` is no number")),
            ("0x1ffffffff/0xff", Err("no number of 32 bits")),
        ],
    );
    assert_eq!(Mark { value: 0x77, mask: 0xff }.to_string(), "0x77/0xff");
}

#[test]
fn port_ranges() {
    table(
        ports,
        [
            ("80", Ok(80..=80)),
            ("8000-8099", Ok(8000..=8099)),
            ("1-65535", Ok(1..=65535)),
            ("8000 - 8099", Ok(8000..=8099)),
            ("80-80", Ok(80..=80)),
            ("0", Err("port 0")),
            ("0-80", Err("port 0")),
            ("8099-8000", Err("the lower port comes first")),
            ("80-65536", Err("neither a port")),
            ("http", Err("neither a port")),
            ("80-", Err("neither a port")),
            ("-80", Err("neither a port")),
        ],
    );
}

#[test]
fn prefixes() {
    let net = |text: &str| Ok(text.parse().unwrap());
    table(
        prefix,
        [
            ("10.1.9.0/24", net("10.1.9.0/24")),
            ("0.0.0.0/0", net("0.0.0.0/0")),
            ("::/0", net("::/0")),
            ("10.1.9.7", net("10.1.9.7/32")),
            ("fd77:1::9", net("fd77:1::9/128")),
            ("10.1.9.7/24", Err("write `10.1.9.0/24`")),
            ("fd77::1/64", Err("write `fd77::/64`")),
            ("10.1.9.0/33", Err("is no prefix")),
            ("10.1.9/24", Err("is no prefix")),
            ("lan", Err("is no prefix")),
            ("::ffff:10.0.0.0/104", Err("write the IPv4 prefix")),
            ("::ffff:10.0.0.1", Err("write the IPv4 prefix")),
        ],
    );
}

#[test]
fn vlans() {
    table(
        vlan,
        [
            ("10", Ok(Vlans::Ids(10..=10))),
            ("100-199", Ok(Vlans::Ids(100..=199))),
            ("100.10", Ok(Vlans::Stacked(100, 10))),
            ("untagged", Ok(Vlans::Untagged)),
            ("any", Ok(Vlans::Any)),
            ("0", Err("0 is no VLAN; allowed: 1 to 4094")),
            ("4095", Err("4095 is no VLAN")),
            ("1.2.3", Err("is none of a VLAN")),
            ("-3", Err("is none of a VLAN")),
        ],
    );
}

#[test]
fn socket_addresses() {
    let at = |text: &str| Ok(text.parse().unwrap());
    table(
        socket_address,
        [
            ("127.0.0.1:9470", at("127.0.0.1:9470")),
            ("[::1]:9470", at("[::1]:9470")),
            ("127.0.0.1", Err("no address with a port")),
            ("::1:9470", Err("no address with a port")),
            ("localhost:9470", Err("no address with a port")),
            ("127.0.0.1:0", Err("port 0")),
            ("127.0.0.1:70000", Err("no address with a port")),
        ],
    );
}

#[test]
fn names_and_devices() {
    table(
        name,
        [
            ("lan-1_a.b", Ok("lan-1_a.b".to_owned())),
            ("", Err("1 to 32 characters")),
            ("a234567890123456789012345678901234", Err("has 34")),
            ("my port", Err("` ` in `my port`")),
            ("l\u{e4}n", Err("letters, digits")),
        ],
    );
    table(
        device,
        [
            ("eth1", Ok("eth1".to_owned())),
            ("enp65s0f0np0.100", Err("`enp65s0f0np0.100` has 16")),
            ("enp65s0f0np0.10", Ok("enp65s0f0np0.10".to_owned())),
            ("", Err("1 to 15")),
            ("..", Err("no device name")),
            ("a/b", Err("no device name")),
            ("eth0:1", Err("no device name")),
            ("eth 0", Err("no device name")),
        ],
    );
}
