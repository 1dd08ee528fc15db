//! The same bytes get the same verdict on both roads: the pipeline with segments as they come, the relay's judge with what its
//! socket gave so far. Each stream is cut at random, by a seed, and for each road anew; on the fast road segments change places.

use std::collections::BTreeSet;
use std::sync::Arc;

use weir_control::replay::capture::Capture;
use weir_core::ids::Nanos;
use weir_core::policy::{Action, InterceptSpec, NameSet, Policy, PolicyBuilder, Protocol, RuleSpec};
use weir_core::relay::{Judge, Unread};
use weir_tests::bench::{Bench, LAN, Setup};
use weir_tests::corpus;
use weir_tests::corpus::streams::Streams;
use weir_tests::packet::BOTH;
use weir_tests::random::Random;

/// The hold of the example configuration.
const HOLD: usize = 16 * 1024;
/// A segment's most.
const SEGMENT: u64 = 1460;

/// What a road says of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    verdict: Option<&'static str>,
    rule: Option<String>,
    protocol: Option<&'static str>,
    host: Option<String>,
    alpn: Vec<String>,
    ech: bool,
}

/// Rules of every kind, some of which take part of the names.
fn rules(names: &BTreeSet<String>) -> Vec<RuleSpec> {
    let every = |n: usize, from: usize| {
        let some = names.iter().skip(from).step_by(n).map(String::as_str);
        let parsed = some.filter_map(|name| NameSet::parse([name]).ok().map(|_| name));
        Some(Arc::new(NameSet::parse(parsed).expect("names")))
    };
    let rule = |action, change: &dyn Fn(&mut RuleSpec)| {
        let mut rule = RuleSpec::new(action);
        change(&mut rule);
        rule
    };
    let mut rules = vec![
        rule(Action::Reset, &|rule| rule.host = every(3, 0)),
        rule(Action::Drop, &|rule| rule.host = every(5, 1)),
        rule(Action::Reset, &|rule| rule.host_address = true),
        rule(Action::Drop, &|rule| {
            rule.host_none = true;
            rule.protocol = Some(Protocol::Tls);
        }),
        rule(Action::Reset, &|rule| rule.alpn = vec!["http/1.1".into()]),
        rule(Action::Allow, &|rule| rule.alpn = vec!["h2".into()]),
        rule(Action::Reset, &|rule| rule.protocol = Some(Protocol::Http)),
    ];
    for (n, rule) in rules.iter_mut().enumerate() {
        rule.origin = format!("weir.toml:{n}");
    }
    rules
}

fn intercept(names: &BTreeSet<String>) -> InterceptSpec {
    let mut spec = InterceptSpec::new("web").from_port(LAN).to_any().tcp([443]);
    spec.rules = rules(names);
    spec.unidentified = Action::Reset;
    spec
}

/// Where a stream is cut: the parts in order. The fast road holds 64 segments of a client at most.
fn cuts(random: &mut Random, len: usize) -> Vec<(usize, usize)> {
    let (few, least) = (random.one_in(2), len / 40);
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let most = if few || len > 2000 { SEGMENT - least as u64 } else { 1 + random.below(60) };
        let end = len.min(at + least + 1 + random.below(most) as usize);
        parts.push((at, end));
        at = end;
    }
    parts
}

fn on_fast_road(random: &mut Random, bench: &mut Bench, stream: &[u8]) -> Said {
    bench.handshake();
    let mut parts = cuts(random, stream.len());
    for at in 1..parts.len() {
        if random.one_in(4) {
            parts.swap(at - 1, at);
        }
    }
    for (start, end) in parts {
        let segment = bench.c(start as u32).payload(&stream[start..end]);
        bench.give_any(LAN, &segment.frame());
        if let Some(said) = of_pipeline(bench) {
            return said;
        }
    }
    bench.wait_any(Nanos::from_millis(3_100));
    of_pipeline(bench).expect("the hold is over")
}

fn of_pipeline(bench: &Bench) -> Option<Said> {
    let (views, _) = bench.pipe.views(bench.now, 0, 10);
    let view = views.into_iter().find(|view| view.verdict.is_some())?;
    let (verdict, rule, protocol) = (view.verdict, view.rule, view.protocol);
    Some(Said { verdict, rule, protocol, host: view.host, alpn: view.alpn, ech: view.ech })
}

fn on_relay(random: &mut Random, policy: &Arc<Policy>, bench: &Bench, stream: &[u8]) -> Said {
    let mut judge = Judge::new(policy.clone(), Some(LAN), bench.client.into(), bench.server.into());
    judge.start();
    let verdict = cuts(random, stream.len())
        .into_iter()
        .find_map(|(_, end)| judge.inspect(&stream[..end], HOLD as u32));
    if verdict.is_none() {
        judge.unidentified(Unread::HoldTime);
    }
    let judgement = judge.judgement().expect("decided");
    Said {
        verdict: Some(judgement.decision.action.name()),
        rule: judge.origin().map(str::to_owned),
        protocol: judgement.protocol.map(Protocol::name),
        host: judgement.host.as_deref().map(str::to_owned),
        alpn: judgement.alpn().names().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
        ech: judgement.ech,
    }
}

/// Whose, and what he said.
type Stream = (String, Vec<u8>);

/// The first bytes of every client of the corpus, and the names that they ask for.
fn streams() -> Option<(Vec<Stream>, BTreeSet<String>)> {
    let root = corpus::root()?;
    let hellos = corpus::hellos(&root);
    let mut names: BTreeSet<String> = hellos.iter().map(|hello| hello.sni.to_ascii_lowercase()).collect();
    let mut streams: Vec<_> = hellos.into_iter().map(|hello| (hello.id, hello.bytes)).collect();
    streams.extend(corpus::browsers(&root));
    for (name, path) in corpus::captures(&root) {
        let frames = Capture::open(&path).expect("a capture").map_while(Result::ok);
        let read = Streams::read(frames);
        names.extend(read.readings().into_values().map(|reading| reading.host));
        // One of each kind is enough: captures repeat themselves.
        let firsts =
            read.by_ends.iter().map(|(ends, stream)| (format!("{name} {ends}"), stream.bytes().to_vec()));
        streams.extend(firsts.filter(|(_, bytes)| !bytes.is_empty()).take(40));
    }
    names.remove("");
    Some((streams, names))
}

#[test]
fn same_bytes_get_the_same_verdict_on_both_roads_however_they_are_cut() {
    let Some((streams, names)) = streams() else { return };
    let spec = intercept(&names);
    let policy = Arc::new(PolicyBuilder::new(1).intercept(spec.clone()).build().expect("a policy"));
    let mut verdicts = std::collections::BTreeMap::<_, u32>::new();
    for (seed, (who, bytes)) in (1..).zip(&streams) {
        let bytes = &bytes[..bytes.len().min(HOLD)];
        for family in BOTH {
            let mut random = Random::new(seed);
            let mut bench = Bench::of(family, Setup { spec: spec.clone(), ..Setup::new() });
            let fast = on_fast_road(&mut random, &mut bench, bytes);
            let relay = on_relay(&mut random, &policy, &bench, bytes);
            assert_eq!(fast, relay, "{who}, seed {seed}, {family:?}");
            *verdicts.entry((fast.verdict, fast.protocol)).or_default() += 1;
        }
    }
    println!("{} streams: {verdicts:?}", streams.len());
    for verdict in ["allow", "reset", "drop"] {
        assert!(verdicts.keys().any(|(seen, _)| *seen == Some(verdict)), "none was `{verdict}`");
    }
    for protocol in ["tls", "http"] {
        assert!(verdicts.keys().any(|(_, seen)| *seen == Some(protocol)), "none was {protocol}");
    }
}
