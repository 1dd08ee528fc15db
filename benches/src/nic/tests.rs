//! The tester against boxes in the lab: what it says it sent must be what arrived and what was lost.

use clap::Parser;
use weir_control::lab::{CLIENT_DEVICE, Lab, LabOptions, SERVER_DEVICE};

use super::*;
use crate::bed::shell;
use crate::contender::SIDES;
use crate::crowd::ROUTES;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

/// The command line behind `--tx client0 --rx server0`.
fn line(options: &str) -> Arguments {
    let words = ["nic", "--tx", CLIENT_DEVICE, "--rx", SERVER_DEVICE];
    Line::parse_from(words.into_iter().chain(options.split_whitespace())).arguments
}

/// A lab that forwards between the tester's ports, of so many queues.
fn tester(queues: u32) -> Option<(Tester, Lab)> {
    let lab = Lab::for_test(&LabOptions { queues, forwarding: Some(true), ..LabOptions::default() })?;
    shell(&lab.gateway, ROUTES).unwrap();
    let tx = lab.client.run(|| Port::open(CLIENT_DEVICE, Asked::Auto)).unwrap();
    let rx = lab.server.run(|| Port::open(SERVER_DEVICE, Asked::Auto)).unwrap();
    let [lan, wan] = SIDES;
    Some((Tester::new(tx, rx, Some(lan.mac), Some(wan.mac)), lab))
}

/// What must be so of every trial, however slow the machine is.
fn check(measured: &Measured, queues: usize) {
    let told = measured.told.as_ref().unwrap();
    assert!(told.sent > 0 && told.arrived > 0, "{told:?}");
    assert_eq!(told.sent, told.arrived + told.lost, "{told:?}");
    assert_eq!(told.arrived_by_queue.len(), queues);
    assert_eq!(told.arrived_by_queue.iter().sum::<u64>(), told.arrived);
}

#[test]
fn datagrams_through_a_forwarding_kernel_arrive_and_tell_how_long_they_took() {
    let Some((mut tester, _lab)) = tester(2) else { return };
    for (family, size) in [("4", Size::Octets(64)), ("6", Size::Octets(1500)), ("both", Size::Imix)] {
        let arguments = line(&format!("--family {family} --stamped --rate 1000 --seconds 0.4"));
        let measured = tester.measure(&arguments, size).unwrap();
        check(&measured, 2);
        let (told, latency) = (measured.told.unwrap(), measured.latency.unwrap());
        assert!((1..=told.arrived).contains(&latency.frames), "{latency:?} {told:?}");
        assert!(latency.min > 0.0 && latency.min <= latency.typical && latency.typical <= latency.max);
    }
    assert!(tester.tx.modes().values().all(|mode| *mode == "copy"), "veth cannot do without");
}

#[test]
fn tcp_connections_are_opened_through_the_box_before_segments_are_sent() {
    let Some((mut tester, _lab)) = tester(1) else { return };
    let arguments = line("--kind tcp --flows 100 --rate 1000 --seconds 0.4");
    let measured = tester.measure(&arguments, Size::Octets(128)).unwrap();
    check(&measured, 1);
    assert_eq!((measured.connections, measured.not_opened), (100, 0));
}

#[test]
fn syns_that_nobody_answers_are_only_counted() {
    let Some((mut tester, _lab)) = tester(1) else { return };
    let measured = tester.measure(&line("--kind syn --rate 500 --seconds 0.4"), Size::Octets(64)).unwrap();
    check(&measured, 1);
    assert_eq!((measured.told.unwrap().returned, measured.latency.is_none()), (0, true));
}

#[test]
fn box_that_does_not_forward_is_named_when_connections_are_to_be_opened() {
    let Some((mut tester, lab)) = tester(1) else { return };
    lab.set_forwarding(false).unwrap();
    let error = tester.measure(&line("--kind tcp --flows 2"), Size::Octets(64)).unwrap_err().to_string();
    assert!(error.contains("does the box route both ways?"), "{error}");
}

#[test]
fn device_that_does_not_exist_is_named() {
    let error = Port::open("weir-none", Asked::Auto).unwrap_err().to_string();
    assert!(error.contains("weir-none"), "{error}");
}

#[test]
fn neighbour_is_asked_for_its_address() {
    let Some(lab) = Lab::for_test(&LabOptions::default()) else { return };
    for family in [weir_control::lab::IPV4, weir_control::lab::IPV6] {
        let found = lab.client.run(|| neighbour(CLIENT_DEVICE, family.lan_gateway)).unwrap();
        assert_eq!(found, SIDES[0].mac);
    }
}
