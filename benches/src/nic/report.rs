//! What `weir-bench nic` prints and stores.

use std::path::Path;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::trial::Figures;
use crate::Failure;
use crate::machine::Machine;

/// An Ethernet frame needs so many octets of time besides its own: preamble and the gap before the next.
const BETWEEN: f64 = 20.0;

/// All that is stored: enough to do it again.
#[derive(Debug, Serialize)]
pub struct Stored {
    pub machine: Machine,
    pub setup: Setup,
    pub results: Vec<Result>,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Setup {
    /// The command line.
    pub command: Vec<String>,
    pub tx: Device,
    pub rx: Device,
}

/// A device, as the kernel has it.
#[derive(Debug, Serialize)]
pub struct Device {
    pub device: String,
    pub driver: String,
    pub mac: String,
    /// How AF_XDP is bound to each queue: zero-copy or copy.
    pub queues: std::collections::BTreeMap<u32, &'static str>,
}

/// Of one size.
#[derive(Debug, Serialize)]
pub struct Result {
    pub size: String,
    pub mean_octets: f64,
    pub connections: usize,
    /// Connections of TCP that did not come to be.
    pub not_opened: usize,
    /// The highest rate without loss, in frames per second, where it was looked for.
    pub throughput: Option<f64>,
    /// The trial whose latency is told: at a throughput that was looked for, else the only one.
    pub told: Option<Figures>,
    pub latency: Option<Latency>,
    /// All of them, in their order.
    pub trials: Vec<Figures>,
}

/// RFC 8219 section 7: times in us.
#[derive(Debug, Serialize)]
pub struct Latency {
    pub frames: u64,
    pub min: f64,
    /// The median: "typical latency".
    pub typical: f64,
    pub p99: f64,
    /// The 99.9th percentile: "worst case latency".
    pub worst_case: f64,
    pub max: f64,
    /// Packet delay variation: worst case less the least.
    pub variation: f64,
    /// Up to so many us, and how many frames needed no longer but longer than the one before.
    pub histogram: Vec<(f64, u64)>,
}

impl Latency {
    /// Of times in ns; none: no frame had a stamp.
    pub fn of(times: &Histogram<u64>) -> Option<Self> {
        let us = |ns: u64| ns as f64 / 1e3;
        let quantile = |part| us(times.value_at_quantile(part));
        let (min, worst_case) = (us(times.min()), quantile(0.999));
        let steps = times
            .iter_log(1_000, 2.0)
            .map(|step| (us(step.value_iterated_to()), step.count_since_last_iteration()));
        (!times.is_empty()).then(|| Self {
            frames: times.len(),
            min,
            typical: quantile(0.5),
            p99: quantile(0.99),
            worst_case,
            max: us(times.max()),
            variation: worst_case - min,
            histogram: steps.filter(|(_, count)| *count > 0).collect(),
        })
    }
}

impl std::fmt::Display for Result {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wire = |rate: f64| rate * (self.mean_octets + BETWEEN) * 8.0 / 1e6;
        writeln!(
            f,
            "{} octets ({:.0} in the mean), {} connections",
            self.size, self.mean_octets, self.connections
        )?;
        if self.not_opened > 0 {
            writeln!(f, "  {} connections did not come to be", self.not_opened)?;
        }
        if let Some(rate) = self.throughput {
            writeln!(
                f,
                "  throughput without loss  {rate:>12.0} frames/s, {:.0} Mbit/s of a wire",
                wire(rate)
            )?;
        }
        let Some(last) = &self.told else { return writeln!(f, "  no trial was without loss") };
        let offered = last.offered_per_s.map_or("all there is".into(), |rate| format!("{rate:.0}"));
        writeln!(
            f,
            "  offered {offered}, sent {:.0}, arrived {:.0} frames/s",
            last.sent_per_s, last.arrived_per_s
        )?;
        writeln!(
            f,
            "  sent {}, arrived {}, lost {}, reordered {}",
            last.sent, last.arrived, last.lost, last.reordered
        )?;
        writeln!(f, "  by queue {:?}, came back {}", last.arrived_by_queue, last.returned)?;
        match &self.latency {
            Some(Latency { min, typical, p99, worst_case, max, variation, frames, .. }) => writeln!(
                f,
                "  latency of {frames} frames in us: least {min:.1}, typical {typical:.1}, p99 {p99:.1}, worst case (p99.9) \
                 {worst_case:.1}, most {max:.1}; variation {variation:.1}"
            ),
            None => {
                writeln!(f, "  no latency: there is no room for a stamp in these frames (--stamped makes it)")
            }
        }
    }
}

impl Stored {
    /// Writes the JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> std::result::Result<(), Failure> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_of_known_times_is_told_as_it_is() {
        let mut times = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        (1..=1000_u64).for_each(|us| times.record(us * 1000).unwrap());
        let latency = Latency::of(&times).unwrap();
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.002;
        assert!(
            near(latency.min, 1.0) && near(latency.typical, 500.0) && near(latency.p99, 990.0),
            "{latency:?}"
        );
        assert!(near(latency.worst_case, 999.0) && near(latency.variation, 998.0), "{latency:?}");
        assert_eq!(latency.histogram.iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }

    #[test]
    fn latency_of_no_frame_is_none() {
        assert!(Latency::of(&Histogram::new(3).unwrap()).is_none());
    }
}
