//! What `weir doctor` prints: a table for people, grouped by port and host, and JSON for programs.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use super::finding::{Finding, Findings, Severity};

/// All answers, in the order of the probes.
#[derive(Clone, Debug)]
pub struct Report {
    pub found: Findings,
    /// Devices of the ports, with their names in the configuration.
    pub ports: Vec<(String, String)>,
    /// The process of the gateway that was asked.
    pub running: Option<u64>,
}

impl Report {
    /// Whether nothing is bad.
    pub fn is_healthy(&self) -> bool {
        self.count(Severity::Bad) == 0
    }

    fn count(&self, severity: Severity) -> usize {
        self.found.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "healthy": self.is_healthy(),
            "running": self.running,
            "bad": self.count(Severity::Bad),
            "notes": self.count(Severity::Note),
            "good": self.count(Severity::Good),
            "findings": self.found.findings,
            "not_probed": self.found.not_probed,
        })
    }

    /// For people. With `verbose`, what is well has its lines too.
    pub fn table(&self, verbose: bool) -> String {
        Table { report: self, verbose }.to_string()
    }
}

struct Table<'a> {
    report: &'a Report,
    verbose: bool,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let health = if report.is_healthy() { "healthy" } else { "NOT HEALTHY" };
        let running = match report.running {
            Some(pid) => format!("weir runs as process {pid}"),
            None => "weir does not run".to_owned(),
        };
        let (bad, notes) = (report.count(Severity::Bad), report.count(Severity::Note));
        let good = report.count(Severity::Good);
        writeln!(f, "{health}: {bad} bad, {notes} to know, {good} good; {running}")?;
        self.group(f, "host", None)?;
        for (name, device) in &report.ports {
            self.group(f, &format!("port {name} ({device})"), Some(device))?;
        }
        // VLANs of a port have settings of their own.
        let is_port = |of: &&String| report.ports.iter().any(|(_, device)| device == *of);
        let of = report.found.findings.iter().filter_map(|finding| finding.port.as_ref());
        for device in of.filter(|of| !is_port(of)).collect::<BTreeSet<&String>>() {
            self.group(f, &format!("device {device}"), Some(device))?;
        }
        if !report.found.not_probed.is_empty() {
            writeln!(f, "\nnot probed")?;
        }
        for skipped in &report.found.not_probed {
            writeln!(f, "  {:<20} {}: {}", skipped.id, skipped.subject, skipped.why)?;
        }
        Ok(())
    }
}

impl Table<'_> {
    fn group(&self, f: &mut fmt::Formatter<'_>, title: &str, port: Option<&String>) -> fmt::Result {
        let mut of: Vec<&Finding> =
            self.report.found.findings.iter().filter(|finding| finding.port.as_ref() == port).collect();
        // What matters most is read first; the order of the probes is kept within.
        of.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        if of.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{title}")?;
        let (good, rest): (Vec<&Finding>, Vec<&Finding>) =
            of.into_iter().partition(|finding| finding.severity == Severity::Good && !self.verbose);
        rest.into_iter().try_for_each(|finding| row(f, finding))?;
        if !good.is_empty() {
            let mut ids: Vec<&str> = good.iter().map(|finding| finding.id).collect();
            ids.dedup();
            writeln!(f, "  good  {}", wrapped(&ids.join(", ")))?;
        }
        Ok(())
    }
}

/// Columns of text beside the first two.
const WIDTH: usize = 100;

fn row(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    let Finding { id, severity, subject, what, why, mend, by_hand, .. } = finding;
    writeln!(f, "  {:<4}  {}", severity.name(), wrapped(&format!("{id}: {subject}: {what}")))?;
    if !why.is_empty() {
        writeln!(f, "        {}", wrapped(why))?;
    }
    if let Some(command) = mend {
        // One line, however long: it is to be copied.
        writeln!(f, "        mend: {command}")?;
    }
    if let Some(why) = by_hand {
        writeln!(f, "        by hand: {}", wrapped(why.sentence()))?;
    }
    Ok(())
}

/// Lines of at most [`WIDTH`] columns, the further ones indented.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            out.push_str("\n        ");
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::finding::NoCommand;
    use super::*;

    fn report() -> Report {
        let mut found = Findings::default();
        found.push(Finding::good("kernel-version", "6.18", "new enough"));
        let copies = Finding::note("zero-copy", "lan0", "copies", "slower");
        found.push(copies.by_hand(NoCommand::Hardware).on("lan0"));
        found.push(
            Finding::bad("link", "lan0", "is down", "nothing passes").on("lan0").mend("ip link set lan0 up"),
        );
        found.push(Finding::good("mtu", "lan0", "1500").on("lan0"));
        found.skip("rss-symmetry", "lan0", "the device has no hash");
        let ports = vec![("lan".to_owned(), "lan0".to_owned())];
        Report { found, ports, running: None }
    }

    #[test]
    fn table_groups_by_port_with_the_worst_first_and_sums_up_the_good() {
        let text = report().table(false);
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in\n{text}"));
        assert!(text.starts_with("NOT HEALTHY: 1 bad, 1 to know, 2 good; weir does not run\n"), "{text}");
        assert!(at("\nhost") < at("good  kernel-version"));
        assert!(at("good  kernel-version") < at("port lan (lan0)"));
        assert!(at("BAD   link") < at("note  zero-copy") && at("note  zero-copy") < at("good  mtu"));
        assert!(at("mend: ip link set lan0 up") < at("note  zero-copy"));
        assert!(at("note  zero-copy") < at("by hand: no setting gives a device what its driver has not"));
        assert!(!text.contains("1500") && report().table(true).contains("mtu: lan0: 1500"), "{text}");
        assert!(at("not probed") < at("rss-symmetry"));
    }

    #[test]
    fn table_has_findings_about_devices_that_are_no_ports() {
        let mut report = report();
        let finding = Finding::note("rp-filter", "net.ipv4.conf.lan0/10.rp_filter", "is strict", "drops");
        report.found.push(finding.on("lan0.10").mend("sysctl -w net.ipv4.conf.lan0/10.rp_filter=2"));
        let text = report.table(false);
        let (_, of_device) = text.split_once("\ndevice lan0.10\n").expect("a group of its own");
        assert!(of_device.starts_with("  note  rp-filter: "), "{text}");
    }

    #[test]
    fn json_has_every_finding_and_the_counts() {
        let json = report().json();
        assert_eq!((&json["healthy"], &json["bad"], &json["good"]), (&false.into(), &1.into(), &2.into()));
        let findings = json["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 4);
        assert_eq!(
            (&findings[2]["mend"], &findings[2]["by_hand"]),
            (&"ip link set lan0 up".into(), &Value::Null)
        );
        assert_eq!(findings[1]["by_hand"], NoCommand::Hardware.sentence());
        assert_eq!((&findings[0]["mend"], &findings[0]["port"]), (&Value::Null, &Value::Null));
        assert_eq!(json["not_probed"][0]["id"], "rss-symmetry");
    }

    #[test]
    fn long_text_is_wrapped_between_words() {
        let text = wrapped(&"word ".repeat(60));
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.trim().len() <= WIDTH), "{text}");
    }
}
