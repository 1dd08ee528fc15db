//! What benchmarks in the lab share: which CPU is whose, and scripts in its namespaces.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::{Command, Stdio};

use weir_control::lab::{Lab, Namespace};
use weir_sys::affinity;

use crate::{Failure, cpu};

/// The CPU of the load: clients and servers.
pub const LOAD_CPU: usize = 0;
/// The CPU of the gateway alone.
pub const GATEWAY_CPU: usize = 1;
/// Nice value of everything that is measured: other work on the machine takes little of its CPUs.
pub const NICE: i32 = -20;

/// NAPI in a thread, and looked at every 50 us while there is something to do, as a NIC's interrupts are moderated: else a packet
/// for the other CPU wakes it, and in a virtual machine that costs more than all that a gateway does to it.
const MODERATE: &str = "cd /sys/class/net/$device; echo 1 > threaded; \
                        echo 50000 > gro_flush_timeout; echo 100 > napi_defer_hard_irqs";
/// NAPI in a thread that each packet wakes.
const AT_ONCE: &str = "cd /sys/class/net/$device; echo 1 > threaded";

/// The kernel threads whose time is the gateway's.
#[derive(Debug)]
pub struct GatewayThreads(pub Vec<u32>);

/// Whose CPUs the lab's devices use: to be asked for before the lab is built.
#[derive(Debug)]
pub struct Cpus {
    /// NAPI threads of others.
    foreign: BTreeSet<u32>,
}

impl Cpus {
    /// Lets this thread, and so all threads and processes that it starts, go before others.
    ///
    /// # Errors
    /// The machine has not got both CPUs; renice fails.
    pub fn take() -> Result<Self, Failure> {
        let cpus = affinity::available_cpus()?;
        if !cpus.contains(&LOAD_CPU) || !cpus.contains(&GATEWAY_CPU) {
            return Err(format!("needs the CPUs {LOAD_CPU} and {GATEWAY_CPU}, has {cpus:?}").into());
        }
        let id = std::process::id().to_string();
        let status = Command::new("renice")
            .args(["-n", &NICE.to_string(), "-p", &id])
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("renice: {status}").into());
        }
        Ok(Self { foreign: cpu::threads_named("napi/")?.into_keys().collect() })
    }

    /// Puts the NAPI of all devices into threads and binds those. To be called when the contender has done to the devices what it
    /// will do. With `moderated` they look for packets in intervals, else each packet wakes them.
    ///
    /// # Errors
    /// A script fails, or the threads are not there.
    pub fn bind_threads(&self, lab: &Lab, moderated: bool) -> Result<GatewayThreads, Failure> {
        let script = if moderated { MODERATE } else { AT_ONCE };
        shell(&lab.gateway, &format!("for device in lan0 wan0; do {script}; done"))?;
        for (namespace, device) in [(&lab.client, "client0"), (&lab.server, "server0")] {
            outside(namespace, &format!("device={device}; {script}"))?;
        }
        let (mut gateway, mut outer) = (Vec::new(), Vec::new());
        for (thread, name) in cpu::threads_named("napi/")? {
            if self.foreign.contains(&thread) {
                continue;
            }
            match name.trim_start_matches("napi/").split_once('-') {
                Some(("lan0" | "wan0", _)) => {
                    affinity::pin_thread_to_cpu(thread, GATEWAY_CPU)?;
                    gateway.push(thread);
                }
                Some(("client0" | "server0", _)) => {
                    affinity::pin_thread_to_cpu(thread, LOAD_CPU)?;
                    outer.push(thread);
                }
                _ => {}
            }
        }
        if gateway.len() != 2 {
            return Err(format!("expected the NAPI threads of lan0 and wan0, found {gateway:?}").into());
        }
        let all = gateway.iter().chain(&outer).map(|thread| format!(" -p {thread}")).collect::<String>();
        shell(&lab.gateway, &format!("renice -n {NICE}{all}"))?;
        let softirq = format!("ksoftirqd/{GATEWAY_CPU}");
        gateway.extend(cpu::threads_named(&softirq)?.into_keys());
        Ok(GatewayThreads(gateway))
    }
}

/// Runs a script (without apostrophes) in the namespace of a client or a server, with a /sys of that namespace: they see the
/// host's, unless they have their own already.
///
/// # Errors
/// As [`shell`].
pub fn outside(namespace: &Namespace, script: &str) -> Result<(), Failure> {
    let command = format!("mount -t sysfs sysfs /sys 2>/dev/null || true; {script}");
    shell(namespace, &format!("unshare --mount sh -ec '{command}'")).map(drop)
}

/// Runs a script in a namespace to its end. It must not fail; what it writes is returned.
///
/// # Errors
/// It fails; the error has what it wrote.
pub fn shell(namespace: &Namespace, script: &str) -> Result<String, Failure> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.spawn_command(command)?;
    let (mut output, mut errors) = (String::new(), String::new());
    if let Some(mut pipe) = child.inner().stdout.take() {
        pipe.read_to_string(&mut output)?;
    }
    if let Some(mut pipe) = child.inner().stderr.take() {
        pipe.read_to_string(&mut errors)?;
    }
    let status = child.inner().wait()?;
    if !status.success() {
        return Err(
            format!("{status} of this in the {} namespace:\n{script}\n{errors}", namespace.name()).into()
        );
    }
    Ok(output)
}
