//! Captures that have not got a handshake as it went.

use super::capture::{Capture, FAMILIES, Talk, hello};

/// The names that were read of a capture's connections.
fn names(capture: &Capture, file: &str) -> (Vec<Option<String>>, u64) {
    let replay = capture.replay(file);
    (replay.flows.into_iter().map(|one| one.flow.host).collect(), replay.answers_inferred)
}

#[test]
fn capture_of_the_client_alone_is_read_as_if_the_server_had_answered() {
    for (n, talk) in FAMILIES.map(Talk::of).into_iter().enumerate() {
        let mut capture = Capture::default();
        capture.frames(&[talk.syn(), talk.client(0, &[]), talk.client(0, &hello("www.example", &[]))]);
        let seen = names(&capture, &format!("alone-{n}.pcap"));
        assert_eq!(seen, (vec![Some("www.example".to_owned())], 1), "{talk:?}");
    }
}

#[test]
fn syn_ack_before_its_syn_is_played_behind_it() {
    for (n, talk) in FAMILIES.map(Talk::of).into_iter().enumerate() {
        let mut frames = talk.whole(&hello("www.example", &[]));
        frames.swap(0, 1);
        let mut capture = Capture::default();
        capture.frames(&frames);
        let seen = names(&capture, &format!("early-{n}.pcap"));
        assert_eq!(seen, (vec![Some("www.example".to_owned())], 1), "{talk:?}");
    }
}

#[test]
fn data_before_an_answer_that_comes_later_is_not_believed() {
    for (n, talk) in FAMILIES.map(Talk::of).into_iter().enumerate() {
        let mut capture = Capture::default();
        capture.frames(&[talk.syn(), talk.client(0, &hello("www.example", &[])), talk.syn_ack()]);
        let replay = capture.replay(&format!("hasty-{n}.pcap"));
        assert_eq!(replay.flows.len(), 1);
        assert_eq!(replay.flows[0].flow.host, None, "{talk:?}");
        assert_eq!(replay.drops, [("before-handshake", 1)]);
    }
}

#[test]
fn data_without_any_syn_is_midstream() {
    for (n, talk) in FAMILIES.map(Talk::of).into_iter().enumerate() {
        let mut capture = Capture::default();
        capture.frames(&[talk.client(0, &[]), talk.client(0, &hello("www.example", &[]))]);
        let replay = capture.replay(&format!("late-{n}.pcap"));
        let flows: Vec<_> =
            replay.flows.iter().map(|one| (one.flow.road, one.flow.host.as_deref())).collect();
        assert_eq!(flows, [("kernel", None)], "{talk:?}");
    }
}
