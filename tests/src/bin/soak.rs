//! Plays connections by their seeds, on all cores: `soak COUNT [FIRST]`, or `soak --seed N` for one of them.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weir_tests::soak::{Case, End, run};

/// The most failures that are shown.
const SHOWN: u64 = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seed", seed] => seed.parse().map_or_else(|_| usage(), one),
        [count] => count.parse().map_or_else(|_| usage(), |count| many(count, 1)),
        [count, first] => match (count.parse(), first.parse()) {
            (Ok(count), Ok(first)) => many(count, first),
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: soak COUNT [FIRST SEED]   or   soak --seed N");
    ExitCode::from(2)
}

fn one(seed: u64) -> ExitCode {
    let case = Case::new(seed);
    println!("{:?} {:?} {:?} {:?} {:?}", case.family, case.mode, case.proxy, case.source, case.play.wire);
    match run(seed) {
        Ok(end) => {
            println!("seed {seed}: {end:?}");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            println!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

fn many(count: u64, first: u64) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let ends: [AtomicU64; End::COUNT] = std::array::from_fn(|_| AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let work = || {
        loop {
            let at = next.fetch_add(1, Relaxed);
            if at >= count {
                break;
            }
            match run(first + at) {
                Ok(end) => drop(ends[end as usize].fetch_add(1, Relaxed)),
                Err(wrong) => {
                    if failed.fetch_add(1, Relaxed) < SHOWN {
                        println!("\r{wrong}");
                    }
                }
            }
            done.fetch_add(1, Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
        while done.load(Relaxed) < count {
            std::thread::sleep(Duration::from_millis(500));
            let (done, failed) = (done.load(Relaxed), failed.load(Relaxed));
            let left = start.elapsed().as_secs_f64() / done.max(1) as f64 * (count - done) as f64;
            eprint!("\r{done} of {count}, {failed} failed, {left:.0} s left   ");
        }
    });
    let ended = |end: End| ends[end as usize].load(Relaxed);
    println!(
        "\r{count} connections in {:.0} s: {} whole, {} without a server, {} fell silent, {} spoiled by a host's own TCP, {} failed",
        start.elapsed().as_secs_f64(),
        ended(End::Whole),
        ended(End::NoServer),
        ended(End::Silent),
        ended(End::Stack),
        failed.load(Relaxed)
    );
    if failed.load(Relaxed) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
