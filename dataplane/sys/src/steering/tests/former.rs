//! Lanes that a weir of another layout has left. It is this program, whose pins are given another version: nothing of its maps is read but
//! what every layout has.

use std::path::Path;

use super::lifecycle::with_pins;
use super::packets::{FAMILIES, Family, Flags};
use super::*;
use crate::steering::express::{ExpressBatch, ExpressFlow, ExpressHop, Splice};

const TIMES: FormerTimes = FormerTimes { closed: 10 * SECOND, reset: 240 * SECOND, idle: 7500 * SECOND };
/// Another layout.
const OTHER: u32 = LAYOUT + 1;
/// What is added to the server's numbers.
const DELTA: u32 = 1_000_003;

fn adopting(folder: &Path) -> Sizes {
    Sizes { express_flows: 16, adopt: Some(folder.to_path_buf()), ..Sizes::default() }
}

/// A flow of a family from this port of the client.
fn flow(family: &Family, port: u16, delta: u32) -> ExpressFlow {
    let ends = (family.at(family.client, port), family.at(family.server, 443));
    ExpressFlow {
        client: ends,
        server: ends,
        client_link: 0,
        server_link: 1,
        server_hop: 1,
        client_hop: 0,
        stands_by: false,
        from: None,
        splice: Splice { delta, ..Splice::default() },
    }
}

/// A weir that had both devices and these flows is killed; its pins are of this layout from now on.
fn left_by_another(folder: &Path, layout: u32, flows: &[ExpressFlow]) {
    let mut steering = Steering::load(&adopting(folder)).unwrap();
    let express = steering.express();
    for (number, device) in [LAN, WAN].into_iter().enumerate() {
        let (number, index) = (number as u8, ethtool::index_of(device).unwrap());
        steering.set_port(index, number.into()).unwrap();
        assert_eq!(express.set_link(index, [0xff; 6], false).unwrap(), number);
        let hop = ExpressHop { link: number, dst_mac: [8; 6], src_mac: [4; 6], mtu: 1500, is_up: true };
        express.set_hop(number.into(), &hop).unwrap();
    }
    assert_eq!(express.insert(&mut ExpressBatch::new(flows.len()), flows).unwrap(), flows.len());
    express.enable(true).unwrap();
    assert!(steering.tie_former_lanes().unwrap().1.is_empty());
    for device in [LAN, WAN] {
        let index = ethtool::index_of(device).unwrap();
        steering.attach(device, index, AttachMode::Auto).unwrap();
    }
    steering.pin(folder).unwrap();
    drop(steering);
    for path in pins(folder).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (what, version) = name.rsplit_once("-v").unwrap();
        if version == LAYOUT.to_string()
            && !["express_hops", "express_links", "express_ports"].contains(&what)
        {
            std::fs::rename(&path, folder.join(format!("{what}-v{layout}"))).unwrap();
        }
    }
}

/// A weir that finds what is there; as [`Bench`], on both devices.
fn succeeding(folder: &Path) -> (Bench, Vec<FormerLane>) {
    let mut bench = Bench::with_devices(&adopting(folder));
    let (lanes, refused) = bench.steering.tie_former_lanes().unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    for device in [LAN, WAN] {
        bench.steering.attach(device, ethtool::index_of(device).unwrap(), AttachMode::Auto).unwrap();
    }
    bench.steering.pin(folder).unwrap();
    (bench, lanes)
}

fn run(bench: &mut Bench, device: &str, frame: &[u8]) -> Trial {
    let mut frame = frame.to_vec();
    frame[..6].fill(0xff);
    bench.steering.run_on(ethtool::index_of(device).unwrap(), &frame).unwrap()
}

/// Both directions of the flow at this port are carried, with a delta where there is one.
#[track_caller]
fn assert_carried(bench: &mut Bench, family: &Family, port: u16, delta: u32) {
    let counted = bench.steering.counters().unwrap();
    for (device, from, to) in [
        (LAN, (family.client, port), (family.server, 443)),
        (WAN, (family.server, 443), (family.client, port)),
    ] {
        let frame = family.tcp(from, to, Flags::Data);
        let trial = run(bench, device, &frame);
        assert_eq!(trial.action, REDIRECT, "{} by {device}", family.name);
        assert_eq!(trial.frame[..12], [[8; 6], [4; 6]].concat(), "to the next hop");
        let (seq, ack) = numbers(family, &frame);
        let expected = match device {
            LAN => (seq, ack.wrapping_sub(delta)),
            _ => (seq.wrapping_add(delta), ack),
        };
        assert_eq!(numbers(family, &trial.frame), expected, "{} by {device}", family.name);
    }
    assert_eq!(bench.steering.counters().unwrap(), counted, "none of this program's");
}

fn numbers(family: &Family, frame: &[u8]) -> (u32, u32) {
    let tcp = &frame[14 + if family.is_v6() { 40 } else { 20 }..];
    let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
    (word(4), word(8))
}

/// Nobody carries the flow at this port: it is for the worker.
#[track_caller]
fn assert_steered(bench: &mut Bench, family: &Family, port: u16) {
    let frame = family.tcp((family.client, port), (family.server, 443), Flags::Data);
    assert_eq!(bench.run(LAN, &frame), (REDIRECT, Outcome::Redirect), "{}", family.name);
}

#[test]
fn flows_of_another_layout_go_on_beside_those_of_this_one_until_they_have_ended() {
    with_pins(|folder| {
        Bench::devices();
        let flows = FAMILIES.each_ref().map(|family| flow(family, 40_000, DELTA));
        left_by_another(folder, OTHER, &flows);
        let (mut bench, lanes) = succeeding(folder);
        assert_eq!(lanes.iter().map(|lane| lane.layout).collect::<Vec<_>>(), [OTHER]);
        let own = FAMILIES.each_ref().map(|family| flow(family, 40_001, 0));
        assert_eq!(bench.steering.express().insert(&mut ExpressBatch::new(2), &own).unwrap(), 2);
        bench.steering.express().enable(true).unwrap();
        bench.steering.unpin_others(folder).unwrap();
        let now = clock::monotonic_ns();
        for family in &FAMILIES {
            assert_carried(&mut bench, family, 40_000, DELTA);
            let frame = family.tcp((family.client, 40_001), (family.server, 443), Flags::Data);
            assert_eq!(run(&mut bench, LAN, &frame).action, REDIRECT, "in this program's own lane");
            assert_steered(&mut bench, family, 40_002);
        }
        assert_eq!(lanes[0].sweep(now, &TIMES).unwrap(), Left { flows: 2, translated: 2 });

        // Its neighbour has another address.
        let hop = ExpressHop { link: 1, dst_mac: [9; 6], src_mac: [4; 6], mtu: 1500, is_up: true };
        bench.steering.express().set_hop(1, &hop).unwrap();
        let family = &FAMILIES[0];
        let frame = family.tcp((family.client, 40_000), (family.server, 443), Flags::Data);
        assert_eq!(run(&mut bench, LAN, &frame).frame[..6], [9; 6]);

        for family in &FAMILIES {
            let (client, server) = ((family.client, 40_000), (family.server, 443));
            let fin = family.tcp(client, server, Flags::Fin);
            assert_eq!(run(&mut bench, LAN, &fin).action, REDIRECT, "{}", family.name);
        }
        let later = now + 3600 * SECOND;
        assert_eq!(lanes[0].sweep(later, &TIMES).unwrap().flows, 2, "half closed is not closed");
        for family in &FAMILIES {
            let fin = family.tcp((family.server, 443), (family.client, 40_000), Flags::Fin);
            assert_eq!(run(&mut bench, WAN, &fin).action, REDIRECT, "{}", family.name);
        }
        assert_eq!(lanes[0].sweep(now, &TIMES).unwrap().flows, 2, "what comes late is of it");
        assert_eq!(lanes[0].sweep(later, &TIMES).unwrap(), Left::default());
        bench.steering.end_former_lane(folder, OTHER).unwrap();
        for family in &FAMILIES {
            assert_steered(&mut bench, family, 40_000);
        }
        let is_of_other = |path: &std::path::PathBuf| path.to_str().unwrap().ends_with(&format!("-v{OTHER}"));
        assert!(!pins(folder).unwrap().iter().any(is_of_other), "{:?}", pins(folder));
        drop((bench, lanes));
        unpin(folder).unwrap();
    });
}

#[test]
fn lanes_of_several_layouts_go_on_and_the_end_of_one_leaves_the_others() {
    with_pins(|folder| {
        Bench::devices();
        let [first, second, third] = [OTHER, OTHER + 1, OTHER + 3];
        for (layout, port) in [(second, 40_000), (first, 41_000), (third, 42_000)] {
            let flows = FAMILIES.each_ref().map(|family| flow(family, port, DELTA));
            left_by_another(folder, layout, &flows);
        }
        // The same once more, in another process: one that was killed.
        drop(succeeding(folder));
        let (mut bench, lanes) = succeeding(folder);
        assert_eq!(lanes.iter().map(|lane| lane.layout).collect::<Vec<_>>(), [third, second, first]);
        for (ended, rest) in [(second, &[41_000, 42_000][..]), (third, &[41_000][..]), (first, &[][..])] {
            bench.steering.end_former_lane(folder, ended).unwrap();
            for family in &FAMILIES {
                for port in [40_000, 41_000, 42_000] {
                    match rest.contains(&port) {
                        true => assert_carried(&mut bench, family, port, DELTA),
                        false => assert_steered(&mut bench, family, port),
                    }
                }
            }
        }
        drop((bench, lanes));
        unpin(folder).unwrap();
    });
}

#[test]
fn quiet_reset_and_replaced_flows_are_taken_out_when_their_time_is_over() {
    with_pins(|folder| {
        Bench::devices();
        let flows: Vec<ExpressFlow> = FAMILIES
            .iter()
            .flat_map(|family| [40_000, 40_001].map(|port| flow(family, port, DELTA)))
            .collect();
        left_by_another(folder, OTHER, &flows);
        let (mut bench, lanes) = succeeding(folder);
        let now = clock::monotonic_ns();
        for family in &FAMILIES {
            let rst = family.tcp((family.client, 40_000), (family.server, 443), Flags::Rst);
            assert_eq!(run(&mut bench, LAN, &rst).action, REDIRECT, "{}", family.name);
        }
        assert_eq!(lanes[0].sweep(now + 200 * SECOND, &TIMES).unwrap().flows, 4);
        assert_eq!(lanes[0].sweep(now + 300 * SECOND, &TIMES).unwrap().flows, 2);
        assert_eq!(lanes[0].sweep(now + 7000 * SECOND, &TIMES).unwrap().flows, 2);
        assert_eq!(lanes[0].sweep(now + 7600 * SECOND, &TIMES).unwrap().flows, 0);
        drop((bench, lanes));
        unpin(folder).unwrap();
    });
}

/// Their program would drop the SYN, and so the client never have its port again.
#[test]
fn syn_of_a_flow_of_another_layout_is_for_the_worker_and_a_flow_that_has_ended_gives_way() {
    with_pins(|folder| {
        Bench::devices();
        let flows = FAMILIES.each_ref().map(|family| flow(family, 40_000, DELTA));
        left_by_another(folder, OTHER, &flows);
        let (mut bench, lanes) = succeeding(folder);
        bench.steering.express().enable(true).unwrap();
        for (family, flow) in FAMILIES.iter().zip(&flows) {
            let (client, server) = ((family.client, 40_000), (family.server, 443));
            let syn = family.tcp(client, server, Flags::Syn);
            bench.beat();
            assert_eq!(run(&mut bench, LAN, &syn).action, REDIRECT, "{}", family.name);
            bench.steering.heartbeat(0).unwrap();
            assert_eq!(run(&mut bench, LAN, &syn).action, DROP, "{}", family.name);
            assert_eq!(lanes[0].held(flow.client).unwrap(), Some(flow.server), "{}", family.name);
            let rst = family.tcp(client, server, Flags::Rst);
            assert_eq!(run(&mut bench, LAN, &rst).action, REDIRECT, "{}", family.name);
            assert_eq!(lanes[0].held(flow.client).unwrap(), None, "{}", family.name);
            bench.beat();
            assert_steered(&mut bench, family, 40_000);
        }
        assert_eq!(lanes[0].sweep(clock::monotonic_ns(), &TIMES).unwrap(), Left::default());
        drop((bench, lanes));
        unpin(folder).unwrap();
    });
}

#[test]
fn lane_of_which_a_pin_is_missing_is_not_carried_on_and_all_of_it_goes() {
    with_pins(|folder| {
        Bench::devices();
        left_by_another(folder, OTHER, &[flow(&FAMILIES[0], 40_000, DELTA)]);
        std::fs::remove_file(folder.join(format!("steer-v{OTHER}"))).unwrap();
        let (mut bench, lanes) = succeeding(folder);
        assert!(lanes.is_empty());
        bench.steering.unpin_others(folder).unwrap();
        assert!(!folder.join(format!("express_flows-v{OTHER}")).exists());
        assert_steered(&mut bench, &FAMILIES[0], 40_000);
        drop(bench);
        unpin(folder).unwrap();
    });
}
