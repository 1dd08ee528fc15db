//! What was used and what passed: CPU time of threads, packets of devices.

use std::collections::BTreeMap;
use std::fs;

use super::Failure;
use super::bed::{ANSWERED, Bed, GATEWAY_CPU, GatewayThreads, shell};

/// A reading of all that only grows; or, by [`Reading::since`], how much it grew.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// SYNs that the generator sent.
    pub sent: u64,
    /// Packets that the gateway's port took in: SYNs, but for the real client's.
    pub arrived: u64,
    /// Packets that the gateway's port had no room for.
    pub lost: u64,
    /// Answers to the flood: those that its sources' device dropped, and those that it had no room for.
    pub answered: u64,
    /// CPU time of the gateway, in ns.
    pub cpu_ns: u64,
    /// Time that the gateway's CPU was busy, whoever with, in ns.
    pub busy_ns: u64,
}

impl Reading {
    pub fn take(
        bed: &Bed,
        threads: &GatewayThreads,
        process: Option<u32>,
        sent: u64,
    ) -> Result<Self, Failure> {
        let lan = received(&bed.lab.gateway.run(net_dev)?, "lan0")?;
        let client = received(&bed.lab.client.run(net_dev)?, "client0")?;
        let mut cpu_ns = 0;
        for thread in &threads.0 {
            cpu_ns += cpu_ns_of(&format!("/proc/{thread}"))?;
        }
        if let Some(process) = process {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                cpu_ns += cpu_ns_of(&task?.path().display().to_string())?;
            }
        }
        let answered = nft_counter(bed)? + client.dropped;
        let busy_ns = busy_ns_of(GATEWAY_CPU)?;
        Ok(Self { sent, arrived: lan.packets, lost: lan.dropped, answered, cpu_ns, busy_ns })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            arrived: self.arrived - before.arrived,
            lost: self.lost - before.lost,
            answered: self.answered - before.answered,
            cpu_ns: self.cpu_ns - before.cpu_ns,
            busy_ns: self.busy_ns - before.busy_ns,
        }
    }
}

/// Threads of the kernel (and processes) by the beginning of their name: id and name.
pub fn threads_named(prefix: &str) -> Result<BTreeMap<u32, String>, Failure> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse() else { continue };
        // It may have ended by now.
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if name.starts_with(prefix) {
            found.insert(id, name.trim_end().to_owned());
        }
    }
    Ok(found)
}

/// The first number of schedstat (proc_pid_schedstat(5)): time on a CPU.
fn cpu_ns_of(task: &str) -> Result<u64, Failure> {
    let path = format!("{task}/schedstat");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    Ok(first.parse().map_err(|error| format!("{path} says {text:?}: {error}"))?)
}

/// The line of a CPU in /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, in ticks of 10 ms.
fn busy_ns_of(cpu: usize) -> Result<u64, Failure> {
    const TICK_NS: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")));
    let line = line.ok_or_else(|| format!("no CPU {cpu} in /proc/stat"))?;
    let numbers: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    match numbers[..] {
        [user, nice, system, _, _, irq, softirq, ..] => Ok((user + nice + system + irq + softirq) * TICK_NS),
        _ => Err(format!("/proc/stat says of CPU {cpu}: {line}").into()),
    }
}

struct Received {
    packets: u64,
    dropped: u64,
}

fn net_dev() -> std::io::Result<String> {
    fs::read_to_string("/proc/thread-self/net/dev")
}

/// The receive columns of /proc/net/dev: octets, packets, errors, dropped.
fn received(text: &str, device: &str) -> Result<Received, Failure> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("no {device} in /proc/net/dev"))?;
    let numbers: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    match numbers[..] {
        [_, packets, _, dropped, ..] => Ok(Received { packets, dropped }),
        _ => Err(format!("/proc/net/dev says of {device}: {line}").into()),
    }
}

fn nft_counter(bed: &Bed) -> Result<u64, Failure> {
    let text = shell(&bed.lab.client, &format!("nft list counter netdev flood {ANSWERED}"))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let packets = words.next().and_then(|word| word.parse().ok());
    packets.ok_or_else(|| format!("nft says of the counter: {text}").into())
}
