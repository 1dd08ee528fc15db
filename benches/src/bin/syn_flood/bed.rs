//! The lab, made comparable: offloads off, NAPI in threads that are bound to CPUs, routes for the flood's sources.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::{Command, Stdio};

use weir_control::lab::{Lab, LabOptions, Namespace};
use weir_sys::affinity;

use super::{Failure, accounts};

/// The CPU of the flood, the clients and the servers.
pub const LOAD_CPU: usize = 0;
/// The CPU of the gateway alone.
pub const GATEWAY_CPU: usize = 1;

/// Nice value of everything but the flood: other work on the machine takes little of their CPUs.
pub const NICE: i32 = -20;

/// NAPI in a thread, and looked at every 50 us while there is something to do, as a NIC's interrupts are moderated: else a packet
/// for the other CPU wakes it, and in a virtual machine that costs more than all that a gateway does to it.
const MODERATE: &str = "cd /sys/class/net/$device; echo 1 > threaded; \
                        echo 50000 > gro_flush_timeout; echo 100 > napi_defer_hard_irqs";

const OFFLOADS: &str = "rx off tx off tso off gso off gro on";

/// A lab that is ready to be measured.
#[derive(Debug)]
pub struct Bed {
    pub lab: Lab,
    /// NAPI threads of others, from before the lab was built.
    foreign: BTreeSet<u32>,
}

/// The kernel threads whose time is the gateway's.
#[derive(Debug)]
pub struct GatewayThreads(pub Vec<u32>);

impl Bed {
    pub fn new() -> Result<Self, Failure> {
        let cpus = affinity::available_cpus()?;
        if !cpus.contains(&LOAD_CPU) || !cpus.contains(&GATEWAY_CPU) {
            return Err(format!("needs the CPUs {LOAD_CPU} and {GATEWAY_CPU}, has {cpus:?}").into());
        }
        let foreign = accounts::threads_named("napi/")?.into_keys().collect();
        let lab = Lab::new(&LabOptions { forwarding: Some(true), ..LabOptions::default() })?;
        shell(
            &lab.gateway,
            &format!(
                "ethtool -K lan0 {OFFLOADS}; ethtool -K wan0 {OFFLOADS}
                 ip route add 32.0.0.0/3 via 10.77.1.2
                 ip route add 2a00::/16 via fd77:1::2
                 for client in 10.77.1.2 fd77:1::2; do
                     ip neigh replace $client lladdr 02:77:00:00:00:01 dev lan0 nud permanent
                 done
                 for server in 192.0.2.10 2001:db8:2::10; do
                     ip neigh replace $server lladdr 02:77:00:00:00:04 dev wan0 nud permanent
                 done"
            ),
        )?;
        shell(
            &lab.client,
            &format!(
                "ethtool -K client0 {OFFLOADS}
                 for gateway in 10.77.1.1 fd77:1::1; do
                     ip neigh replace $gateway lladdr 02:77:00:00:00:02 dev client0 nud permanent
                 done
                 nft -f - <<'END'
                 table netdev flood {{
                     chain ingress {{
                         type filter hook ingress device client0 priority 0
                         ip daddr 32.0.0.0/3 drop
                         ip6 daddr 2a00::/16 drop
                     }}
                 }}\nEND"
            ),
        )?;
        shell(
            &lab.server,
            &format!(
                "ethtool -K server0 {OFFLOADS}
                 for gateway in 192.0.2.1 2001:db8:2::1; do
                     ip neigh replace $gateway lladdr 02:77:00:00:00:03 dev server0 nud permanent
                 done"
            ),
        )?;
        Ok(Self { lab, foreign })
    }

    /// Puts the NAPI of all devices into threads and binds those. To be called when the contender has done to the devices what it
    /// will do.
    pub fn bind_threads(&self) -> Result<GatewayThreads, Failure> {
        shell(&self.lab.gateway, &format!("for device in lan0 wan0; do {MODERATE}; done"))?;
        for (namespace, device) in [(&self.lab.client, "client0"), (&self.lab.server, "server0")] {
            // These namespaces see the host's /sys, unless they have their own already.
            let command =
                format!("mount -t sysfs sysfs /sys 2>/dev/null || true; device={device}; {MODERATE}");
            shell(namespace, &format!("unshare --mount sh -ec '{command}'"))?;
        }
        let (mut gateway, mut outer) = (Vec::new(), Vec::new());
        for (thread, name) in accounts::threads_named("napi/")? {
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
        shell(&self.lab.gateway, &format!("renice -n {NICE}{all}"))?;
        let softirq = format!("ksoftirqd/{GATEWAY_CPU}");
        gateway.extend(accounts::threads_named(&softirq)?.into_keys());
        Ok(GatewayThreads(gateway))
    }
}

/// Runs a script in a namespace to its end. It must not fail; what it writes is returned.
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
