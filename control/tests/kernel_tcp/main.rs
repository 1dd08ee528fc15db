//! The kernel's TCP at both ends, bad links, weir between them: many connections at once, and every octet of each arrives at
//! either end. No RST is on a wire but that which lets a server go, and those of the ends behind both FINs.
//!
//! `make test` plays [`FEW`] connections of each variant, `make soak-kernel` [`MANY`]; `VARIANT=name` plays one variant.

mod client;
mod hello;
mod origin;
mod talk;
mod variant;
#[allow(dead_code, reason = "the gateway's tests ask for more")]
#[path = "../gateway/weir.rs"]
mod weir;

use std::time::{Duration, Instant};

use weir_control::lab::{Badness, Carried, Lab, LabOptions, Namespace};

use client::{Call, Clients};
use origin::Origin;
use variant::{VARIANTS, Variant};
use weir::Weir;

/// Connections of a variant in `make test`, octets each way in each, and how long they may take.
const FEW: Size = Size { count: 400, octets: 128 << 10, limit: Duration::from_secs(90) };
/// The same in `make soak`.
const MANY: Size = Size { count: 1000, octets: 1 << 20, limit: Duration::from_secs(900) };
/// Connections that are open at the same time.
const AT_ONCE: usize = 300;
/// One segment in a hundred is lost on each link, and as many are overtaken.
const BAD: Badness = Badness {
    loses: 100,
    copies: 1000,
    damages: 2000,
    reorders: 100,
    kept_back: Duration::from_millis(4),
    delay: Duration::ZERO,
    seed: 1,
};

/// How much is played.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub count: usize,
    pub octets: usize,
    pub limit: Duration,
}

#[test]
fn connections_over_bad_links_arrive_whole_and_without_a_reset() {
    let soak = std::env::var_os("WEIR_SOAK").is_some();
    let size = if soak { MANY } else { FEW };
    let only = std::env::var("VARIANT").ok();
    let wanted = |variant: &&Variant| only.as_ref().is_none_or(|only| only == variant.name);
    for variant in VARIANTS.iter().filter(wanted) {
        play(variant, size);
    }
}

fn play(variant: &Variant, size: Size) {
    let options = LabOptions { queues: 1, forwarding: Some(true), ..LabOptions::default() };
    // A bit more on one wire and a bit less on the other may leave the sum right (RFC 1071): one of them damages.
    let wan = Badness { seed: BAD.seed + 1, damages: 0, ..BAD };
    let Some(mut lab) = Lab::with_bad_links_for_test(&options, BAD, wan) else { return };
    let (from, name) = (Instant::now(), variant.name);
    let counted = carry(&lab, variant, size);
    let carried = lab.stop_wires().expect("bad links have wires");
    report(name, size, from.elapsed(), &carried);
    for (link, carried) in ["lan", "wan"].into_iter().zip(&carried) {
        assert!(carried.lost > 0 && carried.reordered > 0, "{name}: {link} was not bad: {carried:?}");
        if variant.resets_first_server && link == "wan" {
            // The server that the client asked for is let go by an RST, and again where it asks what has become of it.
            let all = (size.count + 4) as u64;
            let sent = carried.resets;
            assert!(all <= sent && sent <= 2 * all, "{name}: {sent} RSTs on {link} for {all} connections");
            continue;
        }
        let shown: Vec<_> = carried.first_resets.iter().filter_map(|frame| frame.tcp()).collect();
        assert_eq!(carried.resets, 0, "{name}: RSTs on {link}: {shown:#?}\n{counted}");
    }
}

/// Plays all connections through a weir that runs as the variant says. Returns what it has counted.
fn carry(lab: &Lab, variant: &Variant, size: Size) -> String {
    let Size { count, octets, limit } = size;
    let name = variant.name;
    let origin = Origin::start(lab, variant, octets);
    let mut weir = Weir::new(lab, &variant.config());
    weir.start();
    // The clients of both families make the gateway's neighbours known.
    let first: Vec<Call> = (0..4).map(|number| Call::numbered(number, origin::FIRST)).collect();
    let rest: Vec<Call> = (4..4 + count).map(|number| Call::numbered(number, octets)).collect();
    let (mut arrived, mut failed) = (Vec::new(), Vec::new());
    for calls in [first, rest] {
        let (done, faults) = lab.client.run(|| Clients::new(calls, AT_ONCE).run(limit));
        arrived.extend(done);
        failed.extend(faults);
    }
    let all = count + 4;
    let (served, refused) = origin.stop(if failed.is_empty() { all } else { 0 });
    assert!(
        (arrived.len(), served) == (all, all) && failed.is_empty() && refused.is_empty(),
        "{name}: of {all} in {limit:?} {} arrived at the client, {served} at the server\nclient: {failed:#?}\n\
         server: {refused:#?}\n{}",
        arrived.len(),
        told(&weir)
    );
    assert_roads(&weir, variant, all);
    let counted = told(&weir);
    // Without weir nobody translates: a FIN that is sent again then comes to a server that knows nothing of it, and is answered by RST.
    wait_for_acknowledged_ends(lab);
    let ended = weir.stop();
    assert_eq!(ended.code(), 0, "{name}: weir run ended with {ended:?}");
    counted
}

/// Waits until every FIN of either end is acknowledged, and what the wires keep back has passed.
fn wait_for_acknowledged_ends(lab: &Lab) {
    // enum tcp_state of net/tcp_states.h: FIN_WAIT1, LAST_ACK, CLOSING.
    let sends_again = |line: &str| matches!(line.split_whitespace().nth(3), Some("04" | "09" | "0B"));
    let any = |namespace: &Namespace| {
        let tables = ["tcp", "tcp6"].map(|name| {
            namespace
                .run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))
                .unwrap_or_default()
        });
        tables.iter().any(|table| table.lines().any(sends_again))
    };
    let deadline = Instant::now() + weir::PATIENCE;
    while (any(&lab.client) || any(&lab.server)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(4 * BAD.kept_back);
}

/// All went by the fast road. What the kernel was given besides: packets whose neighbour was not known yet, and those
/// whose ports a wire has damaged, which look like connections from before.
fn assert_roads(weir: &Weir<'_>, variant: &Variant, count: usize) {
    let (name, status) = (variant.name, weir.status());
    for punt in status["punts"].as_array().expect("a list") {
        let explained = punt["name"] == "no-neighbour" || punt["name"] == "midstream" || punt["count"] == 0;
        assert!(explained, "{name}: {punt}\n{}", told(weir));
    }
    let midstream = weir.count("punts", "midstream");
    assert!(
        midstream <= count as u64 / 10,
        "{name}: {midstream} packets of unknown connections\n{}",
        told(weir)
    );
    let opened = weir.count("flows", "opened");
    let passed = weir.count("flows", "allowed") + weir.count("flows", "sent");
    assert!(
        opened.min(passed) >= count as u64,
        "{name}: of {count} {opened} opened, {passed} passed
{}",
        told(weir)
    );
}

/// The counters that are not zero, and the connections that were refused.
fn told(weir: &Weir<'_>) -> String {
    let status = weir.status();
    let lists = ["drops", "punts", "flows"].into_iter().filter_map(|name| status[name].as_array());
    let counts = lists.flatten().filter(|count| count["count"] != 0);
    let counts = counts.map(|count| format!("{}: {}\n", count["name"], count["count"]));
    let refused = weir.flows().into_iter().filter(|flow| flow["stage"] == "refused");
    counts.chain(refused.map(|flow| format!("{flow}\n"))).collect()
}

fn report(name: &str, size: Size, took: Duration, carried: &[Carried; 2]) {
    let Size { count, octets, .. } = size;
    let [lan, wan] = carried.each_ref().map(|link| {
        let Carried { frames, lost, reordered, copied, damaged, overrun, refused, late_resets, .. } = link;
        format!("{frames} frames, {lost} lost, {reordered} reordered, {copied} copied, {damaged} damaged, {overrun} overrun, {refused} refused, {late_resets} RSTs behind FINs")
    });
    println!(
        "{name}: {count} connections of {octets} octets each way in {took:.1?}\n  lan: {lan}\n  wan: {wan}"
    );
}
