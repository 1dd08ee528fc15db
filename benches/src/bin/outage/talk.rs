//! An open connection of the relay: who ends packets himself passes on no probe, so what is watched is what it says.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weir_control::demo::stage::Family;
use weir_sys::affinity;

use super::bed::{Bed, Weir};
use super::{Failing, Failure, Handshake, Options, WATCHED};
use weir_benches::probe::{INTERVAL, Sample};

/// Until the first failure.
const CALM: Duration = Duration::from_millis(150);

/// The longest time between two answers. Nothing is lost of a connection that goes on.
pub fn one(options: &Options, failing: Failing, family: Family) -> Result<Vec<Sample>, Failure> {
    let bed = Bed::new(options)?;
    let mut weir = Weir::start(&bed, options, Handshake::Relay)?;
    bed.relayed(family)?;
    let stream = bed.open(family)?;
    stream.set_nodelay(true)?;
    let end = Arc::<AtomicBool>::default();
    let (mut writer, mut reader, stop) = (stream.try_clone()?, stream, end.clone());
    let asks = std::thread::spawn(move || -> std::io::Result<()> {
        // One that asks late looks like an outage.
        affinity::run_promptly()?;
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            writer.write_all(b"x")?;
            due += INTERVAL;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        writer.shutdown(std::net::Shutdown::Write)
    });
    let hears = std::thread::spawn(move || -> std::io::Result<Vec<Instant>> {
        affinity::run_promptly()?;
        let (mut room, mut heard) = ([0; 4096], Vec::new());
        while reader.read(&mut room)? > 0 {
            heard.push(Instant::now());
        }
        Ok(heard)
    });
    std::thread::sleep(CALM);
    let since = Instant::now();
    weir.fail(failing)?;
    std::thread::sleep(WATCHED);
    end.store(true, Ordering::Relaxed);
    asks.join().map_err(|_| "a thread panicked")??;
    let heard = hears.join().map_err(|_| "a thread panicked")??;
    let watched = heard.windows(2).filter(|pair| pair[1] > since).map(|pair| pair[1] - pair[0]);
    let pause = watched.max().ok_or("nothing was answered")?;
    Ok(vec![Sample { outage: pause.saturating_sub(INTERVAL), lost: 0 }])
}
