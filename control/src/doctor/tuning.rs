//! Settings of a port's device that trade its work, the CPU's and the packets' time: rings, how interrupts are gathered, how the
//! kernel polls.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weir_sys::ethtool::{self, Coalescing, Rings};

use super::finding::{Finding, Findings};
use super::ground::Ground;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    if !ground.fast {
        return;
    }
    for (port, _) in ground.ports() {
        let device = &port.device;
        let folder = ground.sys.join("class/net").join(device);
        let none = |id, what: &str| Finding::good(id, device, what).on(device);
        match ethtool::rings_of(device) {
            Ok(rings) => found.push(rings_told(device, rings)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                found.push(none("rings", "has no rings that could be set"));
            }
            Err(error) => found.skip("rings", device, error),
        }
        match ethtool::coalescing_of(device) {
            // Devices of software have no interrupts, whatever else they gather.
            Ok(coalescing) if folder.join("device").exists() => {
                found.push(coalescing_told(device, coalescing));
            }
            Ok(_) => found.push(none("coalescing", "has no interrupts")),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                found.push(none("coalescing", "does not say how it gathers interrupts"));
            }
            Err(error) => found.skip("coalescing", device, error),
        }
        found.push(polling(device, &folder));
    }
}

/// Packets that come close together can share an interrupt, for which the first of them waits.
fn coalescing_told(device: &str, coalescing: Coalescing) -> Finding {
    /// More is felt in the time that a connection takes to be set up.
    const LONG_US: u32 = 100;
    const USUAL_US: u32 = 20;
    let Coalescing { rx_us, rx_packets, adaptive } = coalescing;
    let what = match adaptive {
        true => return Finding::good("coalescing", device, "interrupts follow the load").on(device),
        false => format!("an interrupt after {rx_us} us or {rx_packets} packets (0: not by these)"),
    };
    let why = match (rx_us, rx_packets) {
        (0, 0) => {
            "each packet may raise an interrupt, which takes the core from the worker on it; gathered ones cost latency"
        }
        (us, _) if us > LONG_US => {
            "packets wait for their interrupt before a worker sees them, at each crossing of the gateway"
        }
        _ => return Finding::good("coalescing", device, what).on(device),
    };
    Finding::note("coalescing", device, what, why)
        .mend(format!("ethtool -C {device} adaptive-rx on || ethtool -C {device} rx-usecs {USUAL_US}"))
        .on(device)
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

    /// Late ones of a real driver are found in a guest (tests/nic/doctor.sh): veth and TUN devices have no interrupts.
    #[test]
    fn interrupts_for_each_packet_and_late_ones_are_a_note_and_adaptive_ones_are_well() {
        let told =
            |rx_us, rx_packets, adaptive| coalescing_told("eth1", Coalescing { rx_us, rx_packets, adaptive });
        for (us, packets, adaptive, severity) in [
            (0, 0, false, Severity::Note),
            (0, 0, true, Severity::Good),
            // virtio_net, whose device holds interrupts back by itself.
            (0, 1, false, Severity::Good),
            (3, 0, false, Severity::Good),
            (100, 0, false, Severity::Good),
            (101, 64, false, Severity::Note),
            (500, 0, true, Severity::Good),
        ] {
            assert_eq!(told(us, packets, adaptive).severity, severity, "{us} {packets} {adaptive}");
        }
        let mend = told(0, 0, false).mend.unwrap();
        assert_eq!(mend, "ethtool -C eth1 adaptive-rx on || ethtool -C eth1 rx-usecs 20");
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
        // A kernel or a device without these settings.
        assert_eq!(polling("eth1", &folder).severity, Severity::Good);
    }
}
