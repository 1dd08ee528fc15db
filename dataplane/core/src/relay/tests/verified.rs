//! `verify_host` on the relay: the judge that asks, and the machine that waits.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::ids::PortId;
use crate::policy::{Action, Cause, Decision, Handshake, InterceptSpec, PolicyBuilder, RuleSpec, VerifyHost};
use crate::verify::{Answers, HostCheck, Verified};

const PAIRS: [(&str, &str); 2] =
    [("10.1.0.2:40000", "192.0.2.10:80"), ("[fd01::2]:40000", "[2001:db8::10]:80")];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n";

fn judge(mode: VerifyHost, rules: &[RuleSpec], client: &str, server: &str) -> Judge {
    let mut spec = InterceptSpec::new("all").from_port(PortId(3)).to_any().tcp([80]);
    (spec.handshake, spec.verify_host, spec.unidentified) = (Handshake::Relay, mode, Action::Drop);
    spec.rules = rules.to_vec();
    let policy = Arc::new(PolicyBuilder::new(1).intercept(spec).build().unwrap());
    Judge::new(policy, None, client.parse().unwrap(), server.parse().unwrap())
}

fn decided(judge: &Judge) -> Decision {
    judge.judgement().unwrap().decision
}

#[test]
fn judge_waits_for_the_answer_and_rules_by_it() {
    let answers = Answers::new(&[7; 32]);
    let rows = [
        (Verified::Matches, Verdict::Pass, Action::Allow, Cause::Otherwise),
        (Verified::Differs, Verdict::Reset, Action::Reset, Cause::HostMismatch),
        (Verified::Unknown, Verdict::Drop, Action::Drop, Cause::HostUnknown),
    ];
    for (client, server) in PAIRS {
        for (verified, verdict, action, cause) in rows {
            let mut judge = judge(VerifyHost::Reset, &[], client, server);
            assert!(matches!(judge.start(), Start::Held { ahead: true, .. }));
            assert_eq!(judge.inspect(REQUEST, 64), Some(Verdict::Wait));
            let question = judge.take_question(&answers).unwrap();
            assert_eq!((question.name.as_str(), question.waits), ("www.example", true));
            let server: SocketAddr = server.parse().unwrap();
            assert_eq!(question.destination.socket_addr(), server);
            assert!(judge.take_question(&answers).is_none(), "once");
            assert_eq!(judge.check(), HostCheck::Waiting);
            assert_eq!(judge.verified(verified), Some(verdict));
            assert_eq!(judge.check(), HostCheck::Known(verified));
            assert_eq!(decided(&judge), Decision { action, cause });
            assert_eq!(judge.verified(Verified::Differs), None, "the first answer counts");
            assert_eq!(decided(&judge), Decision { action, cause });
        }
    }
}

#[test]
fn judge_that_logs_lets_pass_and_notes_the_answer() {
    let answers = Answers::new(&[7; 32]);
    for (client, server) in PAIRS {
        let mut judge = judge(VerifyHost::Log, &[], client, server);
        assert_eq!(judge.inspect(REQUEST, 64), Some(Verdict::Pass));
        assert!(!judge.take_question(&answers).unwrap().waits);
        assert_eq!(judge.verified(Verified::Differs), None);
        assert_eq!(judge.check(), HostCheck::Known(Verified::Differs));
        assert_eq!(decided(&judge).action, Action::Allow);
    }
}

#[test]
fn decided_by_address_is_read_for_its_name_and_refused_is_not() {
    for (client, server) in PAIRS {
        for mode in [VerifyHost::Log, VerifyHost::Reset] {
            let allowed = [RuleSpec::new(Action::Relay)];
            let mut allowed = judge(mode, &allowed, client, server);
            assert!(matches!(allowed.start(), Start::Held { .. }));
            let wanted = if mode == VerifyHost::Reset { Verdict::Wait } else { Verdict::Pass };
            assert_eq!(allowed.inspect(REQUEST, 64), Some(wanted));
            let refused = [RuleSpec::new(Action::Reset)];
            assert_eq!(judge(mode, &refused, client, server).start(), Start::Settled(Verdict::Reset));
            // Nothing to read: what the addresses decide stands.
            let rule = [RuleSpec::new(Action::Allow)];
            let mut silent = judge(mode, &rule, client, server);
            silent.start();
            assert_eq!(silent.unidentified(Unread::ServerFirst), Verdict::Pass);
        }
        let rule = [RuleSpec::new(Action::Allow)];
        assert_eq!(judge(VerifyHost::Off, &rule, client, server).start(), Start::Settled(Verdict::Pass));
    }
}

#[test]
fn literal_of_another_address_is_refused_without_a_question() {
    for (client, server) in PAIRS {
        let mut judge = judge(VerifyHost::Reset, &[], client, server);
        let request = b"GET / HTTP/1.1\r\nHost: 203.0.113.9\r\n\r\n";
        assert_eq!(judge.inspect(request, 64), Some(Verdict::Reset));
        assert!(judge.take_question(&Answers::new(&[7; 32])).is_none());
        assert_eq!(decided(&judge).cause, Cause::HostMismatch);
    }
}

/// Connected, with 20 octets of the client, told to wait for the answer.
fn waiting() -> Relay {
    let mut relay = Relay::new(NOW, LIMITS, HELD);
    drain(&mut relay);
    after(&mut relay, NOW, Event::Connected);
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 20 });
    assert_eq!(relay.poll_ask(), Some(Ask::Inspect { len: 20, budget: 32 }));
    relay.handle_verdict(NOW, Verdict::Wait);
    assert_eq!(drain(&mut relay), []);
    relay
}

#[test]
fn waiting_sends_nothing_asks_nothing_and_goes_on_with_the_answer() {
    let mut relay = waiting();
    after(&mut relay, NOW, Event::Received { from: Side::Client, len: 12 });
    after(&mut relay, NOW, Event::Eof(Side::Client));
    assert_eq!(relay.poll_ask(), None, "whatever else the client says");
    assert!(relay.is_held());
    relay.handle_verdict(NOW, Verdict::Wait);
    assert!(relay.is_held());
    relay.handle_verdict(NOW, Verdict::Pass);
    let commands = drain(&mut relay);
    assert!(commands.contains(&Command::Send { to: Side::Server, len: 32 }), "{commands:?}");
    // A late verdict changes nothing.
    relay.handle_verdict(NOW, Verdict::Reset);
    assert_eq!((relay.ending(), drain(&mut relay)), (None, Vec::new()));
}

#[test]
fn waiting_past_the_hold_is_told_once() {
    let mut relay = waiting();
    assert_eq!(relay.poll_ask(), None);
    after(&mut relay, NOW.saturating_add(Nanos::from_secs(3)), Event::Timer);
    assert_eq!(relay.poll_ask(), Some(Ask::Unverified));
    assert_eq!(relay.poll_ask(), None);
    relay.handle_verdict(NOW, Verdict::Reset);
    assert_eq!(drain(&mut relay)[..2], [Command::Reset(Side::Server), Command::Reset(Side::Client)]);
}

#[test]
fn waiting_ends_with_either_end() {
    for side in [Side::Client, Side::Server] {
        let mut relay = waiting();
        let failed = match side {
            Side::Client => Event::RecvFailed(Side::Client, Failure::Reset),
            Side::Server => Event::RecvFailed(Side::Server, Failure::Reset),
        };
        after(&mut relay, NOW, failed);
        assert_eq!(relay.ending(), Some(Ending::Failed(side, Failure::Reset)));
        relay.handle_verdict(NOW, Verdict::Pass);
        assert_eq!(relay.traffic(), (0, 0));
    }
}
