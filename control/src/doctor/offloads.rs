//! Offloads that do not go together with AF_XDP.

use serde_json::Value;
use weir_core::express::Stay;
use weir_sys::ethtool::{self, Feature};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use crate::admin::{self, Request};
use crate::config::Express;
use crate::host::port_device;
use crate::host::sysctl::{MERGING_OFFLOADS, MergingOffload, VLAN_OFFLOADS};
use crate::run::convert;

/// Flows of a running gateway that are asked about, at most.
const LISTED: u64 = 65_536;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    for (port, link) in ground.ports() {
        let device = &port.device;
        let features = match ethtool::features_of(device) {
            Ok(features) => features,
            Err(error) => {
                found.skip("offloads", device, error);
                continue;
            }
        };
        let vlans = port_device::on(link, &ground.links, &["vlan"]);
        let runs = ground.running.is_some();
        of_features(device, &features, (&vlans, runs)).into_iter().for_each(|finding| found.push(finding));
    }
    partial_checksums(ground, found);
}

/// `runs`: a weir that switches off what hides tags.
fn of_features(device: &str, features: &[Feature], (vlans, runs): (&[&str], bool)) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        MERGING_OFFLOADS.iter().map(|of| merging(device, features, of, runs)).collect();
    findings.push(tags(device, features, vlans, runs));
    findings.into_iter().map(|finding| finding.on(device)).collect()
}

fn merging(device: &str, features: &[Feature], of: &MergingOffload, runs: bool) -> Finding {
    let MergingOffload { name, words } = of;
    let (id, off) = (name.trim_start_matches("rx-"), format!("ethtool -K {device} {name} off"));
    let what = format!("{words} ({name}) is on");
    let why = "the NIC merges segments to packets larger than a frame: they are dropped, and forwarded ones would break the path's \
               MTU";
    match features.iter().find(|feature| feature.name == *name && feature.active) {
        None => Finding::good(id, device, format!("{words} is off")),
        Some(Feature { changeable: false, .. }) => {
            Finding::bad(id, device, what, format!("{why}; its driver does not let go of it"))
                .by_hand(NoCommand::Hardware)
        }
        Some(_) if !runs => Finding::note(
            id,
            device,
            what,
            "the NIC merges segments to packets larger than a frame: weir switches that off when it starts, and on again at its end",
        )
        .mend(off),
        Some(_) => Finding::bad(id, device, what, why).mend(off),
    }
}

/// Tags that no frame has any more.
fn tags(device: &str, features: &[Feature], vlans: &[&str], runs: bool) -> Finding {
    let id = "rx-vlan";
    let mut hiding = VLAN_OFFLOADS
        .iter()
        .filter_map(|name| features.iter().find(|feature| feature.name == *name && feature.active));
    let kept = hiding.clone().find(|feature| !feature.changeable);
    let Some(Feature { name, .. }) = kept.or_else(|| hiding.next()).filter(|_| !vlans.is_empty()) else {
        let what = "no tag is lost: there are no VLANs on it, or the tags stay in the frames";
        return Finding::good(id, device, what);
    };
    let what = format!("the NIC takes VLAN tags off ({name}), and there are {} on it", vlans.join(", "));
    if kept.is_some() {
        let why = "its driver does not leave them in the frames, so that the steering program sees none: weir does not start on it \
                   with VLANs";
        return Finding::bad(id, device, what, why).by_hand(NoCommand::Hardware);
    }
    let finding = match runs {
        false => Finding::note(
            id,
            device,
            what,
            "the steering program would see no tag: weir switches that off when it starts, and on again at its end",
        ),
        true => Finding::bad(
            id,
            device,
            what,
            "the steering program sees no tag then: packets of the VLANs look like the port's own",
        ),
    };
    finding.mend(format!("ethtool -K {device} {name} off"))
}

/// The other end of a virtual device leaves checksums to a NIC that there is not. Only what comes shows whether it does: a
/// gateway that runs knows of which connections.
fn partial_checksums(ground: &Ground<'_>, found: &mut Findings) {
    const ID: &str = "checksums";
    let mut may = Vec::new();
    for (port, _) in ground.ports() {
        let device = port.device.as_str();
        if let Err(error) = ethtool::driver_of(device) {
            found.skip(ID, device, error);
        } else if convert::may_send_partial_checksums(device) {
            may.push(device);
        } else {
            found.push(Finding::good(ID, device, "frames come with whole checksums").on(device));
        }
    }
    if may.is_empty() {
        return;
    }
    if let Some(finding) = unfinished(ground, &may.join(", ")) {
        return found.push(finding);
    }
    let what = "its other end may leave checksums unfinished; weir finishes them";
    may.into_iter().for_each(|device| found.push(Finding::good(ID, device, what).on(device)));
}

/// Connections of the running gateway that stay out of the express lane for it.
fn unfinished(ground: &Ground<'_>, subject: &str) -> Option<Finding> {
    let status = ground.running.as_ref().filter(|_| ground.config.workers.express != Express::Never)?;
    // A list of more would keep its workers from their work.
    status["flows_fast"].as_u64().filter(|flows| (1..=LISTED).contains(flows))?;
    let flows = admin::client::ask(&ground.config.gateway.admin, Request::Flows).ok()?;
    let flows = flows.as_array()?;
    let is_left = |flow: &&Value| flow["lane_reason"] == Stay::Unsummed.name();
    let left = flows.iter().filter(is_left).count();
    (left > 0).then(|| {
        Finding::note(
            "checksums",
            subject,
            format!("of {} connections {left} come with checksums that their sender leaves to a NIC", flows.len()),
            "the express lane has no use for these: workers carry them, and finish each packet's checksum. At the other end of the \
             virtual device: ethtool -K DEV tx off",
        )
        .by_hand(NoCommand::FarEnd)
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn merging_is_bad_before_a_start_only_where_the_driver_keeps_it() {
        for (changeable, severity, words, by_hand) in [
            (true, Severity::Note, "on again at its end", None),
            (false, Severity::Bad, "does not let go", Some(NoCommand::Hardware)),
        ] {
            for (name, id) in [("rx-lro", "lro"), ("rx-gro-hw", "gro-hw")] {
                let features = [Feature { name, active: true, changeable }];
                let findings = of_features("eth1", &features, (&[], false));
                let found = findings.iter().find(|finding| finding.id == id).unwrap();
                let command = changeable.then(|| format!("ethtool -K eth1 {name} off"));
                assert_eq!((found.severity, &found.mend, found.by_hand), (severity, &command, by_hand));
                assert!(found.why.contains(words), "{found:?}");
            }
        }
    }

    fn features(on: &[&str]) -> Vec<Feature> {
        let feature = |name: &'static str| Feature { name, active: on.contains(&name), changeable: true };
        ["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse", "rx-gro"].map(feature).to_vec()
    }

    #[test]
    fn merging_and_lost_tags_are_bad_and_named_with_their_command() {
        for (on, vlans, bad) in [
            (&["rx-gro", "rx-vlan-hw-parse"][..], &[][..], &[][..]),
            (&["rx-lro"], &[], &[("lro", "ethtool -K eth1 rx-lro off")]),
            (&["rx-gro-hw"], &[], &[("gro-hw", "ethtool -K eth1 rx-gro-hw off")]),
            (&["rx-vlan-hw-parse"], &["eth1.5"], &[("rx-vlan", "ethtool -K eth1 rx-vlan-hw-parse off")]),
            (&[], &["eth1.5"], &[]),
        ] {
            let findings = of_features("eth1", &features(on), (vlans, true));
            let found: Vec<(&str, &str)> = findings
                .iter()
                .filter(|f| f.severity == Severity::Bad)
                .map(|f| (f.id, f.mend.as_deref().unwrap_or_default()))
                .collect();
            assert_eq!(found, bad, "{on:?} {vlans:?}");
            assert!(findings.iter().all(|f| f.port.as_deref() == Some("eth1")));
        }
    }

    /// No device here keeps what it is asked to let go of. Tags that a real driver takes off are found in a guest (tests/nic/doctor.sh), with
    /// the sub-interfaces that need 8021q.
    #[test]
    fn tags_that_are_taken_off_are_mended_by_a_command_where_the_driver_lets_go_of_it() {
        for (kept, runs, severity, by_hand) in [
            (false, false, Severity::Note, None),
            (false, true, Severity::Bad, None),
            (true, false, Severity::Bad, Some(NoCommand::Hardware)),
            (true, true, Severity::Bad, Some(NoCommand::Hardware)),
        ] {
            let name = "rx-vlan-stag-hw-parse";
            let features = [Feature { name, active: true, changeable: !kept }];
            let findings = of_features("eth1", &features, (&["eth1.5"], runs));
            let found = findings.iter().find(|finding| finding.id == "rx-vlan").unwrap();
            let command = (!kept).then(|| format!("ethtool -K eth1 {name} off"));
            assert_eq!((found.severity, &found.mend, found.by_hand), (severity, &command, by_hand));
            assert!(found.is_whole() && found.what.contains("eth1.5"), "{found:?}");
        }
    }
}
