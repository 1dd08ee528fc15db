//! What is measured of a contender, one after the other in one lab.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use weir_benches::bed::{Cpus, GATEWAY_CPU, GatewayThreads, LOAD_CPU, outside, shell};
use weir_benches::report::Report;
use weir_benches::{Failure, cpu};
use weir_control::lab::{Lab, LabOptions};

use super::client::{Clients, Work};
use super::contender::{Contender, Running};
use super::origin;

/// Connections at a time where they are new, and where they are kept.
const AT_ONCE: usize = 64;
/// Streams at a time.
const STREAMS: usize = 4;
/// From the start of a load to its first reading.
const SETTLE: Duration = Duration::from_millis(500);
/// Connections from which memory is counted: what the first ones need is not theirs alone.
const IDLE_FROM: usize = 500;
/// How long so many connections may take to be there.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How packets cross the links.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Packets {
    /// As large as the kernel makes them. A veth device passes its NAPI by then, and the sender's CPU would do the receiver's
    /// work: packets are steered (RPS) to the CPU that they are for.
    Large,
    /// Of the MTU. A veth device has its NAPI from GRO, which therefore stays on, and puts nothing together.
    Mtu,
}

pub const CONNECTIONS: &str = "new connections";
pub const CONNECTION_CPU: &str = "CPU of a connection";
pub const REQUESTS: &str = "requests, 64 kept connections";
pub const REQUEST_CPU: &str = "CPU of a request";
pub const BULK: &str = "bulk, offloads on";
pub const BULK_CPU: &str = "bulk, offloads on: CPU";
pub const PLAIN: &str = "bulk, packets of the MTU";
pub const PLAIN_CPU: &str = "bulk, packets of the MTU: CPU";
pub const MEMORY: &str = "memory of an idle connection, process";
pub const SLAB: &str = "memory of an idle connection, kernel";
pub const MIDDLE: &str = "latency at half load, p50";
pub const TAIL: &str = "latency at half load, p99";

/// What is to be reached: measure, whether more is better, and by what factor.
pub const BARS: [(&str, bool, &str); 10] = [
    (CONNECTIONS, true, ">= 1.5"),
    (REQUESTS, true, ">= 1.3"),
    (BULK, true, ">= 1.3"),
    (PLAIN, true, ">= 1.3"),
    (CONNECTION_CPU, false, "<= 0.7"),
    (REQUEST_CPU, false, "<= 0.7"),
    (BULK_CPU, false, "<= 0.7"),
    (PLAIN_CPU, false, "<= 0.7"),
    (MEMORY, false, "<= 0.25"),
    (TAIL, false, "<= 1.0"),
];

#[derive(Debug)]
pub struct Bench {
    pub weir: PathBuf,
    pub nginx: PathBuf,
    pub seconds: f64,
    pub idle: usize,
    /// Parts of names; none: all.
    pub measures: Vec<String>,
}

/// A contender in its lab.
struct Stand {
    lab: Lab,
    running: Running,
    threads: GatewayThreads,
}

/// What happened in a window of time.
struct Window {
    answers: f64,
    octets: f64,
    cpu_ns: f64,
    seconds: f64,
}

impl Bench {
    fn stand(&self, contender: Contender) -> Result<Stand, Failure> {
        let cpus = Cpus::take()?;
        let lab = Lab::new(&LabOptions { forwarding: Some(true), ..LabOptions::default() })?;
        origin::start(&lab)?;
        let running = contender.start(&lab, &self.weir, &self.nginx)?;
        Packets::Mtu.set(&lab)?;
        let threads = cpus.bind_threads(&lab)?;
        Ok(Stand { lab, running, threads })
    }

    /// Whether a measure is among those asked for.
    pub fn wants(&self, measure: &str) -> bool {
        self.measures.is_empty() || self.measures.iter().any(|part| measure.contains(part.as_str()))
    }

    /// Everything but latency; returns the requests per second on kept connections.
    pub fn measure(&self, contender: Contender, report: &mut Report) -> Result<f64, Failure> {
        let mut stand = self.stand(contender)?;
        let mut add = |measure, unit, value| report.add(contender.name(), measure, unit, value);
        let mut rate = f64::NAN;
        if self.wants(CONNECTIONS) {
            let window = self.watch(&mut stand, Work::Close(AT_ONCE))?;
            add(CONNECTIONS, "1/s", window.answers / window.seconds);
            add(CONNECTION_CPU, "us", window.cpu_ns / window.answers / 1e3);
        }
        if self.wants(REQUESTS) {
            let window = self.watch(&mut stand, Work::Keep(AT_ONCE))?;
            rate = window.answers / window.seconds;
            add(REQUESTS, "1/s", rate);
            add(REQUEST_CPU, "us", window.cpu_ns / window.answers / 1e3);
        }
        for (packets, bulk, cpu) in [(Packets::Mtu, PLAIN, PLAIN_CPU), (Packets::Large, BULK, BULK_CPU)] {
            if !self.wants(bulk) {
                continue;
            }
            packets.set(&stand.lab)?;
            let window = self.watch(&mut stand, Work::Bulk(STREAMS))?;
            add(bulk, "Gbit/s", window.octets * 8.0 / window.seconds / 1e9);
            add(cpu, "ns/KiB", window.cpu_ns / (window.octets / 1024.0));
        }
        drop(stand);
        if !self.wants(MEMORY) || contender == Contender::Forwarding {
            return Ok(rate);
        }
        // In a process that has not carried anything yet.
        let (process, kernel) = self.memory(contender)?;
        add(MEMORY, "octets", process);
        add(SLAB, "octets", kernel);
        Ok(rate)
    }

    pub fn measure_latency(
        &self,
        contender: Contender,
        rate: f64,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let stand = self.stand(contender)?;
        let clients = Clients::start(&stand.lab, Work::Paced(AT_ONCE, rate))?;
        std::thread::sleep(Duration::from_secs_f64(self.seconds));
        let times = clients.finish()?;
        let quantile = |part: f64| {
            let rank = (times.len() as f64 * part) as usize;
            times.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
        };
        report.add(contender.name(), MIDDLE, "us", quantile(0.5));
        report.add(contender.name(), TAIL, "us", quantile(0.99));
        Ok(())
    }

    fn watch(&self, stand: &mut Stand, work: Work) -> Result<Window, Failure> {
        let clients = Clients::start(&stand.lab, work)?;
        std::thread::sleep(SETTLE);
        let processes = stand.running.processes();
        let read = || -> Result<_, Failure> {
            let done = &clients.done;
            let cpu = cpu::time_of(&stand.threads.0, &processes)?;
            Ok((
                done.answers.load(Relaxed),
                done.octets.load(Relaxed),
                done.failed.load(Relaxed),
                cpu,
                Instant::now(),
            ))
        };
        let before = read()?;
        std::thread::sleep(Duration::from_secs_f64(self.seconds));
        let after = read()?;
        clients.finish()?;
        if after.2 > before.2 {
            eprintln!("  {:?}: {} of {} failed", work, after.2 - before.2, after.0 - before.0);
        }
        Ok(Window {
            answers: (after.0 - before.0) as f64,
            octets: (after.1 - before.1) as f64,
            cpu_ns: (after.3 - before.3) as f64,
            seconds: (after.4 - before.4).as_secs_f64(),
        })
    }

    /// Octets of memory for each further idle connection: of the process, and of the kernel's slabs (both of the gateway's
    /// sockets, and those of the two ends).
    fn memory(&self, contender: Contender) -> Result<(f64, f64), Failure> {
        let mut stand = self.stand(contender)?;
        let clients = Clients::start(&stand.lab, Work::Idle(self.idle))?;
        let started = Instant::now();
        let wait_for = |count: usize| -> Result<(), Failure> {
            while (clients.done.answers.load(Relaxed) as usize) < count {
                if started.elapsed() > IDLE_LIMIT {
                    let there = clients.done.answers.load(Relaxed);
                    return Err(format!(
                        "{there} of {count} idle connections are there after {IDLE_LIMIT:?}"
                    )
                    .into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        wait_for(IDLE_FROM)?;
        let first = clients.done.answers.load(Relaxed);
        let (process, kernel) = (resident(&stand.running.processes())?, slab()?);
        wait_for(self.idle * 98 / 100)?;
        // Buffers that are given back after a while are no connection's; and who is late may still come.
        std::thread::sleep(Duration::from_secs(2));
        let count = (clients.done.answers.load(Relaxed) - first) as f64;
        let grown = |now: u64, before: u64| (now as f64 - before as f64) / count;
        let result = (grown(resident(&stand.running.processes())?, process), grown(slab()?, kernel));
        clients.finish()?;
        Ok(result)
    }
}

impl Packets {
    /// Sets all devices.
    fn set(self, lab: &Lab) -> Result<(), Failure> {
        let (offloads, gro, load, gateway) = match self {
            Self::Large => ("tx on tso on gso on gro on", 65536, 1 << LOAD_CPU, 1 << GATEWAY_CPU),
            Self::Mtu => ("tx off tso off gso off gro on", 1000, 0, 0),
        };
        let script = |device, cpus| {
            format!(
                "ethtool -K {device} {offloads}; ip link set {device} gro_max_size {gro}; \
                 echo {cpus:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus"
            )
        };
        shell(&lab.gateway, &format!("{}; {}", script("lan0", gateway), script("wan0", gateway)))?;
        outside(&lab.client, &script("client0", load))?;
        outside(&lab.server, &script("server0", load))
    }
}

/// Resident memory in octets.
fn resident(processes: &[u32]) -> Result<u64, Failure> {
    let of = |process: &u32| kib_of(&format!("/proc/{process}/status"), "VmRSS:");
    Ok(processes.iter().map(of).sum::<Result<u64, _>>()? * 1024)
}

fn slab() -> Result<u64, Failure> {
    Ok(kib_of("/proc/meminfo", "Slab:")? * 1024)
}

/// A line `name  123 kB` of a file.
fn kib_of(path: &str, name: &str) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("no {name} in {path}").into())
}
