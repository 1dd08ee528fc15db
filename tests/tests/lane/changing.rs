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
fn packets_at_the_same_moment_are_no_pause() {
    with_lane(|lane| {
        for how in all() {
            for (way, frame) in changing(lane, &how) {
                lane.express.tell_idle(WORKER, clock::monotonic_ns()).unwrap();
                // Several of them within a unit of the program's clock, from whichever part of it on.
                let before = lane.steering.counters().unwrap();
                for _ in 0..5 {
                    lane.steering.run_times(lane.devices[way as usize], &frame, 10).unwrap();
                }
                let after = lane.steering.counters().unwrap();
                let moved = |outcome| after.of(outcome) - before.of(outcome);
                assert_eq!((moved(Outcome::ExpressChanging), moved(Outcome::Express)), (50, 0), "{way:?}");
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
                // Its worker has not said for long that it had nothing in hand.
                lane.express.tell_idle(WORKER, 1).unwrap();
                assert_eq!(given(lane, way, &frame, false), 64);
                let (trial, outcome) = lane.counted(way, &frame);
                assert_eq!(outcome, Outcome::Express);
                assert_eq!(trial.frame, by_worker(&how, way, &frame));
            }
            lane.express.take(ends(&how.client), ends(&how.server)).unwrap();
        }
    });
}

#[test]
fn flow_whose_worker_was_without_work_a_moment_ago_waits_longer_for_a_pause() {
    with_lane(|lane| {
        for how in all() {
            for way in WAYS {
                // On a loaded machine it may be longer ago by then.
                let waits = (0..50).any(|_| {
                    let frames = changing(lane, &how);
                    let given = given(lane, way, &frames[way as usize].1, true);
                    lane.express.take(ends(&how.client), ends(&how.server)).unwrap();
                    given == 2048
                });
                assert!(waits, "{way:?}");
            }
        }
    });
}

/// How many packets its worker gets of a direction that makes no pause, before the first overtakes. `tells`: it had nothing in hand each
/// time before the last of them came.
fn given(lane: &mut Lane, way: Way, frame: &[u8], tells: bool) -> u64 {
    let before = lane.steering.counters().unwrap();
    for given in 0..=2048 {
        let at = clock::monotonic_ns();
        lane.run(way, frame);
        if tells {
            lane.express.tell_idle(WORKER, at).unwrap();
        }
        let after = lane.steering.counters().unwrap();
        if after.of(Outcome::ExpressOvertaking) > before.of(Outcome::ExpressOvertaking) {
            assert_eq!(after.of(Outcome::ExpressChanging) - before.of(Outcome::ExpressChanging), given);
            return given;
        }
    }
    panic!("it waits for ever");
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
