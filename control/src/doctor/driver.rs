//! What the driver of each port can do, and which setting of it would give more.
//!
//! The table is of what was seen (`tests/nic` plays the demo on these drivers) and, marked so, of what the kernel's sources and
//! documentation say of others. What a port really got is told by the trial beside it.

use std::fs;
use std::path::{Path, PathBuf};

use weir_sys::ethtool::{self, Rings};

use super::finding::{Finding, Findings};
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
        "has no zero-copy; its queues are one for each CPU and cannot be changed by ethtool -L; large receive offload must be off",
    ),
    tried(
        "e1000e",
        Best::Generic,
        "has no XDP in the driver (mode = \"generic\" or \"auto\"), and one queue",
    ),
    tried("veth", Best::Copy, ""),
    read_of("igc", Best::ZeroCopy, "refuses XDP with an MTU above 1500"),
    read_of("ixgbe", Best::ZeroCopy, "the MTU may be 3050"),
    read_of("i40e", Best::ZeroCopy, "larger rings help with bursts (ethtool -G)"),
    read_of(
        "ice",
        Best::ZeroCopy,
        "XDP takes a sending queue of the NIC for each CPU: fewer queues (ethtool -L) if it is refused",
    ),
    read_of("mlx5_core", Best::ZeroCopy, "larger rings help with bursts (ethtool -G)"),
    read_of(
        "ena",
        Best::Copy,
        "XDP is refused with more than half of the queues that there may be (ethtool -L DEVICE combined HALF), and with an MTU above \
         about 3490",
    ),
    read_of(
        "gve",
        Best::ZeroCopy,
        "XDP is refused unless as many queues receive as send, and at most half of those that there may be (ethtool -L), and with \
         an MTU above 2032",
    ),
    read_of(
        "bnxt_en",
        Best::Copy,
        "XDP is refused unless the queues are combined (ethtool -L DEVICE rx 0 tx 0 combined N)",
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
        Finding::note("driver", device, what, self.advice.replace("DEVICE", device)).on(device)
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
        match ethtool::rings_of(device) {
            Ok(rings) => found.push(rings_told(device, rings)),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                found.push(Finding::good("rings", device, "has no rings that could be set").on(device));
            }
            Err(error) => found.skip("rings", device, error),
        }
        found.push(polling(device, &Path::new("/sys/class/net").join(device)));
    }
}

fn unknown(device: &str, name: &str) -> Finding {
    let what = format!("driver {name}: not one that weir was tried with or has notes on");
    let why =
        "the answers about XDP and zero-copy of this port are what the kernel said in a trial: trust these";
    Finding::note("driver", device, what, why).on(device)
}

/// Rings that are short lose packets in bursts.
fn rings_told(device: &str, rings: Rings) -> Finding {
    /// What a burst of 64-octet packets fills in 70 us at 10 Gbit/s.
    const SHORT: u32 = 1024;
    let Rings { rx, tx, max_rx, max_tx } = rings;
    let what =
        format!("rings of {rx} packets to receive and {tx} to send; there may be {max_rx} and {max_tx}");
    let (more_rx, more_tx) = (max_rx.min(SHORT).max(rx), max_tx.min(SHORT).max(tx));
    if (more_rx, more_tx) == (rx, tx) {
        return Finding::good("rings", device, what).on(device);
    }
    Finding::note(
        "rings",
        device,
        what,
        "in bursts a short ring overflows before a worker reads it; set it before weir starts",
    )
    .mend(format!("ethtool -G {device} rx {more_rx} tx {more_tx}"))
    .on(device)
}

/// How the kernel polls the device: settings that trade the CPU's time for the packets'.
fn polling(device: &str, folder: &Path) -> Finding {
    let read = |name: &str| -> Option<u64> {
        let file: PathBuf = folder.join(name);
        fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    let threaded = read("threaded").unwrap_or_default();
    let (defer, flush) =
        (read("napi_defer_hard_irqs").unwrap_or_default(), read("gro_flush_timeout").unwrap_or_default());
    let what =
        format!("threaded NAPI {threaded}, napi_defer_hard_irqs {defer}, gro_flush_timeout {flush} ns");
    // One without the other does nothing.
    if (defer == 0) != (flush == 0) {
        let why = "interrupts are put off only where both are set: one of them alone changes nothing, or only delays packets that GRO holds";
        return Finding::note("napi", device, what, why)
            .mend(format!(
                "echo 0 > /sys/class/net/{device}/napi_defer_hard_irqs && echo 0 > /sys/class/net/{device}/gro_flush_timeout"
            ))
            .on(device);
    }
    Finding::good("napi", device, what).on(device)
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

    #[test]
    fn short_rings_are_a_note_with_the_command_and_long_or_full_ones_are_well() {
        let told = |rx, tx, max| rings_told("eth1", Rings { rx, tx, max_rx: max, max_tx: max });
        let short = told(256, 512, 4096);
        assert_eq!(short.severity, Severity::Note);
        assert_eq!(short.mend.as_deref(), Some("ethtool -G eth1 rx 1024 tx 1024"));
        assert_eq!(told(2048, 256, 4096).mend.as_deref(), Some("ethtool -G eth1 rx 2048 tx 1024"));
        assert_eq!(told(256, 256, 256).severity, Severity::Good);
        assert_eq!(told(1024, 4096, 4096).severity, Severity::Good);
    }

    #[test]
    fn interrupts_put_off_by_one_of_two_settings_are_a_note() {
        let folder = std::env::temp_dir().join(format!("weir-napi-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let set = |defer: &str, flush: &str| {
            fs::write(folder.join("napi_defer_hard_irqs"), defer).unwrap();
            fs::write(folder.join("gro_flush_timeout"), flush).unwrap();
            polling("eth1", &folder).severity
        };
        let seen = [set("0\n", "0\n"), set("2\n", "0\n"), set("0\n", "20000\n"), set("2\n", "20000\n")];
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(seen, [Severity::Good, Severity::Note, Severity::Note, Severity::Good]);
    }
}
