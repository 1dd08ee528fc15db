//! Captures that show frames as no wire carried them.

use super::capture::{CONFIG, Capture, FAMILIES, Talk, hello, request};

const ETH: usize = 14;

/// Where the TCP header of a frame begins.
fn tcp_at(frame: &[u8]) -> usize {
    if frame[12] == 8 { ETH + 20 } else { ETH + 40 }
}

/// Makes every frame of a sender's what a NIC gets: no IP checksum, and a TCP checksum that is none.
fn before_the_nic(frame: &mut [u8]) {
    let at = tcp_at(frame) + 16;
    frame[at..at + 2].copy_from_slice(&[0xde, 0xad]);
    if frame[12] == 8 {
        frame[ETH + 10..ETH + 12].copy_from_slice(&[0, 0]);
    }
}

/// Replays a capture that has one connection of each family, and says what name was read of it.
fn names_of(
    test: &str,
    change: impl Fn(usize, &mut Vec<u8>),
) -> (Vec<Option<String>>, weir_control::replay::Replay) {
    let mut capture = Capture::default();
    for talk in FAMILIES.map(Talk::of) {
        for (n, mut frame) in talk.whole(&hello("www.example", &["h2"])).into_iter().enumerate() {
            change(n, &mut frame);
            capture.cut(&frame, frame.len());
        }
    }
    let replay = capture.replay(&format!("{test}.pcap"));
    (replay.flows.iter().map(|one| one.flow.host.clone()).collect(), replay)
}

/// A name read of both connections.
fn both() -> Vec<Option<String>> {
    vec![Some("www.example".to_owned()); 2]
}

#[test]
fn tags_of_vlans_are_taken_off() {
    for (test, tags) in [("vlan", &[0x81, 0, 0, 7][..]), ("qinq", &[0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 9])] {
        let (names, replay) = names_of(test, |_, frame| drop(frame.splice(12..12, tags.iter().copied())));
        assert_eq!((names, replay.untagged, replay.passed), (both(), 10, 0), "{test}");
    }
}

#[test]
fn clients_in_vlans_are_replayed_by_the_intercepts_that_say_so() {
    const UNTAGGED: &[u8] = &[];
    const TEN: &[u8] = &[0x81, 0, 0xe0, 10];
    const QINQ: &[u8] = &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 10];
    // What the client's frames bear, and the server's on the other link.
    for (test, vlan, tags, taken) in [
        ("vlan-10", "10", (TEN, UNTAGGED), true),
        ("vlan-10-both", "10", (TEN, &[0x81, 0, 0, 20][..]), true),
        ("vlan-10-untagged", "10", (UNTAGGED, UNTAGGED), false),
        ("vlan-11", "[11, \"20-29\"]", (TEN, TEN), false),
        ("vlan-list", "[\"5-10\", \"untagged\"]", (TEN, TEN), true),
        ("vlan-list-untagged", "[\"5-10\", \"untagged\"]", (UNTAGGED, UNTAGGED), true),
        ("vlan-qinq", "\"100.10\"", (QINQ, QINQ), true),
        ("vlan-inner", "10", (QINQ, QINQ), false),
        ("vlan-any", "\"any\"", (QINQ, TEN), true),
        // Of what nobody has a sub-interface for.
        ("vlan-odd", "\"any\"", (&[0x91, 0, 0, 10], UNTAGGED), false),
    ] {
        let mut capture = Capture::default();
        for talk in FAMILIES.map(Talk::of) {
            for (n, mut frame) in talk.whole(&hello("www.example", &["h2"])).into_iter().enumerate() {
                let tags = if [1, 4].contains(&n) { tags.1 } else { tags.0 };
                frame.splice(12..12, tags.iter().copied());
                capture.cut(&frame, frame.len());
            }
        }
        let config = CONFIG.replace("from = \"lan\"\n", &format!("from = \"lan\"\nvlan = {vlan}\n"));
        let replay = capture.replay_by(&config, &format!("{test}.pcap"));
        let names: Vec<Option<String>> = replay.flows.iter().map(|one| one.flow.host.clone()).collect();
        let fast = replay.flows.iter().filter(|one| one.flow.host.is_some()).count();
        assert_eq!(fast, if taken { 2 } else { 0 }, "{test}: {names:?}");
        assert!(taken || replay.passed >= 2, "{test}: {} passed", replay.passed);
    }
}

#[test]
fn checksums_that_a_nic_had_yet_to_fill_in_are_put_right() {
    // The client's frames were captured on its host; the server's came over the wire.
    let (names, replay) = names_of("offload", |n, frame| {
        if [0, 2, 3].contains(&n) {
            before_the_nic(frame);
        }
    });
    assert_eq!((names, replay.checksums_mended, replay.drops), (both(), 6, vec![]));
}

#[test]
fn checksum_wrong_among_right_ones_is_a_damaged_segment() {
    let (names, replay) = names_of("damaged", |n, frame| {
        if n == 3 {
            let last = frame.len() - 1;
            frame[last] ^= 1;
        }
    });
    assert_eq!((names, replay.checksums_mended), (vec![None, None], 0));
    assert_eq!(replay.drops, [("bad-checksum", 2)]);
}

#[test]
fn ip_header_damaged_among_right_ones_is_dropped() {
    let (_, replay) = names_of("damaged-header", |n, frame| {
        if n == 3 && frame[12] == 8 {
            frame[ETH + 10] ^= 1;
        }
    });
    assert_eq!((replay.checksums_mended, replay.drops), (0, vec![("bad-ip-header", 1)]));
}

#[test]
fn segment_without_an_ip_length_has_that_of_its_frame() {
    let (names, replay) = names_of("no-length", |n, frame| {
        if n == 3 {
            let at = if frame[12] == 8 { ETH + 2 } else { ETH + 4 };
            frame[at..at + 2].copy_from_slice(&[0, 0]);
            before_the_nic(frame);
        }
    });
    assert_eq!((names, replay.drops), (both(), vec![]));
}

#[test]
fn segment_cut_by_the_capture_is_read_as_far_as_it_goes() {
    let mut capture = Capture::default();
    for talk in FAMILIES.map(Talk::of) {
        let mut first = request("www.example");
        let captured = first.len();
        first.extend([b'x'; 1000]);
        for frame in talk.whole(&first) {
            let headers = tcp_at(&frame) + 20;
            capture.cut(&frame, headers + captured);
        }
    }
    let replay = capture.replay("cut.pcap");
    let names: Vec<_> = replay.flows.iter().map(|one| one.flow.host.clone()).collect();
    assert_eq!((names, replay.cut, replay.drops), (both(), 2, vec![]));
}

#[test]
fn frame_larger_than_the_pipeline_takes_is_cut() {
    // Loopback and segmentation offload: the largest IPv4 packet there is, and an Ethernet header.
    let mut capture = Capture::default();
    for talk in FAMILIES.map(Talk::of) {
        let mut first = request("www.example");
        let headers = tcp_at(&talk.syn()) + 20;
        first.resize(65_535 + ETH - headers, b'x');
        capture.frames(&talk.whole(&first));
    }
    let replay = capture.replay("huge.pcap");
    let names: Vec<_> = replay.flows.iter().map(|one| one.flow.host.clone()).collect();
    assert_eq!((names, replay.cut, replay.drops), (both(), 2, vec![]));
}
