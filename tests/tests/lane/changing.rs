//! From the worker to the lane: nothing of a flow is overtaken, whatever its worker still has in hand.

use super::*;
use weir_tests::packet::{BOTH, FIN};

/// The number of the flow's worker, and of another one.
const WORKER: u8 = 3;
const OTHER: u8 = 4;

/// A flow that its worker lets in, with a segment of each direction.
fn changing(lane: &mut Lane, how: &Translation) -> [(Way, Vec<u8>); 2] {
    let flow = ExpressFlow { from: Some(WORKER), ..flow_of(how) };
    assert_eq!(lane.express.insert(&mut lane.batch, &[flow]).unwrap(), 1);
    WAYS.map(|way| (way, segment(how, way).frame()))
}

#[track_caller]
fn is_workers(lane: &mut Lane, way: Way, frame: &[u8]) {
    let (trial, outcome) = lane.counted(way, frame);
    assert_eq!((outcome, trial.action), (Outcome::ExpressChanging, REDIRECT), "{way:?}");
    assert_eq!(trial.frame, frame, "as it came");
}

#[track_caller]
fn is_carried(lane: &mut Lane, how: &Translation, way: Way, frame: &[u8]) {
    let (trial, outcome) = lane.counted(way, frame);
    assert_eq!((outcome, trial.action), (Outcome::Express, REDIRECT), "{way:?}");
    assert_eq!(trial.frame, by_worker(how, way, frame));
}

/// Longer than a packet is on its way to a worker.
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(2));
}

fn all() -> Vec<Translation> {
    BOTH.into_iter().flat_map(|family| [plain(family), spliced(family)]).collect()
}

#[test]
fn flow_is_its_workers_until_that_has_nothing_in_hand_in_a_pause_of_each_direction() {
    with_lane(|lane| {
        for how in all() {
            let frames = changing(lane, &how);
            // What the worker has in hand from before the flow was let in nobody knows.
            lane.express.tell_idle(WORKER, clock::monotonic_ns()).unwrap();
            for (way, frame) in &frames {
                pause();
                is_workers(lane, *way, frame);
                is_workers(lane, *way, frame);
                // It had nothing before that came, and another has nothing now.
                let before = clock::monotonic_ns();
                is_workers(lane, *way, frame);
                pause();
                lane.express.tell_idle(WORKER, before).unwrap();
                lane.express.tell_idle(OTHER, clock::monotonic_ns()).unwrap();
                is_workers(lane, *way, frame);
                pause();
                lane.express.tell_idle(WORKER, clock::monotonic_ns()).unwrap();
                is_carried(lane, &how, *way, frame);
                // And never the worker's again.
                lane.express.tell_idle(WORKER, before).unwrap();
                is_carried(lane, &how, *way, frame);
            }
            lane.express.take(ends(&how.client), ends(&how.server)).unwrap();
        }
    });
}

#[test]
fn flow_without_a_pause_changes_over_in_the_end_and_that_is_counted() {
    with_lane(|lane| {
        for how in all() {
            for (way, frame) in changing(lane, &how) {
                let before = lane.steering.counters().unwrap();
                for _ in 0..2048 {
                    lane.run(way, &frame);
                }
                let after = lane.steering.counters().unwrap();
                let workers = |counters: &weir_sys::steering::Counters| counters.of(Outcome::ExpressChanging);
                assert_eq!(workers(&after) - workers(&before), 2048);
                let (trial, outcome) = lane.counted(way, &frame);
                assert_eq!(outcome, Outcome::ExpressOvertaking);
                assert_eq!(trial.frame, by_worker(&how, way, &frame));
                is_carried(lane, &how, way, &frame);
            }
            lane.express.take(ends(&how.client), ends(&how.server)).unwrap();
        }
    });
}

#[test]
fn flow_that_changes_over_ends_with_its_worker_and_is_carried_at_once_when_there_is_none() {
    with_lane(|lane| {
        for how in all() {
            let frames = changing(lane, &how);
            for way in WAYS {
                is_workers(lane, way, &segment(&how, way).flags(FIN | ACK).frame());
            }
            lane.set_alive(false);
            for (way, frame) in &frames {
                is_carried(lane, &how, *way, frame);
            }
            lane.set_alive(true);
            for (way, frame) in &frames {
                is_carried(lane, &how, *way, frame);
            }
            lane.express.take(ends(&how.client), ends(&how.server)).unwrap();
        }
    });
}
