//! Connections end, linger, are used again.

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_tests::bench::{Bench, Moved};
use weir_tests::hello::server_hello;
use weir_tests::packet::{ACK, BOTH, FIN, RST, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;

/// Both FINs and their acknowledgments; the stream of the client is `n` octets.
fn close(b: &mut Bench, n: u32) {
    b.wan(&b.s(0, n), &[]);
    b.lan(&b.c(n).flags(FIN | ACK), &[]);
    b.wan(&b.s(0, n + 1).flags(FIN | ACK), &[]);
    let last = Seg { ack: b.s + 2, ..b.c(n + 1) };
    b.lan(&last, &[]);
}

#[test]
fn closed_lingers_for_retransmissions_and_is_forgotten() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let n = b.allowed();
        close(&mut b, n);
        b.wait(Nanos::from_secs(30), &[]);
        b.wan(&b.s(0, n + 1).flags(FIN | ACK), &[]).one_to_client();
        b.wait(Nanos::from_secs(31), &[]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));
        let answer = b.wan(&b.s(0, n + 1).flags(FIN | ACK), &[DROP(DropReason::Midstream)]).one_to_server();
        assert_eq!((answer.flags, answer.seq), (RST, b.c + n + 2));
    }
}

#[test]
fn closed_tuple_is_used_again_at_once_and_inspected_anew() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let n = b.allowed();
        close(&mut b, n);
        (b.c, b.s) = (500_000, 77_000);
        b.handshake();
        let denied = b.c(0).payload(weir_tests::hello::client_hello("denied.example", 0));
        b.lan(&denied, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
    }
}

#[test]
fn rst_after_the_verdict_ends_only_where_the_receiver_believes_it() {
    for family in BOTH {
        // (octets from the exact number, passes, ends)
        for (off, passes, ends) in
            [(0_i64, true, true), (100, true, false), (-1000, false, false), (20_000_000, false, false)]
        {
            let mut b = Bench::new(family);
            let n = b.allowed();
            // No second hello can follow: the server has not asked for one.
            b.wan(&b.s(0, n).payload(server_hello()), &[]);
            let at = (i64::from(n) + off) as u32;
            let moved: &[Moved] = if passes { &[] } else { &[DROP(DropReason::RstOutOfWindow)] };
            let came = b.lan(&b.c(at).flags(RST), moved);
            assert_eq!(came.tx.len(), usize::from(passes), "{off}");
            b.wait(Nanos::from_secs(11), &[]);
            assert_eq!(b.pipe.flow_counts().0, usize::from(!ends), "{off}");
        }
    }
}

#[test]
fn idle_connections_are_forgotten_after_their_time() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.lan(&b.syn(), &[Moved::Opened]);
        b.wait(Nanos::from_secs(74), &[]);
        b.wait(Nanos::from_secs(2), &[Moved::Expired]);
        // A connection without a byte: the server is freed, for nobody knows it any more.
        b.handshake();
        b.wait(Nanos::from_secs(7400), &[]);
        let came = b.wait(Nanos::from_secs(200), &[Moved::Expired]);
        assert_eq!((came.one_to_server().flags & RST, b.pipe.flow_counts()), (RST, (0, 0)));
        // An allowed one is forgotten silently; a packet in time keeps it.
        let n = b.allowed();
        b.wan(&b.s(0, n), &[]);
        b.wait(Nanos::from_secs(7000), &[]);
        b.lan(&b.c(n), &[]);
        b.wait(Nanos::from_secs(7000), &[]);
        assert_eq!(b.pipe.flow_counts(), (1, 0));
        assert!(b.wait(Nanos::from_secs(600), &[Moved::Expired]).is_nothing());
    }
}

/// Inspected bytes are kept for comparison; a server that never acknowledges them does not keep their room for ever.
#[test]
fn server_that_never_acknowledges_the_inspected_bytes_ends_the_connection() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.allowed();
        b.wait(Nanos::from_secs(299), &[]);
        let came = b.wait(Nanos::from_secs(2), &[Moved::Reset]);
        assert_eq!((came.to_server().len(), came.to_client().len()), (1, 1));
        b.lan(&b.c(0).payload("other"), &[DROP(DropReason::VerdictReset)]);
        let mut b = Bench::new(family);
        let n = b.allowed();
        b.wait(Nanos::from_secs(50), &[]);
        b.wan(&b.s(0, n), &[]);
        b.wait(Nanos::from_secs(500), &[]);
        b.lan(&b.c(n).payload("more"), &[]).one_to_server();
    }
}
