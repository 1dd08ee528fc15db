//! SIGKILL of weir in the middle of two allowed downloads, one per family: with `fail = "open"` the kernel
//! forwards what weir did, and both end intact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::forwarded::greet;
use super::{ALLOWED_NAME, BODY_BYTES, Case, Variant};
use crate::demo::client::{self, Response};
use crate::demo::stage::{Differs, Family, Road, Seen, Stage, plainly};

/// Bytes per second that the origin sends: slow enough to be in the middle when weir dies.
const RATE: u64 = 3 << 20;
/// Weir is killed when both clients have this much.
const KILL_AT: u64 = 2 << 20;
/// How long that may take.
const HALFWAY_LIMIT: Duration = Duration::from_secs(20);

/// What both downloads came to.
pub type KillOutcome = Vec<(Family, Result<Seen, Differs>)>;

/// What is asked, for the report.
pub const ASKED: &str = "HTTPS: 10 MiB, and SIGKILL of weir in the middle";
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
    std::thread::scope(|scope| {
        let mut downloads = Vec::new();
        let mut outcome = KillOutcome::new();
        for (family, progress) in Family::BOTH.into_iter().zip(&progress) {
            let mut tls = match greet(stage, Case { family, variant: Variant::Through }) {
                Ok(tls) => tls,
                Err(differs) => {
                    outcome.push((family, Err(differs)));
                    continue;
                }
            };
            let road = tls.tcp().try_clone();
            let path = format!("/bytes/{BODY_BYTES}?rate={RATE}");
            let thread = scope.spawn(move || {
                client::get(&mut tls, ALLOWED_NAME, &path, progress).map_err(|error| plainly(&error))
            });
            wait_for(progress, &thread);
            let road = road.map_err(|error| error.to_string()).and_then(|stream| stage.road_of(&stream));
            downloads.push(Download { family, road, thread });
        }
        let killed = stage.gateway.as_mut().map_or(Ok(()), |gateway| gateway.kill());
        let at_kill = progress.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
        for download in downloads {
            let family = download.family;
            let at_kill = at_kill[family as usize];
            let result = match &killed {
                Ok(()) => judge(download, at_kill),
                Err(error) => Err(error.to_string()),
            };
            outcome.push((family, result));
        }
        outcome
    })
}

fn wait_for<T>(progress: &AtomicU64, thread: &ScopedJoinHandle<'_, T>) {
    let deadline = Instant::now() + HALFWAY_LIMIT;
    while progress.load(Ordering::Relaxed) < KILL_AT && !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn judge(download: Download<'_>, at_kill: u64) -> Result<Seen, Differs> {
    let finished = download.thread.join();
    let response = finished.map_err(|_| "the client panicked".to_owned())?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let response = response.map_err(|error| format!("{error}, with {} at the kill", mib(at_kill)))?;
    let road = download.road?;
    if at_kill == 0 || at_kill >= BODY_BYTES {
        return Err(format!("weir died with {at_kill} of {BODY_BYTES} bytes there: not in the middle"));
    }
    if !response.is_intact() || response.length != BODY_BYTES {
        return Err(format!("wrong hash, with {} at the kill", mib(at_kill)));
    }
    let what = format!("{} at the kill, {} in the end, hash equal", mib(at_kill), mib(response.length));
    Ok(Seen { what, road })
}
