//! The ports: are they there, up, routed, and of a size that weir takes?

use weir_dataplane::gateway::{FRAME_SIZES, largest_packet};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use crate::config::Port;
use crate::host::{LinkInfo, port_device, sysctl};
use crate::run::convert::buffer_grain;
use crate::run::devices;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    for port in &ground.config.ports {
        let device = &port.device;
        let Some(link) = ground.link(device) else {
            let names: Vec<&str> = ground.links.iter().map(|link| link.name.as_str()).collect();
            found.push(
                Finding::bad(
                    "port",
                    device,
                    format!("there is no such device; there are: {}", names.join(", ")),
                    format!("weir does not start without its ports: correct `device` at {}", port.origin),
                )
                .by_hand(NoCommand::Configuration)
                .on(device),
            );
            continue;
        };
        found.push(
            Finding::good("port", device, format!("is there ({})", link.kind.as_deref().unwrap_or("NIC")))
                .on(device),
        );
        link_state(link, found);
        fitness(ground, link, found);
        vlans(ground, port, link, found);
        if ground.fast {
            found.push(shared(link, &ground.links));
            program(ground, link, found);
            mtu(link, found);
        }
    }
    unlike_mtus(ground, found);
}

fn link_state(link: &LinkInfo, found: &mut Findings) {
    let device = &link.name;
    found.push(
        match (link.up, weir_sys::ethtool::is_up(device).unwrap_or(false)) {
            (true, _) => Finding::good("link", device, "is up"),
            (false, false) => Finding::bad("link", device, "is down", "no packet comes in or goes out by it")
                .mend(format!("ip link set dev {device} up")),
            (false, true) => Finding::bad(
                "link",
                device,
                "is up and has no carrier",
                "no packet comes in or goes out by it: look at the cable, the transceiver or the device at the other end",
            )
            .by_hand(NoCommand::FarEnd),
        }
        .on(device),
    );
}

/// As `weir run` judges it.
fn fitness(ground: &Ground<'_>, link: &LinkInfo, found: &mut Findings) {
    let device = &link.name;
    let unfit = match ground.fast {
        true => port_device::unfit(link, &ground.links),
        false => port_device::unfit_for_relay(link, &ground.links, &sysctl::bridge_calls()),
    };
    let Some(unfit) = unfit else {
        return found.push(Finding::good("device-kind", device, "can be a port").on(device));
    };
    let id = if unfit.is_member { "controller" } else { "device-kind" };
    let so = if ground.running.is_some() { "weir leaves it to the kernel" } else { "weir does not start" };
    let why = format!("{so}: {}; {}", unfit.why, unfit.instead);
    let finding = Finding::bad(id, device, unfit.what, why).on(device);
    found.push(finding.mend_or(unfit.mend, NoCommand::Configuration));
}

/// What weir says about a device when it starts.
fn shared(link: &LinkInfo, links: &[LinkInfo]) -> Finding {
    let device = &link.name;
    match port_device::shared(link, links) {
        Some((what, why)) => {
            Finding::note("shared", device, what, why).by_hand(NoCommand::Nothing).on(device)
        }
        None => Finding::good("shared", device, "no ipvlan is on it").on(device),
    }
}

/// What weir says about a port's VLANs when it starts.
fn vlans(ground: &Ground<'_>, port: &Port, link: &LinkInfo, found: &mut Findings) {
    let device = &link.name;
    match devices::vlans(ground.config, port, &ground.links) {
        told if told.is_empty() => {
            found.push(Finding::good("vlan", device, "its VLANs are those of the intercepts").on(device));
        }
        told => told.into_iter().for_each(|(what, why)| {
            found.push(Finding::note("vlan", device, what, why).by_hand(NoCommand::Configuration).on(device));
        }),
    }
}

/// Another's XDP program. What an earlier weir pinned is told as a leftover.
fn program(ground: &Ground<'_>, link: &LinkInfo, found: &mut Findings) {
    let device = &link.name;
    let pinned = std::fs::read_dir(&ground.paths.pins).is_ok_and(|mut pins| pins.next().is_some());
    found.push(
        match (link.xdp, &ground.running) {
            (Some(_), None) if ground.holder.is_some() => {
                return found.skip("xdp-program", device, "another weir runs here, and this may be its program");
            }
            (Some(id), None) if !pinned => Finding::bad(
                "xdp-program",
                device,
                format!("carries the XDP program {id} of somebody else (see `bpftool prog show id {id}`)"),
                "a device has room for one, and weir does not replace what it did not put there: it does not start. If the \
                 command is refused, a process holds the program: stop that",
            )
            // The first takes off one that runs in the driver, the second one in the kernel's stack; neither minds if there is none.
            .mend(format!("ip link set dev {device} xdp off && ip link set dev {device} xdpgeneric off")),
            (None, Some(_)) => Finding::bad(
                "xdp-program",
                device,
                "somebody took the steering program of the running weir off the device",
                "what comes in by it takes the kernel's road until weir has put it back, which it tries within a second: if this \
                 stays so, `weir status` says what is in the way",
            )
            .by_hand(NoCommand::Weir),
            (None, None) => Finding::good("xdp-program", device, "has no XDP program"),
            (Some(_), _) => Finding::good("xdp-program", device, "carries weir's"),
        }
        .on(device),
    );
}

fn mtu(link: &LinkInfo, found: &mut Findings) {
    let (device, mtu) = (&link.name, link.mtu);
    let largest = largest_packet(FRAME_SIZES[1], buffer_grain(device));
    found.push(
        if mtu as usize > largest {
            Finding::bad(
                "mtu",
                device,
                format!("has an MTU of {mtu}, and a frame holds a packet of {largest} octets"),
                "weir does not start: a packet must fit one frame",
            )
            .mend(format!("ip link set dev {device} mtu {largest}"))
        } else {
            Finding::good("mtu", device, format!("an MTU of {mtu} fits a frame"))
        }
        .on(device),
    );
}

/// Packets that are too large for the other side.
fn unlike_mtus(ground: &Ground<'_>, found: &mut Findings) {
    let ports: Vec<(&String, u32)> =
        ground.ports().map(|(port, link)| (&port.device, link.ip_mtu())).collect();
    let Some(least) = ports.iter().map(|(_, mtu)| *mtu).min() else { return };
    let larger: Vec<&(&String, u32)> = ports.iter().filter(|(_, mtu)| *mtu > least).collect();
    let subject = ports.iter().map(|(device, _)| device.as_str()).collect::<Vec<_>>().join(", ");
    if larger.is_empty() {
        return found.push(Finding::good("mtu-alike", subject, format!("all have an MTU of {least}")));
    }
    let told: Vec<String> = larger.iter().map(|(device, mtu)| format!("{device} has {mtu}")).collect();
    let commands: Vec<String> =
        larger.iter().map(|(device, _)| format!("ip link set dev {device} mtu {least}")).collect();
    found.push(
        Finding::note(
            "mtu-alike",
            subject,
            format!("{}, the least of the ports is {least}", told.join(", ")),
            "larger packets are answered with ICMP (packet too big); where that is filtered on the way, connections hang after \
             their handshake",
        )
        .mend(commands.join(" && ")),
    );
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn ipvlans_on_a_port_are_noted_by_their_names() {
        let link = |ifindex, name: &str, kind: Option<&str>, lower| LinkInfo {
            ifindex,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            lower,
            ..LinkInfo::default()
        };
        let eth = link(1, "eth1", None, None);
        let elsewhere = link(3, "iv2", Some("ipvlan"), Some(2));
        assert_eq!(shared(&eth, &[eth.clone(), elsewhere]).severity, Severity::Good);
        let finding = shared(&eth, &[eth.clone(), link(4, "iv1", Some("ipvlan"), Some(1))]);
        assert_eq!((finding.id, finding.severity), ("shared", Severity::Note));
        assert!(finding.what.contains("link-layer address with iv1"), "{finding:?}");
        assert_eq!(finding.port.as_deref(), Some("eth1"));
    }
}
