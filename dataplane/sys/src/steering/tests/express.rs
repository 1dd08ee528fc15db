//! The express lane's maps as their writers see them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, Ordering};

use super::lifecycle::with_pins;
use super::packets::{FAMILIES, Flags};
use super::*;
use crate::steering::express::layout::{Entry, Key};
use crate::steering::express::{
    ExpressBatch, ExpressEntry, ExpressFlow, ExpressHop, ExpressLink, ExpressNote, Seen, Splice, Sweep,
};

fn load(flows: u32) -> Steering {
    Steering::load(&Sizes { express_flows: flows, ..Sizes::default() }).unwrap()
}

/// The `n`th flow: of IPv4 and IPv6 by turns, half of them given to another server.
fn flow(n: u16) -> ExpressFlow {
    let (client, server, other) = match n % 2 {
        0 => ("10.1.0.2", "192.0.2.10:443", "10.2.0.10:8443"),
        _ => ("[fd00::2]", "[2001:db8::10]:443", "[fd00:2::10]:8443"),
    };
    let client = (endpoint(&format!("{client}:{}", 40_000 + n)), endpoint(server));
    let is_sent = n % 4 > 1;
    ExpressFlow {
        client,
        server: if is_sent { (client.0, endpoint(other)) } else { client },
        client_link: 0,
        server_link: 1,
        server_hop: 7,
        client_hop: 65_535,
        stands_by: false,
        from: None,
        splice: Splice { delta: if is_sent { 5 } else { 0 }, ..Splice::default() },
    }
}

fn entries(steering: &Steering) -> Vec<ExpressEntry> {
    let mut sweep = Sweep::default();
    let mut entries = Vec::new();
    loop {
        let more = steering.express().sweep(&mut sweep).unwrap();
        entries.extend(sweep.entries());
        if !more {
            return entries;
        }
    }
}

#[test]
fn lane_that_is_full_takes_whole_flows_only_and_room_is_room_again() {
    let steering = load(3);
    let express = steering.express();
    assert_eq!((express.capacity(), express.is_adopted()), (3, false));
    let flows: Vec<ExpressFlow> = (0..5).map(flow).collect();
    let mut batch = ExpressBatch::new(8);
    assert_eq!(express.insert(&mut batch, &flows).unwrap(), 3, "the others stay where they were");
    assert_eq!(entries(&steering).len(), 6);
    assert_eq!(express.insert(&mut batch, &flows[3..]).unwrap(), 0);
    assert_eq!(express.insert(&mut batch, &flows[..3]).unwrap(), 3, "again, over what is there");

    // A stranger's direction takes the place of half a flow.
    assert!(express.take(flows[0].client, flows[0].server).unwrap().iter().all(Option::is_some));
    let (from, to) = flows[4].client;
    assert_eq!(express.insert(&mut batch, &flows[4..]).unwrap(), 1);
    assert!(express.remove_direction(from, to).unwrap());
    assert!(!express.remove_direction(from, to).unwrap());
    assert_eq!(express.insert(&mut batch, &flows[..1]).unwrap(), 0);
    assert_eq!(entries(&steering).len(), 5, "no half is left behind");

    express.remove(&mut batch, flows.iter().map(|flow| (flow.client, flow.server))).unwrap();
    assert!(entries(&steering).is_empty());
    assert_eq!(express.insert(&mut batch, &flows[..3]).unwrap(), 3);
}

#[test]
fn flow_that_ends_while_it_changes_over_is_its_workers() {
    // That the two meet is a matter of chance: often enough in so many rounds, where there are two CPUs.
    const ROUNDS: u16 = 2_000;
    let sizes = Sizes { express_flows: 4, ..Sizes::default() };
    with_bench_of(&sizes, |bench| {
        bench.stop_beating();
        for family in FAMILIES {
            let ends = (family.at(family.client, 40_000), family.at(family.server, 80));
            let packet = family.out(family.server, 80, Flags::Data);
            let index = ethtool::index_of(LAN).unwrap();
            let express = bench.steering.express();
            let entries = map_of::<Key, Entry>(&bench.steering.ebpf, "express_flows").unwrap();
            let client_link = express.set_link(index, [2; 6], false).unwrap();
            express.enable(true).unwrap();
            let changing = ExpressFlow {
                client: ends,
                server: ends,
                client_link,
                stands_by: false,
                from: Some(0),
                splice: Splice::default(),
                ..flow(0)
            };
            let (round, done) = (AtomicU16::new(0), AtomicU16::new(0));
            let mut lost = 0;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 1..=ROUNDS {
                        wait_for(&round, number);
                        express.set_ending(ends, ends, (true, false), (false, false)).unwrap();
                        done.store(number, Ordering::Release);
                    }
                });
                let mut batch = ExpressBatch::new(1);
                for number in 1..=ROUNDS {
                    express.insert(&mut batch, &[changing]).unwrap();
                    round.store(number, Ordering::Release);
                    // There is no sign of life: it changes over with this packet.
                    bench.steering.run_on(index, &packet).unwrap();
                    wait_for(&done, number);
                    let entry = entries.get(&Key::new(ends.0, ends.1)).unwrap();
                    lost += u16::from(!entry.is_some_and(|entry| entry.stands_by() && !entry.changes()));
                }
            });
            assert_eq!(lost, 0, "{}: rounds after which no worker had it", family.name);
        }
    });
}

fn wait_for(counter: &AtomicU16, number: u16) {
    while counter.load(Ordering::Acquire) != number {
        std::thread::yield_now();
    }
}

#[test]
fn flows_are_read_back_as_they_were_put_in() {
    let steering = load(20_000);
    let express = steering.express();
    let mut batch = ExpressBatch::new(100);
    let flows: Vec<ExpressFlow> = (0..10_000).map(flow).collect();
    let before = clock::monotonic_ns();
    for flows in flows.chunks(100) {
        assert_eq!(express.insert(&mut batch, flows).unwrap(), 100);
    }
    let read = entries(&steering);
    assert_eq!(read.len(), 20_000);
    let number = |entry: &ExpressEntry| {
        let client = if entry.is_to_client { entry.goes.1 } else { entry.came.0 };
        usize::from(client.port() - 40_000)
    };
    let ids: BTreeSet<(usize, bool)> = read.iter().map(|entry| (number(entry), entry.is_to_client)).collect();
    assert_eq!(ids.len(), 20_000);
    for entry in read {
        let flow = flows[number(&entry)];
        let back = |ends: (SocketAddr, SocketAddr)| (ends.1, ends.0);
        let (came, goes) = match entry.is_to_client {
            false => (flow.client, flow.server),
            true => (back(flow.server), back(flow.client)),
        };
        let place = if entry.is_to_client { (1, 65_535) } else { (0, 7) };
        assert_eq!((entry.came, entry.goes, (entry.link, entry.hop)), (came, goes, place));
        assert_eq!(entry.is_translated, flow.is_translated());
        let last_seen = entry.seen.last_seen;
        assert_eq!(entry.seen, Seen { last_seen, ..Seen::default() });
        assert!((before - 2 * SECOND..=clock::monotonic_ns()).contains(&last_seen));
    }
    let some = &flows[5_000..];
    express.remove(&mut batch, some.iter().map(|flow| (flow.client, flow.server))).unwrap();
    express.remove(&mut batch, some.iter().map(|flow| (flow.client, flow.server))).unwrap();
    assert_eq!(entries(&steering).len(), 10_000);
    assert_eq!(express.seen(some[0].client, some[0].server).unwrap(), [None, None]);
    assert!(express.seen(flows[0].client, flows[0].server).unwrap()[1].is_some());
}

#[test]
fn devices_keep_their_numbers_and_hops_are_read_back() {
    with_bench(|_| {
        let steering = load(1);
        let express = steering.express();
        let (lan, wan) = (ethtool::index_of(LAN).unwrap(), ethtool::index_of(WAN).unwrap());
        assert_eq!(express.set_link(lan, [2; 6], false).unwrap(), 0);
        assert_eq!(express.set_link(wan, [4; 6], true).unwrap(), 1);
        assert_eq!(express.set_link(lan, [6; 6], false).unwrap(), 0, "with another address");
        let of_wan = ExpressLink { number: 1, ifindex: wan, mac: [4; 6], partial_checksums: true };
        assert_eq!(express.links().unwrap()[1], of_wan);
        express.unset_link(0).unwrap();
        assert_eq!(express.links().unwrap(), [of_wan]);
        assert_eq!(express.set_link(lan, [2; 6], false).unwrap(), 0);

        let hop = ExpressHop { link: 1, dst_mac: [8; 6], src_mac: [4; 6], mtu: 1500, is_up: true };
        express.set_hop(65_535, &hop).unwrap();
        assert_eq!(express.hop(65_535).unwrap(), hop);
        assert!(!express.hop(0).unwrap().is_up);
    });
}

#[test]
fn note_goes_with_its_flow_and_one_without_room_is_not_another_ones() {
    let steering = load(2);
    let express = steering.express();
    let flows: Vec<ExpressFlow> = (0..4).map(flow).collect();
    let mut batch = ExpressBatch::new(8);
    let note = |number| ExpressNote::new(number, [0; 2], [0; 2], [0; 8]);
    let notes = |at: std::ops::Range<usize>, number| flows[at].iter().map(move |f| (f.client, note(number)));
    let noted = |at: usize| express.noted(flows[at].client).unwrap().map(|note| note.created);
    assert_eq!(express.insert(&mut batch, &flows).unwrap(), 2);
    express.note(&mut batch, notes(0..2, 1)).unwrap();
    express.note(&mut batch, notes(1..2, 2)).unwrap();
    assert_eq!([noted(0), noted(1)], [Some(1), Some(2)], "the later one holds");
    assert!(express.note(&mut batch, notes(2..4, 3)).is_err(), "there is no room");
    express.take(flows[0].client, flows[0].server).unwrap();
    assert_eq!([noted(0), noted(1), noted(2)], [None, Some(2), None]);
    express.note(&mut batch, notes(2..3, 4)).unwrap();
    // One that stays where it is makes those behind it lose what was noted of others with their addresses.
    assert!(express.note(&mut batch, notes(3..4, 5).chain(notes(1..2, 6))).is_err());
    assert_eq!([noted(1), noted(2), noted(3)], [None, Some(4), None]);
    express.remove(&mut batch, [(flows[2].client, flows[2].server)]).unwrap();
    assert_eq!(noted(2), None);
}

#[test]
fn lane_pinned_outlives_its_process_and_is_taken_over() {
    with_pins(|folder| {
        let adopting =
            |express_flows| Sizes { express_flows, adopt: Some(folder.to_path_buf()), ..Sizes::default() };
        let bench = Bench::new();
        let mut first = Steering::load(&adopting(10)).unwrap();
        let index = ethtool::index_of(WAN).unwrap();
        first.express().set_link(index, [2; 6], false).unwrap();
        assert_eq!(first.express().insert(&mut ExpressBatch::new(1), &[flow(2)]).unwrap(), 1);
        let mut note = ExpressNote::new(7, [1, 2], [3, 4], [5; 8]);
        assert!(note.put(0, b"www.example"));
        first.express().note(&mut ExpressBatch::new(1), [(flow(2).client, note)]).unwrap();
        first.pin(folder).unwrap();
        assert_eq!(pins(folder).unwrap().len(), 8);
        drop(first);

        let second = Steering::load(&adopting(20)).unwrap();
        assert_eq!((second.express().capacity(), second.express().is_adopted()), (10, true));
        assert_eq!(entries(&second).len(), 2);
        assert_eq!(second.express().links().unwrap()[0].ifindex, index);
        assert_eq!(second.express().noted(flow(2).client).unwrap(), Some(note));
        assert_eq!(second.express().noted(flow(1).client).unwrap(), None);
        drop(second);

        let without = Steering::load(&adopting(0)).unwrap();
        assert_eq!(entries(&without).len(), 0);
        assert_eq!(without.unpin_others(folder).unwrap().len(), 7);
        drop((without, bench));
        assert_eq!(unpin(folder).unwrap().len(), 1);
    });
}
