//! Ways around a deny rule that a client, alone, could try. None may work.

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_core::policy::Action;
use weir_tests::bench::{Bench, LAN, Moved, Setup};
use weir_tests::hello::{client_hello, http_request};
use weir_tests::packet::{ACK, BOTH, FIN, RST, SYN, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;

/// No payload goes to the server, whatever `seg` does.
fn assert_no_payload(b: &mut Bench, seg: &Seg) {
    let (came, _) = b.give_any(LAN, &seg.frame());
    assert!(came.to_server().iter().all(|s| s.payload.is_empty()), "payload reached the server: {came:?}");
    assert!(came.punt.is_empty(), "given to the kernel: {came:?}");
}

/// The server has forgotten an allowed connection; the client opens it again with the same initial sequence number.
/// Were its SYN passed on, the new connection would run behind the old verdict.
#[test]
fn spliced_same_isn_opened_again_is_not_passed() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.allowed();
        let came = b.lan(&b.syn(), &[DROP(DropReason::UnexpectedSyn)]);
        let answer = came.one_to_client();
        assert_eq!((answer.flags, answer.seq), (ACK, b.s + 1), "a challenge ACK (RFC 5961 section 4)");
    }
}

/// The client has two new SYNs passed; the server takes the first. Its SYN-ACK would not fit the second.
#[test]
fn spliced_new_isn_never_reaches_the_server_beside_the_old_verdict() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.allowed();
        for isn in [5000, 6000] {
            let syn = Seg { seq: isn, ..b.syn() };
            let came = b.lan(&syn, &[DROP(DropReason::UnexpectedSyn)]);
            assert_eq!(came.one_to_client().flags, ACK);
        }
        // A client that has really forgotten answers the challenge with an RST, and is let in with its next SYN.
        let rst = Seg::new(b.client, b.server, RST, b.c + 1, 0);
        assert_eq!(b.lan(&rst, &[DROP(DropReason::Ended)]).one_to_server().seq, b.c + 1);
        let syn = Seg { seq: 6000, ..b.syn() };
        assert_eq!(b.lan(&syn, &[Moved::Opened]).one_to_server().seq, 6000);
        b.c = 6000;
        b.wan(&b.syn_ack(), &[]);
        b.lan(&b.c(0), &[]);
        let hello = client_hello("denied.example", 0);
        let came = b.lan(&b.c(0).payload(hello), &[Moved::Reset, DROP(DropReason::VerdictReset)]);
        assert!(
            came.to_server().iter().all(|s| s.flags & RST != 0 && s.payload.is_empty()),
            "inspected anew"
        );
    }
}

/// A bare ACK ahead of the stream must not move the place where the reading begins.
#[test]
fn held_ack_ahead_of_the_stream_does_not_move_the_reading() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let denied = client_hello("denied.example", 0);
        let skip = denied.len() as u32;
        b.lan(&b.c(skip), &[]);
        let fine = b.c(skip).payload(client_hello("fine.example", 0));
        assert_no_payload(&mut b, &fine);
        let seg = b.c(0).payload(denied);
        assert_no_payload(&mut b, &seg);
    }
}

/// The client plays the server: its own port says where a packet came from.
#[test]
fn packets_of_the_server_from_the_clients_port_are_not_believed() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.lan(&b.syn(), &[Moved::Opened]);
        let forged = b.syn_ack();
        b.lan(&forged, &[DROP(DropReason::WrongPort)]);
        b.wan(&b.syn_ack(), &[]);
        b.lan(&b.c(0), &[]);
        // "Server speaks first" would be the verdict `unidentified`.
        let forged = b.s(0, 0).payload("220 hello");
        b.lan(&forged, &[DROP(DropReason::WrongPort)]);
        let hello = client_hello("fine.example", 0);
        b.lan(&b.c(0).payload(&hello), &[Moved::Allowed]);
        // An ACK for bytes that the server never saw would end the comparison of retransmissions.
        let forged = b.s(0, hello.len() as u32);
        b.lan(&forged, &[DROP(DropReason::WrongPort)]);
        let mut other = client_hello("fine.example", 0);
        let last = other.len() - 1;
        other[last] ^= 1;
        b.lan(&b.c(0).payload(other), &[DROP(DropReason::ChangedBytes), Moved::Reset]);
    }
}

/// Urgent data is taken out of the stream by the server's socket: what is read would differ from what was inspected.
#[test]
fn urgent_pointer_before_the_verdict_is_cleared() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let bare = b.lan(&b.c(0).urgent(9), &[]).one_to_server();
        assert_eq!((bare.flags, bare.urgent, bare.sound), (ACK, 0, true));
        let request = http_request("fineX.example");
        let held = b.lan(&b.c(0).payload(&request).urgent(20), &[Moved::Allowed]).one_to_server();
        assert_eq!((held.flags, held.urgent, held.sound), (ACK, 0, true));
        assert_eq!(held.payload, request);
        let again = b.lan(&b.c(0).payload(&request).urgent(20), &[]).one_to_server();
        assert_eq!((again.flags, again.urgent, again.sound), (ACK, 0, true));
        b.wan(&b.s(0, request.len() as u32), &[]);
        let later = b.lan(&b.c(request.len() as u32).payload("x").urgent(1), &[]).one_to_server();
        assert_eq!(
            (later.urgent, later.sound),
            (1, true),
            "behind the inspected bytes it is the ends' business"
        );
    }
}

/// An RST that dies on its way (a low TTL) must not make weir forget a connection that the server still has.
#[test]
fn held_rst_with_low_ttl_frees_the_server_with_our_own() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.spec.midstream.grace = Nanos::from_secs(600);
        let mut b = Bench::in_grace(family, setup);
        b.handshake();
        let rst = Seg::new(b.client, b.server, RST, b.c + 1, 0).ttl(2).payload("data");
        let came = b.lan(&rst, &[DROP(DropReason::Ended)]);
        let sent = came.one_to_server();
        assert_eq!((sent.flags & RST, sent.seq, sent.ttl), (RST, b.c + 1, 63));
        assert!(sent.payload.is_empty());
        // Within the grace time an unknown connection would be given to the kernel.
        b.wait(Nanos::from_secs(30), &[]);
        let late = b.c(0).payload(client_hello("denied.example", 0));
        assert_no_payload(&mut b, &late);
        b.wait(Nanos::from_secs(500), &[]);
        assert_no_payload(&mut b, &late);
    }
}

#[test]
fn refused_in_grace_is_remembered_until_the_grace_time_is_over() {
    for family in BOTH {
        // Longer than the timers count without wrapping (2^31 ticks of 20 ms).
        for grace in [Nanos::from_secs(3600), Nanos::from_secs(3600 * 24 * 1000)] {
            let mut setup = Setup::new();
            setup.spec.midstream.grace = grace;
            let mut b = Bench::in_grace(family, setup);
            b.handshake();
            let denied = b.c(0).payload(client_hello("denied.example", 0));
            b.lan(&denied, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
            for _ in 0..40 {
                b.wait(Nanos::from_secs(60), &[]);
            }
            assert_no_payload(&mut b, &denied);
        }
    }
}

#[test]
fn rst_with_payload_before_the_verdict_brings_none_to_the_server() {
    for family in BOTH {
        for at in [0_u32, 10, 5000] {
            let mut b = Bench::new(family);
            b.lan(&b.syn(), &[Moved::Opened]);
            let early = Seg::new(b.client, b.server, RST, b.c + 1 + at, 0).payload("early");
            assert_no_payload(&mut b, &early);
            let mut b = Bench::new(family);
            b.handshake();
            let rst = b.c(at).flags(RST | ACK).payload("payload");
            assert_no_payload(&mut b, &rst);
        }
    }
}

/// The ACK of an uninspected SYN payload, the cookie of Fast Open, MPTCP: all would carry data beside the inspection.
#[test]
fn syn_with_payload_or_options_that_go_around_is_cleaned() {
    let clean = [2, 4, 5, 0xb4, 1, 1, 1, 1];
    let rows: [(&str, &[u8]); 4] = [
        ("MP_CAPABLE", &[2, 4, 5, 0xb4, 30, 4, 0, 1]),
        ("fast open", &[2, 4, 5, 0xb4, 34, 4, 0, 1]),
        ("fast open, experimental", &[2, 4, 5, 0xb4, 254, 4, 0xf9, 0x89]),
        ("payload only", &clean),
    ];
    for family in BOTH {
        for (name, options) in rows {
            let mut b = Bench::new(family);
            for moved in [&[Moved::Opened][..], &[]] {
                let syn = b.syn().options(options).payload(client_hello("denied.example", 0));
                let sent = b.lan(&syn, moved).one_to_server();
                assert!(sent.sound && sent.payload.is_empty(), "{name}");
                assert_eq!(sent.options, clean, "{name}");
            }
            let damaged = Seg { seq: 77, ..b.syn().options(options).payload("x").damaged() };
            b.lan(&damaged, &[DROP(DropReason::BadChecksum)]);
        }
    }
}

#[test]
fn signed_syn_passes_as_it_is_or_not_at_all() {
    let md5: Vec<u8> = [19, 18].into_iter().chain([9; 16]).chain([1, 1]).collect();
    let ao: Vec<u8> = [29, 16].into_iter().chain([9; 14]).collect();
    let with_mptcp = |o: &[u8]| [o, &[30, 4, 0, 1]].concat();
    let refused: &[Moved] = &[DROP(DropReason::AuthenticatedSyn)];
    for family in BOTH {
        let rows: [(Vec<u8>, &str, &[Moved]); 6] = [
            (md5.clone(), "", &[Moved::Opened]),
            (ao.clone(), "", &[Moved::Opened]),
            (md5.clone(), "payload", refused),
            (ao.clone(), "payload", refused),
            (with_mptcp(&md5), "", &[Moved::Opened]),
            (with_mptcp(&ao), "", refused),
        ];
        for (options, payload, moved) in rows {
            let mut b = Bench::new(family);
            let came = b.lan(&b.syn().options(&options).payload(payload), moved);
            assert_eq!(came.tx.len(), usize::from(moved == [Moved::Opened]), "{options:?} {payload}");
        }
    }
}

/// The client breaks off before the server answers and starts over with another initial sequence number.
#[test]
fn syn_sent_new_isn_starts_over_and_the_old_answer_opens_nothing() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.lan(&b.syn(), &[Moved::Opened]);
        let old = b.syn_ack();
        b.c = 7000;
        b.lan(&b.syn(), &[Moved::Opened]);
        b.wan(&old, &[DROP(DropReason::UnexpectedSyn)]);
        // The server, which took the first SYN, answers the second with an ACK that says its number (RFC 5961).
        let challenge = Seg::new(b.server, b.client, ACK, b.s + 1, 1001);
        b.wan(&challenge, &[]);
        let data = b.c(0).payload(client_hello("denied.example", 0));
        b.lan(&data, &[DROP(DropReason::BeforeHandshake)]);
        // The client's RST frees the server.
        let rst = Seg::new(b.client, b.server, RST, 1001, 0).payload("no");
        let sent = b.lan(&rst, &[]).one_to_server();
        assert_eq!((sent.flags, sent.seq, sent.payload.len(), sent.sound), (RST, 1001, 0, true));
        b.lan(&b.syn(), &[]);
        b.wan(&b.syn_ack(), &[]);
    }
}

#[test]
fn ipv4_mapped_and_other_martians_on_the_wire_are_dropped() {
    let martian = [DROP(DropReason::Martian)];
    let rows = [
        ("::ffff:10.1.0.2", "::ffff:192.0.2.10"),
        ("::1", "2001:db8:2::a"),
        ("::", "2001:db8:2::a"),
        ("ff02::1", "2001:db8:2::a"),
        ("fe80::1", "2001:db8:2::a"),
        ("2001:db8:1::2", "ff02::1"),
        ("2001:db8:1::2", "::ffff:192.0.2.10"),
        ("127.0.0.1", "192.0.2.10"),
        ("0.0.0.0", "192.0.2.10"),
        ("224.0.0.1", "192.0.2.10"),
        ("255.255.255.255", "192.0.2.10"),
        ("10.1.0.2", "224.0.0.1"),
        ("10.1.0.2", "127.0.0.1"),
    ];
    let mut b = Bench::new(weir_tests::packet::Family::V4);
    b.allowed();
    for (src, dst) in rows {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        let seg = Seg::new((src, 40_000), (dst, 443), ACK, 2000, 2000).payload("GET");
        assert!(b.lan(&seg, &martian).is_nothing(), "{src} {dst}");
    }
}

/// Retransmissions with other bytes, before and after the verdict (invariant 3).
#[test]
fn changed_retransmission_ends_the_flow_until_the_server_has_acknowledged() {
    for family in BOTH {
        let hello = client_hello("fine.example", 0);
        let mut other = hello.clone();
        *other.last_mut().unwrap() ^= 1;
        let ended = [Moved::Reset, DROP(DropReason::ChangedBytes)];
        // Before the verdict: the first half, then another first half. The held half is dropped with it.
        let mut b = Bench::new(family);
        b.handshake();
        b.lan(&b.c(0).payload(&hello[..40]), &[]);
        let mut half = hello[..40].to_vec();
        half[20] ^= 1;
        let both = [Moved::Reset, DROP(DropReason::ChangedBytes), DROP(DropReason::ChangedBytes)];
        let came = b.lan(&b.c(0).payload(&half), &both);
        assert_eq!((came.to_server()[0].flags & RST, came.to_client()[0].flags & RST), (RST, RST));
        b.assert_idle();
        // After it, while nothing is acknowledged, and while a part is.
        for acked in [0, 10, hello.len() as u32 - 1] {
            let mut b = Bench::new(family);
            b.allowed();
            b.wan(&b.s(0, acked), &[]);
            b.lan(&b.c(0).payload(&other), &ended);
            b.lan(&b.c(0).payload(&hello), &[DROP(DropReason::VerdictReset)]);
        }
        // Damage is no change.
        let mut b = Bench::new(family);
        b.allowed();
        b.lan(&b.c(0).payload(&other).damaged(), &[DROP(DropReason::BadChecksum)]);
        // When the server has it all, what comes is the ends' business.
        b.wan(&b.s(0, hello.len() as u32), &[]);
        b.lan(&b.c(0).payload(&other), &[]);
    }
}

#[test]
fn legal_retransmissions_after_the_verdict_pass_however_they_are_cut() {
    for family in BOTH {
        let hello = client_hello("fine.example", 600);
        let n = hello.len() as u32;
        let mut b = Bench::new(family);
        b.handshake();
        b.lan(&b.c(0).payload(&hello[..300]), &[]);
        b.lan(&b.c(300).payload(&hello[300..]), &[Moved::Allowed]);
        let more = [&hello[..], b"more"].concat();
        let rows: [(u32, &[u8]); 6] = [
            (0, &hello[..300]),
            (0, &hello),
            (100, &hello[100..400]),
            (299, &hello[299..]),
            (0, &more),
            (n, b"more"),
        ];
        for (at, bytes) in rows {
            assert_eq!(b.lan(&b.c(at).payload(bytes), &[]).one_to_server().payload, bytes, "at {at}");
        }
        assert_eq!(b.lan(&b.c(n + 4).flags(FIN | ACK), &[]).one_to_server().flags, FIN | ACK);
    }
}

#[test]
fn refused_stays_refused_and_a_new_isn_is_inspected_anew() {
    for family in BOTH {
        for (host, moved, reason) in [
            ("denied.example", Moved::Reset, DropReason::VerdictReset),
            ("dropped.example", Moved::Dropped, DropReason::VerdictDrop),
        ] {
            let mut b = Bench::new(family);
            b.handshake();
            let hello = b.c(0).payload(client_hello(host, 0));
            b.lan(&hello, &[moved, DROP(reason)]);
            for _ in 0..3 {
                assert_no_payload(&mut b, &hello);
                b.wait(Nanos::from_secs(40), &[]);
            }
            b.lan(&b.syn(), &[DROP(reason)]);
            b.wan(&b.s(0, 0), &[DROP(reason)]);
            // The state is over: unknown, and past the grace time.
            b.wait(Nanos::from_secs(600), &[Moved::Expired]);
            b.lan(&hello, &[DROP(DropReason::Midstream)]);
            b.handshake();
            b.lan(&hello, &[moved, DROP(reason)]);
            b.c = 55_000;
            b.handshake();
            b.lan(&b.c(0).payload(client_hello(host, 0)), &[moved, DROP(reason)]);
            b.c = 66_000;
            b.allowed();
        }
    }
}

#[test]
fn unidentified_reset_is_not_turned_by_a_garbage_server_probe() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.spec.unidentified = Action::Reset;
        let mut b = Bench::of(family, setup);
        b.handshake();
        // A keep-alive probe of one old octet, and octets that no client's window takes, are no first word.
        let probe = Seg { seq: b.s, ..b.s(0, 0) }.payload("x");
        b.wan(&probe, &[]);
        let far = b.s(2_000_000_000, 0).payload("x");
        b.wan(&far, &[DROP(DropReason::OutOfWindow)]);
        b.wan(
            &b.s(0, 0).payload("220"),
            &[Moved::Unidentified, Moved::Reset, DROP(DropReason::VerdictReset)],
        );
    }
}

#[test]
fn sequence_numbers_wrap_in_the_middle_of_the_reading() {
    for family in BOTH {
        for (host, moved) in [
            ("fine.example", vec![Moved::Allowed]),
            (
                "denied.example",
                vec![Moved::Reset, DROP(DropReason::VerdictReset), DROP(DropReason::VerdictReset)],
            ),
        ] {
            let mut b = Bench::new(family);
            (b.c, b.s) = (u32::MAX - 40, u32::MAX);
            b.handshake();
            let hello = client_hello(host, 100);
            b.lan(&b.c(80).payload(&hello[80..]), &[]);
            b.lan(&b.c(0).payload(&hello[..80]), &moved);
        }
    }
}

#[test]
fn syn_and_ack_flags_that_no_tcp_sends_are_dropped() {
    for family in BOTH {
        let mut b = Bench::new(family);
        for flags in [0, FIN, SYN | FIN, SYN | RST, SYN | FIN | ACK, FIN | RST] {
            b.lan(&b.c(0).flags(flags), &[DROP(DropReason::BadTcpHeader)]);
        }
    }
}

#[test]
fn first_bytes_that_passed_by_are_told_and_take_the_verdict_of_the_unidentified() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        // While no worker breathed, the server got 300 octets of the client's and acknowledges them.
        let ack = b.s(0, 300);
        b.wan(&ack, &[Moved::Unidentified, Moved::Allowed]).one_to_client();
        let (views, _) = b.pipe.views(b.now, 0, 9);
        assert_eq!((views[0].reason.as_str(), b.pipe.totals.bypassed), ("bypassed", 1));
    }
}

#[test]
fn repetitions_before_the_verdict_take_no_frames() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let octet = b.c(0).payload(b"G");
        assert!(b.lan(&octet, &[]).is_nothing());
        for _ in 0..200 {
            assert!(b.lan(&octet, &[Moved::Drop(DropReason::HoldDuplicate)]).is_nothing());
        }
        assert_eq!(b.pipe.frames_held(), 1);
    }
}
