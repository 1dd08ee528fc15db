//! Queues of the ports against what the configuration takes of them, and against the cores for its workers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weir_sys::ethtool::{self, Channels};
use weir_sys::steering::MAX_QUEUES;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::limits::queues;
use crate::config::{Port, Queues};

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
        let takes = queues(port);
        let status = ground.status_of(device).filter(|_| port.queues == Queues::All);
        if let Some(finding) = status.and_then(|status| unread(device, &channels, status)) {
            found.push(finding);
            continue;
        }
        found.push(judge(port, &channels, &takes).on(device));
        let is_picked = port.queues != Queues::All;
        counts.insert(device.clone(), Count { taken: takes.len(), channels, is_picked });
        taken.extend(takes);
    }
    alike(&counts, found);
    cores(ground, taken.len(), &counts, found);
}

/// What the configuration takes of a device, against what it has.
fn judge(port: &Port, channels: &Channels, takes: &BTreeSet<u32>) -> Finding {
    let (device, id) = (&port.device, "queues");
    let has = channels.receiving().max(1);
    let count = takes.last().map_or(1, |last| last + 1);
    let left: Vec<u32> = (0..has).filter(|queue| !takes.contains(queue)).collect();
    let missing: Vec<&u32> = takes.iter().filter(|queue| **queue >= has).collect();
    if count > MAX_QUEUES {
        let what = format!("takes queue {} of {has}, and steering knows the first {MAX_QUEUES}", count - 1);
        let why = "weir does not start: have the device use fewer, or name fewer in `queues`";
        let command = set_queues(device, channels, MAX_QUEUES).filter(|_| port.queues == Queues::All);
        return Finding::bad(id, device, what, why).mend_or(command, NoCommand::Configuration);
    }
    if !missing.is_empty() {
        let most = most(channels);
        let what = format!("has {has} receive queues and can have {most}, and `queues` names {missing:?}");
        let why = format!("weir does not start: correct `queues` at {}", port.origin);
        let command = set_queues(device, channels, count);
        return Finding::bad(id, device, what, why).mend_or(command, NoCommand::Configuration);
    }
    if left.is_empty() {
        return Finding::good(id, device, format!("{has}, all of them taken"));
    }
    // The last ones can be taken off the device, and no others.
    let command = set_queues(device, channels, count).filter(|_| left.iter().all(|queue| *queue >= count));
    Finding::note(
        id,
        device,
        format!("has {has} receive queues, and `queues` leaves out {left:?}"),
        "what arrives on those takes the kernel's road: the relay intercepts it, at a connection's price; take them \
         too, or have the device use fewer",
    )
    .mend_or(command, NoCommand::Configuration)
}

/// Queues that came while weir runs, and have no worker.
fn unread(device: &str, channels: &Channels, status: &Value) -> Option<Finding> {
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
        .mend_or(set_queues(device, channels, count).filter(|_| count < has), NoCommand::Choice)
        .on(device)
    })
}

/// How many queues may receive on a device at most.
const fn most(channels: &Channels) -> u32 {
    if are_combined(channels) { channels.max_combined } else { channels.max_rx }
}

/// Whether a queue of the device receives and sends, as it is set now. Devices that can have both kinds are left with theirs.
const fn are_combined(channels: &Channels) -> bool {
    channels.max_combined > 0 && (channels.combined > 0 || channels.rx == 0)
}

/// The command by which `count` queues receive on a device; none: there cannot be so many.
fn set_queues(device: &str, channels: &Channels, count: u32) -> Option<String> {
    if count == 0 || count > most(channels) {
        return None;
    }
    Some(match (are_combined(channels), channels.rx) {
        (true, 0) => format!("ethtool -L {device} combined {count}"),
        // Beside the combined ones some receive alone.
        (true, _) => format!("ethtool -L {device} rx 0 combined {count}"),
        (false, _) if channels.max_tx == 0 => format!("ethtool -L {device} rx {count}"),
        (false, _) => format!("ethtool -L {device} rx {count} tx {}", count.min(channels.max_tx)),
    })
}

/// What a port has of queues.
struct Count {
    /// Those that the configuration takes.
    taken: usize,
    channels: Channels,
    /// The configuration names them one by one: a device that has fewer may not have these.
    is_picked: bool,
}

type Counts = BTreeMap<String, Count>;

/// The commands by which the devices of these ports have `count` queues each; none: there are no ports, or the configuration names the
/// queues of one.
fn set_all<'a>(ports: impl Iterator<Item = (&'a String, &'a Count)>, count: usize) -> Option<String> {
    let count = u32::try_from(count).ok()?;
    let command =
        |(device, of): (&String, &Count)| set_queues(device, &of.channels, count).filter(|_| !of.is_picked);
    let commands: Vec<String> = ports.map(command).collect::<Option<_>>()?;
    (!commands.is_empty()).then(|| commands.join(" && "))
}

/// A flow comes in by one port on one queue and by the other on another when they have unlike counts.
fn alike(counts: &Counts, found: &mut Findings) {
    let Some(least) = counts.values().map(|count| count.taken).min() else { return };
    let told: Vec<String> =
        counts.iter().map(|(device, count)| format!("{device} {}", count.taken)).collect();
    let subject = counts.keys().cloned().collect::<Vec<_>>().join(", ");
    if counts.values().all(|count| count.taken == least) {
        return found.push(Finding::good("queues-alike", subject, format!("all ports have {least}")));
    }
    let command = set_all(counts.iter().filter(|(_, count)| count.taken > least), least);
    found.push(
        Finding::note(
            "queues-alike",
            subject,
            format!("the ports have unlike numbers of queues: {}", told.join(", ")),
            "the two directions of a connection arrive at different workers: frames cross from one to the other, and some \
             workers serve one port only",
        )
        .mend_or(command, NoCommand::Configuration),
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
    let fewer = cores.len().max(1);
    let command = set_all(counts.iter().filter(|(_, count)| count.taken > fewer), fewer);
    found.push(finding.mend_or(command, NoCommand::Configuration));
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::config::Mode;

    const NONE: Channels = Channels { rx: 0, tx: 0, combined: 0, max_rx: 0, max_tx: 0, max_combined: 0 };
    const COMBINED: Channels = Channels { combined: 4, max_combined: 8, ..NONE };
    const APART: Channels = Channels { rx: 2, tx: 2, max_rx: 4, max_tx: 2, ..NONE };

    #[test]
    fn command_never_asks_for_more_queues_than_a_device_can_have() {
        let both = Channels { rx: 1, max_rx: 8, max_tx: 8, ..COMBINED };
        let either = Channels { max_combined: 8, max_rx: 8, max_tx: 8, ..APART };
        for (channels, count, command) in [
            (COMBINED, 8, Some("ethtool -L eth1 combined 8")),
            (COMBINED, 9, None),
            (COMBINED, 0, None),
            (APART, 1, Some("ethtool -L eth1 rx 1 tx 1")),
            (APART, 4, Some("ethtool -L eth1 rx 4 tx 2")),
            (APART, 5, None),
            (both, 3, Some("ethtool -L eth1 rx 0 combined 3")),
            (either, 3, Some("ethtool -L eth1 rx 3 tx 3")),
            (Channels { max_tx: 0, ..APART }, 3, Some("ethtool -L eth1 rx 3")),
        ] {
            assert_eq!(set_queues("eth1", &channels, count).as_deref(), command, "{channels:?} {count}");
        }
    }

    #[test]
    fn queues_that_a_device_cannot_have_or_lose_are_for_the_configuration() {
        for (list, severity, mend) in [
            (&[0, 1, 2, 3][..], Severity::Good, None),
            // It can have these, and not those.
            (&[0, 7], Severity::Bad, Some("ethtool -L eth1 combined 8")),
            (&[0, 8], Severity::Bad, None),
            (&[0, 1], Severity::Note, Some("ethtool -L eth1 combined 2")),
            // Fewer of them would not be without the first.
            (&[1, 2, 3], Severity::Note, None),
            (&[1], Severity::Note, None),
            (&[0, 200], Severity::Bad, None),
        ] {
            let port = Port {
                name: "lan".to_owned(),
                device: "eth1".to_owned(),
                mode: Mode::Auto,
                queues: Queues::List(list.to_vec()),
                origin: "weir.toml:1".to_owned(),
            };
            let takes = list.iter().map(|queue| u32::from(*queue)).collect();
            let finding = judge(&port, &COMBINED, &takes);
            assert_eq!((finding.severity, finding.mend.as_deref()), (severity, mend), "{list:?}");
            assert!(finding.is_whole(), "{finding:?}");
            if list == [0, 8] {
                assert!(finding.what.contains("can have 8"), "{finding:?}");
            }
        }
    }

    #[test]
    fn ports_are_made_alike_by_commands_only_where_no_queue_is_named() {
        for (is_picked, mend) in [(false, Some("ethtool -L eth2 combined 2")), (true, None)] {
            let count = |taken, is_picked| Count { taken, channels: COMBINED, is_picked };
            let counts =
                [("eth1".to_owned(), count(2, false)), ("eth2".to_owned(), count(4, is_picked))].into();
            let mut found = Findings::default();
            alike(&counts, &mut found);
            assert_eq!(found.findings[0].severity, Severity::Note);
            assert_eq!(found.findings[0].mend.as_deref(), mend, "{is_picked}");
        }
    }
}
