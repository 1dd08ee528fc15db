//! A contender in its lab, with servers behind it: loads are put on it, and what they and its CPU did is counted.
//!
//! `client | gateway | server` as three namespaces, joined by veth. The gateway has CPU 1 for itself: its ports' NAPI are kernel
//! threads (threaded NAPI) bound to it, and so is the contender's process, which has one worker. Clients and servers, with one thread
//! each, have CPU 0. IPv4 and IPv6 in turn. Offloads are off, so that packets are of the MTU, and GRO is on ([`Arrangement`]). CPU time of the gateway is that of its NAPI threads, of the contender's threads, and of
//! ksoftirqd on its CPU.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use weir_control::lab::{Lab, LabOptions};

use crate::bed::{Cpus, GATEWAY_CPU, GatewayThreads, LOAD_CPU, outside, shell};
use crate::contender::{Contender, Programs, Running};
use crate::ends::client::{Clients, Work};
use crate::ends::origin::Origin;
use crate::{Failure, cpu};

/// From the start of a load to its first reading.
const SETTLE: Duration = Duration::from_millis(300);
/// Connections from which memory is counted: what the first ones need is not theirs alone.
const IDLE_FROM: usize = 500;
/// Buffers that are not used any more are back by then.
const GIVEN_BACK: Duration = Duration::from_secs(1);
/// How long so many connections may take to be there.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How packets cross the links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packets {
    /// As large as the kernel makes them. A veth device passes its NAPI by then, and the sender's CPU would do the receiver's
    /// work: packets are steered (RPS) to the CPU that they are for.
    Large,
    /// Of the MTU. A veth device has its NAPI from GRO, which therefore stays on, and puts nothing together.
    Mtu,
    /// Of the MTU, and GRO puts them together where they arrive, as on a host that nobody has touched.
    Merged,
}

/// How the lab is set up.
#[derive(Clone, Copy, Debug)]
pub struct Arrangement {
    /// How packets cross the links where nothing else is said.
    pub packets: Packets,
    /// As of [`Cpus::bind_threads`].
    pub moderated: bool,
}

/// A contender in its lab. Fields are dropped in this order.
#[derive(Debug)]
pub struct Stand {
    name: &'static str,
    pub running: Running,
    pub packets: Packets,
    pub threads: GatewayThreads,
    _origin: Origin,
    pub lab: Lab,
}

/// What happened in a window of time.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub answers: f64,
    pub octets: f64,
    pub cpu_ns: f64,
    pub seconds: f64,
}

impl Stand {
    /// Builds the lab and starts the contender in it.
    ///
    /// # Errors
    /// The machine refuses, or the contender does not serve.
    pub fn new(contender: Contender, programs: &Programs, how: Arrangement) -> Result<Self, Failure> {
        let cpus = Cpus::take()?;
        let lab = Lab::new(&LabOptions { forwarding: Some(true), ..LabOptions::default() })?;
        let origin = Origin::start(&lab)?;
        // Devices are as they will be before a program or a rule looks at them.
        how.packets.set(&lab)?;
        let running = contender.start(&lab, programs)?;
        let threads = cpus.bind_threads(&lab, how.moderated)?;
        Ok(Self { name: contender.name(), running, packets: how.packets, threads, _origin: origin, lab })
    }

    /// CPU time of the gateway so far, in ns.
    ///
    /// # Errors
    /// The contender has ended.
    pub fn cpu_ns(&mut self) -> Result<u64, Failure> {
        cpu::time_of(&self.threads.0, &self.running.processes())
    }

    /// Puts a load on it, and counts for so long after it has settled.
    ///
    /// # Errors
    /// The clients or the contender have ended.
    pub fn watch(&mut self, work: Work, seconds: f64) -> Result<Window, Failure> {
        let clients = Clients::start(&self.lab, work)?;
        std::thread::sleep(SETTLE);
        let processes = self.running.processes();
        let read = || -> Result<_, Failure> {
            let done = &clients.done;
            let cpu = cpu::time_of(&self.threads.0, &processes)?;
            Ok((
                done.answers.load(Relaxed),
                done.octets.load(Relaxed),
                done.failed.load(Relaxed),
                cpu,
                Instant::now(),
            ))
        };
        let before = read()?;
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let after = read()?;
        if after.2 > before.2 {
            let last = clients.done.last_failure().unwrap_or_default();
            let (failed, answers) = (after.2 - before.2, after.0 - before.0);
            eprintln!("  {}, {work:?}: {failed} failed beside {answers} answers ({last})", self.name);
        }
        clients.finish()?;
        Ok(Window {
            answers: (after.0 - before.0) as f64,
            octets: (after.1 - before.1) as f64,
            cpu_ns: (after.3 - before.3) as f64,
            seconds: (after.4 - before.4).as_secs_f64(),
        })
    }

    /// Asks at a fixed rate, for so long; how long the answers took, ascending.
    ///
    /// # Errors
    /// The clients have ended.
    pub fn time_answers(&self, at_once: usize, rate: f64, seconds: f64) -> Result<Vec<Duration>, Failure> {
        let clients = Clients::start(&self.lab, Work::Paced(at_once, rate))?;
        std::thread::sleep(Duration::from_secs_f64(seconds));
        clients.finish()
    }

    /// Octets of memory for each further idle connection, of so many: of the process, and of the kernel's slabs (both of the
    /// gateway's sockets, and those of the two ends). To be asked of a contender that has not carried anything yet.
    ///
    /// # Errors
    /// They do not come to be in time.
    pub fn memory(&mut self, idle: usize) -> Result<(f64, f64), Failure> {
        let clients = Clients::start(&self.lab, Work::Idle(idle))?;
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
        let (process, kernel) = (resident(&self.running.processes())?, slab()?);
        wait_for(idle * 98 / 100)?;
        // They are no connection's; and who is late may still come.
        std::thread::sleep(GIVEN_BACK);
        let count = (clients.done.answers.load(Relaxed) - first) as f64;
        let grown = |now: u64, before: u64| (now as f64 - before as f64) / count;
        let result = (grown(resident(&self.running.processes())?, process), grown(slab()?, kernel));
        clients.finish()?;
        Ok(result)
    }
}

/// The value that `part` of the sorted times do not exceed, in us.
pub fn quantile_us(times: &[Duration], part: f64) -> f64 {
    let rank = (times.len() as f64 * part) as usize;
    times.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

impl Packets {
    /// Sets all devices.
    ///
    /// # Errors
    /// ethtool fails.
    pub fn set(self, lab: &Lab) -> Result<(), Failure> {
        let (offloads, gro, load, gateway) = match self {
            Self::Large => ("tx on tso on gso on gro on", 65536, 1 << LOAD_CPU, 1 << GATEWAY_CPU),
            Self::Mtu => ("tx off tso off gso off gro on", 1000, 0, 0),
            Self::Merged => ("tx off tso off gso off gro on", 65536, 0, 0),
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
