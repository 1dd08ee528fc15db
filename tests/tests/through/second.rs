//! The second ClientHello, which a server asks for with a HelloRetryRequest: what passes, what is held, and what ends.

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_core::policy::{Action, RuleSpec, VerifyHost};
use weir_core::verify::Verified;
use weir_tests::bench::{Bench, LAN, Moved, Setup, WAN};
use weir_tests::hello::{client_hello, hello_retry_request, record, server_hello};
use weir_tests::packet::{ACK, BOTH, FIN, RST, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const UNREAD: DropReason = DropReason::HelloRetry;

/// The first hello has passed and is acknowledged. Returns its octets.
fn first(b: &mut Bench) -> u32 {
    let sent = b.allowed();
    b.wan(&b.s(0, sent), &[]).one_to_client();
    sent
}

/// The server has asked for another. Returns the octets of the first hello, and of the request.
fn asked(b: &mut Bench) -> (u32, u32) {
    let sent = first(b);
    let request = hello_retry_request();
    let came = b.wan(&b.s(0, sent).payload(&request), &[Moved::HelloRetry]);
    assert_eq!(came.one_to_client().payload, request);
    (sent, request.len() as u32)
}

/// What `weir flows` shows: the retry, verdict and reason.
fn shown(b: &Bench) -> (Option<&'static str>, Option<&'static str>, String) {
    let view = b.pipe.views(b.now, 0, 1).0.pop().expect("a connection");
    (view.hello_retry, view.verdict, view.reason)
}

/// A segment behind the first hello, that acknowledges what the server said.
fn behind(b: &Bench, at: (u32, u32), bytes: &[u8]) -> Seg {
    let seg = b.c(at.0).payload(bytes);
    Seg { ack: seg.ack.wrapping_add(at.1), ..seg }
}

#[test]
fn second_hello_for_the_same_is_held_until_it_is_read_and_then_passes() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let at = asked(&mut b);
        assert_eq!(shown(&b).0, Some("asked"));
        let hello = [record(20, 1), client_hello("fine.example", 30)].concat();
        // The change of cipher before it is no handshake, but it shares a segment with what is held.
        assert!(b.lan(&behind(&b, at, &hello[..60]), &[]).is_nothing());
        assert!(b.wan(&b.s(at.1, at.0), &[]).one_to_client().payload.is_empty());
        b.lan(&behind(&b, at, &hello[..60]), &[DROP(DropReason::HoldDuplicate)]);
        let came = b.lan(&behind(&b, (at.0 + 60, at.1), &hello[60..]), &[]);
        let sent: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
        assert_eq!(sent, hello);
        assert_eq!(shown(&b), (Some("same"), Some("allow"), "otherwise".into()));
        // Invariant 3 holds for it, too, until it is acknowledged.
        let all = at.0 + hello.len() as u32;
        b.wan(&b.s(at.1, all), &[]).one_to_client();
        let other = behind(&b, (at.0, at.1), &[7; 60]);
        b.lan(&other, &[]).one_to_server();
        // Nothing is looked at any more.
        let third = client_hello("denied.example", 0);
        assert_eq!(b.lan(&behind(&b, (all, at.1), &third), &[]).one_to_server().payload, third);
        b.assert_idle();
    }
}

#[test]
fn retransmission_of_the_second_hello_with_other_bytes_ends_the_connection() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let at = asked(&mut b);
        let mut hello = client_hello("fine.example", 0);
        b.lan(&behind(&b, at, &hello), &[]).one_to_server();
        hello[50] ^= 1;
        b.lan(&behind(&b, at, &hello), &[Moved::Reset, DROP(DropReason::ChangedBytes)]);
    }
}

#[test]
fn second_hello_for_something_else_is_put_to_the_rules() {
    let reset: &[Moved] = &[Moved::HelloChanged, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)];
    let dropped: &[Moved] = &[Moved::HelloChanged, Moved::HelloRefused, Moved::Dropped, DROP(UNREAD)];
    for family in BOTH {
        for (host, moved, verdict, reason) in [
            ("other.example", &[Moved::HelloChanged][..], "allow", "otherwise"),
            ("denied.example", reset, "reset", "rule"),
            ("dropped.example", dropped, "drop", "rule"),
            // A connection cannot be moved any more.
            ("sent.example", reset, "reset", "hello-retry"),
        ] {
            let mut b = Bench::of(family, Setup::new().sending(|pool| pool));
            let at = asked(&mut b);
            let hello = client_hello(host, 0);
            let came = b.lan(&behind(&b, at, &hello), moved);
            assert_eq!(shown(&b), (Some("changed"), Some(verdict), reason.into()), "{host}");
            let view = b.pipe.views(b.now, 0, 1).0.pop().expect("a connection");
            if verdict == "allow" {
                assert_eq!(came.one_to_server().payload, hello);
                assert_eq!(view.host.as_deref(), Some(host), "what it asks for now");
            } else {
                let server = &came.to_server()[0];
                assert_eq!((server.flags & RST, server.seq, server.payload.len()), (RST, b.c + 1 + at.0, 0));
                let told = came.to_client().iter().any(|seen| seen.flags & RST != 0);
                assert_eq!(told, verdict == "reset");
            }
        }
    }
}

#[test]
fn rule_for_second_hellos_takes_what_is_changed_or_cannot_be_read() {
    for family in BOTH {
        let setup = || {
            let mut setup = Setup::new();
            let rule = RuleSpec { hello_retry: Some(true), ..RuleSpec::new(Action::Reset) };
            setup.spec.rules.insert(0, rule);
            setup
        };
        let refused = [Moved::HelloChanged, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)];
        let mut b = Bench::of(family, setup());
        let at = asked(&mut b);
        b.lan(&behind(&b, at, &client_hello("other.example", 0)), &refused);
        assert_eq!(shown(&b), (Some("changed"), Some("reset"), "rule".into()));
        // Half of it, until its time is over.
        let mut b = Bench::of(family, setup());
        let at = asked(&mut b);
        assert!(b.lan(&behind(&b, at, &client_hello("fine.example", 0)[..40]), &[]).is_nothing());
        assert_eq!(b.wait_any(Nanos::from_millis(2900)).1, []);
        b.wait(Nanos::from_millis(200), &refused);
        b.assert_idle();
        // The same again passes.
        let mut b = Bench::of(family, setup());
        let at = asked(&mut b);
        b.lan(&behind(&b, at, &client_hello("fine.example", 0)), &[]).one_to_server();
    }
}

/// A handshake behind the first hello waits for the server's answer, whatever comes of that.
#[test]
fn second_hello_that_does_not_wait_for_the_server_is_held_until_it_has_answered() {
    let refused = [Moved::HelloRetry, Moved::HelloChanged, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)];
    for family in BOTH {
        for (answer, moved) in [(hello_retry_request(), &refused[..]), (server_hello(), &[])] {
            let mut b = Bench::new(family);
            let sent = first(&mut b);
            let hello = client_hello("denied.example", 0);
            assert!(b.lan(&b.c(sent).payload(&hello), &[]).is_nothing());
            let came = b.wan(&b.s(0, sent).payload(&answer), moved);
            let payload: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
            assert_eq!(payload, if moved.is_empty() { hello } else { Vec::new() });
        }
        // In one segment with the first: no client that was not asked says two.
        let mut b = Bench::new(family);
        b.handshake();
        let both = [client_hello("fine.example", 0), client_hello("denied.example", 0)].concat();
        let moved = [Moved::Allowed, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)];
        let came = b.lan(&b.c(0).payload(&both), &moved);
        assert!(came.to_server().iter().all(|seen| seen.payload.is_empty()));
        assert_eq!(shown(&b).2, "hello-retry");
    }
}

#[test]
fn early_data_passes_at_once_and_is_compared_until_it_is_acknowledged() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = client_hello("fine.example", 0);
        let early = [record(20, 1), record(23, 900), record(23, 700)].concat();
        let (shared, rest) = early.split_at(3);
        let came = b.lan(&b.c(0).payload([&hello[..], shared].concat()), &[Moved::Allowed]);
        assert_eq!(came.one_to_server().payload.len(), hello.len() + 3, "a header that is cut, too");
        let at = (hello.len() + 3) as u32;
        // The second part comes first and waits, since where its records begin is not known.
        assert!(b.lan(&b.c(at + 500).payload(&rest[500..]), &[]).is_nothing());
        let came = b.lan(&b.c(at).payload(&rest[..500]), &[]);
        assert_eq!(came.to_server().len(), 2);
        let smuggled = [&client_hello("denied.example", 0)[..], &[0; 100]].concat();
        let moved = [Moved::Reset, DROP(DropReason::ChangedBytes)];
        b.lan(&b.c(at).payload(&smuggled), &moved);
        b.assert_idle();
    }
}

/// However the server's first octets are cut and ordered on their way, the second hello is judged; and nothing of them is
/// held.
#[test]
fn request_in_any_pieces_and_order_is_recognised() {
    let request = hello_retry_request();
    for family in BOTH {
        for cut in [1, 5, 11, 42, 43, 60] {
            for reversed in [false, true] {
                let mut b = Bench::new(family);
                let sent = first(&mut b);
                let mut parts: Vec<(usize, &[u8])> =
                    request.chunks(cut).enumerate().map(|(n, part)| (n * cut, part)).collect();
                if reversed {
                    parts.reverse();
                }
                for (at, part) in parts {
                    let seg = b.s(at as u32, sent).payload(part);
                    let damaged = seg.clone().damaged();
                    b.give_any(WAN, &damaged.frame());
                    let (came, _) = b.give_any(WAN, &seg.frame());
                    assert_eq!(came.one_to_client().payload, part);
                }
                assert_eq!(b.pipe.totals.hello_retry, 1, "cut at {cut}, {reversed}");
                let refused = [Moved::HelloChanged, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)];
                let at = (sent, request.len() as u32);
                b.lan(&behind(&b, at, &client_hello("denied.example", 0)), &refused);
            }
        }
    }
}

#[test]
fn other_answers_end_the_watch_and_what_follows_is_the_ends_own() {
    let fatal = [21, 3, 3, 0, 2, 2, 40];
    for family in BOTH {
        for answer in
            [&server_hello()[..], &fatal, b"HTTP/1.1 400 Bad Request\r\n\r\n", &server_hello()[20..]]
        {
            let mut b = Bench::new(family);
            let sent = first(&mut b);
            let at = if answer[0] == 22 || answer.len() < 30 { 0 } else { 20 };
            b.wan(&b.s(at, sent).payload(answer), &[]).one_to_client();
            let hello = client_hello("denied.example", 0);
            assert_eq!(b.lan(&b.c(sent).payload(&hello), &[]).one_to_server().payload, hello);
            assert_eq!(shown(&b).0, None);
        }
        // Nor is there one where the client offers TLS 1.2, or no rule looks at what it says.
        let mut old = client_hello("fine.example", 0);
        let at = old.windows(5).position(|w| w == [0, 3, 2, 3, 4]).expect("supported_versions");
        old[at + 4] = 3;
        let mut bare = Setup::new();
        bare.spec.rules.clear();
        for (setup, hello) in [(Setup::new(), old), (bare, client_hello("fine.example", 0))] {
            let mut b = Bench::of(family, setup);
            b.handshake();
            let both = [&hello[..], &client_hello("denied.example", 0)].concat();
            assert_eq!(b.lan(&b.c(0).payload(&both), &[Moved::Allowed]).one_to_server().payload, both);
        }
    }
}

/// The client cannot say the server's part from its own side.
#[test]
fn answer_in_the_servers_name_from_the_clients_port_is_not_believed() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let sent = first(&mut b);
        let forged = b.s(0, sent).payload(server_hello());
        b.give(LAN, &forged.frame(), &[DROP(DropReason::WrongPort)]);
        assert!(b.lan(&b.c(sent).payload(client_hello("denied.example", 0)), &[]).is_nothing());
    }
}

/// A client that ends its connection here only (its RST does not reach the server) gets no second hello through.
#[test]
fn rst_of_the_client_reaches_the_server_and_nothing_follows_it() {
    for family in BOTH {
        for held in [false, true] {
            let mut b = Bench::new(family);
            let at = asked(&mut b);
            let hello = client_hello("denied.example", 0);
            let mut ended = vec![DROP(DropReason::Ended)];
            let mut next = at.0;
            if held {
                assert!(b.lan(&behind(&b, at, &hello[..50]), &[]).is_nothing());
                ended.push(DROP(DropReason::Ended));
                next += 50;
            }
            let rst = Seg { ttl: 2, ..behind(&b, (next, at.1), &[]) }.flags(RST | ACK);
            let sent = b.lan(&rst, &ended).one_to_server();
            assert_eq!((sent.flags & RST, sent.seq), (RST, b.c + 1 + at.0));
            b.lan(&behind(&b, at, &hello), &[DROP(DropReason::Midstream)]);
            b.assert_idle();
        }
    }
}

#[test]
fn name_of_the_second_hello_waits_for_the_resolver() {
    for family in BOTH {
        let refused = [Moved::HelloRefused, Moved::Reset, Moved::HostMismatch, DROP(UNREAD)];
        for (verified, moved) in [(Verified::Matches, &[][..]), (Verified::Differs, &refused)] {
            let mut setup = Setup::new();
            setup.spec.verify_host = VerifyHost::Reset;
            let mut b = Bench::of(family, setup);
            b.handshake();
            let hello = client_hello("fine.example", 0);
            let came = b.lan(&b.c(0).payload(&hello), &[Moved::HostAsked]);
            let question = came.questions[0];
            b.answer(&question, Verified::Matches, Nanos::from_secs(60), &[Moved::Allowed]).one_to_server();
            let request = hello_retry_request();
            let at = (hello.len() as u32, request.len() as u32);
            b.wan(&b.s(0, at.0).payload(&request), &[Moved::HelloRetry]).one_to_client();
            let other = client_hello("other.example", 0);
            let came = b.lan(&behind(&b, at, &other), &[Moved::HostAsked, Moved::HelloChanged]);
            assert!(came.is_nothing());
            let question = came.questions[0];
            assert_eq!((question.name.as_str(), question.waits), ("other.example", true));
            let came = b.answer(&question, verified, Nanos::from_secs(60), moved);
            assert_eq!(came.to_server().iter().any(|seen| seen.payload == other), moved.is_empty());
            let reason = if moved.is_empty() { "otherwise" } else { "host-mismatch" };
            assert_eq!(shown(&b).2, reason);
        }
    }
}

/// What reached the server past weir, while no worker breathed, cannot be read: the watch ends.
#[test]
fn octets_that_went_past_weir_end_the_watch() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let at = asked(&mut b);
        let hello = client_hello("other.example", 0);
        let all = at.0 + hello.len() as u32;
        b.wan(&b.s(at.1, all), &[]).one_to_client();
        assert_eq!(b.pipe.totals.bypassed, 1);
        b.lan(&behind(&b, (all, at.1), b"more"), &[]).one_to_server();
    }
}

#[test]
fn fin_of_the_client_passes_and_its_acknowledgment_is_no_octet_that_went_past_weir() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let sent = first(&mut b);
        assert_eq!(b.lan(&b.c(sent).flags(FIN | ACK), &[]).one_to_server().flags & FIN, FIN);
        b.wan(&b.s(0, sent + 1), &[]).one_to_client();
        assert_eq!(b.pipe.totals.bypassed, 0);
    }
}

/// The server's leg has other numbers than the client's.
#[test]
fn second_hello_is_judged_on_legs_that_weir_opened() {
    for family in BOTH {
        for (host, moved) in [
            ("fine.example", &[][..]),
            ("denied.example", &[Moved::HelloChanged, Moved::HelloRefused, Moved::Reset, DROP(UNREAD)]),
        ] {
            let mut b = Bench::of(family, Setup::answer());
            let syn_ack = b.lan(&b.syn(), &[Moved::Opened]).one_to_client();
            let theirs = b.s;
            b.s = syn_ack.seq;
            b.lan(&b.c(0), &[DROP(DropReason::ToWeir)]);
            let hello = client_hello("fine.example", 0);
            b.lan(&b.c(0).payload(&hello), &[Moved::Allowed]);
            let ours = std::mem::replace(&mut b.s, theirs);
            b.wan(&b.syn_ack(), &[DROP(DropReason::ToWeir)]).one_to_server();
            let request = hello_retry_request();
            let at = (hello.len() as u32, request.len() as u32);
            b.wan(&b.s(0, at.0).payload(&request), &[Moved::HelloRetry]).one_to_client();
            b.s = ours;
            let second = client_hello(host, 0);
            let came = b.lan(&behind(&b, at, &second), moved);
            assert_eq!(came.to_server().iter().any(|seen| seen.payload == second), moved.is_empty());
        }
    }
}
