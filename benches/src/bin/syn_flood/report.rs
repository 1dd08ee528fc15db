//! The figures of a run.

use std::fmt;

use weir_benches::report::{Report, number};

use super::Phase;
use super::contender::Contender;

/// What is measured: name, unit.
const MEASURES: [(&str, &str); 16] = [
    ("flat out: sent", "SYN/s"),
    ("flat out: arrived", "SYN/s"),
    ("flat out: lost at the port", "SYN/s"),
    ("flat out: answered", "SYN/s"),
    ("flat out: gateway CPU", "cores"),
    ("flat out: others on that CPU", "cores"),
    ("flat out: answered per CPU second", "SYN/s"),
    ("steady: sent", "SYN/s"),
    ("steady: lost at the port", "SYN/s"),
    ("steady: answered", "SYN/s"),
    ("steady: gateway CPU", "cores"),
    ("steady: answered per CPU second", "SYN/s"),
    ("real client: connections", "1"),
    ("real client: success", "%"),
    ("real client: p50", "ms"),
    ("real client: p99", "ms"),
];
/// Which of them the line of a single run shows.
const SHORT: [usize; 9] = [1, 3, 4, 5, 6, 9, 11, 13, 15];

/// The figures of one run, in the order of [`MEASURES`].
#[derive(Clone, Copy, Debug)]
pub struct Figures([f64; MEASURES.len()]);

impl Figures {
    pub fn of(flat_out: &Phase, steady: &Phase) -> Self {
        let [sent, arrived, lost, answered, cpu, others, per_cpu] = rates(flat_out);
        let [steady_sent, _, steady_lost, steady_answered, steady_cpu, _, steady_per_cpu] = rates(steady);
        let seen = &steady.seen;
        Self([
            sent,
            arrived,
            lost,
            answered,
            cpu,
            others,
            per_cpu,
            steady_sent,
            steady_lost,
            steady_answered,
            steady_cpu,
            steady_per_cpu,
            (seen.times.len() + seen.failed) as f64,
            seen.success() * 100.0,
            seen.quantile(0.5) * 1e3,
            seen.quantile(0.99) * 1e3,
        ])
    }

    pub fn add_to(&self, report: &mut Report, contender: Contender) {
        for ((measure, unit), value) in MEASURES.into_iter().zip(self.0) {
            report.add(contender.name(), measure, unit, value);
        }
    }
}

/// Sent, arrived, lost and answered per second; CPUs that the gateway used, and others of its CPU; answered per second of
/// CPU time.
fn rates(phase: &Phase) -> [f64; 7] {
    let used = &phase.used;
    let per_second = |count: u64| count as f64 / phase.seconds;
    let cpu_seconds = used.cpu_ns as f64 / 1e9;
    [
        per_second(used.sent),
        per_second(used.arrived),
        per_second(used.lost),
        per_second(used.answered),
        cpu_seconds / phase.seconds,
        used.busy_ns.saturating_sub(used.cpu_ns) as f64 / 1e9 / phase.seconds,
        used.answered as f64 / cpu_seconds.max(1e-9),
    ]
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in SHORT {
            let (name, unit) = MEASURES[index];
            write!(f, "{name} {} {unit}; ", number(self.0[index]))?;
        }
        Ok(())
    }
}
