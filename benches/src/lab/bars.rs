//! What weir is to reach, as ratios of medians of one and the same run, and whether it does.

use std::fmt;

use crate::contender::Contender;
use crate::report::{Report, number};

use super::load;

/// A contender's median over another's, or by itself, and the limit that it must keep.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    measure: &'static str,
    of: Contender,
    against: &'static [Contender],
    limit: Limit,
    /// Both sides count as far as they are above this one's: what is added to it.
    above: Option<Contender>,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}
use Limit::{AtLeast, AtMost};

impl Limit {
    fn holds(self, ratio: f64) -> bool {
        match self {
            AtLeast(limit) => ratio >= limit,
            AtMost(limit) => ratio <= limit,
        }
    }
}

/// A bar and what was reached.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    bar: Bar,
    ratio: f64,
    /// What the ceiling has in its place.
    ceiling: Option<f64>,
}

impl Judged {
    pub fn is_met(&self) -> bool {
        self.bar.limit.holds(self.ratio)
    }

    /// Met or not; and where not even the ceiling is there, what that has: no gateway on the same driver comes closer.
    fn verdict(&self) -> String {
        match self.ceiling {
            _ if self.is_met() => "met".into(),
            Some(ceiling) if !self.bar.limit.holds(ceiling) => {
                format!("NOT met, nor by the ceiling: {}", number(ceiling))
            }
            _ => "NOT met".into(),
        }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bar { measure, of, against, limit, above } = self.bar;
        let against = against.iter().map(|contender| contender.name()).collect::<Vec<_>>().join(" and ");
        let limit = match limit {
            AtLeast(limit) => format!("at least {limit}"),
            AtMost(limit) => format!("at most {limit}"),
        };
        let verdict = self.verdict();
        let ratio = number(self.ratio);
        let measure = match above {
            Some(above) => format!("{measure}, above {}", above.name()),
            None => measure.into(),
        };
        write!(f, "{measure:50} | {:14} | {against:17} | {ratio:>7} | {limit:12} | {verdict}", of.name())
    }
}

/// The heading of a table of [`Judged`].
pub fn heading() -> String {
    format!("{:50} | {:14} | {:17} | {:>7} | {:12} |", "bar", "of", "against", "ratio", "wanted")
}

const KERNEL: &[Contender] = &[Contender::Forwarding];
const HAPROXY: &[Contender] = &[Contender::Haproxy];
/// Who is held against weir where connections are inspected.
const INSPECTING: &[Contender] = &[Contender::HaproxyInspects];
const REDIRECT: &[Contender] = &[Contender::Redirect];
const BYPASS: &[Contender] = &[Contender::Bypass];
/// The better of them counts.
const PROXIES: &[Contender] = &[Contender::Haproxy, Contender::Nginx];

/// Of the express lane, for each way to answer a SYN.
const LANE: [(&str, &[Contender], Limit); 15] = [
    (load::HELLO, KERNEL, AtLeast(0.9)),
    (load::HELLO, INSPECTING, AtLeast(4.0)),
    (load::HELLO_CPU, INSPECTING, AtMost(0.2)),
    (load::CLOSE, KERNEL, AtLeast(0.9)),
    (load::CLOSE, INSPECTING, AtLeast(4.0)),
    (load::REQUESTS, KERNEL, AtLeast(1.0)),
    (load::REQUESTS, HAPROXY, AtLeast(2.4)),
    (load::BULK, KERNEL, AtLeast(1.0)),
    (load::BULK, HAPROXY, AtLeast(1.6)),
    (load::SMALL, KERNEL, AtLeast(2.0)),
    (load::SMALL, REDIRECT, AtLeast(0.9)),
    (load::CROWD_CPU, &[], AtMost(1.0)),
    (load::GAPS[1].0, &[], AtMost(1.0)),
    (load::GAPS[2].0, &[], AtMost(1.0)),
    (load::GAPS[3].0, &[], AtMost(1.0)),
];

/// Without it.
const WORKER: [(&str, &[Contender], Limit); 3] = [
    (load::HELLO, INSPECTING, AtLeast(3.0)),
    (load::HELLO_CPU, INSPECTING, AtMost(0.2)),
    (load::SMALL, BYPASS, AtLeast(0.95)),
];

/// Latency that is added, with the express lane.
const ADDED: [(&str, &[Contender], Limit); 1] = [(load::LATENCY[1].0, HAPROXY, AtMost(0.2))];

const RELAY: [(&str, &[Contender], Limit); 9] = [
    (load::CLOSE, PROXIES, AtLeast(1.5)),
    (load::CLOSE_CPU, PROXIES, AtMost(0.7)),
    (load::REQUESTS, PROXIES, AtLeast(1.3)),
    (load::REQUEST_CPU, PROXIES, AtMost(0.7)),
    (load::BULK, PROXIES, AtLeast(1.3)),
    (load::BULK_CPU, PROXIES, AtMost(0.7)),
    (load::LARGE, PROXIES, AtLeast(1.3)),
    (load::LARGE_CPU, PROXIES, AtMost(0.7)),
    (load::MEMORY, PROXIES, AtMost(0.25)),
];

fn all() -> impl Iterator<Item = Bar> {
    let both = [Contender::Through, Contender::Answer];
    let lane = both.map(|of| (of, &LANE[..], None));
    let added = both.map(|of| (of, &ADDED[..], Some(Contender::Redirect)));
    let worker = [Contender::ThroughWorker, Contender::AnswerWorker].map(|of| (of, &WORKER[..], None));
    let relay = [(Contender::Relay, &RELAY[..], None)];
    let groups = lane.into_iter().chain(added).chain(worker).chain(relay);
    groups.flat_map(|(of, bars, above)| {
        bars.iter().map(move |&(measure, against, limit)| Bar { measure, of, against, limit, above })
    })
}

/// All bars of which both sides were measured.
pub fn judge(report: &Report) -> Vec<Judged> {
    let judged = |bar: Bar| {
        let ceiling = ceiling(bar.of).and_then(|of| ratio(report, &Bar { of, ..bar }));
        Some(Judged { ratio: ratio(report, &bar)?, ceiling, bar })
    };
    all().filter_map(judged).collect()
}

/// Who does less than any gateway can on the same driver.
const fn ceiling(of: Contender) -> Option<Contender> {
    match of {
        Contender::Through | Contender::Answer => Some(Contender::Redirect),
        Contender::ThroughWorker | Contender::AnswerWorker => Some(Contender::Bypass),
        _ => None,
    }
}

fn ratio(report: &Report, bar: &Bar) -> Option<f64> {
    let above = match bar.above {
        Some(above) => report.median(above.name(), bar.measure)?,
        None => 0.0,
    };
    let of = report.median(bar.of.name(), bar.measure)? - above;
    let others = bar.against.iter().filter_map(|other| report.median(other.name(), bar.measure));
    let better = match bar.limit {
        _ if bar.against.is_empty() => 1.0,
        AtLeast(_) => others.reduce(f64::max)? - above,
        AtMost(_) => others.reduce(f64::min)? - above,
    };
    Some(of / better)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[(Contender, &'static str, f64)]) -> Report {
        let mut report = Report::default();
        values.iter().for_each(|(of, measure, value)| report.add(of.name(), measure, "1/s", *value));
        report
    }

    #[test]
    fn bar_reached_is_met_and_one_missed_is_not() {
        let values = [
            (Contender::Through, load::REQUESTS, 100.0),
            (Contender::Forwarding, load::REQUESTS, 100.0),
            (Contender::Haproxy, load::REQUESTS, 50.0),
        ];
        let met: Vec<bool> = judge(&report(&values)).iter().map(Judged::is_met).collect();
        assert_eq!(met, [true, false]);
    }

    #[test]
    fn relay_is_held_against_the_better_of_the_proxies() {
        let values = [
            (Contender::Relay, load::BULK_CPU, 70.0),
            (Contender::Haproxy, load::BULK_CPU, 200.0),
            (Contender::Nginx, load::BULK_CPU, 100.0),
        ];
        let judged = judge(&report(&values));
        assert!(matches!(judged[..], [Judged { ratio, .. }] if (ratio - 0.7).abs() < 1e-9));
    }

    #[test]
    fn latency_counts_as_far_as_it_is_above_the_ceilings() {
        let p99 = load::LATENCY[1].0;
        let values = [
            (Contender::Answer, p99, 110.0),
            (Contender::Redirect, p99, 100.0),
            (Contender::Haproxy, p99, 160.0),
        ];
        let judged = judge(&report(&values));
        assert!(
            matches!(judged[..], [Judged { ratio, .. }] if (ratio - 1.0 / 6.0).abs() < 1e-9),
            "{judged:?}"
        );
    }

    #[test]
    fn bar_that_the_ceiling_misses_too_says_so() {
        let values = [
            (Contender::Through, load::HELLO_CPU, 50.0),
            (Contender::Redirect, load::HELLO_CPU, 30.0),
            (Contender::HaproxyInspects, load::HELLO_CPU, 100.0),
        ];
        let judged = judge(&report(&values));
        assert!(
            matches!(&judged[..], [one] if one.to_string().ends_with("NOT met, nor by the ceiling: 0.30"))
        );
    }

    #[test]
    fn bar_of_what_was_not_measured_is_not_judged() {
        assert!(judge(&report(&[(Contender::Through, load::BULK, 6.0)])).is_empty());
    }
}
