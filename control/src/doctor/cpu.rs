//! Cores of the workers: where the NIC is, how fast the cores run, who moves interrupts about.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use weir_sys::affinity;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::interrupts;
use crate::config::Cores;
use crate::host::sockets;

/// The cores that workers are pinned to.
pub fn cores(ground: &Ground<'_>) -> BTreeSet<usize> {
    match &ground.config.workers.cores {
        Cores::Auto => affinity::available_cpus().unwrap_or_default().into_iter().collect(),
        Cores::List(list) => list.iter().map(|core| usize::from(*core)).collect(),
    }
}

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let cores = cores(ground);
    missing_cores(&cores, found);
    governor(&ground.sys, &cores, found);
    let mut irqs = false;
    for (port, _) in ground.ports().filter(|_| ground.fast) {
        numa(&ground.sys, &port.device, &cores, found);
        irqs |= interrupts::probe(ground, &port.device, &cores, found);
    }
    if irqs {
        irqbalance(found);
    }
}

fn missing_cores(cores: &BTreeSet<usize>, found: &mut Findings) {
    let available = affinity::available_cpus().unwrap_or_default();
    let missing: Vec<&usize> = cores.iter().filter(|core| !available.contains(core)).collect();
    found.push(if missing.is_empty() {
        Finding::good("cores", "[workers]", "every core is there")
    } else {
        Finding::bad(
            "cores",
            "[workers]",
            format!("`cores` names {missing:?}, and this process may use {available:?}"),
            "workers cannot be pinned there: correct `cores`",
        )
        .by_hand(NoCommand::Configuration)
    });
}

fn governor(sys: &Path, cores: &BTreeSet<usize>, found: &mut Findings) {
    let id = "governor";
    let of = |core: &usize| {
        let path = sys.join(format!("devices/system/cpu/cpu{core}/cpufreq/scaling_governor"));
        Some((*core, fs::read_to_string(path).ok()?.trim().to_owned()))
    };
    let known: Vec<(usize, String)> = cores.iter().filter_map(of).collect();
    let slow: Vec<String> = known
        .iter()
        .filter(|(_, name)| name != "performance")
        .map(|(core, name)| format!("cpu{core} {name}"))
        .collect();
    if known.is_empty() {
        return found.push(Finding::good(
            id,
            "cpufreq",
            "the frequency of the cores is not this system's to choose",
        ));
    }
    found.push(if slow.is_empty() {
        Finding::good(id, "cpufreq", "performance, on every worker's core")
    } else {
        Finding::note(
            id,
            "cpufreq",
            slow.join(", "),
            "a core that has slept runs slowly at first: latency rises, and bursts overrun the queues",
        )
        .mend("echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    });
}

/// `0-3,8` as numbers.
pub fn list(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn numa(sys: &Path, device: &str, cores: &BTreeSet<usize>, found: &mut Findings) {
    let id = "numa";
    let node = fs::read_to_string(sys.join(format!("class/net/{device}/device/numa_node")));
    let node = node.ok().and_then(|text| text.trim().parse::<usize>().ok());
    let Some(node) = node else {
        return found.push(
            Finding::good(id, device, "belongs to no NUMA node: no core is farther than another").on(device),
        );
    };
    let local = fs::read_to_string(sys.join(format!("devices/system/node/node{node}/cpulist")));
    let local = list(&local.unwrap_or_default());
    let far: Vec<&usize> = cores.iter().filter(|core| !local.contains(core)).collect();
    found.push(
        if far.is_empty() || local.is_empty() {
            Finding::good(id, device, format!("the workers' cores are on its NUMA node {node}"))
        } else {
            let distance = distance(sys, node, &far);
            Finding::note(
                id,
                device,
                format!("is on NUMA node {node}; the cores {far:?} of workers are not{distance}"),
                format!(
                    "every frame crosses between the sockets: in [workers] choose among the cores {local:?}"
                ),
            )
            .by_hand(NoCommand::Configuration)
        }
        .on(device),
    );
}

/// The distance of the farthest of the cores, as the firmware tells it.
fn distance(sys: &Path, node: usize, far: &[&usize]) -> String {
    let distances = fs::read_to_string(sys.join(format!("devices/system/node/node{node}/distance")));
    let distances = distances.unwrap_or_default();
    let to = |other: usize| {
        let cpus = fs::read_to_string(sys.join(format!("devices/system/node/node{other}/cpulist"))).ok()?;
        let holds = far.iter().any(|core| list(&cpus).contains(core));
        holds.then(|| distances.split_whitespace().nth(other)?.parse::<u32>().ok()).flatten()
    };
    let count = distances.split_whitespace().count();
    (0..count)
        .filter_map(to)
        .max()
        .map_or(String::new(), |most| format!(" (distance {most}, where 10 is near)"))
}

fn irqbalance(found: &mut Findings) {
    found.push(match sockets::running("irqbalance") {
        Some(pid) => Finding::note(
            "irqbalance",
            "irqbalance",
            format!("runs as process {pid}"),
            "it moves the interrupts of the queues about, and with them the cores that receive",
        )
        // Where systemd is not the first process, it has started nothing (sd_booted(3)).
        .mend(match Path::new("/run/systemd/system").exists() {
            true => "systemctl stop irqbalance".to_owned(),
            false => format!("kill {pid}"),
        }),
        None => Finding::good("irqbalance", "irqbalance", "does not run"),
    });
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::super::interrupts::tests::Tree;
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(list("0-2,8\n"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(list(""), BTreeSet::new());
    }

    #[test]
    fn worker_on_another_node_is_told_with_the_distance() {
        let tree = Tree::new(
            "numa",
            &[
                ("class/net/eth1/device/numa_node", "1\n"),
                ("devices/system/node/node0/cpulist", "0-3\n"),
                ("devices/system/node/node1/cpulist", "4-7\n"),
                ("devices/system/node/node1/distance", "21 10\n"),
            ],
        );
        for (cores, severity, words) in
            [([4, 5], Severity::Good, "node 1"), ([1, 4], Severity::Note, "distance 21")]
        {
            let mut found = Findings::default();
            numa(&tree.0, "eth1", &cores.into_iter().collect(), &mut found);
            let finding = &found.findings[0];
            assert_eq!((finding.id, finding.severity), ("numa", severity));
            assert!(finding.what.contains(words), "{}", finding.what);
        }
    }

    #[test]
    fn governor_that_saves_power_is_told() {
        let path = |core| format!("devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        let tree = Tree::new("governor", &[(&path(0), "performance\n"), (&path(1), "powersave\n")]);
        for (cores, severity) in
            [(vec![0], Severity::Good), (vec![0, 1], Severity::Note), (vec![7], Severity::Good)]
        {
            let mut found = Findings::default();
            governor(&tree.0, &cores.into_iter().collect(), &mut found);
            assert_eq!(found.findings[0].severity, severity);
        }
    }
}
