//! `verify_host`: a connection whose name a resolver is asked about, until the answer, and what else may happen meanwhile.

use std::sync::Arc;

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_core::policy::{Action, RuleSpec, VerifyHost};
use weir_core::reevaluate::{Standing, Tally};
use weir_core::verify::{Question, Verified};
use weir_tests::bench::{Bench, Came, LAN, Moved, Setup, fib, policy, pool_server};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, FIN, Family, RST, SYN};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const MINUTE: Nanos = Nanos::from_secs(60);

fn bench(family: Family, mut setup: Setup, mode: VerifyHost, unidentified: Action) -> Bench {
    (setup.spec.verify_host, setup.spec.unidentified) = (mode, unidentified);
    Bench::of(family, setup)
}

fn reset(family: Family) -> Bench {
    bench(family, Setup::new(), VerifyHost::Reset, Action::Drop)
}

/// The handshake and a hello for `host`, which waits; the question and the hello.
fn waiting(b: &mut Bench, host: &str) -> (Question, Vec<u8>) {
    b.handshake();
    let hello = client_hello(host, 0);
    let came = b.lan(&b.c(0).payload(&hello), &[Moved::HostAsked]);
    assert!(came.is_nothing(), "it is held");
    (one(&came), hello)
}

fn one(came: &Came) -> Question {
    assert_eq!(came.questions.len(), 1, "{came:?}");
    came.questions[0]
}

/// What `weir flows` shows of the only connection: the check, the verdict, the reason.
fn shown(b: &Bench) -> (Option<&'static str>, Option<&'static str>, String) {
    let view = b.pipe.views(b.now, 0, 1).0.pop().expect("a connection");
    (view.host_check, view.verdict, view.reason)
}

#[test]
fn held_until_the_answer_and_retransmissions_are_duplicates() {
    for family in BOTH {
        let mut b = reset(family);
        let (question, hello) = waiting(&mut b, "fine.example");
        assert_eq!((question.name.as_str(), question.waits), ("fine.example", true));
        assert_eq!(question.destination.socket_addr(), b.server.into());
        assert_eq!(question.client.socket_addr(), b.client.into());
        assert_eq!(shown(&b), (Some("waiting"), None, "host-waiting".into()));
        b.lan(&b.c(0).payload(&hello), &[DROP(DropReason::HoldDuplicate)]);
        let more = hello.len() as u32;
        assert!(b.lan(&b.c(more).payload(b"more"), &[]).is_nothing(), "what follows is held, too");
        assert_eq!(b.wan(&b.s(0, 0), &[]).to_client().len(), 1, "the server's ACKs pass");
        let came = b.answer(&question, Verified::Matches, MINUTE, &[Moved::Allowed]);
        let sent: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
        assert_eq!(sent, [&hello[..], b"more"].concat());
        assert_eq!(shown(&b), (Some("matches"), Some("allow"), "otherwise".into()));
        // The same name and destination again: nobody waits, as long as the answer holds.
        for (port, asked) in [(40_001, false), (40_002, true)] {
            b.client.1 = port;
            b.handshake();
            let moved = if asked { Moved::HostAsked } else { Moved::Allowed };
            let came = b.lan(&b.c(0).payload(&hello), &[moved]);
            assert_eq!((came.questions.len(), came.tx.len()), (usize::from(asked), usize::from(!asked)));
            b.wait_any(MINUTE);
        }
    }
}

#[test]
fn other_addresses_reset_both_ends_with_the_numbers_they_expect() {
    for family in BOTH {
        let mut b = reset(family);
        let (question, hello) = waiting(&mut b, "fine.example");
        let moved = [Moved::Reset, Moved::HostMismatch, DROP(DropReason::VerdictReset)];
        let came = b.answer(&question, Verified::Differs, MINUTE, &moved);
        let (server, client) = (came.to_server(), came.to_client());
        assert_eq!((server.len(), client.len()), (1, 1));
        assert_eq!((server[0].flags & RST, server[0].seq), (RST, b.c + 1));
        assert_eq!((client[0].flags & RST, client[0].seq), (RST, b.s + 1));
        assert_eq!(shown(&b), (Some("differs"), Some("reset"), "host-mismatch".into()));
        // It stays refused, and so is the next one, at once.
        b.lan(&b.c(0).payload(&hello), &[DROP(DropReason::VerdictReset)]);
        b.client.1 += 1;
        b.handshake();
        let came = b.lan(&b.c(0).payload(&hello), &moved);
        assert_eq!((came.questions.len(), came.tx.len()), (0, 2));
        b.assert_idle();
    }
}

#[test]
fn unknown_name_takes_the_unidentified_verdict_by_answer_and_by_time() {
    for family in BOTH {
        for by_time in [false, true] {
            for (unidentified, moved) in [
                (Action::Allow, &[Moved::Allowed, Moved::HostUnknown][..]),
                (Action::Reset, &[Moved::Reset, Moved::HostUnknown, DROP(DropReason::VerdictReset)]),
                (Action::Drop, &[Moved::Dropped, Moved::HostUnknown, DROP(DropReason::VerdictDrop)]),
            ] {
                let mut b = bench(family, Setup::new(), VerifyHost::Reset, unidentified);
                let (question, hello) = waiting(&mut b, "fine.example");
                let came = if by_time {
                    assert_eq!(b.wait_any(Nanos::from_millis(2900)).1, []);
                    b.wait(Nanos::from_millis(200), moved)
                } else {
                    b.answer(&question, Verified::Unknown, Nanos(0), moved)
                };
                let passed = came.to_server().iter().any(|seen| seen.payload == hello);
                assert_eq!(passed, unidentified == Action::Allow);
                let reason = if passed { "otherwise" } else { "host-unknown" };
                assert_eq!(shown(&b), (Some("unknown"), Some(unidentified.name()), reason.into()));
                // An answer that comes too late changes nothing.
                assert!(b.answer(&question, Verified::Differs, MINUTE, &[]).is_nothing());
            }
        }
    }
}

#[test]
fn ends_that_leave_while_the_name_is_asked_about_are_told_apart_from_the_answer() {
    for family in BOTH {
        // The client resets: the server is freed with the number that it expects.
        let mut b = reset(family);
        let (question, hello) = waiting(&mut b, "fine.example");
        let ended = [DROP(DropReason::Ended), DROP(DropReason::Ended)];
        let rst = b.lan(&b.c(hello.len() as u32).flags(RST | ACK), &ended).one_to_server();
        assert_eq!((rst.flags & RST, rst.seq), (RST, b.c + 1));
        assert!(b.answer(&question, Verified::Matches, MINUTE, &[]).is_nothing());
        b.assert_idle();
        // The server resets.
        let mut b = reset(family);
        let (question, _) = waiting(&mut b, "fine.example");
        b.wan(&b.s(0, 0).flags(RST | ACK), &[DROP(DropReason::Ended)]).one_to_client();
        assert!(b.answer(&question, Verified::Matches, MINUTE, &[]).is_nothing());
        b.assert_idle();
        // The client's FIN is held behind its bytes, and goes with them.
        let mut b = reset(family);
        let (question, hello) = waiting(&mut b, "fine.example");
        assert!(b.lan(&b.c(hello.len() as u32).flags(FIN | ACK), &[]).is_nothing());
        let came = b.answer(&question, Verified::Matches, MINUTE, &[Moved::Allowed]).to_server();
        assert_eq!(came.iter().map(|seen| seen.flags & FIN).collect::<Vec<_>>(), [0, FIN]);
    }
}

#[test]
fn answer_for_another_name_of_the_same_addresses_lets_nothing_pass() {
    for family in BOTH {
        let mut b = reset(family);
        let (first, hello) = waiting(&mut b, "fine.example");
        let ended = [DROP(DropReason::Ended), DROP(DropReason::Ended)];
        b.lan(&b.c(hello.len() as u32).flags(RST | ACK), &ended);
        // The same ports, another connection, another name.
        (b.c, b.s) = (b.c + 500_000, b.s + 500_000);
        let (second, _) = waiting(&mut b, "other.example");
        assert_eq!((first.key, first.tag == second.tag), (second.key, false));
        assert!(b.answer(&first, Verified::Matches, MINUTE, &[]).is_nothing());
        let moved = [Moved::Reset, Moved::HostMismatch, DROP(DropReason::VerdictReset)];
        b.answer(&second, Verified::Differs, MINUTE, &moved);
    }
}

#[test]
fn rules_that_refuse_are_not_kept_waiting_and_other_bytes_end_the_wait() {
    for family in BOTH {
        let mut b = reset(family);
        b.handshake();
        let denied = client_hello("denied.example", 0);
        let came = b.lan(&b.c(0).payload(&denied), &[Moved::Reset, DROP(DropReason::VerdictReset)]);
        assert!(came.questions.is_empty());
        let mut b = reset(family);
        let (question, mut hello) = waiting(&mut b, "fine.example");
        hello[20] ^= 1;
        let changed = [Moved::Reset, DROP(DropReason::ChangedBytes), DROP(DropReason::ChangedBytes)];
        b.lan(&b.c(0).payload(&hello), &changed);
        assert!(b.answer(&question, Verified::Matches, MINUTE, &[]).is_nothing());
    }
}

#[test]
fn logged_connections_pass_at_once_and_the_answer_is_noted() {
    for family in BOTH {
        for (verified, moved) in [
            (Verified::Matches, &[][..]),
            (Verified::Differs, &[Moved::HostMismatch]),
            (Verified::Unknown, &[Moved::HostUnknown]),
        ] {
            let mut b = bench(family, Setup::new(), VerifyHost::Log, Action::Reset);
            b.handshake();
            let hello = client_hello("fine.example", 0);
            let came = b.lan(&b.c(0).payload(&hello), &[Moved::Allowed, Moved::HostAsked]);
            assert_eq!((came.one_to_server().payload, one(&came).waits), (hello, false));
            assert_eq!(shown(&b), (Some("waiting"), Some("allow"), "otherwise".into()));
            assert!(b.answer(&one(&came), verified, MINUTE, moved).is_nothing());
            assert_eq!(shown(&b), (Some(verified.name()), Some("allow"), "otherwise".into()));
        }
    }
}

#[test]
fn configuration_that_asks_no_more_lets_the_waiting_pass() {
    for family in BOTH {
        let mut b = reset(family);
        let (question, hello) = waiting(&mut b, "fine.example");
        let rules = Arc::new(policy(2, [Setup::new().spec]));
        b.pipe.set_snapshot(b.now, rules, Arc::new(fib(1500)));
        let came = b.answer(&question, Verified::Differs, MINUTE, &[Moved::Allowed]);
        assert_eq!(came.one_to_server().payload, hello);
    }
}

/// A reload that judges live connections again leaves it held; the answer and the rules of then decide.
#[test]
fn waiting_connection_is_not_judged_again_before_the_answer() {
    for family in BOTH {
        for (refuses, moved) in
            [(false, &[Moved::Allowed][..]), (true, &[Moved::Reset, DROP(DropReason::VerdictReset)])]
        {
            let mut b = reset(family);
            let (question, hello) = waiting(&mut b, "fine.example");
            let mut spec = Setup::new().spec;
            spec.verify_host = VerifyHost::Reset;
            if refuses {
                spec.rules = vec![RuleSpec::new(Action::Reset)];
            }
            b.pipe.set_snapshot(b.now, Arc::new(policy(2, [spec])), Arc::new(fib(1500)));
            let (before, mut tally) = (b.counters(), Tally::default());
            assert_eq!(b.pipe.reevaluate(b.now, 0, 9, &mut tally, &mut b.out), None);
            assert_eq!(tally, Tally { undecided: 1, ..Tally::default() });
            assert!(b.moved_since(&before).is_empty() && b.collect().is_nothing(), "it stays held");
            let view = b.pipe.views(b.now, 0, 1).0.pop().expect("a connection");
            assert_eq!((view.standing, view.host_check), (Standing::Undecided, Some("waiting")));
            let came = b.answer(&question, Verified::Matches, MINUTE, moved);
            let payload: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
            assert_eq!(payload, if refuses { Vec::new() } else { hello });
            assert_eq!(b.pipe.views(b.now, 0, 1).0.pop().map(|view| view.epoch), Some(2));
        }
    }
}

/// The handshake with weir: the server hears nothing before the answer, and then its SYN.
#[test]
fn answered_handshake_calls_the_server_only_after_the_answer() {
    for family in BOTH {
        for (verified, moved) in [
            (Verified::Matches, &[Moved::Allowed][..]),
            (Verified::Differs, &[Moved::Reset, Moved::HostMismatch, DROP(DropReason::VerdictReset)]),
        ] {
            let mut b = bench(family, Setup::answer(), VerifyHost::Reset, Action::Drop);
            let syn_ack = b.lan(&b.syn(), &[Moved::Opened]).one_to_client();
            b.s = syn_ack.seq;
            b.lan(&b.c(0), &[DROP(DropReason::ToWeir)]);
            let hello = client_hello("fine.example", 0);
            let came = b.lan(&b.c(0).payload(&hello), &[Moved::HostAsked]);
            assert!(came.is_nothing());
            b.lan(&b.c(0).payload(&hello), &[DROP(DropReason::HoldDuplicate)]);
            let after = b.answer(&one(&came), verified, MINUTE, moved);
            if verified == Verified::Matches {
                assert_eq!((after.one_to_server().flags, b.pipe.frames_held()), (SYN, 1));
            } else {
                assert_eq!(after.one_to_client().flags & RST, RST, "there never was a server");
                b.assert_idle();
            }
        }
    }
}

#[test]
fn sent_by_name_leaves_its_server_only_after_the_answer() {
    for family in BOTH {
        let setup = Setup::new().sending(|pool| pool);
        let mut b = bench(family, setup, VerifyHost::Reset, Action::Drop);
        let (question, _) = waiting(&mut b, "sent.example");
        let came = b.answer(&question, Verified::Matches, MINUTE, &[Moved::Sent]).to_server();
        let rst = came.iter().find(|seen| seen.flags & RST != 0).expect("the server is freed");
        assert_eq!((rst.dst, rst.seq), (b.server, b.c + 1));
        let syn = came.iter().find(|seen| seen.flags == SYN).expect("a pool's server is called");
        assert!((0..2).any(|n| syn.dst == pool_server(family, n)) && syn.seq == b.c);
    }
}

/// Connections that were let on and only logged, under rules that reset what differs: what was found then decides, and what
/// nobody asked stays and is counted.
#[test]
fn logged_connections_are_judged_again_by_what_was_found() {
    for family in BOTH {
        for (mode, verified, tally) in [
            (VerifyHost::Log, Some(Verified::Matches), Tally { kept: 1, ..Tally::default() }),
            (VerifyHost::Log, Some(Verified::Differs), Tally { reset: 1, ..Tally::default() }),
            (VerifyHost::Off, None, Tally { unverified: 1, ..Tally::default() }),
        ] {
            let mut b = bench(family, Setup::new(), mode, Action::Allow);
            b.handshake();
            let hello = client_hello("fine.example", 0);
            let (came, _) = b.give_any(LAN, &b.c(0).payload(&hello).frame());
            if let Some(verified) = verified {
                let moved: &[Moved] =
                    if verified == Verified::Differs { &[Moved::HostMismatch] } else { &[] };
                b.answer(&one(&came), verified, MINUTE, moved);
            }
            let mut spec = Setup::new().spec;
            spec.verify_host = VerifyHost::Reset;
            b.pipe.set_snapshot(b.now, Arc::new(policy(2, [spec])), Arc::new(fib(1500)));
            let mut counted = Tally::default();
            assert_eq!(b.pipe.reevaluate(b.now, 0, 9, &mut counted, &mut b.out), None);
            assert_eq!(counted, tally);
            assert_eq!(b.collect().tx.len(), if tally.reset == 1 { 2 } else { 0 });
        }
    }
}
