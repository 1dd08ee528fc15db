//! Loads, put on a contender one by one.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use weir_control::lab::{IPV4, IPV6};

use super::load::{
    BULK, BULK_CPU, CLOSE, CLOSE_CPU, CROWD_CPU, FLOOD_CPU, FLOOD_SUCCESS, FLOOD_TAIL, GAPS, HELLO,
    HELLO_CPU, LARGE, LARGE_CPU, LATENCY, Load, MEMORY, REQUEST_CPU, REQUESTS, SLAB, SMALL, SMALL_CPU,
    SMALL6, SMALL6_CPU,
};
use crate::Failure;
use crate::contender::{Contender, Programs, REQUESTS_TO_ENTER};
use crate::crowd::Crowd;
use crate::ends::client::{self, Work};
use crate::flood::{self, Flood, Rate, RealClient, Seen};
use crate::probe::{Probes, Sample};
use crate::report::Report;
use crate::small::Small;
use crate::stand::{Packets, Stand, quantile_us};

/// Connections at a time where they are new, and where they are kept.
const AT_ONCE: usize = 64;
/// Streams at a time.
const STREAMS: usize = 4;
/// SYNs per second of [`Load::Flood`].
const FLOOD_RATE: f64 = 50_000.0;
/// From the start of a generator to the first reading.
const SETTLE: Duration = Duration::from_millis(300);
/// Until connections that say nothing are in the express lane, and nobody has anything left to do for them.
const CALM: Duration = Duration::from_secs(2);
/// How long a connection is watched after something has happened to weir.
const WATCHED: Duration = Duration::from_millis(300);
/// Requests per second where nothing was measured that a rate follows from.
const RATE: f64 = 10_000.0;

/// How much of each load.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    /// How long a load is watched.
    pub seconds: f64,
    /// Connections of [`Load::Idle`].
    pub idle: usize,
    /// Connections of [`Load::Crowd`].
    pub crowd: u32,
    /// Requests per second of [`Load::Latency`]; none: half of what the first contender can do.
    pub rate: Option<f64>,
}

/// A contender under a load, and where it is written down what came of it.
pub struct Trial<'a> {
    pub contender: Contender,
    pub stand: &'a mut Stand,
    pub programs: &'a Programs,
    pub amounts: &'a mut Amounts,
    pub report: &'a mut Report,
}

impl Trial<'_> {
    /// Puts a load on the contender.
    pub fn run(&mut self, load: Load) -> Result<(), Failure> {
        match load {
            Load::Hello => self.connections(Work::Hello(AT_ONCE), HELLO, HELLO_CPU).map(drop),
            Load::Close => self.connections(Work::Close(AT_ONCE), CLOSE, CLOSE_CPU).map(drop),
            Load::Requests => {
                let rate = self.connections(Work::Keep(AT_ONCE), REQUESTS, REQUEST_CPU)?;
                self.amounts.rate.get_or_insert(rate / 2.0);
                Ok(())
            }
            Load::Latency => self.latency(),
            Load::Bulk => self.bulk(self.stand.packets, BULK, BULK_CPU),
            Load::BulkLarge => self.bulk(Packets::Large, LARGE, LARGE_CPU),
            Load::Small => {
                self.small(IPV4.servers[0], SMALL, SMALL_CPU)?;
                self.small(IPV6.servers[0], SMALL6, SMALL6_CPU)
            }
            Load::Flood => self.flood(),
            Load::Idle => {
                let (process, kernel) = self.stand.memory(self.amounts.idle)?;
                self.add(MEMORY, "octets", process);
                self.add(SLAB, "octets", kernel);
                Ok(())
            }
            Load::Crowd => self.crowd(),
            Load::Gap => self.gap(),
        }
    }

    fn add(&mut self, measure: &'static str, unit: &'static str, value: f64) {
        self.report.add(self.contender.name(), measure, unit, value);
    }

    /// Returns how many answers came in a second.
    fn connections(&mut self, work: Work, measure: &'static str, cpu: &'static str) -> Result<f64, Failure> {
        let window = self.stand.watch(work, self.amounts.seconds)?;
        let rate = window.answers / window.seconds;
        self.add(measure, "1/s", rate);
        self.add(cpu, "us", window.cpu_ns / window.answers / 1e3);
        Ok(rate)
    }

    fn latency(&mut self) -> Result<(), Failure> {
        let Amounts { rate, seconds, .. } = *self.amounts;
        let times = self.stand.time_answers(AT_ONCE, rate.unwrap_or(RATE), seconds)?;
        for (measure, part) in LATENCY {
            self.add(measure, "us", quantile_us(&times, part));
        }
        Ok(())
    }

    fn bulk(&mut self, packets: Packets, measure: &'static str, cpu: &'static str) -> Result<(), Failure> {
        packets.set(&self.stand.lab)?;
        let window = self.stand.watch(Work::Bulk(STREAMS), self.amounts.seconds)?;
        self.stand.packets.set(&self.stand.lab)?;
        self.add(measure, "Gbit/s", window.octets * 8.0 / window.seconds / 1e9);
        self.add(cpu, "ns/KiB", window.cpu_ns / (window.octets / 1024.0));
        Ok(())
    }

    /// What arrives of one family's small packets, for half of the time that a load has.
    fn small(&mut self, server: IpAddr, measure: &'static str, cpu: &'static str) -> Result<(), Failure> {
        let small = Small::start(&self.stand.lab, server)?;
        std::thread::sleep(SETTLE);
        let mut read =
            || -> Result<_, Failure> { Ok((small.arrived()?, self.stand.cpu_ns()?, Instant::now())) };
        let before = read()?;
        std::thread::sleep(Duration::from_secs_f64(self.amounts.seconds / 2.0));
        let after = read()?;
        small.stop()?;
        let packets = (after.0 - before.0) as f64;
        self.add(measure, "1/s", packets / (after.2 - before.2).as_secs_f64());
        self.add(cpu, "ns", (after.1 - before.1) as f64 / packets);
        Ok(())
    }

    fn flood(&mut self) -> Result<(), Failure> {
        flood::prepare(&self.stand.lab)?;
        let mut flood = Flood::start(&self.stand.lab)?;
        flood.set_rate(Rate::PerSecond(FLOOD_RATE))?;
        std::thread::sleep(SETTLE);
        let client = RealClient::start(&self.stand.lab)?;
        let mut read = || -> Result<_, Failure> { Ok((flood.sent()?, self.stand.cpu_ns()?)) };
        let before = read()?;
        std::thread::sleep(Duration::from_secs_f64(self.amounts.seconds));
        let after = read()?;
        flood.stop()?;
        let seen: Seen = client.finish();
        self.add(FLOOD_SUCCESS, "%", seen.success() * 100.0);
        self.add(FLOOD_TAIL, "ms", seen.quantile(0.99) * 1e3);
        self.add(FLOOD_CPU, "us", (after.1 - before.1) as f64 / (after.0 - before.0) as f64 / 1e3);
        Ok(())
    }

    fn crowd(&mut self) -> Result<(), Failure> {
        let wanted = self.amounts.crowd;
        let (crowd, opened) = Crowd::open(&self.stand.lab, wanted)?;
        if opened < wanted as usize * 99 / 100 {
            return Err(format!("{opened} of {wanted} connections came to be").into());
        }
        std::thread::sleep(CALM);
        let mut read = || -> Result<_, Failure> { Ok((self.stand.cpu_ns()?, Instant::now())) };
        let before = read()?;
        // Timers that run once a second should be met more than once.
        std::thread::sleep(CALM);
        let after = read()?;
        drop(crowd);
        let part = (after.0 - before.0) as f64 / (after.1 - before.1).as_nanos() as f64;
        self.add(CROWD_CPU, "% of a core", part * 100.0);
        Ok(())
    }

    /// The worse direction of a connection in the express lane while nothing happens, weir is killed, starts, and is replaced.
    fn gap(&mut self) -> Result<(), Failure> {
        let Self { stand, programs, .. } = self;
        let connection = stand.lab.client.run(|| client::talk(IPV4.servers[0], REQUESTS_TO_ENTER))?;
        let probes = Probes::start(&stand.lab, &connection)?;
        std::thread::sleep(WATCHED);
        let mut times = vec![SystemTime::now()];
        let mut passed = || {
            std::thread::sleep(WATCHED);
            times.push(SystemTime::now());
        };
        passed();
        stand.running.kill()?;
        passed();
        stand.running.start_again(&stand.lab, programs, false)?;
        passed();
        stand.running.start_again(&stand.lab, programs, true)?;
        passed();
        let recorded = probes.stop()?;
        for ((pause, lost), pair) in GAPS.into_iter().zip(times.windows(2)) {
            let both = recorded.between(pair[0], pair[1])?;
            self.add(pause, "ms", both.iter().map(Sample::outage_ms).fold(0.0, f64::max));
            self.add(lost, "1", both.iter().map(|sample| sample.lost as f64).sum());
        }
        Ok(())
    }
}
