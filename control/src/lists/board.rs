//! What is told of the lists of a running gateway: in `weir status`, and as metrics.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{Kind, List, Stamp};

/// One list, as `weir status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListView {
    pub file: PathBuf,
    pub kind: Kind,
    /// Different names and wildcards; prefixes that no other of the list holds.
    pub entries: usize,
    /// Lines that were passed over.
    pub bad_lines: usize,
    /// When it was read, in seconds since 1970, and how long ago that is.
    pub loaded: f64,
    pub loaded_ago_s: u64,
    /// How long reading and compiling took.
    pub load_ms: u64,
    /// Octets of memory that its entries take.
    pub memory: usize,
    /// How often it was read anew since weir started.
    pub reloads: u64,
    /// Why the file is not what is in force; none while it is.
    pub warning: Option<String>,
    /// Of the file whose contents are in force, when they were read.
    pub stamp: Stamp,
}

/// What is known of all lists; the watch writes it, whoever is asked reads it.
#[derive(Debug, Default)]
pub struct Board(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    list: Facts,
    reloads: u64,
    warning: Option<String>,
}

impl Entry {
    /// Whether the list is of its file.
    fn is_of(&self, list: &List) -> bool {
        self.list.path == list.path && self.list.kind == list.content.kind()
    }
}

/// A list without its contents, which the board must not keep in memory.
#[derive(Debug)]
struct Facts {
    path: PathBuf,
    kind: Kind,
    entries: usize,
    bad_lines: usize,
    memory: usize,
    read: SystemTime,
    took: Duration,
    stamp: Stamp,
}

impl Facts {
    fn of(list: &List) -> Self {
        Self {
            path: list.path.clone(),
            kind: list.content.kind(),
            entries: list.content.entries(),
            bad_lines: list.bad.count,
            memory: list.content.memory(),
            read: list.read,
            took: list.took,
            stamp: list.stamp(),
        }
    }
}

impl Board {
    pub fn new(lists: &[List]) -> Self {
        let board = Self::default();
        board.begin(lists);
        board
    }

    /// Another configuration has begun.
    pub fn begin(&self, lists: &[List]) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *entries);
        let entry = |list: &List| {
            // How often a file was read anew is counted on.
            let reloads = before.iter().find(|entry| entry.is_of(list)).map_or(0, |entry| entry.reloads);
            Entry { list: Facts::of(list), reloads, warning: None }
        };
        *entries = lists.iter().map(entry).collect();
    }

    /// A list was read anew.
    pub(super) fn read(&self, list: &List) {
        self.change(list, |entry| {
            entry.list = Facts::of(list);
            entry.reloads += 1;
            entry.warning = None;
        });
    }

    /// Why the file of a list is not in force.
    pub fn warn(&self, list: &List, warning: Option<String>) {
        self.change(list, |entry| entry.warning = warning);
    }

    fn change(&self, list: &List, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.is_of(list)) {
            change(entry);
        }
    }

    pub fn views(&self) -> Vec<ListView> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |time: SystemTime, then| time.duration_since(then).unwrap_or_default();
        let view = |Entry { list, reloads, warning }: &Entry| ListView {
            file: list.path.clone(),
            kind: list.kind,
            entries: list.entries,
            bad_lines: list.bad_lines,
            loaded: since(list.read, SystemTime::UNIX_EPOCH).as_secs_f64(),
            loaded_ago_s: since(SystemTime::now(), list.read).as_secs(),
            load_ms: u64::try_from(list.took.as_millis()).unwrap_or(u64::MAX),
            memory: list.memory,
            reloads: *reloads,
            warning: warning.clone(),
            stamp: list.stamp,
        };
        entries.iter().map(view).collect()
    }

    /// The warnings, each with its file.
    pub fn warnings(&self) -> Vec<String> {
        let views = self.views().into_iter();
        views.filter_map(|view| Some(format!("list {} {}", view.file.display(), view.warning?))).collect()
    }
}

/// In the Prometheus text format.
pub fn metrics(views: &[ListView]) -> String {
    let mut text = String::new();
    for view in views {
        let file = view.file.display().to_string();
        let file = file.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = format!("{{file=\"{file}\",kind=\"{}\"}}", view.kind.nouns());
        for (name, value) in [
            ("weir_list_entries", view.entries as f64),
            ("weir_list_bad_lines", view.bad_lines as f64),
            ("weir_list_memory_bytes", view.memory as f64),
            ("weir_list_loaded_timestamp_seconds", view.loaded),
            ("weir_list_load_seconds", view.load_ms as f64 / 1000.0),
            ("weir_list_reloads_total", view.reloads as f64),
            ("weir_list_stale", f64::from(u8::from(view.warning.is_some()))),
        ] {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}
