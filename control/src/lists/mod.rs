//! Lists of names and prefixes in files of their own (`host_file`, `from_file`, `to_file` of a rule): read, and followed
//! while weir runs.
//!
//! [`load`] is what reading a configuration calls. [`watch`] looks after the files of a running gateway, reads those that
//! changed on a thread of its own and compiles the rules anew; [`board`] is what `weir status` shows of them.
//!
//! Blocklists come from others: a line that cannot be read is passed over, counted and told, and never stops the box.
//! What is no list at all (a file that cannot be read, or of which no line can) is an error at the start, and later leaves
//! the list as it was.

pub mod board;
mod file;
pub mod idn;
mod inotify;
mod names;
mod prefixes;
mod succession;
#[cfg(test)]
mod tests;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use thiserror::Error;
use weir_core::policy::{NameSet, Prefixes};

pub use file::Stamp;
pub use succession::{Stay, keep};

/// Bad lines of one file that are kept to be told one by one.
pub const MOST_BAD: usize = 20;
/// How often a file that is being written is read anew before that is an error.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// What the lines of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Names,
    Prefixes,
}

impl Kind {
    /// For messages: `1000 names`.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Names => "name",
            Self::Prefixes => "prefix",
        }
    }

    pub const fn nouns(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Prefixes => "prefixes",
        }
    }
}

/// The entries of a list. Shared by all rules that name the file.
#[derive(Clone, Debug)]
pub enum Content {
    Names(Arc<NameSet>),
    Prefixes(Arc<Prefixes>),
}

impl Content {
    /// No entries, which nobody else has.
    pub fn nothing(kind: Kind) -> Self {
        match kind {
            Kind::Names => Self::Names(Arc::default()),
            Kind::Prefixes => Self::Prefixes(Arc::default()),
        }
    }

    /// Every name, or every address.
    pub fn everything(kind: Kind) -> Self {
        match kind {
            Kind::Names => {
                let mut names = NameSet::default();
                // It is a pattern.
                let _ = names.insert("*");
                Self::Names(Arc::new(names))
            }
            Kind::Prefixes => {
                let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
                Self::Prefixes(Arc::new(all.into_iter().collect()))
            }
        }
    }

    pub const fn kind(&self) -> Kind {
        match self {
            Self::Names(_) => Kind::Names,
            Self::Prefixes(_) => Kind::Prefixes,
        }
    }

    /// Different names and wildcards; prefixes that no other of the list holds.
    pub fn entries(&self) -> usize {
        match self {
            Self::Names(names) => names.len(),
            Self::Prefixes(prefixes) => prefixes.len(),
        }
    }

    /// Octets of memory.
    pub fn memory(&self) -> usize {
        match self {
            Self::Names(names) => names.memory(),
            Self::Prefixes(prefixes) => prefixes.memory(),
        }
    }

    /// Whether nobody else has the entries.
    fn is_unshared(&self) -> bool {
        match self {
            Self::Names(names) => Arc::strong_count(names) == 1,
            Self::Prefixes(prefixes) => Arc::strong_count(prefixes) == 1,
        }
    }
}

/// A line that holds no entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    pub message: String,
}

/// Lines that hold no entry: all are counted, the first are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadLines {
    pub count: usize,
    pub first: Vec<BadLine>,
}

impl BadLines {
    fn add(&mut self, line: u64, message: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < MOST_BAD {
            self.first.push(BadLine { line, message: message() });
        }
    }
}

/// One file as it was read.
#[derive(Clone, Debug)]
pub struct List {
    pub path: PathBuf,
    pub content: Content,
    pub bad: BadLines,
    pub read: SystemTime,
    /// How long reading and compiling took.
    pub took: Duration,
    /// When reading it began: of two of the same file, the later one is the newer one.
    began: Instant,
    stamp: Stamp,
}

/// A file that should hold a list, and of which none could be read.
#[derive(Clone, Debug)]
pub struct Missing {
    pub path: PathBuf,
    /// Nothing, of its own: by this the rules know it.
    pub content: Content,
    /// For messages, after the file's name.
    pub why: String,
}

impl List {
    /// Of the file as it was read.
    pub const fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Whether the file had no octet.
    pub const fn is_blank(&self) -> bool {
        self.stamp.is_empty()
    }

    /// Why it does not take the place of `before`, which was read of the same file; none: it does.
    fn refusal_after(&self, before: &Self) -> Option<LoadError> {
        (self.is_blank() && before.content.entries() > 0).then_some(LoadError::Emptied)
    }

    /// What is wrong with its file, and that it is in force all the same.
    fn still(&self, what: &str) -> String {
        let entries = self.content.entries();
        format!("{what}; the {entries} {} of before stay in force", self.content.kind().nouns())
    }
}

/// What is told of a list without entries.
pub fn takes_nothing(path: &Path, kind: Kind) -> String {
    format!("`{}` holds no {}, so it takes nothing", path.display(), kind.nouns())
}

/// Why there is no list.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// What a download that failed leaves.
    #[error("is empty; a list that is to have no entries has a line with a comment")]
    Emptied,
    #[error("is being written; the next try is made when that is over")]
    Changing,
    #[error("is no list of {kind}: none of its {lines} lines holds one; line {}: {}", first.line, first.message)]
    NoList { kind: &'static str, lines: usize, first: BadLine },
}

/// Reads and compiles a file.
///
/// # Errors
/// It cannot be read, is no regular file, changed while it was read, or none of its lines holds an entry.
pub fn load(path: &Path, kind: Kind) -> Result<List, LoadError> {
    let start = Instant::now();
    let mut open = file::Open::new(path)?;
    let mut bad = BadLines::default();
    let content = match kind {
        Kind::Names => Content::Names(Arc::new(names::read(&mut open, &mut bad)?)),
        Kind::Prefixes => Content::Prefixes(Arc::new(prefixes::read(&mut open, &mut bad)?)),
    };
    if !open.is_unchanged()? {
        return Err(LoadError::Changing);
    }
    match bad.first.first() {
        Some(first) if content.entries() == 0 => {
            Err(LoadError::NoList { kind: kind.nouns(), lines: bad.count, first: first.clone() })
        }
        _ => Ok(List {
            path: path.to_owned(),
            content,
            bad,
            read: SystemTime::now(),
            took: start.elapsed(),
            began: start,
            stamp: open.stamp,
        }),
    }
}

/// As [`load`], and waits a moment for a file that is being written.
///
/// # Errors
/// As [`load`].
pub fn load_patiently(path: &Path, kind: Kind) -> Result<List, LoadError> {
    for _ in 1..TRIES {
        match load(path, kind) {
            Err(LoadError::Changing) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    load(path, kind)
}
