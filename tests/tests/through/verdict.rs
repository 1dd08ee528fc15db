//! The handshake passes, the first bytes decide.

use std::sync::Arc;

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_core::policy::{Action, NameSet, RuleSpec};
use weir_tests::bench::{Bench, CLIENT_MAC, LAN_MAC, Moved, SERVER_MAC, Setup, WAN_MAC};
use weir_tests::hello::{client_hello, client_hello_in_records, http_request};
use weir_tests::packet::{ACK, BOTH, FIN, PSH, RST, SYN};

const RESET: [Moved; 2] = [Moved::Reset, Moved::Drop(DropReason::VerdictReset)];

#[test]
fn handshake_passes_between_the_real_ends() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let syn = b.lan(&b.syn(), &[Moved::Opened]).one_to_server();
        assert_eq!((syn.macs, syn.ttl, syn.sound), ((SERVER_MAC, WAN_MAC), 63, true));
        assert_eq!((syn.src, syn.dst, syn.flags, syn.seq), (b.client, b.server, SYN, b.c));
        assert_eq!(syn.options, b.syn().options);
        let answer = b.wan(&b.syn_ack(), &[]).one_to_client();
        assert_eq!((answer.macs, answer.ttl, answer.sound), ((CLIENT_MAC, LAN_MAC), 63, true));
        assert_eq!((answer.flags, answer.seq, answer.ack), (SYN | ACK, b.s, b.c + 1));
        let ack = b.lan(&b.c(0), &[]).one_to_server();
        assert_eq!((ack.flags, ack.seq, ack.ack, ack.sound), (ACK, b.c + 1, b.s + 1, true));
        assert_eq!(b.pipe.flow_counts(), (1, 0));
    }
}

/// The same bytes, however they are cut, ordered, repeated: one verdict, when the last missing octet has come.
#[test]
fn client_hello_however_it_comes_gets_its_verdict() {
    for family in BOTH {
        for (host, pad) in [("denied.example", 0), ("denied.example", 1200), ("fine.example", 1200)] {
            let hello = client_hello(host, pad);
            let n = hello.len();
            let thirds = [(0, n / 3), (n / 3, 2 * n / 3), (2 * n / 3, n)];
            let rows: Vec<(&str, Vec<(usize, usize)>)> = vec![
                ("in one", vec![(0, n)]),
                ("in order", thirds.to_vec()),
                ("backwards", thirds.iter().rev().copied().collect()),
                ("the middle last", vec![thirds[0], thirds[2], thirds[1]]),
                ("each twice", thirds[..2].iter().flat_map(|r| [*r, *r]).chain([thirds[2]]).collect()),
                ("overlapping", vec![(0, n / 2), (n / 4, 3 * n / 4), (n / 2, n)]),
                ("one in another", vec![(10, 20), (0, n)]),
                ("forty octets each", (0..n.min(2400)).step_by(40).map(|s| (s, (s + 40).min(n))).collect()),
            ];
            for (name, cuts) in rows {
                let mut b = Bench::new(family);
                b.handshake();
                let (last, before) = cuts.split_last().unwrap();
                let seg = |b: &Bench, (s, e): (usize, usize)| b.c(s as u32).payload(&hello[s..e]);
                // A repetition brings nothing, and is not kept.
                let mut kept: Vec<(usize, usize)> = Vec::new();
                for cut in before {
                    let again = kept.contains(cut);
                    let moved: &[Moved] = if again { &[Moved::Drop(DropReason::HoldDuplicate)] } else { &[] };
                    let seg = seg(&b, *cut);
                    assert!(b.lan(&seg, moved).is_nothing(), "{name}: held");
                    if !again {
                        kept.push(*cut);
                    }
                }
                kept.push(*last);
                let fine = host == "fine.example";
                let mut moved = vec![Moved::Reset];
                moved.extend(kept.iter().map(|_| Moved::Drop(DropReason::VerdictReset)));
                let last = seg(&b, *last);
                let came = b.lan(&last, if fine { &[Moved::Allowed] } else { &moved });
                if fine {
                    let sent = came.to_server();
                    assert_eq!(sent.len(), kept.len(), "{name}: all that was held goes on");
                    assert!(sent.windows(2).all(|w| w[0].seq <= w[1].seq), "{name}: in order");
                    assert!(sent.iter().all(|s| s.sound && s.ttl == 63), "{name}");
                } else {
                    let (s, c) = (came.to_server(), came.to_client());
                    assert_eq!((s.len(), c.len()), (1, 1), "{name}");
                    assert_eq!((s[0].flags, s[0].seq, s[0].ack), (RST | ACK, b.c + 1, b.s + 1), "{name}");
                    assert_eq!((c[0].flags, c[0].seq, c[0].ack), (RST | ACK, b.s + 1, b.c + 1), "{name}");
                    assert!(s[0].sound && c[0].sound && s[0].src == b.client && c[0].src == b.server);
                }
                b.assert_idle();
            }
        }
    }
}

#[test]
fn client_hello_over_many_records_is_read() {
    for family in BOTH {
        for cut in [1, 7, 50, 200] {
            let mut b = Bench::new(family);
            b.handshake();
            b.lan(&b.c(0).payload(client_hello_in_records("denied.example", 20, cut)), &RESET);
        }
    }
}

#[test]
fn http_request_gets_its_verdict() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.server.1 = 80;
        b.handshake();
        let request = http_request("denied.example");
        b.lan(&b.c(0).payload(&request[..20]), &[]);
        let two = [RESET[0], RESET[1], RESET[1]];
        b.lan(&b.c(20).payload(&request[20..]), &two);
        let mut b = Bench::new(family);
        b.handshake();
        b.lan(&b.c(0).payload(http_request("fine.example")), &[Moved::Allowed]).one_to_server();
    }
}

#[test]
fn dropped_client_hears_nothing_and_its_server_is_freed() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = b.c(0).payload(client_hello("dropped.example", 0));
        let dropped = Moved::Drop(DropReason::VerdictDrop);
        let freed = b.lan(&hello, &[Moved::Dropped, dropped]).one_to_server();
        assert_eq!((freed.flags, freed.seq), (RST | ACK, b.c + 1));
        assert!(b.lan(&hello, &[dropped]).is_nothing());
        assert!(b.lan(&b.c(400).flags(FIN | ACK), &[dropped]).is_nothing());
        let answer = b.wan(&b.s(0, 0), &[dropped]).one_to_server();
        assert_eq!((answer.flags, answer.seq), (RST, b.c + 1));
    }
}

#[test]
fn refused_segments_are_answered_as_a_closed_port_does() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = b.c(0).payload(client_hello("denied.example", 0));
        b.lan(&hello, &RESET);
        let answer = b.lan(&hello, &RESET[1..]).one_to_client();
        assert_eq!((answer.flags, answer.seq), (RST, b.s + 1));
        let answer = b.wan(&b.s(0, 0), &RESET[1..]).one_to_server();
        assert_eq!((answer.flags, answer.seq), (RST, b.c + 1));
        let answer = b.lan(&b.syn(), &RESET[1..]).one_to_client();
        assert_eq!((answer.flags, answer.seq, answer.ack), (RST | ACK, 0, b.c + 1));
        assert!(b.lan(&b.c(0).flags(RST), &RESET[1..]).is_nothing(), "an RST gets no answer");
    }
}

/// Every verdict for what no rule takes.
#[test]
fn otherwise_and_unidentified_take_their_configured_verdict() {
    let drop = |r| Moved::Drop(r);
    let (reset, dropped) = (drop(DropReason::VerdictReset), drop(DropReason::VerdictDrop));
    let rows: [(Action, Vec<Moved>); 3] = [
        (Action::Allow, vec![Moved::Allowed]),
        (Action::Reset, vec![Moved::Reset, reset]),
        (Action::Drop, vec![Moved::Dropped, dropped]),
    ];
    for family in BOTH {
        for (action, moved) in &rows {
            let mut setup = Setup::new();
            (setup.spec.otherwise, setup.spec.unidentified) = (*action, *action);
            let unidentified = [&moved[..], &[Moved::Unidentified]].concat();
            let bench = || {
                let mut b = Bench::of(family, setup.clone());
                b.handshake();
                b
            };
            let mut b = bench();
            b.lan(&b.c(0).payload(client_hello("other.example", 0)), moved);
            let mut b = bench();
            b.lan(&b.c(0).payload([0, 1, 2, 3]), &unidentified);
            // The server speaks first.
            let mut b = bench();
            let came = b.wan(&b.s(0, 0).payload("220 ready"), &unidentified);
            assert_eq!(came.to_client().iter().any(|s| !s.payload.is_empty()), *action == Action::Allow);
            // The client has nothing to say.
            let mut b = bench();
            let came = b.lan(&b.c(0).flags(FIN | ACK), &unidentified);
            assert_eq!(came.to_server().iter().any(|s| s.flags & FIN != 0), *action == Action::Allow);
            // It says something unfinished, and closes; the FIN comes with it, behind it, or before it.
            let half = &client_hello("fine.example", 0)[..30];
            let mut b = bench();
            b.lan(&b.c(0).payload(half).flags(FIN | PSH | ACK), &unidentified);
            let two: Vec<Moved> = if *action == Action::Allow {
                unidentified.clone()
            } else {
                unidentified.iter().copied().chain([moved[1]]).collect()
            };
            let mut b = bench();
            b.lan(&b.c(0).payload(half), &[]);
            b.lan(&b.c(30).flags(FIN | ACK), &two);
            let mut b = bench();
            b.lan(&b.c(30).flags(FIN | ACK), &[]);
            b.lan(&b.c(0).payload(half), &two);
            // Its time is over.
            let mut b = bench();
            b.lan(&b.c(0).payload(half), &[]);
            b.wait(Nanos::from_millis(2900), &[]);
            b.wait(Nanos::from_millis(200), &unidentified);
            b.assert_idle();
        }
    }
}

#[test]
fn message_over_the_hold_is_unidentified() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.spec.hold_bytes = 1000;
        setup.spec.unidentified = Action::Reset;
        let mut b = Bench::of(family, setup);
        b.handshake();
        let hello = client_hello("fine.example", 1400);
        let moved = [RESET[0], RESET[1], Moved::Unidentified];
        b.lan(&b.c(0).payload(&hello[..1200]), &moved);
    }
}

#[test]
fn rules_on_addresses_decide_when_the_bytes_are_there() {
    for family in BOTH {
        let mut setup = Setup::new();
        let mut rule = RuleSpec::new(Action::Reset);
        rule.from = vec![ipnet::IpNet::from(weir_tests::bench::client_of(family))];
        setup.spec.rules.insert(0, rule);
        let mut b = Bench::of(family, setup);
        b.handshake();
        b.lan(&b.c(0).payload(client_hello("fine.example", 0)), &RESET);
    }
}

#[test]
fn names_are_kept_while_flows_have_them() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.config.names = 2;
        let mut rule = RuleSpec::new(Action::Reset);
        rule.host = Some(Arc::new(NameSet::parse(["*.ads.example"]).unwrap()));
        setup.spec.rules.push(rule);
        let mut b = Bench::of(family, setup);
        for round in 0..3 {
            for (at, host) in ["x.ads.example", "y.ads.example", "z.ads.example"].into_iter().enumerate() {
                b.client.1 = 41_000 + at as u16;
                b.handshake();
                b.lan(&b.c(0).payload(client_hello(host, 0)), &RESET);
            }
            let (views, _) = b.pipe.views(b.now, 0, 10);
            let known = views.iter().filter(|v| v.host.is_some()).count();
            assert_eq!((views.len(), known), (3, 2), "round {round}: two names fit");
            assert!(views.iter().all(|v| v.verdict == Some("reset") && v.road == "fast"));
            b.wait(Nanos::from_secs(200), &[Moved::Expired; 3]);
        }
    }
}
