//! One answer of a probe, and what all probes of a run answered.

use serde::Serialize;

/// How much an answer matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Good,
    /// weir works; whoever runs it should know.
    Note,
    /// weir does not start, or loses traffic.
    Bad,
}

impl Severity {
    /// The word for it in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Bad => "BAD",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The question, the same whatever the answer: stable, for programs.
    pub id: &'static str,
    pub severity: Severity,
    /// The device of the port that it is about; none: the host.
    pub port: Option<String>,
    /// The device, sysctl, chain, file or process.
    pub subject: String,
    pub what: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// A command of a shell that mends it; none where only a person can.
    pub mend: Option<String>,
}

impl Finding {
    pub fn good(id: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        let (subject, what) = (subject.into(), what.into());
        Self { id, severity: Severity::Good, port: None, subject, what, why: String::new(), mend: None }
    }

    pub fn note(
        id: &'static str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Note, why: why.into(), ..Self::good(id, subject, what) }
    }

    pub fn bad(
        id: &'static str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Bad, why: why.into(), ..Self::good(id, subject, what) }
    }

    /// The same, about a port.
    pub fn on(mut self, device: &str) -> Self {
        self.port = Some(device.to_owned());
        self
    }

    /// The same, with a command.
    pub fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }
}

/// A question without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotProbed {
    pub id: &'static str,
    pub subject: String,
    /// Why it could not be asked, or not be answered.
    pub why: String,
}

/// What has been found so far.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub not_probed: Vec<NotProbed>,
}

impl Findings {
    pub fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Says that a question has no answer.
    pub fn skip(&mut self, id: &'static str, subject: impl Into<String>, why: impl ToString) {
        self.not_probed.push(NotProbed { id, subject: subject.into(), why: why.to_string() });
    }

    /// Adds that all is well when nothing else was found under this id since `before` findings.
    pub fn good_unless_found(&mut self, before: usize, finding: Finding) {
        let found = self.findings.iter().skip(before).any(|f| f.id == finding.id && f.port == finding.port);
        let skipped = self.not_probed.iter().any(|s| s.id == finding.id && s.subject == finding.subject);
        if !found && !skipped {
            self.push(finding);
        }
    }
}
