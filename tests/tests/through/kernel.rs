//! Over the top: relay rules, full tables, connections from before, next hops that the kernel must find.

use weir_core::drop::{DropReason, PuntReason};
use weir_core::fib::Route;
use weir_core::flow::key::{FlowKey, Tuple};
use weir_core::ids::Nanos;
use weir_core::pipeline::{Course, KernelOp, PuntTo};
use weir_core::policy::{Action, Full, RuleSpec};
use weir_tests::bench::{Bench, Came, LAN, Moved, Setup, WAN, fib};
use weir_tests::hello::client_hello;
use weir_tests::packet::{ACK, BOTH, FIN, RST, Seg};

const DROP: fn(DropReason) -> Moved = Moved::Drop;
const PUNT: fn(PuntReason) -> Moved = Moved::Punt;

fn key(b: &Bench) -> FlowKey {
    let end = |(ip, port)| std::net::SocketAddr::new(ip, port).into();
    FlowKey::of(&Tuple { src: end(b.client), dst: end(b.server) })
}

/// One frame went to the kernel by this way, as it came.
fn assert_punted(came: &Came, to: PuntTo, seg: &Seg) {
    assert_eq!((came.tx.len(), &came.punt[..]), (0, &[(to, seg.frame())][..]));
}

#[test]
fn relay_rule_gives_the_syn_to_the_relay_with_its_entry_first() {
    for family in BOTH {
        let mut setup = Setup::new();
        let mut rule = RuleSpec::new(Action::Relay);
        rule.tcp = std::iter::once(443..=443).collect();
        setup.spec.rules.push(rule);
        let mut b = Bench::of(family, setup);
        let came = b.lan(&b.syn(), &[Moved::Relayed, PUNT(PuntReason::RelayRule)]);
        assert_punted(&came, PuntTo::Relay, &b.syn());
        assert_eq!(came.kernel, [KernelOp::Insert(key(&b))]);
        // The entry was evicted: what comes here is handed on, and entered again. Nothing is reset.
        let came = b.lan(&b.syn(), &[PUNT(PuntReason::RelayRule)]);
        assert_eq!(came.kernel, [KernelOp::Keep { key: key(&b), goes_on: false }]);
        for (port, seg) in [
            (LAN, b.c(0).payload("x")),
            (WAN, b.s(0, 0)),
            (LAN, b.c(1).flags(FIN | ACK)),
            (LAN, b.c(2).flags(RST)),
        ] {
            let came = b.give(port, &seg.frame(), &[PUNT(PuntReason::KernelFlow)]);
            assert_punted(&came, PuntTo::Forward, &seg);
            assert_eq!(came.kernel, [KernelOp::Keep { key: key(&b), goes_on: true }]);
        }
        let (views, _) = b.pipe.views(b.now, 0, 10);
        assert_eq!((views[0].road, views[0].reason.as_str()), ("relay", "relay-rule"));
        // Asked every 30 s; gone when the map has not seen it for its time.
        let came = b.wait(Nanos::from_secs(31), &[]);
        assert_eq!(came.kernel, [KernelOp::Check(key(&b))]);
        b.pipe.handle_kernel_seen(&key(&b), Some((b.now, Course::Lives)), &mut b.out);
        b.pipe.handle_kernel_seen(&key(&b), None, &mut b.out);
        assert_eq!(b.pipe.flow_counts(), (0, 1));
        b.wait(Nanos::from_secs(61), &[]);
        b.pipe.handle_kernel_seen(&key(&b), Some((Nanos(0), Course::Ended)), &mut b.out);
        assert_eq!(b.collect().kernel, [KernelOp::Remove(key(&b))]);
        assert_eq!(b.pipe.flow_counts(), (0, 0));
    }
}

#[test]
fn full_table_goes_to_the_relay_or_is_dropped_and_both_have_an_end() {
    for family in BOTH {
        for full in [Full::Kernel, Full::Drop] {
            let mut setup = Setup::new();
            setup.config.flows.fast = 2;
            setup.config.flows.kernel = 2;
            setup.spec.full = full;
            let mut b = Bench::of(family, setup);
            let open = |b: &mut Bench, moved: &[Moved]| {
                b.client.1 += 1;
                let syn = b.syn();
                b.lan(&syn, moved)
            };
            open(&mut b, &[Moved::Opened]);
            open(&mut b, &[Moved::Opened]);
            if full == Full::Kernel {
                for _ in 0..2 {
                    let came = open(&mut b, &[Moved::Relayed, PUNT(PuntReason::TableFull)]);
                    assert_eq!(came.punt[0].0, PuntTo::Relay);
                }
            }
            assert!(open(&mut b, &[DROP(DropReason::TableFull)]).is_nothing());
        }
    }
}

/// Other connections come and go all the time: those that are over do not keep the next ones from the fast road for a minute.
#[test]
fn connections_that_are_over_make_room_in_a_full_table_once_they_are_silent() {
    for family in BOTH {
        let mut setup = Setup::new();
        (setup.config.flows.fast, setup.config.flows.kernel) = (2, 8);
        let mut b = Bench::of(family, setup);
        b.handshake();
        b.lan(&b.c(0).payload(client_hello("allowed.example", 0)), &[Moved::Allowed]);
        let lives = b.client.1;
        b.client.1 += 1;
        b.handshake();
        // The server resets it.
        b.wan(&b.s(0, 0).flags(RST | ACK), &[]);
        let ended = b.client.1;
        b.client.1 += 1;
        b.lan(&b.syn(), &[Moved::Relayed, PUNT(PuntReason::TableFull)]);
        b.wait(Nanos::from_secs(5), &[]);
        b.client.1 += 1;
        b.lan(&b.syn(), &[Moved::Recycled, Moved::Opened]);
        b.client.1 += 1;
        b.lan(&b.syn(), &[Moved::Relayed, PUNT(PuntReason::TableFull)]);
        let (views, _) = b.pipe.views(b.now, 0, 10);
        assert!(views.iter().any(|view| view.client.port() == lives), "{views:?}");
        assert!(views.iter().all(|view| view.client.port() != ended), "{views:?}");
    }
}

/// The same of connections that the relay had; and of SYNs that nothing followed.
#[test]
fn kernel_records_that_are_over_make_room_when_it_is_wanted() {
    for family in BOTH {
        for (course, early, late) in [
            (Some(Course::Ended), 25, 35),
            (Some(Course::Began), 3, 5),
            (Some(Course::Lives), 600, 700),
            (None, 70, 80),
        ] {
            let mut setup = Setup::new();
            let mut rule = RuleSpec::new(Action::Relay);
            rule.tcp = std::iter::once(443..=443).collect();
            setup.spec.rules.push(rule);
            (setup.config.flows.fast, setup.config.flows.kernel) = (8, 8);
            let mut b = Bench::of(family, setup);
            let start = b.now;
            let open = |b: &mut Bench, moved: &[Moved]| {
                b.client.1 += 1;
                let ops = b.lan(&b.syn(), moved).kernel;
                answer(b, &ops, course.map(|course| (start, course)))
            };
            let moved = [Moved::Relayed, PUNT(PuntReason::RelayRule)];
            for _ in 0..8 {
                assert_eq!(open(&mut b, &moved), 0, "there is room");
            }
            // Asked of by nobody meanwhile.
            b.now = b.now.saturating_add(Nanos::from_secs(early));
            assert_eq!(open(&mut b, &[DROP(DropReason::TableFull)]), 8, "too early: {course:?}");
            assert_eq!(open(&mut b, &[DROP(DropReason::TableFull)]), 0, "asked just now");
            b.now = b.now.saturating_add(Nanos::from_secs(late - early));
            open(&mut b, &[DROP(DropReason::TableFull)]);
            // One is enough, where it is for its room that it goes.
            let left = match course {
                Some(Course::Lives) => 8,
                Some(_) => 7,
                None => 0,
            };
            assert_eq!(b.pipe.flow_counts(), (0, left), "{course:?}");
            if course != Some(Course::Lives) {
                open(&mut b, &moved);
                let recycled = b.counters().get(&Moved::Recycled).copied();
                assert_eq!(recycled, course.map(|_| 1));
            }
        }
    }
}

/// Answers what is asked of the kernel map; how much that was.
fn answer(b: &mut Bench, ops: &[KernelOp], seen: Option<(Nanos, Course)>) -> usize {
    let asked = ops.iter().filter_map(|op| if let KernelOp::Check(key) = op { Some(key) } else { None });
    asked.map(|key| b.pipe.handle_kernel_seen(key, seen, &mut b.out)).count()
}

#[test]
fn refused_in_a_full_table_stays_refused() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.config.flows.fast = 1;
        let mut b = Bench::of(family, setup);
        b.handshake();
        let hello = b.c(0).payload(client_hello("denied.example", 0));
        b.lan(&hello, &[Moved::Reset, DROP(DropReason::VerdictReset)]);
        b.lan(&hello, &[DROP(DropReason::VerdictReset)]);
        b.client.1 += 1;
        b.lan(&b.syn(), &[Moved::Relayed, PUNT(PuntReason::TableFull)]);
        b.client.1 -= 1;
        b.lan(&hello, &[DROP(DropReason::VerdictReset)]);
        b.c = 8000;
        b.lan(&b.syn(), &[Moved::Opened]);
    }
}

#[test]
fn midstream_in_the_grace_time_goes_to_the_kernel_and_stays_there() {
    for family in BOTH {
        for from_client in [true, false] {
            let mut b = Bench::in_grace(family, Setup::new());
            let (port, seg) =
                if from_client { (LAN, b.c(5).payload("old")) } else { (WAN, b.s(5, 5).payload("old")) };
            let came = b.give(port, &seg.frame(), &[Moved::Midstream, PUNT(PuntReason::Midstream)]);
            assert_punted(&came, PuntTo::Forward, &seg);
            assert_eq!(came.kernel, [KernelOp::Insert(key(&b))]);
            let (views, _) = b.pipe.views(b.now, 0, 10);
            assert_eq!((views[0].client.ip(), views[0].road), (b.client.0, "kernel"));
            // Long after the grace time its packets still pass, evicted entry or not.
            b.wait(Nanos::from_secs(600), &[]);
            for (port, seg) in [(LAN, b.c(8)), (WAN, b.s(8, 8))] {
                b.give(port, &seg.frame(), &[PUNT(PuntReason::KernelFlow)]);
            }
            // A new connection with the same tuple is inspected.
            b.c = 70_000;
            let came = b.lan(&b.syn(), &[Moved::Opened]);
            assert_eq!(came.kernel, [KernelOp::Remove(key(&b))]);
        }
        let mut b = Bench::in_grace(family, Setup::new());
        let came = b.lan(&b.c(0).flags(RST), &[PUNT(PuntReason::Midstream)]);
        assert!(came.kernel.is_empty());
    }
}

#[test]
fn kernel_records_at_capacity_are_dropped() {
    for family in BOTH {
        let mut setup = Setup::new();
        setup.config.flows.kernel = 1;
        let mut b = Bench::in_grace(family, setup);
        b.lan(&b.c(0), &[Moved::Midstream, PUNT(PuntReason::Midstream)]);
        b.client.1 += 1;
        b.lan(&b.c(0), &[DROP(DropReason::TableFull)]);
    }
}

#[test]
fn midstream_after_the_grace_time_takes_its_action() {
    for family in BOTH {
        for (action, answers) in [(Action::Reset, true), (Action::Drop, false)] {
            let mut setup = Setup::new();
            setup.spec.midstream.action = action;
            let mut b = Bench::of(family, setup);
            let moved = [DROP(DropReason::Midstream)];
            let came = b.lan(&b.c(5).payload("x"), &moved);
            assert_eq!(came.to_client().len(), usize::from(answers));
            assert!(came.to_client().iter().all(|s| (s.flags, s.seq) == (RST, b.s + 1)));
            let came = b.wan(&b.s(5, 5), &moved);
            assert_eq!(came.to_server().len(), usize::from(answers));
            assert!(b.lan(&b.c(5).flags(RST), &moved).is_nothing());
            assert_eq!(b.pipe.flow_counts(), (0, 0));
        }
    }
}

#[test]
fn ways_out_that_the_kernel_must_find() {
    for family in BOTH {
        // The neighbour is not resolved: this packet goes by the kernel.
        let mut setup = Setup::new();
        setup.fib.neighbours.retain(|(port, _), _| *port != WAN);
        let mut b = Bench::of(family, setup);
        let came = b.lan(&b.syn(), &[Moved::Opened, PUNT(PuntReason::NoNeighbour)]);
        assert_punted(&came, PuntTo::Forward, &b.syn());
        // No route by a port of ours: the relay takes the connection.
        let mut setup = Setup::new();
        setup.fib.v4.insert("192.0.2.0/24".parse().unwrap(), Route::Kernel);
        setup.fib.v6.insert("2001:db8:2::/64".parse().unwrap(), Route::Kernel);
        let mut b = Bench::of(family, setup);
        b.lan(&b.syn(), &[Moved::Relayed, PUNT(PuntReason::NoPort)]);
        // TTL 1: the kernel answers.
        let mut b = Bench::new(family);
        let n = b.allowed();
        for ttl in [0, 1] {
            let seg = b.c(n).payload("x").ttl(ttl);
            assert_punted(&b.lan(&seg, &[PUNT(PuntReason::TtlExpired)]), PuntTo::Forward, &seg);
        }
        assert_eq!(b.lan(&b.c(n).payload("x").ttl(2), &[]).one_to_server().ttl, 1);
        // Larger than the way out.
        let mut b = Bench::of(family, Setup { fib: fib(1300), ..Setup::new() });
        let n = b.allowed();
        let seg = b.c(n).payload(vec![b'x'; 1350]);
        assert_punted(&b.lan(&seg, &[PUNT(PuntReason::MtuExceeded)]), PuntTo::Forward, &seg);
        // Padding behind the packet does not go on.
        let seg = b.c(n).payload("x");
        let padded = [seg.frame(), vec![0; 5]].concat();
        b.give(LAN, &padded, &[]).one_to_server();
    }
}
