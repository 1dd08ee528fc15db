//! The drivers: how QEMU is asked for a NIC of each, and what is to be tried with it.

use crate::Outcome;

/// NICs of one driver, as gateway ports.
#[derive(Debug)]
pub struct Pairing {
    pub name: &'static str,
    /// QEMU's device with its properties.
    pub device: &'static str,
    /// Queues of each port that QEMU can have only with TAP devices; 0: the ports are on hubs of QEMU's own.
    pub taps: u32,
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

/// No more than are used: of a device that has more, virtio-net takes one for each CPU when XDP comes, and QEMU gives packets to these,
/// too.
const VIRTIO_QUEUES: u32 = 2;

/// All of them.
pub const PAIRINGS: [Pairing; 5] = [
    Pairing { name: "igb", device: "igb", taps: 0, queues: &[2, 1], best: Best::ZeroCopy, jumbo: true },
    Pairing {
        name: "virtio-net",
        device: "virtio-net-pci,mq=on,vectors=6",
        taps: VIRTIO_QUEUES,
        queues: &[2, 1],
        best: Best::Native,
        jumbo: true,
    },
    Pairing {
        name: "virtio-net-iommu",
        device: "virtio-net-pci,mq=on,vectors=6,iommu_platform=on,disable-legacy=on",
        taps: VIRTIO_QUEUES,
        queues: &[2, 1],
        best: Best::ZeroCopy,
        jumbo: true,
    },
    // As many queues as CPUs, whatever ethtool says; QEMU receives by the first.
    Pairing { name: "vmxnet3", device: "vmxnet3", taps: 0, queues: &[2], best: Best::Native, jumbo: true },
    Pairing { name: "e1000e", device: "e1000e", taps: 0, queues: &[1], best: Best::Generic, jumbo: true },
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
