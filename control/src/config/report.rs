//! What was found in a configuration, as data; `weir check` prints it as text or JSON.

use std::fmt;

use serde::Serialize;

use crate::lists::{BadLine, Kind, List};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// weir does not start with this file.
    Error,
    /// weir does what the file says, and that may not be what was meant.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub file: String,
    /// From 1; none where the whole file is meant.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match self.line {
            Some(line) => write!(f, "{}:{line}: {severity}: {}", self.file, self.message),
            None => write!(f, "{}: {severity}: {}", self.file, self.message),
        }
    }
}

/// What a valid file holds, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub ports: usize,
    pub intercepts: usize,
    pub rules: usize,
    /// Host names and wildcards in all rules together.
    pub names: usize,
    pub pools: usize,
}

/// What a file with a list holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListReport {
    pub file: String,
    pub kind: Kind,
    /// Different names and wildcards; prefixes that no other of the list holds.
    pub entries: usize,
    /// Lines that hold no entry.
    pub bad_lines: usize,
    /// The first of them.
    pub first_bad: Vec<BadLine>,
    /// How long reading and compiling took.
    pub load_ms: u64,
    /// Octets of memory that its entries take.
    pub memory: usize,
}

impl ListReport {
    pub fn of(list: &List) -> Self {
        Self {
            file: list.path.display().to_string(),
            kind: list.content.kind(),
            entries: list.content.entries(),
            bad_lines: list.bad.count,
            first_bad: list.bad.first.clone(),
            load_ms: u64::try_from(list.took.as_millis()).unwrap_or(u64::MAX),
            memory: list.content.memory(),
        }
    }

    /// The bad lines in one sentence; none when there is none.
    pub fn brief(&self) -> Option<String> {
        let first = self.first_bad.first()?;
        let lines = count(self.bad_lines, "line");
        let are = if self.bad_lines == 1 { "holds" } else { "hold" };
        Some(format!(
            "{}: warning: {lines} {are} no {} and {} passed over; the first is line {}: {}",
            self.file,
            self.kind.noun(),
            if self.bad_lines == 1 { "is" } else { "are" },
            first.line,
            first.message
        ))
    }
}

/// A line for each bad line that is known, and one for the list.
impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, kind, entries, bad_lines, first_bad, load_ms, memory } = self;
        for bad in first_bad {
            writeln!(f, "{file}:{}: warning: {}", bad.line, bad.message)?;
        }
        if *bad_lines > first_bad.len() {
            let more = bad_lines - first_bad.len();
            writeln!(f, "{file}: warning: {} more hold no {}", count(more, "line"), kind.noun())?;
        }
        let noun = if *entries == 1 { kind.noun() } else { kind.nouns() };
        let mib = *memory as f64 / f64::from(1 << 20);
        write!(f, "{file}: {entries} {noun} in {load_ms} ms, {mib:.1} MiB")?;
        if *bad_lines > 0 { writeln!(f, "; {} passed over", count(*bad_lines, "line")) } else { writeln!(f) }
    }
}

/// All that was found in one file, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub file: String,
    pub findings: Vec<Finding>,
    /// The files with lists that it names.
    pub lists: Vec<ListReport>,
    /// Only of a valid file.
    pub summary: Option<Summary>,
}

impl Report {
    /// With what was found elsewhere.
    pub fn add(&mut self, more: Vec<Finding>) {
        self.findings.extend(more);
        self.findings.sort_by_key(|finding| (finding.line, finding.column));
        if !self.is_ok() {
            self.summary = None;
        }
    }

    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    pub fn warnings(&self) -> usize {
        let bad_lines = self.lists.iter().map(|list| list.bad_lines).sum::<usize>();
        self.findings.len() - self.errors() + bad_lines
    }

    /// Whether weir starts with the file. `weir check` exits with 1 when not.
    pub fn is_ok(&self) -> bool {
        self.errors() == 0
    }

    /// For `weir check --json`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "file": self.file,
            "ok": self.is_ok(),
            "errors": self.errors(),
            "warnings": self.warnings(),
            "findings": self.findings,
            "lists": self.lists,
            "summary": self.summary,
        })
    }
}

/// For `weir check`: a line for each finding, then one for the whole.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for list in self.lists.iter().filter(|_| self.is_ok()) {
            write!(f, "{list}")?;
        }
        let warnings = count(self.warnings(), "warning");
        match self.summary {
            Some(s) => write!(
                f,
                "{}: ok: {}, {}, {}, {}, {}; {warnings}",
                self.file,
                count(s.ports, "port"),
                count(s.intercepts, "intercept"),
                count(s.rules, "rule"),
                count(s.names, "name"),
                count(s.pools, "pool"),
            ),
            None => write!(f, "{}: not valid: {}, {warnings}", self.file, count(self.errors(), "error")),
        }
    }
}

impl std::error::Error for Report {}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
