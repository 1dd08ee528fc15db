//! What the other side drives has a bound, and at the bound there is a reason.

use weir_core::drop::DropReason;
use weir_core::ids::Nanos;
use weir_tests::bench::{Bench, Moved, Setup};
use weir_tests::hello::client_hello;
use weir_tests::packet::BOTH;

const FULL: [Moved; 1] = [Moved::Drop(DropReason::HoldFull)];

#[test]
fn holds_exhausted_drops_and_the_client_gets_in_when_one_is_free() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.config.holds = 2;
        let mut b = Bench::of(family, setup);
        for _ in 0..2 {
            b.handshake();
            b.lan(&b.c(0).payload(&client_hello("x.example", 0)[..20]), &[]);
            b.client.1 += 1;
        }
        b.handshake();
        let hello = b.c(0).payload(client_hello("denied.example", 0));
        assert!(b.lan(&hello, &FULL).is_nothing());
        // Allowed by the time of their holds, whose room is kept until the server has acknowledged.
        let twice = [Moved::Allowed, Moved::Unidentified, Moved::Allowed, Moved::Unidentified];
        b.wait(Nanos::from_secs(4), &twice);
        b.lan(&hello, &FULL);
        b.client.1 -= 1;
        b.wan(&b.s(0, 20), &[]);
        b.client.1 += 1;
        b.lan(&hello, &[Moved::Reset, Moved::Drop(DropReason::VerdictReset)]);
    }
}

#[test]
fn frames_of_one_hold_and_of_all_are_bounded() {
    for family in BOTH {
        for (all, bound) in [(256, 64), (10, 10)] {
            let mut setup = Setup::new();
            setup.config.hold_frames = all;
            let mut b = Bench::of(family, setup);
            b.handshake();
            let hello = client_hello("fine.example", 1000);
            for at in 0..bound {
                b.lan(&b.c(at as u32).payload(&hello[at..=at]), &[]);
            }
            b.lan(&b.c(bound as u32).payload(&hello[bound..=bound]), &FULL);
            assert_eq!(b.pipe.frames_held(), bound);
        }
    }
}

#[test]
fn gaps_in_the_reading_are_bounded() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = client_hello("fine.example", 1000);
        for n in 0..16 {
            let at = 1 + n * 10;
            b.lan(&b.c(at as u32).payload(&hello[at..at + 4]), &[]);
        }
        b.lan(&b.c(500).payload(&hello[500..504]), &FULL);
        b.lan(&b.c(0).payload(&hello[..500]), &[]);
        b.lan(&b.c(500).payload(&hello[500..]), &[Moved::Allowed]);
    }
}

/// Without a free frame there is no RST: counted, and the next packet is answered.
#[test]
fn no_free_frame_for_an_answer_is_counted() {
    for family in BOTH {
        let mut b = Bench::of(family, Setup { frames: 1, ..Setup::new() });
        b.handshake();
        // The only frame carries the first RST, towards the server; there is none for the second.
        let hello = b.c(0).payload(client_hello("denied.example", 0));
        let moved = [Moved::Reset, Moved::Drop(DropReason::VerdictReset), Moved::Drop(DropReason::NoFrame)];
        assert_eq!(b.lan(&hello, &moved).to_server().len(), 1);
        let answer = b.lan(&hello, &[Moved::Drop(DropReason::VerdictReset)]).one_to_client();
        assert_eq!(answer.seq, b.s + 1);
    }
}
