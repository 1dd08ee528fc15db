//! Server legs: pools, retries, PROXY headers, rebinding, ICMP errors about them.

use weir_core::drop::{DropReason, PuntReason};
use weir_core::ids::Nanos;
use weir_core::pipeline::PuntTo;
use weir_core::policy::{PolicyBuilder, PoolSpec, ProxyVersion};
use weir_tests::bench::{Bench, LAN, Moved, Setup, fib, pool_server};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, PSH, RST, SYN, Seen, Seg};

use super::answer::{GRANTED, OPTIONS, UNKNOWN, established, times, ts};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const TO_WEIR: Moved = Moved::Drop(DropReason::ToWeir);

/// A connection of `answer` that is to go to the pool: its SYN to the server, which it is, and the hello.
fn dialed(b: &mut Bench) -> (Seen, u8, Vec<u8>, u32) {
    let shown = established(b);
    let hello = client_hello("sent.example", 0);
    let syn = b.lan(&b.c(0).options(&ts(102, shown)).payload(&hello), &[Moved::Sent]).one_to_server();
    assert_eq!(syn.flags, SYN);
    let which = (0..2).find(|n| pool_server(b.family, *n) == syn.dst).expect("a server of the pool");
    (syn, which, hello, shown)
}

fn plain(pool: PoolSpec) -> PoolSpec {
    pool
}

#[test]
fn name_for_a_pool_is_sent_there_and_the_client_sees_the_server_it_asked_for() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer().sending(plain));
        let (syn, which, hello, _) = dialed(&mut b);
        let server = pool_server(family, which);
        assert_eq!((syn.src, syn.seq), (b.client, b.c));
        let syn_ack = Seg::new(server, b.client, SYN | ACK, 300, b.c.wrapping_add(1)).options(&GRANTED);
        let first = b.wan(&syn_ack, &[TO_WEIR]).one_to_server();
        assert_eq!((first.dst, &first.payload), (server, &hello));
        let acked = b.c.wrapping_add(1 + hello.len() as u32);
        let answer = Seg::new(server, b.client, ACK, 301, acked).options(&ts(5001, 102)).payload("hi");
        let seen = b.wan(&answer, &[]).one_to_client();
        assert_eq!((seen.src, seen.seq, &seen.payload[..]), (b.server, b.s.wrapping_add(1), &b"hi"[..]));
        assert!(seen.sound);
        let (views, _) = b.pipe.views(b.now, 0, 4);
        assert_eq!((views[0].server, views[0].destination), (server.into(), b.server.into()));
        assert_eq!(views[0].verdict, Some("send"));
        // The client may not use those addresses for anything else, and the old server has nothing to say.
        let own = Seg::new(b.client, server, ACK, 1, 1).payload("x");
        b.lan(&own, &[DROP(DropReason::LegInUse)]);
        let stray = b.s(0, 0).payload("x");
        let rst = b.wan(&stray, &[DROP(DropReason::OldLeg)]).one_to_server();
        assert_eq!((rst.flags, rst.dst), (RST, b.server));
    }
}

#[test]
fn pools_server_without_a_record_here_speaks_to_the_relay() {
    for family in BOTH {
        // A server on a port that the intercept has, too.
        let server = (pool_server(family, 0).0, 443);
        let mut b = Bench::of(family, Setup::answer().sending(|_| PoolSpec::new("p").server(server.into())));
        assert_eq!(b.server.1, server.1);
        b.wait(Nanos::from_secs(120), &[]);
        let of_relay = Seg::new(server, b.client, SYN | ACK, 300, 700);
        let came = b.wan(&of_relay, &[Moved::Punt(PuntReason::NotIntercepted)]);
        assert_eq!((came.tx.len(), &came.punt[..]), (0, &[(PuntTo::Forward, of_relay.frame())][..]));
        // What the intercept has and no pool is reset, after the grace time.
        b.wan(&b.s(0, 0), &[DROP(DropReason::Midstream)]);
    }
}

#[test]
fn refused_silent_and_unreachable_servers_are_tried_once_more_elsewhere() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer().sending(plain));
        let (_, which, hello, _) = dialed(&mut b);
        let refused = Seg::new(pool_server(family, which), b.client, RST | ACK, 0, b.c.wrapping_add(1));
        let syn = b.wan(&refused, &[DROP(DropReason::Ended), Moved::Retried]).one_to_server();
        assert_eq!((syn.flags, syn.dst), (SYN, pool_server(family, 1 - which)));
        assert_eq!(b.out.failed.len(), 1);
        let syn_ack = Seg::new(syn.dst, b.client, SYN | ACK, 5, b.c.wrapping_add(1)).options(&GRANTED);
        assert_eq!(b.wan(&syn_ack, &[TO_WEIR]).one_to_server().payload, hello);

        // Silence: three SYNs, then the other one, which is the last, four; then the client hears of it, exactly.
        let mut b = Bench::of(family, Setup::answer().sending(plain));
        let (first, which, ..) = dialed(&mut b);
        for wait in [1, 2] {
            let again = b.wait(Nanos::from_millis(wait * 1000 + 40), &[]).one_to_server();
            assert_eq!((again.seq, again.dst), (first.seq, first.dst));
        }
        let seen = b.wait(Nanos::from_millis(4040), &[Moved::Retried]).to_server();
        assert_eq!((seen[0].flags, seen[0].dst), (RST, first.dst));
        assert_eq!((seen[1].flags, seen[1].dst), (SYN, pool_server(family, 1 - which)));
        for wait in [1, 2, 4] {
            let again = b.wait(Nanos::from_millis(wait * 1000 + 40), &[]).one_to_server();
            assert_eq!((again.flags, again.dst), (SYN, pool_server(family, 1 - which)));
        }
        let moved = [Moved::Failed, Moved::Reset, DROP(DropReason::NoServer)];
        let came = b.wait(Nanos::from_millis(8040), &moved);
        let rst = came.to_client().pop().expect("an RST");
        assert_eq!((rst.flags & RST, rst.seq), (RST, b.s.wrapping_add(1)));
        let (views, _) = b.pipe.views(b.now, 0, 4);
        assert_eq!(views[0].reason, "server-timed-out");
        b.assert_idle();
    }
}

#[test]
fn through_connection_is_taken_from_its_server_and_goes_on_at_another() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::new().sending(plain));
        let syn = b.syn().options(&OPTIONS);
        b.lan(&syn, &[Moved::Opened]);
        b.s = 7_000_000;
        let granted = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0x27, 0x10, 0, 0, 0, 100, 1, 3, 3, 8];
        b.wan(&b.syn_ack().options(&granted), &[]);
        b.lan(&b.c(0).options(&ts(101, 10_000)), &[]);
        let hello = client_hello("sent.example", 0);
        let came = b.lan(&b.c(0).options(&ts(102, 10_000)).payload(&hello), &[Moved::Sent]);
        let seen = came.to_server();
        assert_eq!((seen[0].flags & RST, seen[0].dst, seen[0].seq), (RST, b.server, b.c.wrapping_add(1)));
        assert_eq!((seen[1].flags, seen[1].seq), (SYN, b.c));
        assert_eq!(seen[1].options, UNKNOWN);
        let server = seen[1].dst;
        let syn_ack = Seg::new(server, b.client, SYN | ACK, 1, b.c.wrapping_add(1)).options(&GRANTED);
        let first = b.wan(&syn_ack, &[TO_WEIR]).one_to_server();
        assert_eq!((&first.payload, times(&first)), (&hello, (102, 5000)));
        let acked = b.c.wrapping_add(1 + hello.len() as u32);
        let answer = Seg { window: 100, ..Seg::new(server, b.client, ACK, 2, acked) };
        let seen = b.wan(&answer.options(&ts(5001, 102)).payload("hi"), &[]).one_to_client();
        assert_eq!((seen.src, seen.seq, seen.window), (b.server, 7_000_001, 200), "scale 9 to scale 8");
        assert_eq!(times(&seen), (10_001, 102), "the old server's clock goes on");
    }
}

/// An ICMP error's type and code, its 32 bits, and the segment that it quotes.
fn error(frame: &[u8], v6: bool) -> ([u8; 2], u32, Vec<u8>) {
    let l4 = 14 + if v6 { 40 } else { 20 };
    let word = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().expect("four octets"));
    ([frame[l4], frame[l4 + 1]], word, frame[l4 + 8..].to_vec())
}

#[test]
fn segment_too_big_for_the_other_leg_is_told_in_its_senders_words() {
    for family in BOTH {
        let mut setup = Setup::answer().sending(plain);
        setup.fib.links[1].as_mut().expect("a link").mtu = 1300;
        let mut b = Bench::of(family, setup);
        let (_, which, hello, shown) = dialed(&mut b);
        let server = pool_server(family, which);
        let syn_ack = Seg::new(server, b.client, SYN | ACK, 300, b.c.wrapping_add(1)).options(&GRANTED);
        b.wan(&syn_ack, &[TO_WEIR]);
        let big = b.c(hello.len() as u32).options(&ts(103, shown)).payload([1; 1400]);
        let mut sent = big.frame();
        if family == weir_tests::packet::Family::V4 {
            // Don't Fragment; what has it not is fragmented by the kernel.
            sent[20] |= 0x40;
            let sum = u16::from_be_bytes([sent[24], sent[25]]);
            let sum = sum.checked_sub(0x4000).unwrap_or_else(|| sum.wrapping_sub(0x4001));
            sent[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let came = b.give(LAN, &sent, &[DROP(DropReason::TooBig)]);
        let v6 = family == weir_tests::packet::Family::V6;
        let (kind, word, quoted) = error(&came.tx[0].1, v6);
        let mtu = if v6 { ([2, 0], 1300) } else { ([3, 4], 1300) };
        assert_eq!((came.tx.len(), came.tx[0].0, (kind, word)), (1, LAN, mtu));
        assert_eq!(
            quoted[..],
            sent[14..14 + quoted.len()],
            "as the client sent it, to the server it asked for"
        );
    }
}

#[test]
fn proxy_header_goes_first_is_sent_again_and_its_acknowledgment_stays_here() {
    for family in BOTH {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let setup = Setup::answer().sending(|pool| PoolSpec { proxy: Some(version), ..pool });
            let mut b = Bench::of(family, setup);
            let (syn, which, hello, _) = dialed(&mut b);
            let n = b.c.wrapping_sub(syn.seq);
            assert!(n > 20 && n < 600, "{n} octets of header");
            let server = pool_server(family, which);
            let syn_ack = Seg::new(server, b.client, SYN | ACK, 300, syn.seq.wrapping_add(1));
            let seen = b.wan(&syn_ack.options(&GRANTED), &[TO_WEIR]).to_server();
            assert_eq!((seen[0].flags, seen[0].seq), (PSH | ACK, syn.seq.wrapping_add(1)));
            let header = seen[0].payload.clone();
            assert_eq!(header.len() as u32, n);
            let start: &[u8] =
                if version == ProxyVersion::V1 { b"PROXY TCP" } else { b"\r\n\r\n\0\r\nQUIT\n" };
            assert!(header.starts_with(start));
            assert_eq!((seen[1].seq, &seen[1].payload), (b.c.wrapping_add(1), &hello));
            // It was lost: what came behind it is acknowledged by a SACK that the client must not see.
            let again = b.wait(Nanos::from_millis(1040), &[]).one_to_server();
            assert_eq!((again.seq, &again.payload), (syn.seq.wrapping_add(1), &header));
            // The header alone is acknowledged: to the client that is nothing.
            let ack = Seg::new(server, b.client, ACK, 301, syn.seq.wrapping_add(5)).options(&ts(5001, 100));
            assert_eq!(b.wan(&ack, &[]).one_to_client().ack, b.c.wrapping_add(1));
            let all = b.c.wrapping_add(1 + hello.len() as u32);
            let ack = Seg::new(server, b.client, ACK, 301, all).options(&ts(5002, 102));
            assert_eq!(b.wan(&ack, &[]).one_to_client().ack, all);
            assert!(b.wait(Nanos::from_secs(5), &[]).is_nothing(), "it is not sent any more");
            b.assert_idle();
        }
    }
}

#[test]
fn server_that_fails_after_a_reload_is_not_looked_for_in_another_pool() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup::answer().sending(plain));
        let (_, which, ..) = dialed(&mut b);
        let Setup { spec, pools, .. } = Setup::answer().sending(plain);
        let builder = PolicyBuilder::new(2).pool(PoolSpec::new("new")).intercept(spec);
        let policy = pools.into_iter().fold(builder, PolicyBuilder::pool).build().expect("a policy");
        b.pipe.set_snapshot(b.now, policy.into(), fib(1500).into());
        let refused = Seg::new(pool_server(family, which), b.client, RST | ACK, 0, b.c.wrapping_add(1));
        let moved = [DROP(DropReason::Ended), DROP(DropReason::NoServer), Moved::Failed, Moved::Reset];
        assert_eq!(b.wan(&refused, &moved).one_to_client().flags & RST, RST);
        assert!(b.out.failed.is_empty(), "nobody is told of a server by an old number");
    }
}
