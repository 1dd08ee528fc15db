//! The drivers: how QEMU is asked for a NIC of each, and what is to be tried with it.

use crate::Outcome;

/// NICs of one driver, as gateway ports.
#[derive(Debug)]
pub struct Pairing {
    pub name: &'static str,
    /// QEMU's device with its properties.
    pub device: &'static str,
    pub wire: Wire,
    /// Queues that the driver has on two CPUs, to play the demo with; empty: it is not played.
    pub queues: &'static [u32],
    /// What AF_XDP can do there: zero-copy, XDP in the driver, or neither.
    pub best: Best,
    /// Packets that fit no frame of weir's pass between the NICs: without weir, that is.
    pub passes_large: bool,
    /// Scripts of `tests/nic` that are played, by their names.
    pub scripts: &'static [&'static str],
}

/// What joins the gateway's ports to client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// QEMU's own hubs, which have one queue for each NIC.
    Hubs,
    /// TAP devices of so many queues, on bridges. What a guest sends is as it is on a wire, or with `merging` as the host's kernel
    /// leaves it: segments merged, and checksums not yet made.
    Taps { queues: u32, merging: bool },
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
const VIRTIO: Wire = Wire::Taps { queues: 2, merging: false };
const VIRTIO_MERGING: Wire = Wire::Taps { queues: 2, merging: true };

/// All of them.
pub const PAIRINGS: [Pairing; 6] = [
    Pairing {
        name: "igb",
        device: "igb",
        wire: Wire::Hubs,
        queues: &[2, 1],
        best: Best::ZeroCopy,
        passes_large: true,
        scripts: &["doctor", "vlan", "faults", "netem", "memory"],
    },
    Pairing {
        name: "virtio-net",
        device: "virtio-net-pci,mq=on,vectors=6",
        wire: VIRTIO,
        queues: &[2, 1],
        best: Best::Native,
        passes_large: true,
        scripts: &["doctor", "faults"],
    },
    Pairing {
        name: "virtio-net-iommu",
        device: "virtio-net-pci,mq=on,vectors=6,iommu_platform=on,disable-legacy=on",
        wire: VIRTIO,
        queues: &[2, 1],
        best: Best::ZeroCopy,
        passes_large: true,
        scripts: &["faults", "netem"],
    },
    // As many queues as CPUs, whatever ethtool says; QEMU receives by the first.
    Pairing {
        name: "vmxnet3",
        device: "vmxnet3",
        wire: Wire::Hubs,
        queues: &[2],
        best: Best::Native,
        // As QEMU emulates it, TCP does not get through with an MTU of 4,000, whoever forwards; what weir does then `faults` shows.
        passes_large: false,
        scripts: &["doctor", "faults"],
    },
    Pairing {
        name: "e1000e",
        device: "e1000e",
        wire: Wire::Hubs,
        queues: &[1],
        best: Best::Generic,
        passes_large: true,
        scripts: &["doctor", "faults"],
    },
    // Its driver merges segments, since what sends them may.
    Pairing {
        name: "virtio-net-merging",
        device: "virtio-net-pci,mq=on,vectors=6",
        wire: VIRTIO_MERGING,
        queues: &[],
        best: Best::Native,
        passes_large: true,
        scripts: &["doctor"],
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
