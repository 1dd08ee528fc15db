//! The namespace in which a rehearsal is played.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use weir_sys::netns::Namespace;
use weir_sys::tun::Tun;
use weir_sys::{ethtool, sockopt};

use super::Table;
use super::packets::Case;
use crate::doctor::ground::Ground;
use crate::host::nft::Ruleset;
use crate::host::sysctl::Key;
use crate::host::{PUNT_TUN, RELAY_TUN};

/// How long a packet may be under way.
const PATIENCE: Duration = Duration::from_millis(250);
/// Sysctls that decide with the rules what becomes of a packet: taken over from the host.
const TAKEN_OVER: [&str; 2] =
    ["net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_tcp_loose"];

/// The devices, open for packets in and out.
#[derive(Debug)]
pub struct Stage {
    devices: Vec<Tun>,
}

impl Stage {
    /// Sends every case through `tables`; the places of those that did not come out where they must.
    ///
    /// # Errors
    /// A sentence: what could not be built.
    pub fn play(ground: &Ground<'_>, cases: &[Case], tables: &[Table]) -> Result<BTreeSet<usize>, String> {
        let sysctls = TAKEN_OVER.map(|key| (key, Key::new(key).read().ok().flatten()));
        let namespace = Namespace::new().map_err(|error| format!("no namespace: {error}"))?;
        let play = || {
            let stage = Self::build(ground, cases)?;
            for (key, value) in sysctls {
                if let Some(value) = value {
                    let _ = Key::new(key).write(&value);
                }
            }
            tables
                .iter()
                .try_for_each(|table| feed(table.program, &["-f", "-"], &table.text, &table.title))?;
            Ruleset::of(&ground.spec).load()?;
            let _listeners = listen(ground.spec.listen)?;
            Ok(stage.send(cases))
        };
        namespace.run(play).map_err(|error| format!("no namespace: {error}"))?
    }

    fn build(ground: &Ground<'_>, cases: &[Case]) -> Result<Self, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        ethtool::set_up("lo", true).map_err(failed("lo"))?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            // A kernel without IPv6 has only half of them.
            let _ = Key::new(key).write(value);
        }
        let mut names: Vec<&str> = vec![PUNT_TUN, RELAY_TUN];
        names.extend(ground.config.ports.iter().map(|port| port.device.as_str()));
        let mut devices = Vec::new();
        for name in names {
            let tun = Tun::create(name).map_err(failed(name))?;
            tun.set_up(true).map_err(failed(name))?;
            devices.push(tun);
        }
        for (v4, program) in [(true, &["-4", "-batch", "-"][..]), (false, &["-6", "-batch", "-"])] {
            feed("ip", program, &commands(ground, cases, v4), "addresses and routes")?;
        }
        Ok(Self { devices })
    }

    fn device(&self, name: &str) -> Option<&Tun> {
        self.devices.iter().find(|device| device.name() == name)
    }

    /// Sends all packets in; the places of those that, or whose answers, have not come out in time.
    fn send(&self, cases: &[Case]) -> BTreeSet<usize> {
        let mut lost: BTreeSet<usize> = (0..cases.len()).collect();
        for case in cases {
            if let Some(into) = self.device(&case.into) {
                // One that is not taken does not come out.
                let _ = into.write(&case.packet);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while !lost.is_empty() && Instant::now() < deadline {
            let before = lost.len();
            for device in &self.devices {
                while let Ok(length) = device.read(&mut buffer) {
                    let ends = ends(&buffer[..length]);
                    lost.retain(|at| {
                        let case = &cases[*at];
                        ends != Some((case.source, case.to)) || device.name() != case.out_of
                    });
                }
            }
            if lost.len() == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        lost
    }
}

/// The two ends of a TCP packet that is no refusal.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (source, to): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    match sliced.transport? {
        TransportSlice::Tcp(tcp) if !tcp.rst() => {
            Some((SocketAddr::new(source, tcp.source_port()), SocketAddr::new(to, tcp.destination_port())))
        }
        _ => None,
    }
}

/// What ip(8) reads: addresses of the ports as on the host, routes to both ends, weir's rule and route.
fn commands(ground: &Ground<'_>, cases: &[Case], v4: bool) -> String {
    let mut lines = Vec::new();
    for (port, link) in ground.ports() {
        let on_port =
            ground.own.iter().filter(|(address, index, _)| *index == link.ifindex && address.is_ipv4() == v4);
        let nodad = if v4 { "" } else { " nodad" };
        lines.extend(
            on_port.map(|(address, _, length)| {
                format!("addr add {address}/{length} dev {}{nodad}", port.device)
            }),
        );
    }
    let everything = if v4 { "0.0.0.0/0" } else { "::/0" };
    if let Some(case) = cases.iter().find(|case| case.client.is_ipv4() == v4) {
        lines.push(format!("route replace {} dev {}", case.client, case.from));
        let wan = ground.ports().map(|(port, _)| &port.device).find(|device| **device != case.from);
        lines.push(format!("route replace {everything} dev {}", wan.unwrap_or(&case.from)));
    }
    let spec = &ground.spec;
    lines.push(format!(
        "rule add fwmark {:#x}/{:#x} lookup {} priority {}",
        spec.mark, spec.mask, spec.table, spec.priority
    ));
    lines.push(format!("route add local {everything} dev lo table {}", spec.table));
    lines.join("\n") + "\n"
}

/// The listener that the relay would have.
fn listen(port: u16) -> Result<Vec<std::os::fd::OwnedFd>, String> {
    let open = |ip: IpAddr| sockopt::transparent_listener(SocketAddr::new(ip, port), 8);
    let mut listeners =
        vec![open(Ipv4Addr::UNSPECIFIED.into()).map_err(|error| format!("a listener: {error}"))?];
    listeners.extend(open(Ipv6Addr::UNSPECIFIED.into()));
    Ok(listeners)
}

/// Runs a program that reads `text`.
fn feed(program: &str, args: &[&str], text: &str, what: &str) -> Result<(), String> {
    // The restoring programs of iptables read their input without being told.
    let args = if program.ends_with("restore") { &[][..] } else { args };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} does not take {what}: {}", errors.lines().next().unwrap_or("it does not say why")))
}
