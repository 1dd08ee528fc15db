//! While the first bytes are held: probes, RSTs, damage, repeated SYNs; and segments that cannot be held.

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_tests::bench::{Bench, LAN, Moved, Setup};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, FIN, RST, SYN, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;

fn half(b: &mut Bench) -> u32 {
    b.handshake();
    let hello = client_hello("fine.example", 0);
    assert!(b.lan(&b.c(0).payload(&hello[..40]), &[]).is_nothing());
    40
}

#[test]
fn bad_checksum_is_dropped_and_the_next_copy_is_held() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = client_hello("fine.example", 0);
        b.lan(&b.c(0).payload(&hello).damaged(), &[DROP(DropReason::BadChecksum)]);
        b.lan(&b.c(0).payload(&hello), &[Moved::Allowed]);
    }
}

/// A partial checksum is that of the pseudo header alone; ports whose senders leave such are named.
#[test]
fn partial_checksum_from_a_named_port_is_filled_in() {
    for family in BOTH {
        for named in [true, false] {
            let mut setup = Setup::new();
            if named {
                setup.config.partial_checksums.insert(LAN);
            }
            let mut b = Bench::of(family, setup);
            b.handshake();
            let seg = b.c(0).payload(client_hello("fine.example", 0));
            let mut frame = seg.frame();
            let l4 = frame.len() - seg.tcp().len();
            let partial = pseudo(&seg);
            frame[l4 + 16..l4 + 18].copy_from_slice(&partial.to_be_bytes());
            if named {
                assert!(b.give(LAN, &frame, &[Moved::Allowed]).one_to_server().sound);
            } else {
                b.give(LAN, &frame, &[DROP(DropReason::BadChecksum)]);
            }
        }
    }
}

fn pseudo(seg: &Seg) -> u16 {
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(a) => a.octets().to_vec(),
        std::net::IpAddr::V6(a) => a.octets().to_vec(),
    };
    let all =
        [octets(seg.src.0), octets(seg.dst.0), vec![0, 6], (seg.tcp().len() as u16).to_be_bytes().to_vec()];
    let mut sum: u32 = all.concat().chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn keepalive_probes_pass_without_their_octet() {
    for family in BOTH {
        for bytes in [&b""[..], b"x"] {
            let mut b = Bench::new(family);
            b.handshake();
            let probe = Seg { seq: b.c, ..b.c(0) }.payload(bytes);
            let sent = b.lan(&probe, &[]).one_to_server();
            assert_eq!((sent.seq, sent.payload.len(), sent.sound), (b.c, 0, true));
            half(&mut Bench::new(family));
            if !bytes.is_empty() {
                b.lan(&probe.clone().damaged(), &[DROP(DropReason::BadChecksum)]);
                b.lan(&probe.flags(FIN | ACK), &[DROP(DropReason::OutOfWindow)]);
            }
            b.lan(&b.c(0).payload(client_hello("fine.example", 0)), &[Moved::Allowed]);
        }
    }
}

#[test]
fn rst_of_the_client_frees_the_server_with_the_number_it_expects() {
    let rows: [(u32, bool); 6] =
        [(0, true), (40, true), (41, false), (20, false), (42, false), (59_000, false)];

    for family in BOTH {
        for (at, believed) in rows {
            let mut b = Bench::new(family);
            half(&mut b);
            let rst = b.c(at).flags(RST | ACK);
            if believed {
                let two = [DROP(DropReason::Ended), DROP(DropReason::Ended)];
                let sent = b.lan(&rst, &two).one_to_server();
                assert_eq!((sent.flags & RST, sent.seq), (RST, b.c + 1), "at {at}");
                b.assert_idle();
                b.wait(Nanos::from_secs(11), &[]);
                assert_eq!(b.pipe.flow_counts(), (0, 0));
            } else {
                // In the server's window, and not exact: the server answers with a challenge ACK (RFC 5961).
                assert_eq!(b.lan(&rst, &[]).one_to_server().seq, b.c + 1 + at);
                assert_eq!(b.pipe.frames_held(), 1);
            }
        }
        let mut b = Bench::new(family);
        half(&mut b);
        b.lan(&b.c(3_000_000).flags(RST), &[DROP(DropReason::RstOutOfWindow)]);
    }
}

#[test]
fn rst_of_the_server_ends_what_is_held() {
    for family in BOTH {
        let mut b = Bench::new(family);
        half(&mut b);
        b.wan(&b.s(2_000_000_000, 0).flags(RST), &[DROP(DropReason::RstOutOfWindow)]);
        assert_eq!(b.wan(&b.s(100, 0).flags(RST), &[]).one_to_client().seq, b.s + 101);
        b.wan(&b.s(0, 0).flags(RST | ACK), &[DROP(DropReason::Ended)]).one_to_client();
        b.assert_idle();
    }
}

#[test]
fn syn_again_passes_until_the_client_is_known_to_have_the_answer() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.lan(&b.syn(), &[Moved::Opened]);
        assert_eq!(b.lan(&b.syn(), &[]).one_to_server().flags, SYN);
        b.wan(&b.syn_ack(), &[]);
        // Its answer was lost; a server with SYN cookies chooses another number.
        assert_eq!(b.lan(&b.syn(), &[]).one_to_server().flags, SYN);
        b.s = 123_456;
        b.wan(&b.syn_ack(), &[]).one_to_client();
        b.lan(&b.c(0), &[]);
        let came = b.lan(
            &b.c(0).payload(client_hello("denied.example", 0)),
            &[Moved::Reset, DROP(DropReason::VerdictReset)],
        );
        assert_eq!(came.to_client()[0].seq, b.s + 1, "exact for the second answer");
    }
}

#[test]
fn syn_with_another_isn_while_held_is_challenged() {
    for family in BOTH {
        let mut b = Bench::new(family);
        half(&mut b);
        let syn = Seg { seq: 77, ..b.syn() };
        let sent = b.lan(&syn, &[DROP(DropReason::UnexpectedSyn)]).one_to_client();
        assert_eq!((sent.flags, sent.seq, sent.ack), (ACK, b.s + 1, b.c + 1));
        let other = Seg { ack: 78, ..b.syn_ack() };
        b.wan(&other, &[DROP(DropReason::UnexpectedSyn)]);
        let answer = Seg::new(b.client, b.server, RST, b.c + 1, 0);
        b.lan(&answer, &[DROP(DropReason::Ended), DROP(DropReason::Ended)]);
        b.lan(&syn, &[Moved::Opened]);
    }
}

#[test]
fn data_before_the_server_answers_does_not_pass() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.lan(&b.syn(), &[Moved::Opened]);
        let early = [DROP(DropReason::BeforeHandshake)];
        b.lan(&b.c(0).payload("x"), &early);
        b.lan(&b.c(0), &early);
        b.wan(&b.s(0, 0).payload("x"), &early);
        b.wan(&b.s(0, 0).flags(RST), &[DROP(DropReason::RstOutOfWindow)]);
        // Refused by the server.
        let rst = Seg::new(b.server, b.client, RST | ACK, 0, b.c + 1);
        b.wan(&rst, &[]).one_to_client();
        b.wan(&b.syn_ack(), &[DROP(DropReason::UnexpectedSyn)]);
    }
}

#[test]
fn segments_outside_of_the_hold_are_dropped_and_hold_nothing() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.config.holds = 1;
        let mut b = Bench::of(family, setup);
        b.handshake();
        b.lan(&b.c(20_000).payload("far"), &[DROP(DropReason::OutOfWindow)]);
        // The only hold is still free.
        b.client.1 += 1;
        half(&mut b);
        b.client.1 += 1;
        b.handshake();
        b.lan(&b.c(0).payload("x"), &[DROP(DropReason::HoldFull)]);
    }
}
