//! Exit codes (DESIGN section 10), and errors that carry one.

use std::fmt;
use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// The answer is no: invalid, unhealthy, different.
    No,
    Usage,
    /// The system refused.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
        })
    }
}

/// Why a command did not do what it was asked: one sentence for the operator.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    /// The system refused.
    pub fn refused(error: impl fmt::Display) -> Self {
        Self { exit: Exit::Refused, message: error.to_string() }
    }

    /// The answer is no.
    pub fn no(message: impl fmt::Display) -> Self {
        Self { exit: Exit::No, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
