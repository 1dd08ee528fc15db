//! The namespace in which a rehearsal is played.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::{SlicedPacket, TransportSlice};
use weir_sys::netns::Namespace;
use weir_sys::tun::Tun;
use weir_sys::{ethtool, sockopt};

use super::Table;
use super::packets::Case;
use super::place::Place;
use crate::host::nft::Ruleset;
use crate::host::sysctl::Key;
use crate::host::{PUNT_TUN, RELAY_TUN};

/// How long a packet may be under way on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_millis(500);
/// Sysctls that decide with the rules what becomes of a packet: taken over from the host.
const TAKEN_OVER: [&str; 2] =
    ["net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_tcp_loose"];

/// What is changed in the rules of others before they are tried.
pub type Change<'a> = &'a (dyn Fn() -> Result<(), String> + Sync);

/// The devices, open for packets in and out.
#[derive(Debug)]
pub struct Stage {
    devices: Vec<Tun>,
}

impl Stage {
    /// Sends every case through `tables`, `change`d; the places of those that did not come out where they must.
    ///
    /// # Errors
    /// A sentence: what could not be built.
    pub fn play(
        place: &Place,
        cases: &[Case],
        tables: &[Table],
        change: Change<'_>,
    ) -> Result<BTreeSet<usize>, String> {
        let sysctls = TAKEN_OVER.map(|key| (key, Key::new(key).read().ok().flatten()));
        let namespace = Namespace::new().map_err(|error| format!("no namespace: {error}"))?;
        let play = || {
            let stage = Self::build(place, cases)?;
            for (key, value) in sysctls {
                if let Some(value) = value {
                    let _ = Key::new(key).write(&value);
                }
            }
            tables
                .iter()
                .try_for_each(|table| feed(table.program, &["-f", "-"], &table.text, &table.title))?;
            change()?;
            if place.has_table {
                Ruleset::of(&place.spec).load()?;
            }
            let _listeners = listen(&place.listens)?;
            Ok(stage.send(cases))
        };
        namespace.run(play).map_err(|error| format!("no namespace: {error}"))?
    }

    fn build(place: &Place, cases: &[Case]) -> Result<Self, String> {
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
        names.extend(place.devices.iter().map(String::as_str));
        let mut devices = Vec::new();
        for name in names {
            let tun = Tun::create(name).map_err(failed(name))?;
            tun.set_up(true).map_err(failed(name))?;
            devices.push(tun);
        }
        for (v4, program) in [(true, &["-4", "-batch", "-"][..]), (false, &["-6", "-batch", "-"])] {
            feed("ip", program, &commands(place, cases, v4), "addresses and routes")?;
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
                    let packet = &buffer[..length];
                    lost.retain(|at| {
                        let case = &cases[*at];
                        !comes_of(packet, case) || device.name() != case.out_of
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

/// Whether a packet is what must come out of a case. NAT may have written over its addresses and ports, and not over its
/// numbers.
fn comes_of(packet: &[u8], case: &Case) -> bool {
    let sliced = SlicedPacket::from_ip(packet).ok();
    let Some(TransportSlice::Tcp(tcp)) = sliced.and_then(|sliced| sliced.transport) else { return false };
    let answers = tcp.syn() && tcp.ack() && tcp.acknowledgment_number() == case.number.wrapping_add(1);
    let is_it = tcp.sequence_number() == case.number;
    !tcp.rst() && if case.is_answered { answers } else { is_it }
}

/// What ip(8) reads: addresses of the ports as on the host, routes to both ends, weir's rule and route.
fn commands(place: &Place, cases: &[Case], v4: bool) -> String {
    let mut lines = Vec::new();
    let nodad = if v4 { "" } else { " nodad" };
    let own = place.own.iter().filter(|(_, address, _)| address.is_ipv4() == v4);
    lines.extend(
        own.map(|(device, address, length)| format!("addr add {address}/{length} dev {device}{nodad}")),
    );
    let everything = if v4 { "0.0.0.0/0" } else { "::/0" };
    if let Some(case) = cases.iter().find(|case| case.client.is_ipv4() == v4) {
        lines.push(format!("route replace {} dev {}", case.client, case.from));
        lines.push(format!("route replace {everything} dev {}", case.far));
    }
    let spec = &place.spec;
    lines.push(format!(
        "rule add fwmark {:#x}/{:#x} lookup {} priority {}",
        spec.mark, spec.mask, spec.table, spec.priority
    ));
    lines.push(format!("route add local {everything} dev lo table {}", spec.table));
    lines.join("\n") + "\n"
}

/// The listeners that are there: the relay's, where weir runs. What has no IPv6 has those of IPv4.
fn listen(addresses: &[SocketAddr]) -> Result<Vec<std::os::fd::OwnedFd>, String> {
    let open = |at: &SocketAddr| sockopt::transparent_listener(*at, 8);
    let mut listeners = Vec::new();
    for at in addresses {
        match open(at) {
            Ok(listener) => listeners.push(listener),
            Err(error) if at.is_ipv4() => return Err(format!("a listener: {error}")),
            Err(_) => {}
        }
    }
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
