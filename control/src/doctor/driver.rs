//! What the driver of each port can do, and which setting of it would give more.
//!
//! The table is of what was seen (`tests/nic` plays the demo on these drivers) and, marked so, of what the kernel's sources and
//! documentation say of others. What a port really got is told by the trial beside it.

use weir_sys::ethtool;

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;

/// What AF_XDP can have of a driver at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Best {
    /// Packets are written into weir's frames by the NIC.
    ZeroCopy,
    /// XDP in the driver, and a copy into the frame.
    Copy,
    /// XDP behind the driver, in the kernel's own path.
    Generic,
}

#[derive(Debug)]
struct Driver {
    name: &'static str,
    best: Best,
    /// weir's scenarios were played on it.
    tried: bool,
    /// What is to be known of it, and what to set. Empty: nothing is.
    advice: &'static str,
}

const fn tried(name: &'static str, best: Best, advice: &'static str) -> Driver {
    Driver { name, best, tried: true, advice }
}

const fn read_of(name: &'static str, best: Best, advice: &'static str) -> Driver {
    Driver { name, best, tried: false, advice }
}

const DRIVERS: [Driver; 14] = [
    tried(
        "igb",
        Best::ZeroCopy,
        "zero-copy since Linux 6.14, copy before; the MTU may be 3050; the hash's key cannot be read, so doctor cannot say whether both \
         directions of a connection arrive at one queue",
    ),
    tried(
        "virtio_net",
        Best::ZeroCopy,
        "zero-copy where the device has VIRTIO_F_ACCESS_PLATFORM (QEMU: iommu_platform=on,disable-legacy=on), copy elsewhere; use all the \
         queues that it has (ethtool -L): of those left over the driver takes one for each CPU to send XDP frames, and packets come \
         by these, too, where weir does not look",
    ),
    tried(
        "vmxnet3",
        Best::Copy,
        "has no zero-copy; its queues are one for each CPU and cannot be changed by ethtool -L",
    ),
    tried(
        "e1000e",
        Best::Generic,
        "has no XDP in the driver (mode = \"generic\" or \"auto\"), and one queue",
    ),
    tried("veth", Best::Copy, ""),
    read_of("igc", Best::ZeroCopy, "refuses XDP with an MTU above 1500"),
    read_of(
        "ixgbe",
        Best::ZeroCopy,
        "refuses XDP with an MTU above 3050, while it has virtual functions or DCB, and on more than 128 CPUs",
    ),
    read_of("i40e", Best::ZeroCopy, "refuses XDP with an MTU above 3046"),
    read_of(
        "ice",
        Best::ZeroCopy,
        "refuses XDP with an MTU above 3046, and where the NIC has fewer sending queues left than half as many as there are CPUs: \
         XDP takes one for each (ethtool -L DEVICE combined N gives some back)",
    ),
    read_of(
        "mlx5_core",
        Best::ZeroCopy,
        "refuses XDP with an MTU above 3498; zero-copy by the numbers that queues have elsewhere since Linux 6.1, copy before",
    ),
    read_of(
        "ena",
        Best::Copy,
        "refuses XDP with more than half of the queues that there may be (ethtool -L DEVICE combined HALF), and with an MTU above \
         3498",
    ),
    read_of(
        "gve",
        Best::ZeroCopy,
        "refuses XDP unless as many queues receive as send, and at most half of those that there may be (ethtool -L DEVICE rx HALF \
         tx HALF), while it splits headers from data, and with an MTU above 2032; zero-copy since Linux 6.4",
    ),
    read_of(
        "bnxt_en",
        Best::Copy,
        "refuses XDP unless the queues are combined and as many sending ones are left as there are of them (ethtool -L DEVICE rx 0 \
         tx 0 combined N), and with an MTU above about 3500",
    ),
    read_of("tun", Best::Copy, "has no zero-copy; with vhost-net packets are copied once more"),
];

impl Driver {
    fn of(name: &str) -> Option<&'static Self> {
        DRIVERS.iter().find(|driver| driver.name == name)
    }

    const fn can(&self) -> &'static str {
        match self.best {
            Best::ZeroCopy => "AF_XDP with zero-copy",
            Best::Copy => "XDP in the driver and AF_XDP with a copy",
            Best::Generic => "generic XDP only",
        }
    }

    fn told(&self, device: &str) -> Finding {
        let how = if self.tried { "" } else { ", by its documentation: not tried with weir" };
        let what = format!("driver {}: {} at best{how}", self.name, self.can());
        if self.advice.is_empty() {
            return Finding::good("driver", device, what).on(device);
        }
        let advice = self.advice.replace("DEVICE", device);
        Finding::note("driver", device, what, advice).by_hand(NoCommand::Nothing).on(device)
    }
}

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    for (port, _) in ground.ports() {
        let device = &port.device;
        match ethtool::driver_of(device) {
            Ok(name) => found.push(match Driver::of(&name) {
                Some(driver) => driver.told(device),
                None => unknown(device, &name),
            }),
            Err(error) => found.skip("driver", device, error),
        }
    }
}

fn unknown(device: &str, name: &str) -> Finding {
    let what = format!("driver {name}: not one that weir was tried with or has notes on");
    let why =
        "the answers about XDP and zero-copy of this port are what the kernel said in a trial: trust these";
    Finding::note("driver", device, what, why).by_hand(NoCommand::Nothing).on(device)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn driver_that_was_only_read_of_says_so_and_one_that_was_tried_does_not() {
        let told = |name| Driver::of(name).unwrap().told("eth1").what;
        assert_eq!(told("igb"), "driver igb: AF_XDP with zero-copy at best");
        assert_eq!(told("e1000e"), "driver e1000e: generic XDP only at best");
        for name in ["ixgbe", "i40e", "ice", "mlx5_core", "ena", "gve", "bnxt_en"] {
            assert!(told(name).ends_with("by its documentation: not tried with weir"), "{name}");
        }
        assert!(Driver::of("dummy").is_none());
        // There is nothing to set.
        assert_eq!(Driver::of("veth").unwrap().told("eth1").severity, Severity::Good);
    }

    #[test]
    fn commands_of_a_drivers_advice_name_the_device() {
        let finding = Driver::of("bnxt_en").unwrap().told("eth1");
        assert!(finding.why.contains("ethtool -L eth1 rx 0 tx 0 combined N"), "{finding:?}");
    }
}
