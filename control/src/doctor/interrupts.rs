//! Interrupts of the ports' queues: which core each comes to, and whether that core can receive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use weir_sys::affinity;

use super::cpu::list;
use super::finding::{Finding, Findings};
use super::ground::Ground;
use crate::config::Idle;

const ID: &str = "irq-affinity";

/// One interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Irq {
    number: u32,
    /// As its driver has named it, such as `eth1-TxRx-0`; empty: that cannot be seen.
    name: String,
    /// The cores that it may come to.
    on: BTreeSet<usize>,
}

impl Irq {
    fn told(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" ({})", self.name) };
        let on: Vec<String> = self.on.iter().map(ToString::to_string).collect();
        format!("{}{name} on {}", self.number, on.join(","))
    }
}

/// Looks at the interrupts of a port's queues; whether it has any.
pub fn probe(ground: &Ground<'_>, device: &str, cores: &BTreeSet<usize>, found: &mut Findings) -> bool {
    let irqs = receiving(device, irqs_of(&ground.sys, &ground.proc, device));
    if irqs.is_empty() {
        found.push(Finding::good(ID, device, "has no interrupts of its own").on(device));
        return false;
    }
    let available: BTreeSet<usize> = affinity::available_cpus().unwrap_or_default().into_iter().collect();
    let idle = ground.config.workers.idle;
    found.push(judge(device, &irqs, (cores, &available), idle).on(device));
    true
}

/// `cores`: the workers', and those that there are.
fn judge(
    device: &str,
    irqs: &[Irq],
    (cores, available): (&BTreeSet<usize>, &BTreeSet<usize>),
    idle: Idle,
) -> Finding {
    let told = irqs.iter().map(Irq::told).collect::<Vec<_>>().join(", ");
    let free: BTreeSet<usize> = available.difference(cores).copied().collect();
    let own: BTreeSet<usize> = available.intersection(cores).copied().collect();
    let shared: BTreeSet<usize> = irqs.iter().flat_map(|irq| irq.on.intersection(cores)).copied().collect();
    let to_free = idle == Idle::Busy && !free.is_empty();
    if to_free && !shared.is_empty() {
        return Finding::note(
            ID,
            device,
            format!(
                "interrupts of its queues are on the cores {shared:?} of workers that never sleep (idle = \"busy\"): {told}"
            ),
            format!(
                "driver and worker take the core from each other: let these interrupts come to a core without a worker, or the \
                 kernel poll in threads that the scheduler can put there (echo 1 > /sys/class/net/{device}/threaded)"
            ),
        )
        .mend(spread(irqs, &free));
    }
    let targets = if to_free { free } else { own };
    let crowded = crowded(irqs, targets.len());
    if crowded.is_empty() {
        return Finding::good(ID, device, format!("interrupts of its queues: {told}"));
    }
    Finding::note(
        ID,
        device,
        format!("more interrupts of its queues than need be are on the cores {crowded:?}: {told}"),
        "one core receives for several queues while others could: their workers wait for it",
    )
    .mend(spread(irqs, &targets))
}

/// Cores that more interrupts come to than if they were spread over so many.
fn crowded(irqs: &[Irq], cores: usize) -> BTreeSet<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    // One that may come to several cores is on none of them for good.
    for core in irqs.iter().filter(|irq| irq.on.len() == 1).flat_map(|irq| &irq.on) {
        *counts.entry(*core).or_default() += 1;
    }
    let fair = irqs.len().div_ceil(cores.max(1));
    counts.into_iter().filter(|(_, count)| *count > fair).map(|(core, _)| core).collect()
}

/// A command for each, which lets them come to these cores by turns.
fn spread(irqs: &[Irq], cores: &BTreeSet<usize>) -> String {
    let turns = irqs.iter().zip(cores.iter().cycle());
    let commands =
        turns.map(|(irq, core)| format!("echo {core} > /proc/irq/{}/smp_affinity_list", irq.number));
    commands.collect::<Vec<_>>().join("; ")
}

/// Those that tell of packets that came, by the names that drivers give them (`eth1-TxRx-0`, `eth1-rx-0`, `virtio0-input.0`,
/// `mlx5_comp0@pci:...`). Beside them there are some for what was sent, and for changes of the link.
fn receiving(device: &str, all: Vec<Irq>) -> Vec<Irq> {
    const OTHERS: [&str; 7] = ["-tx-", "output", "config", "async", "misc", "mgmnt", "ctrl"];
    let receives = |irq: &&Irq| {
        let name = irq.name.to_lowercase();
        name != device && !OTHERS.iter().any(|other| name.contains(other))
    };
    let receiving: Vec<Irq> = all.iter().filter(receives).cloned().collect();
    if receiving.is_empty() { all } else { receiving }
}

/// The interrupts of a device: those that the bus gives to it, or the lines of /proc/interrupts that name it.
fn irqs_of(sys: &Path, proc: &Path, device: &str) -> Vec<Irq> {
    let bus = sys.join(format!("class/net/{device}/device"));
    // A virtio device is on the bus by another one.
    let numbers = |folder: &str| -> Vec<u32> {
        let entries = fs::read_dir(bus.join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let mut of_bus = numbers("msi_irqs");
    if of_bus.is_empty() {
        of_bus = numbers("../msi_irqs");
    }
    let text = fs::read_to_string(proc.join("interrupts")).unwrap_or_default();
    let mut named: BTreeMap<u32, String> = BTreeMap::new();
    for line in text.lines() {
        let Some((number, rest)) = line.split_once(':') else { continue };
        let Ok(number) = number.trim().parse::<u32>() else { continue };
        let of_device = |word: &str| word == device || word.starts_with(&format!("{device}-"));
        let is_its =
            if of_bus.is_empty() { rest.split_whitespace().any(of_device) } else { of_bus.contains(&number) };
        if is_its {
            named.insert(number, rest.split_whitespace().last().unwrap_or_default().to_owned());
        }
    }
    // Vectors that the driver has not asked for are in no line; where no line is seen, all may be in use.
    if named.is_empty() {
        named = of_bus.into_iter().map(|number| (number, String::new())).collect();
    }
    named.into_iter().map(|(number, name)| Irq { number, name, on: cores_of(proc, number) }).collect()
}

fn cores_of(proc: &Path, number: u32) -> BTreeSet<usize> {
    let read = |name: &str| fs::read_to_string(proc.join(format!("irq/{number}/{name}"))).ok();
    list(&read("effective_affinity_list").or_else(|| read("smp_affinity_list")).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::finding::Severity;
    use super::*;

    /// A small /sys and /proc of a machine with two NUMA nodes.
    pub struct Tree(pub std::path::PathBuf);

    impl Tree {
        pub fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("weir-doctor-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn irq(number: u32, name: &str, on: &[usize]) -> Irq {
        Irq { number, name: name.to_owned(), on: on.iter().copied().collect() }
    }

    #[test]
    fn interrupts_are_found_by_the_bus_or_by_name() {
        let tree = Tree::new(
            "irq",
            &[
                ("sys/class/net/eth1/device/msi_irqs/41", ""),
                ("sys/class/net/eth1/device/msi_irqs/40", ""),
                ("sys/class/net/eth4/device/file", ""),
                ("sys/class/net/eth4/msi_irqs/53", ""),
                ("proc/irq/53/smp_affinity_list", "0-1\n"),
                ("proc/irq/53/effective_affinity_list", "1\n"),
                (
                    "proc/interrupts",
                    "  CPU0\n 50:  1  PCI-MSI  eth2-rx-0\n 51:  2 PCI-MSI eth2-rx-1\n 52: 1 PCI-MSI eth22\n \
                     53: 7 PCI-MSI virtio0-input.0\n",
                ),
            ],
        );
        let irqs = |device| irqs_of(&tree.0.join("sys"), &tree.0.join("proc"), device);
        assert_eq!(irqs("eth1"), [irq(40, "", &[]), irq(41, "", &[])]);
        assert_eq!(irqs("eth2"), [irq(50, "eth2-rx-0", &[]), irq(51, "eth2-rx-1", &[])]);
        assert!(irqs("eth3").is_empty());
        assert_eq!(irqs("eth4"), [irq(53, "virtio0-input.0", &[1])]);
    }

    #[test]
    fn each_interrupt_that_shares_a_core_is_named_with_a_command() {
        let (two, four) = (BTreeSet::from([0, 1]), BTreeSet::from([0, 1, 2, 3]));
        let on = |cores: [usize; 3]| -> Vec<Irq> {
            (40..)
                .zip(cores)
                .map(|(number, core)| irq(number, &format!("eth1-rx-{number}"), &[core]))
                .collect()
        };
        let judge = |cores: [usize; 3], own: &BTreeSet<usize>, available: &BTreeSet<usize>, idle| {
            judge("eth1", &on(cores), (own, available), idle)
        };
        let finding = judge([1, 1, 1], &four, &four, Idle::Adaptive);
        assert_eq!(finding.severity, Severity::Note);
        let commands: Vec<String> =
            (0..3).map(|at| format!("echo {at} > /proc/irq/{}/smp_affinity_list", 40 + at)).collect();
        assert_eq!(finding.mend, Some(commands.join("; ")));
        for number in 40..43 {
            assert!(finding.what.contains(&format!("{number} (eth1-rx-{number}) on 1")), "{finding:?}");
        }
        for (cores, own, available, idle, severity) in [
            ([0, 1, 2], &four, &four, Idle::Adaptive, Severity::Good),
            ([0, 1, 1], &four, &four, Idle::Adaptive, Severity::Note),
            // Of three on two cores two are on one.
            ([0, 1, 1], &two, &two, Idle::Adaptive, Severity::Good),
            ([0, 1, 1], &two, &two, Idle::Busy, Severity::Good),
            ([0, 0, 2], &two, &four, Idle::Busy, Severity::Note),
            ([2, 3, 3], &two, &four, Idle::Busy, Severity::Good),
            ([2, 2, 2], &two, &four, Idle::Busy, Severity::Note),
        ] {
            assert_eq!(judge(cores, own, available, idle).severity, severity, "{cores:?} {own:?} {idle:?}");
        }
        // Where there is one core, all are there.
        let one = BTreeSet::from([0]);
        assert_eq!(judge([0, 0, 0], &one, &one, Idle::Adaptive).severity, Severity::Good);
    }

    #[test]
    fn commands_against_shared_cores_leave_nothing_to_find() {
        let (two, four) = (BTreeSet::from([0, 1]), BTreeSet::from([0, 1, 2, 3]));
        for idle in [Idle::Adaptive, Idle::Busy] {
            let mut irqs: Vec<Irq> = (40..45).map(|number| irq(number, "", &[0])).collect();
            let mend = judge("eth1", &irqs, (&two, &four), idle).mend.unwrap();
            for (irq, command) in irqs.iter_mut().zip(mend.split("; ")) {
                let words: Vec<&str> = command.split(' ').collect();
                assert_eq!(words[3], format!("/proc/irq/{}/smp_affinity_list", irq.number));
                irq.on = list(words[1]);
            }
            assert_eq!(judge("eth1", &irqs, (&two, &four), idle).severity, Severity::Good, "{irqs:?}");
        }
    }

    #[test]
    fn interrupts_of_a_single_queue_share_a_core_with_its_others_without_trouble() {
        for names in [
            ["virtio0-config", "virtio0-input.0", "virtio0-output.0"],
            ["eth1", "eth1-rx-0", "eth1-tx-0"],
            ["mlx5_async0@pci:0000:01:00.0", "mlx5_comp0@pci:0000:01:00.0", "i40e-0000:01:00.0:misc"],
        ] {
            let all = (40..).zip(names).map(|(number, name)| irq(number, name, &[0])).collect();
            assert_eq!(receiving("eth1", all), [irq(41, names[1], &[0])]);
        }
        let alone = vec![irq(40, "eth1", &[0])];
        assert_eq!(receiving("eth1", alone.clone()), alone);
    }
}
