//! A new configuration while connections run: each keeps its verdict, and none is judged by an intercept that is not its
//! own.

use std::sync::Arc;

use weir_core::drop::DropReason;
use weir_core::hold::Room;
use weir_core::ids::Nanos;
use weir_core::policy::{Action, InterceptSpec, Limits, PolicyBuilder, RuleSpec};
use weir_tests::bench::{Bench, LAN, Moved, Setup, fib, policy};
use weir_tests::hello::client_hello;
use weir_tests::packet::BOTH;

fn reload(b: &mut Bench, epoch: u32, specs: Vec<InterceptSpec>) {
    b.pipe.set_snapshot(b.now, Arc::new(policy(epoch, specs)), Arc::new(fib(1500)));
}

/// An intercept of another port, which refuses all.
fn stranger() -> InterceptSpec {
    let mut spec = InterceptSpec::new("mail").from_port(LAN).to_any().tcp([25]);
    (spec.otherwise, spec.unidentified) = (Action::Drop, Action::Drop);
    spec
}

#[test]
fn held_connection_is_judged_by_its_own_intercept_wherever_it_stands_now() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let hello = client_hello("fine.example", 0);
        b.lan(&b.c(0).payload(&hello[..30]), &[]);
        reload(&mut b, 2, vec![stranger(), Setup::new().spec]);
        b.lan(&b.c(30).payload(&hello[30..]), &[Moved::Allowed]);
        // One of before that is refused by the new rules.
        b.client.1 += 1;
        b.handshake();
        reload(&mut b, 3, vec![stranger(), stranger(), Setup::new().spec]);
        let refused = [Moved::Reset, Moved::Drop(DropReason::VerdictReset)];
        b.lan(&b.c(0).payload(client_hello("denied.example", 0)), &refused);
    }
}

#[test]
fn held_connection_that_is_intercepted_no_more_passes() {
    for family in BOTH {
        for specs in [vec![stranger()], vec![]] {
            let mut b = Bench::new(family);
            b.handshake();
            b.lan(&b.c(0).payload(&client_hello("fine.example", 0)[..30]), &[]);
            reload(&mut b, 2, specs.clone());
            b.wait(Nanos::from_secs(4), &[Moved::Allowed]).one_to_server();
            b.assert_idle();
            // So does one that says its first word only now.
            let mut b = Bench::new(family);
            b.handshake();
            reload(&mut b, 2, specs);
            b.lan(&b.c(0).payload(client_hello("denied.example", 0)), &[Moved::Allowed]).one_to_server();
        }
    }
}

#[test]
fn decided_connections_keep_their_verdict() {
    for family in BOTH {
        let mut b = Bench::new(family);
        let n = b.allowed();
        b.client.1 += 1;
        b.handshake();
        let denied = b.c(0).payload(client_hello("denied.example", 0));
        b.lan(&denied, &[Moved::Reset, Moved::Drop(DropReason::VerdictReset)]);
        let mut strict = Setup::new().spec;
        strict.rules = vec![RuleSpec::new(Action::Reset)];
        reload(&mut b, 2, vec![strict]);
        b.lan(&denied, &[Moved::Drop(DropReason::VerdictReset)]);
        b.client.1 -= 1;
        b.lan(&b.c(n).payload("more"), &[]).one_to_server();
        assert!(
            b.pipe.views(b.now, 0, 9).0.iter().all(|v| v.rule.is_none()),
            "rules of before have no place now"
        );
    }
}

/// `relay` comes too late for a connection whose handshake has passed: it is carried on here.
#[test]
fn held_connection_that_a_new_rule_would_relay_passes() {
    for family in BOTH {
        let mut b = Bench::new(family);
        b.handshake();
        let mut relay = Setup::new().spec;
        relay.rules = vec![RuleSpec::new(Action::Relay)];
        reload(&mut b, 2, vec![relay]);
        let hello = client_hello("fine.example", 0);
        b.lan(&b.c(0).payload(&hello), &[Moved::Allowed]).one_to_server();
        b.wan(&b.s(0, hello.len() as u32), &[]);
        b.lan(&b.c(hello.len() as u32).payload("more"), &[]).one_to_server();
    }
}

/// The memory for what clients wait with is made elsewhere: without it a larger configuration has what there was, and with it
/// what is held moves over as it is.
#[test]
fn larger_hold_is_there_with_the_memory_that_came_for_it_and_keeps_what_is_held() {
    for family in BOTH {
        let mut setup = Setup::new();
        (setup.config.holds, setup.config.hold_bytes, setup.spec.hold_bytes) = (1, 1024, 1024);
        let spec = InterceptSpec { hold_bytes: 8192, ..setup.spec.clone() };
        let mut b = Bench::of(family, setup);
        let larger = |epoch| {
            let limits = Limits { held: Some(64 * 1024), ..Limits::default() };
            let builder = PolicyBuilder::new(epoch).limits(limits).intercept(spec.clone());
            Arc::new(builder.build().expect("a policy"))
        };
        b.handshake();
        let hello = client_hello("fine.example", 0);
        assert!(b.lan(&b.c(0).payload(&hello[..40]), &[]).is_nothing());
        b.pipe.set_snapshot(b.now, larger(2), Arc::new(fib(1500)));
        b.client.1 += 1;
        b.handshake();
        let long = client_hello("fine.example", 3000);
        b.lan(&b.c(0).payload(&long[..1400]), &[Moved::Drop(DropReason::HoldFull)]);
        let mut room = Room::new(16, 8192);
        b.pipe.take_room(&mut room);
        assert_eq!(room.size(), (1, 1024), "what it had before goes back");
        b.pipe.take_room(&mut room);
        assert_eq!(room.size(), (1, 1024), "what is smaller is not taken");
        b.pipe.set_snapshot(b.now, larger(3), Arc::new(fib(1500)));
        let (first, second) = (b.c(0).payload(&long[..1400]), b.c(1400).payload(&long[1400..2800]));
        assert!(b.lan(&first, &[]).is_nothing() && b.lan(&second, &[]).is_nothing());
        let came = b.lan(&b.c(2800).payload(&long[2800..]), &[Moved::Allowed]);
        let sent: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
        assert_eq!(sent, long);
        b.client.1 -= 1;
        let came = b.lan(&b.c(40).payload(&hello[40..]), &[Moved::Allowed]);
        let sent: Vec<u8> = came.to_server().iter().flat_map(|seen| seen.payload.clone()).collect();
        assert_eq!(sent, hello);
        b.assert_idle();
    }
}
