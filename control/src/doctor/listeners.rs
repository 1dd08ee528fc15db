//! TCP ports that weir must have, and who has them.

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use crate::host::HostError;
use crate::host::sockets::{self, Listener};
use crate::run::convert;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let listeners = sockets::listeners();
    fallback(ground, &listeners, found);
    metrics(ground, &listeners, found);
    gateway_ports(ground, found);
}

fn fallback(ground: &Ground<'_>, listeners: &[Listener], found: &mut Findings) {
    let port = ground.spec.listen;
    let subject = format!("TCP port {port}");
    let on_port: Vec<&Listener> = listeners.iter().filter(|l| l.port == port).collect();
    // One that does not answer is told of elsewhere.
    let silent = ground.holder.filter(|pid| *pid != 0).map(i64::from);
    let weir = ground.running.as_ref().and_then(|status| status["pid"].as_i64()).or(silent);
    let before = found.findings.len();
    for listener in &on_port {
        let owner = sockets::owner_of(listener.inode);
        if weir.is_some() && owner.as_ref().map(|owner| i64::from(owner.pid)) == weir {
            continue;
        }
        // Another user's: a gateway that runs has the port, and whose it is cannot be seen.
        if (weir.is_some() || ground.holder.is_some()) && owner.is_none() {
            return found.skip("listen-port", subject, "whose listener it is, only root can see");
        }
        let (who, command) = match owner {
            Some(owner) => {
                (format!("{} (process {})", owner.name, owner.pid), Some(format!("kill {}", owner.pid)))
            }
            None => ("somebody".to_owned(), None),
        };
        let finding = Finding::bad(
            "listen-port",
            subject.clone(),
            format!("{who} listens there, at {}", listener.address),
            "the relay's listener needs the port on both families: stop that process, or choose another `listen` in [fallback]",
        );
        found.push(finding.mend_or(command, NoCommand::Unseen));
    }
    if weir.is_some() {
        for (name, v4) in [("IPv4", true), ("IPv6", false)] {
            if !on_port.iter().any(|listener| listener.address.is_ipv4() == v4) {
                let finding = Finding::bad(
                    "listen-port",
                    subject.clone(),
                    format!("the running weir does not listen there on {name}"),
                    "its relay takes no connection of that family: start weir again with --replace",
                );
                found.push(finding.by_hand(NoCommand::Weir));
            }
        }
    }
    found.good_unless_found(
        before,
        Finding::good("listen-port", subject, if weir.is_some() { "is weir's" } else { "is free" }),
    );
}

fn metrics(ground: &Ground<'_>, listeners: &[Listener], found: &mut Findings) {
    let Some(address) = ground.config.gateway.metrics.filter(|_| ground.running.is_none()) else { return };
    let taken = |l: &&Listener| {
        l.port == address.port()
            && (l.address == address.ip() || l.address.is_unspecified() || address.ip().is_unspecified())
    };
    let owner = listeners.iter().find(taken).map(|listener| sockets::owner_of(listener.inode));
    found.push(match owner {
        None => Finding::good("metrics-port", address.to_string(), "is free"),
        Some(owner) => {
            let who =
                owner.as_ref().map_or("somebody".to_owned(), |o| format!("{} (process {})", o.name, o.pid));
            let finding = Finding::bad(
                "metrics-port",
                address.to_string(),
                format!("{who} listens there"),
                "weir does not start: stop that process, or choose another `metrics` in [gateway]",
            );
            finding.mend_or(owner.map(|owner| format!("kill {}", owner.pid)), NoCommand::Unseen)
        }
    });
}

/// Ports that the gateway connects to servers from must not be given to others.
fn gateway_ports(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.spec.gateway_source {
        return;
    }
    let subject = "net.ipv4.ip_local_port_range";
    match convert::check_gateway_ports(ground.config) {
        Ok(()) => {
            found.push(Finding::good("gateway-ports", subject, "the pools' `ports` are kept from others"))
        }
        Err(HostError::Spec(text)) => {
            let command = text.split('`').find(|part| part.starts_with("sysctl ")).map(str::to_owned);
            let finding = Finding::bad(
                "gateway-ports",
                subject,
                text,
                "answers to the box's own connections would be taken for a server's: weir does not start",
            );
            found.push(finding.mend_or(command, NoCommand::Configuration));
        }
        Err(error) => found.skip("gateway-ports", subject, error),
    }
}
