//! Queues of the ports against what the configuration takes of them, and against the cores for its workers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weir_sys::ethtool;
use weir_sys::steering::MAX_QUEUES;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::limits::queues;
use crate::config::Queues;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    let mut counts = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (port, _) in ground.ports() {
        let device = &port.device;
        let channels = match ethtool::channels_of(device) {
            Ok(channels) => channels,
            Err(error) => {
                found.skip("queues", device, error);
                continue;
            }
        };
        let (has, takes) = (channels.receiving().max(1), queues(port));
        let status = ground.status_of(device).filter(|_| port.queues == Queues::All);
        if let Some(finding) = status.and_then(|status| unread(device, &channels, status)) {
            found.push(finding);
            continue;
        }
        let missing: Vec<u32> = takes.iter().copied().filter(|queue| *queue >= has).collect();
        let left: Vec<u32> = (0..has).filter(|queue| !takes.contains(queue)).collect();
        found.push(
            if takes.last().is_some_and(|last| *last >= MAX_QUEUES) {
                Finding::bad(
                    "queues",
                    device,
                    format!("takes queue {} of {has}, and steering knows the first {MAX_QUEUES}", takes.last().unwrap_or(&0)),
                    "weir does not start: have the device use fewer, or name fewer in `queues`",
                )
                .mend(set_queues(device, &channels, MAX_QUEUES))
            } else if !missing.is_empty() {
                Finding::bad(
                    "queues",
                    device,
                    format!("has {has} receive queues, and `queues` names {missing:?}"),
                    format!("weir does not start: correct `queues` at {}", port.origin),
                )
                .mend(set_queues(device, &channels, missing.iter().max().map_or(1, |most| most + 1)))
            } else if !left.is_empty() {
                Finding::note(
                    "queues",
                    device,
                    format!("has {has} receive queues, and `queues` leaves out {left:?}"),
                    "what arrives on those takes the kernel's road: the relay intercepts it, at a connection's price; take them \
                     too, or have the device use fewer",
                )
                .mend(set_queues(device, &channels, takes.iter().max().map_or(1, |most| most + 1)))
            } else {
                Finding::good("queues", device, format!("{has}, all of them taken"))
            }
            .on(device),
        );
        counts.insert(device.clone(), (takes.len(), channels));
        taken.extend(takes);
    }
    alike(&counts, found);
    cores(ground, taken.len(), &counts, found);
}

/// Queues that came while weir runs, and have no worker.
fn unread(device: &str, channels: &ethtool::Channels, status: &Value) -> Option<Finding> {
    let has = channels.receiving();
    let read: Vec<u64> = status["queues"].as_array()?.iter().filter_map(Value::as_u64).collect();
    let unread: Vec<u32> = (0..has).filter(|queue| !read.contains(&u64::from(*queue))).collect();
    let count = u32::try_from(read.iter().max()? + 1).ok()?;
    (!unread.is_empty()).then(|| {
        Finding::note(
            "queues",
            device,
            format!("has {has} receive queues, and the running weir reads {read:?}"),
            "what arrives on the others takes the kernel's road: the relay intercepts it, at a connection's price; start weir \
             again, or have the device use fewer",
        )
        .mend(set_queues(device, channels, count))
        .on(device)
    })
}

/// The command that gives a device `count` queues.
fn set_queues(device: &str, channels: &ethtool::Channels, count: u32) -> String {
    match channels.max_combined {
        0 => format!("ethtool -L {device} rx {count} tx {count}"),
        _ => format!("ethtool -L {device} combined {count}"),
    }
}

type Counts = BTreeMap<String, (usize, ethtool::Channels)>;

/// A flow comes in by one port on one queue and by the other on another when they have unlike counts.
fn alike(counts: &Counts, found: &mut Findings) {
    let Some(least) = counts.values().map(|(count, _)| *count).min() else { return };
    let told: Vec<String> = counts.iter().map(|(device, (count, _))| format!("{device} {count}")).collect();
    let subject = counts.keys().cloned().collect::<Vec<_>>().join(", ");
    let larger: Vec<_> = counts.iter().filter(|(_, (count, _))| *count > least).collect();
    if larger.is_empty() {
        return found.push(Finding::good("queues-alike", subject, format!("all ports have {least}")));
    }
    let commands: Vec<String> = larger
        .iter()
        .map(|(device, (_, channels))| set_queues(device, channels, u32::try_from(least).unwrap_or(1)))
        .collect();
    found.push(
        Finding::note(
            "queues-alike",
            subject,
            format!("the ports have unlike numbers of queues: {}", told.join(", ")),
            "the two directions of a connection arrive at different workers: frames cross from one to the other, and some \
             workers serve one port only",
        )
        .mend(commands.join(" && ")),
    );
}

/// Each queue has a worker; more workers than cores share them.
fn cores(ground: &Ground<'_>, workers: usize, counts: &Counts, found: &mut Findings) {
    let cores = super::cpu::cores(ground);
    let subject = "[workers]";
    if workers <= cores.len() {
        let what = format!("{workers} workers on {} cores", cores.len());
        return found.push(Finding::good("workers", subject, what));
    }
    let busy = ground.config.workers.idle == crate::config::Idle::Busy;
    let what = format!("{workers} workers, one for each queue, on {} cores", cores.len());
    let why = "workers take turns on a core: one waits while the other works; give the devices fewer queues, or [workers] more \
               `cores`";
    let finding = match busy {
        true => Finding::bad(
            "workers",
            subject,
            what,
            format!("with idle = \"busy\" each of them wants a whole core: {why}"),
        ),
        false => Finding::note("workers", subject, what, why),
    };
    let fewer = u32::try_from(cores.len().max(1)).unwrap_or(1);
    let commands: Vec<String> = counts
        .iter()
        .filter(|(_, (count, _))| *count > cores.len())
        .map(|(device, (_, channels))| set_queues(device, channels, fewer))
        .collect();
    let command = (!commands.is_empty()).then(|| commands.join(" && "));
    found.push(finding.mend_or(command, NoCommand::Configuration));
}
