//! The drivers: how QEMU is asked for a NIC of each, and what is to be tried with it.

use crate::Outcome;

/// NICs of one driver, as gateway ports.
#[derive(Debug)]
pub struct Pairing {
    pub name: &'static str,
    /// QEMU's device with its properties.
    pub device: &'static str,
    /// Before it, other devices of QEMU's.
    pub machine: &'static [&'static str],
    /// Queues that the driver has on two CPUs, to be tried.
    pub queues: &'static [u32],
    /// What AF_XDP can do there: zero-copy, XDP in the driver, or neither.
    pub best: Best,
    /// Whether the driver takes an XDP program with packets of 3,000 octets.
    pub jumbo: bool,
}

/// The best that a driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    ZeroCopy,
    Native,
    Generic,
}

/// All of them.
pub const PAIRINGS: [Pairing; 5] = [
    Pairing { name: "igb", device: "igb", machine: &[], queues: &[1, 2], best: Best::ZeroCopy, jumbo: false },
    Pairing {
        name: "virtio-net",
        device: "virtio-net-pci",
        machine: &[],
        queues: &[1],
        best: Best::Native,
        jumbo: true,
    },
    Pairing {
        name: "virtio-net-iommu",
        device: "virtio-net-pci,iommu_platform=on,disable-legacy=on",
        machine: &[],
        queues: &[1],
        best: Best::ZeroCopy,
        jumbo: true,
    },
    Pairing {
        name: "vmxnet3",
        device: "vmxnet3",
        machine: &[],
        queues: &[1],
        best: Best::Native,
        jumbo: true,
    },
    Pairing {
        name: "e1000e",
        device: "e1000e",
        machine: &[],
        queues: &[1],
        best: Best::Generic,
        jumbo: true,
    },
];

impl Pairing {
    /// # Errors
    /// No such one; lists those that there are.
    pub fn named(name: &str) -> Outcome<&'static Self> {
        let names = PAIRINGS.map(|pairing| pairing.name).join(", ");
        let found = PAIRINGS.iter().find(|pairing| pairing.name == name);
        found.ok_or_else(|| format!("no driver {name}: there are {names}").into())
    }
}
