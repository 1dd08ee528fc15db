//! What was used and what passed: CPU time of threads, packets of devices.

use std::fs;

use weir_benches::bed::{GATEWAY_CPU, GatewayThreads};
use weir_benches::{Failure, cpu};

use super::bed::Bed;

/// A reading of all that only grows; or, by [`Reading::since`], how much it grew.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// SYNs that the generator sent.
    pub sent: u64,
    /// Packets that the gateway's port took in: SYNs, but for the real client's.
    pub arrived: u64,
    /// Packets that the gateway's port had no room for.
    pub lost: u64,
    /// Answers to the flood: what the gateway's port sent and its peer had no room for, less what the real client got.
    /// Who remembers a SYN answers it again after a second: then there are more answers than SYNs.
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
        let lan = device(&bed.lab.gateway.run(net_dev)?, "lan0")?;
        let cpu_ns = cpu::time_of(&threads.0, process.as_slice())?;
        let answered = (lan.sent + lan.not_sent).saturating_sub(bed.lab.client.run(taken_in)?);
        let busy_ns = busy_ns_of(GATEWAY_CPU)?;
        Ok(Self { sent, arrived: lan.received, lost: lan.lost, answered, cpu_ns, busy_ns })
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

struct Device {
    received: u64,
    lost: u64,
    sent: u64,
    not_sent: u64,
}

fn net_dev() -> std::io::Result<String> {
    fs::read_to_string("/proc/thread-self/net/dev")
}

/// A line of /proc/net/dev: octets, packets, errors, dropped and four more of receiving, the same of sending. What the peer of
/// a veth has no room for is a drop of the sender.
fn device(text: &str, name: &str) -> Result<Device, Failure> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("no {name} in /proc/net/dev"))?;
    let numbers: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    match numbers[..] {
        [_, received, _, lost, _, _, _, _, _, sent, _, not_sent, ..] => {
            Ok(Device { received, lost, sent, not_sent })
        }
        _ => Err(format!("/proc/net/dev says of {name}: {line}").into()),
    }
}

/// IP packets that the client's namespace took in: what its device's filter let through.
fn taken_in() -> Result<u64, Failure> {
    let v4 = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let v6 = fs::read_to_string("/proc/thread-self/net/snmp6")?;
    // A line of names, then one of numbers; InReceives is the third of both.
    let v4 = v4.lines().filter(|line| line.starts_with("Ip:")).nth(1);
    let v4 = v4.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6InReceives")?.trim().parse::<u64>().ok());
    Ok(v4.zip(v6).map(|(v4, v6)| v4 + v6).ok_or("no InReceives in /proc/net/snmp and snmp6")?)
}
