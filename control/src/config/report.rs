//! What was found in a configuration, as data; `weir check` prints it as text or JSON.

use std::fmt;

use serde::Serialize;

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

/// All that was found in one file, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub file: String,
    pub findings: Vec<Finding>,
    /// Only of a valid file.
    pub summary: Option<Summary>,
}

impl Report {
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    pub fn warnings(&self) -> usize {
        self.findings.len() - self.errors()
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
