//! A plan as a shell script: what is to be done are commands, everything else is comments, so that `sh` may read it as it is.

use std::fmt;

use serde::Serialize;

use super::{Plan, Status};

/// One command and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    pub command: String,
    pub status: Status,
    /// What is there instead, or what to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whether a script has it as a command, and not as a comment.
    #[serde(skip)]
    pub runs: bool,
}

impl Line {
    pub fn new(command: String, status: Status) -> Self {
        let runs = matches!(status, Status::Missing | Status::Conflicting);
        Self { command, status, note: None, runs }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Present => "present",
            Self::Missing => "missing",
            Self::Foreign => "foreign",
            Self::Conflicting => "conflicting",
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comment = if self.runs { "" } else { "# " };
        write!(f, "{comment}{}  # {}", self.command, self.status)?;
        self.note.as_ref().map_or(Ok(()), |note| write!(f, ": {note}"))
    }
}

/// Writes a script: a line of sums, the lines, the warnings.
///
/// # Errors
/// Those of the formatter.
pub fn write_script(f: &mut fmt::Formatter<'_>, lines: &[Line], warnings: &[String]) -> fmt::Result {
    let count = |status| lines.iter().filter(|line| line.status == status).count();
    writeln!(
        f,
        "# present {}, missing {}, conflicting {}, foreign {}",
        count(Status::Present),
        count(Status::Missing),
        count(Status::Conflicting),
        count(Status::Foreign)
    )?;
    lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
    warnings.iter().try_for_each(|warning| writeln!(f, "# warning: {warning}"))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.iter().flat_map(super::Step::lines);
        let lines: Vec<Line> = steps.chain(self.pins.iter().cloned()).collect();
        write_script(f, &lines, &self.warnings)
    }
}
