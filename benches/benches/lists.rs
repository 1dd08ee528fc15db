//! What a lookup in a list of a million entries costs, and what other structures for the same names cost.

use std::collections::HashSet;
use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use prefix_trie::PrefixSet;
use weir_benches::entries::{ENTRIES, name, scramble, v4, v6};
use weir_core::policy::{NameSet, Prefixes};

/// Asks one question after the other, in an order that no cache foresees; every second one has the answer no.
fn ask<T>(c: &mut Criterion, what: &str, questions: &[T], answer: impl Fn(&T) -> bool) {
    let mut at = 0;
    c.bench_function(what, |b| {
        b.iter(|| {
            at = (at + 7919) % questions.len();
            black_box(answer(&questions[at]))
        });
    });
}

fn names(c: &mut Criterion) {
    let hosts: Vec<String> = (0..ENTRIES).map(|at| name(scramble(at) % (2 * ENTRIES))).collect();
    let below: Vec<String> = hosts.iter().map(|host| format!("www.{host}")).collect();
    let all: Vec<String> = (0..ENTRIES).map(name).collect();

    let set = NameSet::parse(all.iter().map(String::as_str)).unwrap_or_default();
    ask(c, "names/weir", &hosts, |host| set.contains(host));
    drop(set);
    let wildcards: Vec<String> = all.iter().map(|name| format!("*.{name}")).collect();
    let set = NameSet::parse(wildcards.iter().map(String::as_str)).unwrap_or_default();
    ask(c, "names/weir, wildcards", &below, |host| set.contains(host));
    drop((set, wildcards));
    let set: HashSet<Box<[u8]>, foldhash::fast::FixedState> =
        all.iter().map(|name| name.as_bytes().into()).collect();
    ask(c, "names/set of boxes", &hosts, |host| set.contains(host.as_bytes()));
    drop(set);
    let mut sorted = all;
    sorted.sort_unstable();
    if let Ok(set) = fst::Set::from_iter(sorted) {
        println!("names/fst: {:.1} MiB", set.as_fst().as_bytes().len() as f64 / f64::from(1 << 20));
        ask(c, "names/fst", &hosts, |host| set.contains(host));
    }
}

fn prefixes(c: &mut Criterion) {
    let nets = |v6_: bool| (0..ENTRIES).map(move |i| net(i, v6_));
    for (family, is_v6) in [("IPv4", false), ("IPv6", true)] {
        let wanted: Vec<IpAddr> =
            (0..ENTRIES).map(|at| net(scramble(at) % (2 * ENTRIES), is_v6).addr()).collect();
        let set: Prefixes = nets(is_v6).collect();
        ask(c, &format!("prefixes/weir, {family}"), &wanted, |address| set.contains(*address));
        let set: PrefixSet<IpNet4Or6> = nets(is_v6).map(key).collect();
        ask(c, &format!("prefixes/prefix-trie, {family}"), &wanted, |address| {
            set.get_lpm(&key(IpNet::from(*address))).is_some()
        });
    }
}

/// Both families in one trie: IPv4 as its mapped IPv6 prefix.
type IpNet4Or6 = ipnet::Ipv6Net;

fn key(net: IpNet) -> IpNet4Or6 {
    match net {
        IpNet::V6(net) => net,
        IpNet::V4(net) => {
            ipnet::Ipv6Net::new(net.addr().to_ipv6_mapped(), 96 + net.prefix_len()).unwrap_or_default()
        }
    }
}

fn net(i: u32, is_v6: bool) -> IpNet {
    let (address, len) = if is_v6 { (IpAddr::V6(v6(i)), 64) } else { (IpAddr::V4(v4(i)), 24) };
    IpNet::new(address, len).unwrap_or_else(|_| IpNet::from(address))
}

criterion_group!(benches, names, prefixes);
criterion_main!(benches);
