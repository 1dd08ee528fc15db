//! Second hellos of real clients on both roads: the pipeline and the relay's judge come to the same.

use std::sync::Arc;

use weir_core::ids::Nanos;
use weir_core::inspect::Said;
use weir_core::policy::{Action, NameSet, PolicyBuilder, RuleSpec};
use weir_core::relay::{Judge, Verdict};
use weir_tests::bench::{Bench, LAN, Setup, WAN};
use weir_tests::corpus;
use weir_tests::hello::hello_retry_request;
use weir_tests::packet::{BOTH, Family, Seg};

const HOLD: u32 = 16 * 1024;
const MSS: usize = 1400;

/// What became of a connection: what `weir flows` says of the second hello, and whether it was refused. `None` where the first
/// was, or no second can follow.
type Came = Option<(Option<&'static str>, bool)>;

fn setup(denied: &Arc<NameSet>) -> Setup {
    let mut setup = Setup::new();
    setup.spec.rules = vec![RuleSpec { host: Some(denied.clone()), ..RuleSpec::new(Action::Reset) }];
    setup
}

fn on_the_fast_road(setup: Setup, family: Family, first: &[u8], second: &[u8]) -> Came {
    let mut b = Bench::of(family, setup);
    b.handshake();
    let request = hello_retry_request();
    for (n, part) in first.chunks(MSS).enumerate() {
        b.give_any(LAN, &b.c((n * MSS) as u32).payload(part).frame());
    }
    let at = first.len() as u32;
    b.give_any(WAN, &b.s(0, at).payload(&request).frame());
    for (n, part) in second.chunks(MSS).enumerate() {
        let seg = b.c(at + (n * MSS) as u32).payload(part);
        let seg = Seg { ack: seg.ack.wrapping_add(request.len() as u32), ..seg };
        b.give_any(LAN, &seg.frame());
    }
    b.wait_any(Nanos::from_secs(4));
    let view = b.pipe.views(b.now, 0, 1).0.pop().expect("a connection");
    view.hello_retry.map(|_| (view.hello_retry, view.verdict == Some("reset")))
}

fn on_the_relay(setup: Setup, family: Family, first: &[u8], second: &[u8]) -> Came {
    let b = Bench::new(family);
    let (client, server) = (b.client.into(), b.server.into());
    let policy = Arc::new(PolicyBuilder::new(1).intercept(setup.spec).build().expect("a policy"));
    let mut judge = Judge::new(policy, Some(LAN), client, server);
    judge.start();
    if judge.inspect(first, HOLD) != Some(Verdict::Pass) || judge.expects_second().is_none() {
        return None;
    }
    assert_eq!(judge.answer(0, &hello_retry_request()), Said::Retry);
    let verdict = judge.second(second, HOLD, server).unwrap_or_else(|| judge.second_unread(server));
    Some((judge.hello_retry().name(), verdict == Verdict::Reset))
}

#[test]
fn second_hellos_come_to_the_same_on_both_roads() {
    let Some(root) = corpus::root() else { return };
    let hellos = corpus::hellos(&root);
    let mut denied = NameSet::default();
    for hello in hellos.iter().step_by(2).filter(|hello| !hello.sni.is_empty()) {
        // What is no host name cannot be listed.
        let _ = denied.insert(&hello.sni.to_ascii_lowercase());
    }
    let denied = Arc::new(denied);
    let mut seen = std::collections::BTreeMap::<_, u32>::new();
    for (n, first) in hellos.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        let family = BOTH[n / 2 % 2];
        let others = [1, 2].map(|by| &hellos[(n + by) % hellos.len()]);
        for second in [first, others[0], others[1]] {
            let fast = on_the_fast_road(setup(&denied), family, &first.bytes, &second.bytes);
            let relay = on_the_relay(setup(&denied), family, &first.bytes, &second.bytes);
            assert_eq!(fast, relay, "{} and then {}", first.id, second.id);
            *seen.entry(fast).or_default() += 1;
        }
    }
    println!("{seen:?}");
    for came in [(Some("same"), false), (Some("changed"), false), (Some("changed"), true)] {
        assert!(seen.get(&Some(came)).is_some_and(|count| *count >= 5), "{came:?} of {seen:?}");
    }
}
