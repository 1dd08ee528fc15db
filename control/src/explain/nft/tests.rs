//! Rules as nft 1.0 lists them, and the packets that they take.

use serde_json::json;

use super::rules::{Table, Verdict};
use super::*;

fn table() -> Table {
    let dport = json!({ "payload": { "protocol": "tcp", "field": "dport" } });
    let is = |left: Value, right: Value| json!({ "match": { "op": "==", "left": left, "right": right } });
    let rule = |chain: &str, handle: u64, expr: Vec<Value>| json!({ "rule": { "chain": chain, "handle": handle, "expr": expr } });
    let syn = json!({ "&": [{ "payload": { "protocol": "tcp", "field": "flags" } }, ["fin", "syn", "rst", "ack"]] });
    let mark = json!({ "mangle": { "key": { "meta": { "key": "mark" } },
        "value": { "|": [{ "&": [{ "meta": { "key": "mark" } }, 4294967159u32] }, 119] } } });
    let fib = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
    let web = |ip: &str, set: &str| {
        vec![
            is(json!({ "meta": { "key": "iifname" } }), json!({ "set": ["lan0", "weir-relay"] })),
            is(json!({ "payload": { "protocol": ip, "field": "daddr" } }), json!(set)),
            is(dport.clone(), json!({ "set": [80, { "range": [8000, 8099] }] })),
            json!({ "tproxy": { "family": ip, "port": 12377 } }),
            mark.clone(),
            json!({ "counter": { "packets": 3, "bytes": 180 } }),
            json!({ "accept": null }),
        ]
    };
    let closed = vec![is(dport.clone(), json!(80)), json!({ "drop": null })];
    let listing = json!({ "nftables": [
        { "set": { "name": "to_0_ipv4", "elem": [{ "prefix": { "addr": "192.0.2.0", "len": 24 } }, "198.51.100.4"] } },
        { "set": { "name": "to_0_ipv6", "elem": [{ "prefix": { "addr": "2001:db8:2::", "len": 64 } }, "2001:db8:7::4"] } },
        rule("prerouting", 7, vec![is(syn, json!("syn")), json!({ "jump": { "target": "syn" } })]),
        rule("prerouting", 8, vec![is(json!({ "socket": { "key": "transparent" } }), json!(1)), mark.clone(), json!({ "accept": null })]),
        rule("syn", 6, vec![is(fib, json!({ "set": ["local", "broadcast"] })), json!({ "accept": null })]),
        rule("syn", 10, web("ip", "@to_0_ipv4")),
        rule("syn", 12, web("ip6", "@to_0_ipv6")),
        rule("syn", 11, closed),
    ] });
    let text = "table inet weir { # handle 10\n\tchain syn { # handle 11\n\t\ttproxy of web # handle 10\n\t\ttproxy of web # handle 12\n\t\tdrop # handle 11\n";
    Table::new(&listing, text)
}

/// A client of the family.
fn client(to: std::net::SocketAddr) -> std::net::SocketAddr {
    if to.is_ipv4() { "10.1.0.2:40000" } else { "[2001:db8:1::2]:40000" }.parse().unwrap()
}

fn packet(to: &str) -> Packet {
    let to: std::net::SocketAddr = to.parse().unwrap();
    Packet {
        iif: "lan0".to_owned(),
        from: client(to),
        to,
        opens: true,
        fib: "unicast".to_owned(),
        socket: None,
        listener: Some(12377),
    }
}

#[test]
fn syn_of_an_intercept_hits_its_tproxy_rule() {
    for (to, handle) in [
        ("192.0.2.10:80", 10),
        ("192.0.2.200:8050", 10),
        ("198.51.100.4:8099", 10),
        ("[2001:db8:2::a]:80", 12),
        ("[2001:db8:2::c8]:8050", 12),
        ("[2001:db8:7::4]:8099", 12),
    ] {
        let hit = table().walk(&packet(to)).unwrap();
        assert_eq!((hit.handle, hit.verdict, hit.mark), (handle, Verdict::Tproxy(12377), Some(0x77)), "{to}");
        assert_eq!((hit.counter, hit.text.as_str()), (Some((3, 180)), "tproxy of web"));
    }
}

#[test]
fn syn_of_another_address_port_or_device_passes() {
    for to in ["198.51.100.5:8000", "192.0.2.10:81", "[2001:db8::1]:8000", "[2001:db8:2::a]:81"] {
        assert_eq!(table().walk(&packet(to)), None, "{to}");
    }
    for to in ["192.0.2.10:8000", "[2001:db8:2::a]:8000"] {
        assert_eq!(table().walk(&Packet { iif: "wan0".to_owned(), ..packet(to) }), None, "{to}");
    }
}

#[test]
fn syn_without_a_listener_goes_on_to_the_rule_that_drops() {
    for to in ["192.0.2.10", "[2001:db8:2::a]"] {
        let to = |port: u16| Packet { listener: None, ..packet(&format!("{to}:{port}")) };
        let hit = table().walk(&to(80)).unwrap();
        assert_eq!((hit.handle, hit.verdict), (11, Verdict::Drop));
        assert_eq!(table().walk(&to(8000)), None);
    }
}

#[test]
fn syn_to_the_box_is_left_alone() {
    for to in ["192.0.2.10:80", "[2001:db8:2::a]:80"] {
        let hit = table().walk(&Packet { fib: "local".to_owned(), ..packet(to) }).unwrap();
        assert_eq!((hit.handle, hit.verdict), (6, Verdict::Leave), "{to}");
    }
}

#[test]
fn packet_of_an_open_connection_hits_the_rule_of_its_transparent_socket() {
    for to in ["192.0.2.10:80", "[2001:db8:2::a]:80"] {
        let local: std::net::SocketAddr = to.parse().unwrap();
        let socket = |transparent| crate::explain::socket::Socket {
            local,
            remote: client(local),
            state: "ESTAB",
            inode: 1,
            transparent: Some(transparent),
            mark: None,
        };
        let walk = |socket| table().walk(&Packet { opens: false, socket, ..packet(to) });
        let hit = walk(Some(socket(true))).unwrap();
        assert_eq!((hit.handle, hit.verdict, hit.mark), (8, Verdict::Accept, Some(0x77)));
        assert_eq!(walk(Some(socket(false))), None);
        assert_eq!(walk(None), None);
    }
}
