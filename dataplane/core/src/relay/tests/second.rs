//! The second ClientHello on the relay: the machine that holds it, and the judge that reads it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::flow::second::HelloRetry;
use crate::ids::{PoolId, PortId};
use crate::inspect::Said;
use crate::policy::{
    Action, Cause, Decision, Handshake, InterceptSpec, NameSet, PolicyBuilder, PoolSpec, RuleSpec, VerifyHost,
};
use crate::verify::{Answers, Verified};

const PAIRS: [(&str, &str); 2] =
    [("10.1.0.2:40000", "192.0.2.10:443"), ("[fd01::2]:40000", "[2001:db8::10]:443")];

/// The first 43 octets of a HelloRetryRequest.
pub(super) fn retry_request() -> Vec<u8> {
    let random = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c";
    let octet = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).expect("hex");
    let head = [22, 3, 3, 0, 88, 2, 0, 0, 84, 3, 3];
    head.into_iter().chain((0..64).step_by(2).map(octet)).collect()
}

/// A ClientHello for TLS 1.3 (or only 1.2).
fn hello(host: &str, newer: bool) -> Vec<u8> {
    let name = host.as_bytes();
    let mut extensions = vec![0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0, name.len() as u8];
    extensions.extend(name);
    extensions.extend([0, 43, 0, 3, 2, 3, 3 + u8::from(newer)]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0, 0, extensions.len() as u8]);
    body.extend(extensions);
    let mut out = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    out.extend(body);
    out
}

fn by_name(action: Action, name: &str) -> RuleSpec {
    let names = Arc::new(NameSet::parse([name]).unwrap());
    RuleSpec { host: Some(names), origin: "weir.toml:9".into(), ..RuleSpec::new(action) }
}

fn judge(edit: impl Fn(&mut InterceptSpec), family: usize) -> Judge {
    let mut spec = InterceptSpec::new("all").from_port(PortId(3)).to_any().tcp([443]);
    spec.handshake = Handshake::Relay;
    spec.rules = vec![by_name(Action::Reset, "denied.example"), by_name(SEND, "sent.example")];
    edit(&mut spec);
    let pool = PoolSpec::new("pool").server("10.2.0.9:443".parse().unwrap());
    let pool = pool.server("[fd02::9]:443".parse().unwrap());
    let policy = Arc::new(PolicyBuilder::new(1).intercept(spec).pool(pool).build().unwrap());
    let (client, server) = PAIRS[family];
    Judge::new(policy, None, client.parse().unwrap(), server.parse().unwrap())
}

const SEND: Action = Action::Send(PoolId(0));

/// The first hello is judged, and the server asks for another. Gives the server.
fn asked(judge: &mut Judge, host: &str) -> SocketAddr {
    judge.start();
    let first = hello(host, true);
    assert!(matches!(judge.inspect(&first, 999), Some(Verdict::Pass | Verdict::Send { .. })));
    assert_eq!(judge.expects_second(), Some(first.len() as u32));
    assert_eq!(judge.answer(0, &retry_request()), Said::Retry);
    assert_eq!(judge.hello_retry(), HelloRetry::Asked);
    judge.address(Towards::Server).or(judge.address(Towards::Destination)).unwrap()
}

fn decision(judge: &Judge) -> Decision {
    judge.judgement().unwrap().decision
}

#[test]
fn judge_keeps_the_verdict_for_the_same_hello_and_rules_anew_on_another() {
    const RETRY: Cause = Cause::HelloRetry;
    let rule = |n| Cause::Rule(crate::ids::RuleId(n));
    let rows = [
        ("fine.example", "fine.example", Verdict::Pass, HelloRetry::Same, Cause::Otherwise),
        ("sent.example", "sent.example", Verdict::Pass, HelloRetry::Same, rule(1)),
        ("fine.example", "other.example", Verdict::Pass, HelloRetry::Changed, Cause::Otherwise),
        ("fine.example", "denied.example", Verdict::Reset, HelloRetry::Changed, rule(0)),
        ("fine.example", "sent.example", Verdict::Reset, HelloRetry::Changed, RETRY),
        ("sent.example", "fine.example", Verdict::Reset, HelloRetry::Changed, RETRY),
    ];
    for family in 0..2 {
        for (first, second, verdict, retry, cause) in rows {
            let mut judge = judge(|_| {}, family);
            let server = asked(&mut judge, first);
            let second = hello(second, true);
            assert_eq!(judge.second(&second[..40], 999, server), None);
            assert_eq!(judge.second(&second, 999, server), Some(verdict), "{first}");
            assert_eq!((judge.hello_retry(), decision(&judge).cause), (retry, cause), "{first}");
            assert_eq!(judge.expects_second(), None);
        }
    }
}

#[test]
fn judge_expects_no_second_hello_where_none_can_come_or_change_anything() {
    for family in 0..2 {
        let first = |edit: &dyn Fn(&mut InterceptSpec), newer| {
            let mut judge = judge(edit, family);
            judge.start();
            judge.inspect(&hello("fine.example", newer), 999);
            judge.expects_second()
        };
        assert!(first(&|_| {}, true).is_some());
        assert_eq!(first(&|_| {}, false), None, "TLS 1.2 has none");
        assert_eq!(first(&|spec| spec.rules.clear(), true), None, "no rule looks at it");
        assert!(first(&|spec| spec.unidentified = Action::Drop, true).is_some());
        let mut judge = judge(|_| {}, family);
        judge.inspect(&hello("fine.example", true), 999);
        assert_eq!(judge.answer(0, &[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3, 1]), Said::Other);
        assert_eq!((judge.expects_second(), judge.hello_retry()), (None, HelloRetry::None));
    }
}

#[test]
fn judge_asks_about_the_second_name_and_matches_rules_for_it() {
    let answers = Answers::new(&[7; 32]);
    for family in 0..2 {
        for (verified, verdict) in [(Verified::Matches, Verdict::Pass), (Verified::Differs, Verdict::Reset)] {
            let mut judge = judge(|spec| spec.verify_host = VerifyHost::Reset, family);
            assert_eq!(judge.inspect(&hello("fine.example", true), 999), Some(Verdict::Wait));
            assert!(judge.take_question(&answers).is_some());
            assert_eq!(judge.verified(Verified::Matches), Some(Verdict::Pass));
            judge.answer(0, &retry_request());
            let server = judge.address(Towards::Destination).unwrap();
            assert_eq!(judge.second(&hello("other.example", true), 999, server), Some(Verdict::Wait));
            let question = judge.take_question(&answers).unwrap();
            assert_eq!((question.name.as_str(), question.waits), ("other.example", true));
            assert_eq!(judge.verified(verified), Some(verdict));
        }
        let rule = RuleSpec { hello_retry: Some(true), ..RuleSpec::new(Action::Drop) };
        let mut judge = judge(|spec| spec.rules.insert(0, rule.clone()), family);
        let server = asked(&mut judge, "fine.example");
        assert_eq!(judge.second(&hello("other.example", true), 999, server), Some(Verdict::Drop));
        // Nor is it a way round the rule to say what cannot be read, or nothing.
        let mut judge = self::judge(|spec| spec.rules.insert(0, rule.clone()), family);
        let server = asked(&mut judge, "fine.example");
        assert_eq!(judge.second_unread(server), Verdict::Drop);
    }
}

#[test]
fn held_second_hello_is_decided_at_the_end_of_its_time() {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Connected);
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 20 });
    assert_eq!(relay.poll_ask(), Some(Ask::Inspect { len: 20, budget: 32 }));
    relay.expect_second(18, 32, Nanos::from_secs(3));
    relay.handle_verdict(NOW, Verdict::Pass);
    let sent = drain(&mut relay);
    assert!(sent.contains(&Command::Send { to: Side::Server, len: 18 }), "{sent:?}");
    assert_eq!(relay.poll_ask(), Some(Ask::Behind { span: span(18, 2) }));
    relay.handle_behind(crate::inspect::Next::Handshake(0), 2);
    assert_eq!(relay.poll_ask(), None, "the server has not asked");
    after(&mut relay, NOW, Event::Received { from: Side::Server, len: 43 });
    assert_eq!(relay.poll_ask(), Some(Ask::Answer { at: 0, span: span(0, 43) }));
    relay.handle_answer(Said::Retry);
    assert_eq!(relay.poll_ask(), Some(Ask::Second { span: span(18, 2), budget: 32 }));
    assert_eq!(relay.poll_ask(), None);
    after(&mut relay, NOW, Event::Sent { to: Side::Server, len: 18 });
    let over = NOW.saturating_add(Nanos::from_secs(3));
    after(&mut relay, Nanos(over.0 - 1), Event::Timer);
    assert_eq!(relay.poll_ask(), None);
    after(&mut relay, over, Event::Timer);
    assert_eq!(relay.poll_ask(), Some(Ask::SecondUnread));
    relay.handle_second(over, Verdict::Pass);
    assert_eq!(drain(&mut relay)[0], Command::Send { to: Side::Server, len: 2 });
}
