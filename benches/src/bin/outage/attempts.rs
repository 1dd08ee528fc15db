//! For how long new connections find nobody when weir fails, by handshake: one is begun every few milliseconds, asks for something,
//! and counts when it is answered at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_control::demo::stage::Family;
use weir_sys::affinity;

use super::bed::{Bed, PORT, Weir};
use super::{Failing, Failure, Handshake, Options, WATCHED, report};

/// Between the beginnings of two connections.
const INTERVAL: Duration = Duration::from_millis(2);
/// An answer that takes longer came by a packet that was sent again: TCP waits a second for the first SYN.
const AT_ONCE: Duration = Duration::from_millis(200);
/// How long is waited for the first answer after a device has come back.
const BACK: Duration = Duration::from_millis(2500);
/// Until the first failure.
const CALM: Duration = Duration::from_millis(200);

/// One connection: when it was begun, and whether it was answered at once.
type Attempt = (Instant, bool);

/// What the connections of one run were like.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The longest time in which every connection that was begun got no answer at once.
    outage: Duration,
    /// Connections that got none.
    lost: usize,
}

/// Whether nine of ten outages are below the bar everywhere.
pub fn measure(options: &Options) -> Result<bool, Failure> {
    report::heading(&format!(
        "new connections are not answered for (ms, one is begun every {INTERVAL:?}; an answer counts within {AT_ONCE:?})"
    ));
    let mut all = true;
    for handshake in options.handshakes() {
        for failing in options.failings().iter().copied().filter(|failing| failing.is_met(*handshake)) {
            for family in Family::BOTH {
                let one = |run| {
                    let one = one(options, *handshake, failing, family);
                    one.map_err(|e| report::of_run(*handshake, failing, family, run, &e))
                };
                let seen = (0..options.runs).map(one).collect::<Result<Vec<Seen>, _>>()?;
                let times = seen.iter().map(|seen| seen.outage.as_secs_f64() * 1e3).collect();
                let lost = seen.iter().map(|seen| seen.lost).collect();
                all &= report::row(*handshake, failing, family, options.bar(failing), times, lost);
            }
        }
    }
    Ok(all)
}

fn one(options: &Options, handshake: Handshake, failing: Failing, family: Family) -> Result<Seen, Failure> {
    let bed = Bed::new(options)?;
    let mut weir = Weir::start(&bed, options, handshake)?;
    if handshake == Handshake::Relay {
        bed.relayed(family)?;
    } else {
        drop(bed.connect(family)?);
    }
    if failing == Failing::Device {
        // Its absence is no outage of weir's.
        weir.prepare(failing)?;
        weir.fail(failing)?;
        let (attempts, since) = (Attempts::start(&bed, family)?, Instant::now());
        std::thread::sleep(BACK);
        return seen_since(&attempts.stop()?, since).ok_or_else(|| "no connection was answered".into());
    }
    weir.prepare(failing)?;
    let attempts = Attempts::start(&bed, family)?;
    std::thread::sleep(CALM);
    weir.fail(failing)?;
    std::thread::sleep(WATCHED);
    let attempts = attempts.stop()?;
    weir.thaw();
    seen(&attempts).ok_or_else(|| "no connection was answered before".into())
}

/// Connections begin, until this is stopped.
struct Attempts {
    end: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Attempt>>>,
    starter: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Attempts {
    fn start(bed: &Bed, family: Family) -> Result<Self, Failure> {
        let (end, done) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Attempt>>>::default());
        let (stop, told) = (end.clone(), done.clone());
        let to = family.origin(PORT);
        let body = move || {
            // One that begins late looks like an outage.
            affinity::run_promptly()?;
            let (mut due, mut all) = (Instant::now(), Vec::<std::thread::JoinHandle<()>>::new());
            while !stop.load(Ordering::Relaxed) {
                let told = told.clone();
                // In the namespace of the thread that starts it.
                all.push(std::thread::spawn(move || {
                    let began = Instant::now();
                    let answered = attempt(to).is_ok() && began.elapsed() < AT_ONCE;
                    told.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((began, answered));
                }));
                all.retain(|attempt| !attempt.is_finished());
                due += INTERVAL;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            all.into_iter().for_each(|attempt| drop(attempt.join()));
            Ok(())
        };
        let starter = bed.lab.client.spawn(body)?;
        Ok(Self { end, done, starter })
    }

    fn stop(self) -> Result<Vec<Attempt>, Failure> {
        self.end.store(true, Ordering::Relaxed);
        self.starter.join().map_err(|_| "a thread panicked")??;
        let mut done =
            std::mem::take(&mut *self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        done.sort_unstable();
        Ok(done)
    }
}

fn attempt(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, AT_ONCE)?;
    stream.set_read_timeout(Some(AT_ONCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: www.example\r\n\r\n")?;
    match stream.read(&mut [0; 64])? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// From the last connection that was answered before those that were not, to the first one after them.
fn seen(attempts: &[Attempt]) -> Option<Seen> {
    let answered: Vec<usize> = (0..attempts.len()).filter(|at| attempts[*at].1).collect();
    let first = *answered.first()?;
    let last = *answered.last()?;
    let between = answered.windows(2).filter(|pair| pair[1] - pair[0] > 1);
    let between = between.map(|pair| attempts[pair[1]].0 - attempts[pair[0]].0).max().unwrap_or_default();
    let end = if last + 1 < attempts.len() { attempts.last()?.0 - attempts[last].0 } else { Duration::ZERO };
    let lost = attempts.iter().skip(first).filter(|(_, answered)| !answered).count();
    Some(Seen { outage: between.max(end).saturating_sub(INTERVAL), lost })
}

/// Until the first connection that was answered.
fn seen_since(attempts: &[Attempt], since: Instant) -> Option<Seen> {
    let lost = attempts.iter().position(|(_, answered)| *answered)?;
    Some(Seen { outage: attempts[lost].0 - since, lost })
}
