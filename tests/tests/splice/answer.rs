//! `handshake = "answer"`: the client's leg, until the server's is up and packets cross.

use weir_core::drop::DropReason;
use weir_core::flow::key::Tuple;
use weir_core::ids::Nanos;
use weir_core::policy::SynCookies;
use weir_core::tcp::cookie::{Carried, Cookies};
use weir_core::tcp::seq::Seq;
use weir_tests::bench::{Bench, LAN, Moved, Setup};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, FIN, RST, SYN, Seen, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const TO_WEIR: Moved = Moved::Drop(DropReason::ToWeir);
/// MSS 1400, SACK permitted, timestamps 100/0, window scale 7.
pub const OPTIONS: [u8; 20] = [2, 4, 5, 0x78, 4, 2, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0, 1, 3, 3, 7];
/// What a server gets of it that is not known to do timestamps: MSS 1388 leaves room for them.
pub const UNKNOWN: [u8; 20] = [2, 4, 5, 0x6c, 4, 2, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0, 1, 3, 3, 7];
/// What a server grants of it, with its clock at 5,000.
pub const GRANTED: [u8; 20] = [2, 4, 5, 0x78, 4, 2, 8, 10, 0, 0, 0x13, 0x88, 0, 0, 0, 100, 1, 3, 3, 9];

/// NOP, NOP, timestamps.
pub fn ts(val: u32, ecr: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &val.to_be_bytes(), &ecr.to_be_bytes()].concat()
}

/// TSval and TSecr of a segment whose only option they are.
pub fn times(seen: &Seen) -> (u32, u32) {
    let at = |n: usize| u32::from_be_bytes(seen.options[n..n + 4].try_into().expect("four octets"));
    assert_eq!(&seen.options[..4], &[1, 1, 8, 10]);
    (at(4), at(8))
}

/// The client's SYN is answered; `bench.s` becomes weir's initial sequence number. Returns the SYN-ACK.
pub fn answered(b: &mut Bench, moved: &[Moved]) -> Seen {
    let syn = b.syn().options(&OPTIONS);
    let came = b.lan(&syn, moved);
    let syn_ack = came.one_to_client();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, b.c.wrapping_add(1)));
    assert!(syn_ack.sound);
    b.s = syn_ack.seq;
    syn_ack
}

/// TSval of a SYN-ACK in the layout that weir writes.
pub fn tsval_of(syn_ack: &Seen) -> u32 {
    let at = syn_ack.options.windows(2).position(|w| w == [8, 10]).expect("timestamps") + 2;
    u32::from_be_bytes(syn_ack.options[at..at + 4].try_into().expect("four octets"))
}

/// The handshake with weir; the client has said nothing yet.
pub fn established(b: &mut Bench) -> u32 {
    let syn_ack = answered(b, &[Moved::Opened]);
    let shown = tsval_of(&syn_ack);
    let ack = b.c(0).options(&ts(101, shown));
    assert!(b.lan(&ack, &[TO_WEIR]).is_nothing());
    shown
}

/// The server's segment in its own numbers, which start at `isn`.
pub fn from_server(b: &Bench, isn: u32, flags: u8, offset: u32, acked: u32) -> Seg {
    let seq = isn.wrapping_add(1).wrapping_add(offset);
    Seg::new(b.server, b.client, flags, seq, b.c.wrapping_add(1).wrapping_add(acked))
}

#[test]
fn syn_hello_verdict_dial_release_and_both_directions_cross_with_their_delta() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        let hello = client_hello("fine.example", 0);
        let len = hello.len() as u32;
        // The verdict opens the server's leg with the client's own numbers.
        let came = b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello), &[Moved::Allowed]);
        let syn = came.one_to_server();
        assert_eq!((syn.flags, syn.seq, syn.payload.len()), (SYN, b.c, 0));
        assert_eq!(syn.options, UNKNOWN, "what the client offered");
        // The server answers with numbers of its own; what was held goes.
        let isn = 0xffff_fff0_u32;
        let syn_ack = Seg::new(b.server, b.client, SYN | ACK, isn, b.c.wrapping_add(1)).options(&GRANTED);
        let first = b.wan(&syn_ack, &[TO_WEIR]).one_to_server();
        assert_eq!((first.seq, first.ack), (b.c.wrapping_add(1), isn.wrapping_add(1)));
        assert_eq!(first.payload, hello);
        assert!(first.sound);
        assert_eq!(times(&first), (102, 5000), "the server sees its own clock");
        // The server's bytes cross into the numbers that the client knows, across the wrap of its own.
        let ack = from_server(&b, isn, ACK, 0, len).options(&ts(5003, 102));
        let seen = b.wan(&ack, &[]).one_to_client();
        assert_eq!((seen.seq, seen.ack), (b.s.wrapping_add(1), b.c.wrapping_add(1 + len)));
        let (val, ecr) = times(&seen);
        assert!(val.wrapping_sub(shown) < 1 << 30 && ecr == 102);
        let answer = from_server(&b, isn, ACK, 0, len).options(&ts(5004, 102)).payload([7; 100]);
        let seen = b.wan(&answer, &[]).one_to_client();
        assert_eq!((seen.seq, seen.payload.len(), seen.sound), (b.s.wrapping_add(1), 100, true));
        let clock = times(&seen).0;
        let ack = b.c(len).options(&ts(110, clock));
        let ack = Seg { ack: b.s.wrapping_add(101), ..ack };
        let seen = b.lan(&ack, &[]).one_to_server();
        assert_eq!((seen.ack, times(&seen)), (isn.wrapping_add(101), (110, 5004)));
        // FINs of both.
        let fin = Seg { ack: b.s.wrapping_add(101), ..b.c(len).flags(FIN | ACK).options(&ts(111, clock)) };
        assert_eq!(b.lan(&fin, &[]).one_to_server().flags, FIN | ACK);
        let fin = from_server(&b, isn, FIN | ACK, 100, len + 1).options(&ts(5005, 111));
        let seen = b.wan(&fin, &[]).one_to_client();
        assert_eq!((seen.flags, seen.seq), (FIN | ACK, b.s.wrapping_add(101)));
        let last = Seg { ack: b.s.wrapping_add(102), ..b.c(len + 1).options(&ts(112, clock + 1)) };
        assert_eq!(b.lan(&last, &[]).one_to_server().ack, isn.wrapping_add(102));
        b.assert_idle();
        b.wait(Nanos::from_secs(61), &[]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));
    }
}

#[test]
fn syn_lost_or_repeated_is_answered_again_and_given_up_in_the_end() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        let first = answered(&mut b, &[Moved::Opened]);
        let again = answered(&mut b, &[TO_WEIR]);
        assert_eq!((first.seq, first.window), (again.seq, again.window));
        for wait in [1, 2, 4, 8, 16] {
            let came = b.wait(Nanos::from_millis(wait * 1000 + 40), &[]);
            assert_eq!(came.one_to_client().seq, first.seq);
        }
        assert!(b.wait(Nanos::from_secs(33), &[Moved::Expired]).is_nothing());
        assert_eq!(b.pipe.flow_counts(), (0, 0));
    }
}

#[test]
fn syn_cookie_keeps_no_state_and_the_ack_that_brings_it_back_is_a_connection() {
    for family in BOTH {
        for data_first in [false, true] {
            let mut setup = Setup::answer();
            setup.spec.syn_cookies = SynCookies::Always;
            let mut b = Bench::of(family, setup);
            let syn_ack = answered(&mut b, &[Moved::CookieSent]);
            assert_eq!(b.pipe.flow_counts(), (0, 0));
            let shown = tsval_of(&syn_ack);
            let hello = client_hello("fine.example", 0);
            let data = b.c(0).options(&ts(102, shown)).payload(&hello);
            let came = if data_first {
                b.lan(&data, &[Moved::CookieAccepted, Moved::Opened, Moved::Allowed])
            } else {
                b.lan(&b.c(0).options(&ts(101, shown)), &[Moved::CookieAccepted, Moved::Opened, TO_WEIR]);
                b.lan(&data, &[Moved::Allowed])
            };
            let syn = came.one_to_server();
            assert_eq!((syn.flags, syn.seq), (SYN, b.c));
            // All that the SYN said is carried: MSS, SACK, window scale; the clock is that of the first ACK.
            assert_eq!(syn.options[4..8], OPTIONS[4..8]);
            assert!(syn.options[..4] <= OPTIONS[..4], "the MSS at most: {:?}", syn.options);
            assert_eq!(syn.options[16..], OPTIONS[16..]);
            // Another ACK brings nothing back, and is not reset while cookies are about.
            b.client.1 += 1;
            let wrong = b.c(5);
            assert!(b.lan(&wrong, &[Moved::CookieFailed, DROP(DropReason::BadCookie)]).is_nothing());
        }
    }
}

#[test]
fn client_that_says_nothing_is_unidentified_after_the_time_of_the_hold() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        established(&mut b);
        let came = b.wait(Nanos::from_millis(3040), &[Moved::Allowed, Moved::Unidentified]);
        assert_eq!(came.one_to_server().flags, SYN);
        let syn_ack = Seg::new(b.server, b.client, SYN | ACK, 77, b.c.wrapping_add(1)).options(&GRANTED);
        // The server is to hear that the handshake is complete, and speaks first.
        let ack = b.wan(&syn_ack, &[TO_WEIR]).one_to_server();
        assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, b.c.wrapping_add(1), 78));
        let hello = from_server(&b, 77, ACK, 0, 0).options(&ts(5001, 100)).payload("220 ready");
        assert_eq!(b.wan(&hello, &[]).one_to_client().payload, b"220 ready");
    }
}

#[test]
fn denied_name_resets_the_client_exactly_and_no_server_ever_hears_of_it() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        let hello = client_hello("denied.example", 0);
        let data = b.c(0).options(&ts(102, shown)).payload(&hello);
        let rst = b.lan(&data, &[Moved::Reset, DROP(DropReason::VerdictReset)]).one_to_client();
        assert_eq!((rst.flags & RST, rst.seq), (RST, b.s.wrapping_add(1)));
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        let data = b.c(0).options(&ts(102, shown)).payload(client_hello("dropped.example", 0));
        assert!(b.lan(&data, &[Moved::Dropped, DROP(DropReason::VerdictDrop)]).is_nothing());
    }
}

#[test]
fn client_that_leaves_early_takes_everything_with_it() {
    for family in BOTH {
        // Before its ACK, before it says anything, and with half a hello held.
        let mut b = Bench::of(family, Setup::answer());
        answered(&mut b, &[Moved::Opened]);
        b.lan(&b.c(0).flags(RST), &[DROP(DropReason::Ended)]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        let hello = client_hello("fine.example", 0);
        b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello[..50]), &[]);
        let came = b.lan(&b.c(50).flags(RST), &[DROP(DropReason::Ended), DROP(DropReason::Ended)]);
        assert!(came.is_nothing());
        b.assert_idle();
        // While the server is being called, it is told too.
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello), &[Moved::Allowed]);
        let came = b.lan(&b.c(hello.len() as u32).flags(RST), &[DROP(DropReason::Ended); 2]);
        let rst = came.one_to_server();
        assert_eq!((rst.flags, rst.seq), (RST, b.c.wrapping_add(1)));
        b.assert_idle();
    }
}

#[test]
fn fin_before_any_byte_and_keepalive_are_answered_as_a_server_would() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        // A keep-alive probe: SEQ-1, with an octet of garbage or none (RFC 9293 section 3.8.4).
        for garbage in ["", "x"] {
            let seq = b.c;
            let probe = Seg { seq, ..b.c(0).options(&ts(103, shown)).payload(garbage) };
            let ack = b.lan(&probe, &[TO_WEIR]).one_to_client();
            assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, b.s.wrapping_add(1), b.c.wrapping_add(1)));
        }
        let fin = b.c(0).flags(FIN | ACK).options(&ts(104, shown));
        let came = b.lan(&fin, &[Moved::Allowed, Moved::Unidentified]);
        assert_eq!(came.one_to_server().flags, SYN);
        let syn_ack = Seg::new(b.server, b.client, SYN | ACK, 9, b.c.wrapping_add(1)).options(&GRANTED);
        let seen = b.wan(&syn_ack, &[TO_WEIR]).one_to_server();
        assert_eq!((seen.flags, seen.seq), (FIN | ACK, b.c.wrapping_add(1)));
    }
}

#[test]
fn server_without_the_promised_options_is_translated() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer());
        let shown = established(&mut b);
        let hello = client_hello("fine.example", 0);
        let len = hello.len() as u32;
        let came = b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello), &[Moved::Allowed]);
        assert_eq!(came.one_to_server().options, UNKNOWN);
        // MSS alone is granted.
        let poor = Seg::new(b.server, b.client, SYN | ACK, 60, b.c.wrapping_add(1)).options(&[2, 4, 5, 0x78]);
        let first = b.wan(&poor, &[TO_WEIR]).one_to_server();
        assert_eq!(first.payload, hello);
        assert!(!first.options.contains(&8), "no timestamps: {:?}", first.options);
        let answer = from_server(&b, 60, ACK, 0, len).payload([1; 1388]);
        let seen = b.wan(&answer, &[]).one_to_client();
        assert!(seen.sound && seen.payload == [1; 1388]);
        let (val, ecr) = times(&seen);
        assert!(ecr == 102 && val.wrapping_sub(shown) < 1 << 30, "the clock goes on");
        // 64,240 octets, in the scale of 7 that the client was promised.
        let window = Seg { window: 64_240, ..from_server(&b, 60, ACK, 1388, len) };
        assert_eq!(b.wan(&window, &[]).one_to_client().window, 64_240 >> 7);
        // And a scaled window of the client, for a server that does not scale.
        let ack = Seg { window: 100, ..b.c(len).options(&ts(120, val)) };
        assert_eq!(b.lan(&ack, &[]).one_to_server().window, 100 << 7);
        // What it does not grant it is not asked for again, and the next client is not promised it.
        b.client.1 += 1;
        let syn_ack = answered(&mut b, &[Moved::Opened]);
        assert_eq!(syn_ack.options, [2, 4, 5, 0x78], "MSS and nothing else");
    }
}

/// In a flood the steering program answers SYNs, and knows no connections: what the tuple was before, the ACK that brings the
/// cookie back begins its next one.
#[test]
fn cookie_of_the_steering_program_comes_back_on_a_tuple_in_use_and_begins_anew() {
    for family in BOTH {
        for is_spliced in [false, true] {
            let mut b = Bench::of(family, Setup::answer());
            let shown = established(&mut b);
            let mut to_server = 0;
            if is_spliced {
                let hello = client_hello("fine.example", 0);
                b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello), &[Moved::Allowed]);
                let syn_ack =
                    Seg::new(b.server, b.client, SYN | ACK, 5000, b.c.wrapping_add(1)).options(&GRANTED);
                b.wan(&syn_ack, &[TO_WEIR]);
                to_server = 1;
            }
            // The client starts over, and the program has answered.
            let (now, before) = (b.now, b.s);
            let carried = Carried { mss: 1400, window_scale: Some(7), sack: true };
            let end = |at: (std::net::IpAddr, u16)| std::net::SocketAddr::from(at).into();
            let tuple = Tuple { src: end(b.client), dst: end(b.server) };
            b.c = 0x8000_0000;
            b.s = Cookies::new([7; 32]).make(&tuple, Seq(b.c), &carried, now).0;
            let denied = client_hello("denied.example", 0);
            // As long as no cookie is about, it is a segment that fits nothing.
            let (_, moved) = b.give_any(LAN, &b.c(0).frame());
            assert!(!moved.contains(&Moved::CookieAccepted), "{moved:?}");
            b.pipe.expect_cookies(now.saturating_add(Nanos::from_secs(128)));
            // Nor is it one with the numbers of the connection before.
            let old = Seg { ack: before.wrapping_add(1), ..b.c(0) };
            let (_, moved) = b.give_any(LAN, &old.frame());
            assert!(!moved.contains(&Moved::CookieAccepted), "{moved:?}");
            let came = b.lan(&b.c(0), &[Moved::CookieAccepted, Moved::Opened, TO_WEIR]);
            let resets = came.to_server();
            assert_eq!(resets.len(), to_server, "the server before is let go: {resets:?}");
            assert!(resets.iter().all(|seen| seen.flags & RST != 0));
            // And is inspected anew.
            let came = b.lan(&b.c(0).payload(&denied), &[Moved::Reset, DROP(DropReason::VerdictReset)]);
            let reset = came.one_to_client();
            assert_eq!((reset.flags & RST, reset.seq), (RST, b.s.wrapping_add(1)));
        }
    }
}
