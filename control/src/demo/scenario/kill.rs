//! SIGKILL of weir in the middle of two allowed downloads, one per family: with `fail = "open"` the kernel
//! forwards what weir did, and both end intact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::forwarded::greet;
use super::{ALLOWED_NAME, Case, Variant};
use crate::demo::client::{self, Response};
use crate::demo::stage::{BODY_BYTES, Differs, Family, Road, Seen, Stage, plainly};

/// Bytes per second that the origin sends: slow enough to be in the middle when weir dies.
const RATE: u64 = 3 << 20;
/// Seconds that a smaller body takes, at least: who asks for such has a slow machine.
const LEAST_SECONDS: u64 = 10;
/// Weir is killed when both clients have this many tenths.
const KILL_AT: u64 = 2;
/// How long that may take.
const HALFWAY_LIMIT: Duration = Duration::from_secs(60);

/// What both downloads came to.
pub type KillOutcome = Vec<(Family, Result<Seen, Differs>)>;

/// What is asked, for the report.
pub const ASKED: &str = "HTTPS: a large body, and SIGKILL of weir in the middle";
/// What should happen, for the report.
pub const EXPECTED: &str = "the download ends intact";
/// The road before the kill, for the report.
pub const ROAD: &str = "fast";

/// One download under way.
struct Download<'scope> {
    family: Family,
    road: Result<Road, Differs>,
    thread: ScopedJoinHandle<'scope, Result<Response, Differs>>,
}

/// Starts a download per family, calls `kill` when both have begun to flow, and waits for their ends.
pub fn play_kill(stage: &mut Stage<'_>) -> KillOutcome {
    let progress = [AtomicU64::new(0), AtomicU64::new(0)];
    let body = stage.body_bytes;
    std::thread::scope(|scope| {
        let (mut greeted, mut downloads) = (Vec::new(), Vec::new());
        let mut outcome = KillOutcome::new();
        for (family, progress) in Family::BOTH.into_iter().zip(&progress) {
            match greet(stage, Case { family, variant: Variant::Through }) {
                // By now there is a verdict, and from here on nothing may take long: the first must not end before the kill.
                Ok(tls) => greeted.push((family, stage.road_of(tls.tcp()), tls, progress)),
                Err(differs) => outcome.push((family, Err(differs))),
            }
        }
        for (family, road, mut tls, progress) in greeted {
            let path = format!("/bytes/{body}?rate={}", rate(body));
            let thread = scope.spawn(move || {
                client::get(&mut tls, ALLOWED_NAME, &path, progress).map_err(|error| plainly(&error))
            });
            downloads.push(Download { family, road, thread });
        }
        for download in &downloads {
            wait_for(&progress[download.family as usize], body * KILL_AT / 10, &download.thread);
        }
        let killed = stage.gateway.as_mut().map_or(Ok(()), |gateway| gateway.kill());
        let at_kill = progress.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
        for download in downloads {
            let family = download.family;
            let at_kill = at_kill[family as usize];
            let result = match &killed {
                Ok(()) => judge(download, body, at_kill),
                Err(error) => Err(error.to_string()),
            };
            outcome.push((family, result));
        }
        outcome
    })
}

/// Bytes per second of a body of so many.
fn rate(body: u64) -> u64 {
    if body < BODY_BYTES { body / LEAST_SECONDS } else { RATE }
}

fn wait_for<T>(progress: &AtomicU64, bytes: u64, thread: &ScopedJoinHandle<'_, T>) {
    let deadline = Instant::now() + HALFWAY_LIMIT;
    while progress.load(Ordering::Relaxed) < bytes && !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn judge(download: Download<'_>, body: u64, at_kill: u64) -> Result<Seen, Differs> {
    let finished = download.thread.join();
    let response = finished.map_err(|_| "the client panicked".to_owned())?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let response = response.map_err(|error| format!("{error}, with {} at the kill", mib(at_kill)))?;
    let road = download.road?;
    if at_kill == 0 || at_kill >= body {
        return Err(format!("weir died with {at_kill} of {body} bytes there: not in the middle"));
    }
    if !response.is_intact() || response.length != body {
        return Err(format!("wrong hash, with {} at the kill", mib(at_kill)));
    }
    let what = format!("{} at the kill, {} in the end, hash equal", mib(at_kill), mib(response.length));
    Ok(Seen { what, road })
}
