//! One answer of a probe, and what all probes of a run answered.

use serde::{Serialize, Serializer};

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
    /// A command of a shell that mends it.
    pub mend: Option<String>,
    /// Why there is none; where all is well there is neither.
    pub by_hand: Option<NoCommand>,
}

/// Why no command mends something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCommand {
    /// `weir doctor` reads the configuration, and does not write it.
    Configuration,
    Kernel,
    Hardware,
    FarEnd,
    /// Whose it is cannot be seen.
    Unseen,
    User,
    /// There are several ways, and weir does not know which is meant.
    Choice,
    Weir,
    /// A policy rule selects by what ip(8) cannot be told here.
    Selector,
    /// Limits and capabilities that nobody in here may change.
    Starter,
    /// Which program installs packages is not known.
    Packages,
    /// It is to be known.
    Nothing,
}

impl NoCommand {
    pub const ALL: [Self; 12] = [
        Self::Configuration,
        Self::Kernel,
        Self::Hardware,
        Self::FarEnd,
        Self::Unseen,
        Self::User,
        Self::Choice,
        Self::Weir,
        Self::Selector,
        Self::Starter,
        Self::Packages,
        Self::Nothing,
    ];

    /// For whoever wonders what to do.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Configuration => {
                "in the configuration, which weir does not write: correct it, and look again"
            }
            Self::Kernel => "no command gives a kernel what it was not built with: boot another one",
            Self::Hardware => "no setting gives a device what its driver has not",
            Self::FarEnd => "at the other end of the link, which is not this host's",
            Self::Unseen => "who is in the way, this user cannot see: ask as root",
            Self::User => "as another user: ask as the one that weir runs as",
            Self::Choice => {
                "several things together are in the way, and which of them is to go is yours to say"
            }
            Self::Weir => {
                "weir itself tries it again and again: `weir status` says what it is about, and its log since when"
            }
            Self::Selector => {
                "the rule selects by something that weir has no words for: `ip rule show` names it, and it is to be deleted by that"
            }
            Self::Starter => {
                "nothing that is started from here may change it: where this is started from (LimitMEMLOCK=, LimitNOFILE= and \
                 SystemCallFilter= of a service, --ulimit and --security-opt seccomp= of a container)"
            }
            Self::Packages => "by your package manager, which weir does not know",
            Self::Nothing => "nothing is broken: it is to be known",
        }
    }
}

impl Serialize for NoCommand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.sentence())
    }
}

impl Finding {
    pub fn good(id: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        let (subject, what) = (subject.into(), what.into());
        let (why, severity) = (String::new(), Severity::Good);
        Self { id, severity, port: None, subject, what, why, mend: None, by_hand: None }
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

    /// The same, which no command mends.
    pub fn by_hand(mut self, why: NoCommand) -> Self {
        self.by_hand = Some(why);
        self
    }

    /// The same, with a command if there is one.
    pub fn mend_or(self, command: Option<String>, otherwise: NoCommand) -> Self {
        match command {
            Some(command) => self.mend(command),
            None => self.by_hand(otherwise),
        }
    }

    /// Whether it says what is to be done about it: one of the two, where it is not good.
    pub const fn is_whole(&self) -> bool {
        match self.severity {
            Severity::Good => self.mend.is_none() && self.by_hand.is_none(),
            _ => self.mend.is_some() != self.by_hand.is_some() && !self.why.is_empty(),
        }
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
        debug_assert!(finding.is_whole(), "{finding:?}");
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_for_no_command_is_a_sentence_of_its_own() {
        let sentences: BTreeSet<&str> = NoCommand::ALL.into_iter().map(NoCommand::sentence).collect();
        assert_eq!(sentences.len(), NoCommand::ALL.len());
        assert!(sentences.iter().all(|sentence| sentence.len() > 20));
    }

    #[test]
    fn finding_that_is_not_good_has_a_command_or_a_reason_and_not_both() {
        let finding = Finding::bad("link", "lan0", "is down", "nothing passes");
        for (finding, whole) in [
            (finding.clone(), false),
            (finding.clone().mend("ip link set lan0 up"), true),
            (finding.clone().by_hand(NoCommand::FarEnd), true),
            (finding.clone().mend_or(None, NoCommand::Unseen), true),
            (finding.clone().mend("true").by_hand(NoCommand::Choice), false),
            (Finding { why: String::new(), ..finding.mend("true") }, false),
            (Finding::good("link", "lan0", "is up"), true),
            (Finding::good("link", "lan0", "is up").mend("true"), false),
        ] {
            assert_eq!(finding.is_whole(), whole, "{finding:?}");
        }
    }
}
