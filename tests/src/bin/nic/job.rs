//! What a guest is asked to do, and what it answers: JSON in a folder that both sides see.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Tasks, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub tasks: Vec<Task>,
}

/// One thing to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Task {
    /// `weir demo` over the four NICs.
    Demo(Demo),
    /// A script of bash that prints a report like the demo's.
    Script { name: String, text: String },
    /// Any command.
    Command { command: Vec<String> },
}

impl Task {
    /// A few words for who waits for it.
    pub fn name(&self) -> String {
        match self {
            Self::Demo(Demo { mode, queues, mtu }) => format!("{mode}, {queues} queues, MTU {mtu}"),
            Self::Script { name, .. } => name.clone(),
            Self::Command { command } => command.join(" "),
        }
    }
}

/// How the demo is played.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demo {
    /// `auto`, `zero-copy`, `copy` or `generic`.
    pub mode: String,
    /// Of each of the gateway's NICs; as many workers.
    pub queues: u32,
    pub mtu: u32,
}

/// How a task ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// `None`: it was ended since it took too long, or could not be started.
    pub exit: Option<i32>,
    /// What it wrote to standard output, if that was JSON.
    pub report: Option<serde_json::Value>,
    /// The last that it wrote to standard error.
    pub errors: String,
    pub seconds: f64,
}

impl Answer {
    /// How many rows of the demo's report were as expected, and how many there are; `None` without a report.
    pub fn rows(&self) -> Option<(usize, usize)> {
        let rows = self.report.as_ref()?["rows"].as_array()?;
        Some((rows.iter().filter(|row| row["ok"] == true).count(), rows.len()))
    }

    /// How it ended, in a few words.
    pub fn brief(&self) -> String {
        match (self.rows(), self.exit) {
            (Some((good, all)), _) => format!("{good} of {all} as expected"),
            (None, Some(code)) => {
                format!("exit code {code}: {}", self.errors.lines().last().unwrap_or_default())
            }
            (None, None) => format!("not done: {}", self.errors.lines().last().unwrap_or_default()),
        }
    }
}

/// The job in the shared folder.
pub fn job_file(folder: &Path) -> PathBuf {
    folder.join("job.json")
}

/// The answer to the task of this number. It is whole when it is there.
pub fn answer_file(folder: &Path, task: usize) -> PathBuf {
    folder.join(format!("answer-{task}.json"))
}
