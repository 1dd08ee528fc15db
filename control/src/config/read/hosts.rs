//! Host names of rules: `host`, and `host_file` with its lists of up to millions.
//!
//! A host file has a name or wildcard a line; `#` begins a comment; empty lines are skipped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_core::policy::NameSet;

use crate::config::report::{Finding, Severity};
use crate::config::section::{Item, Reader, Section};

/// Bad lines of one host file that are reported one by one.
const MOST_FINDINGS: usize = 20;

/// Host files, each read once however many rules name it.
#[derive(Debug)]
pub struct HostFiles {
    folder: PathBuf,
    read: HashMap<PathBuf, Arc<NameSet>>,
}

impl HostFiles {
    /// `folder`: where names of files start from.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), read: HashMap::new() }
    }

    /// The names of a rule; `None` when it has neither key.
    pub fn names(&mut self, reader: &mut Reader<'_>, rule: &Section<'_>) -> Option<Arc<NameSet>> {
        let listed = rule.get("host").map(|item| listed(reader, &item));
        let filed = rule.get("host_file").and_then(|item| self.file(reader, &item));
        match (listed, filed) {
            (Some(listed), None) => {
                let mut names = NameSet::default();
                insert(&mut names, &listed);
                Some(Arc::new(names))
            }
            (Some(listed), Some(filed)) => {
                let mut names = NameSet::clone(&filed);
                insert(&mut names, &listed);
                Some(Arc::new(names))
            }
            (None, filed) => filed,
        }
    }

    fn file(&mut self, reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Arc<NameSet>> {
        let path = self.folder.join(reader.string(item)?);
        if let Some(names) = self.read.get(&path) {
            return Some(names.clone());
        }
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(reason) => {
                return reader.wrong(item, &format!("`{}` cannot be read: {reason}", path.display()));
            }
        };
        let names = Arc::new(lines(reader, &path, &bytes));
        if names.is_empty() {
            reader
                .warn(&item.span, format!("`{}` holds no names, so the rule never matches", path.display()));
        }
        self.read.insert(path, names.clone());
        Some(names)
    }
}

/// The patterns of `host` that are such.
fn listed<'t>(reader: &mut Reader<'_>, item: &Item<'t>) -> Vec<&'t str> {
    let mut patterns = Vec::new();
    for element in reader.list(item) {
        let Some(pattern) = reader.string(&element) else { continue };
        match NameSet::default().insert(pattern) {
            Ok(_) => patterns.push(pattern),
            Err(error) => drop(reader.wrong::<()>(&element, &format!("`{pattern}`: {error}"))),
        }
    }
    patterns
}

/// Adds patterns that have been tried before.
fn insert(names: &mut NameSet, patterns: &[&str]) {
    for pattern in patterns {
        // Bad ones were reported by `listed`, and are not among them.
        let _ = names.insert(pattern);
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    // A pipe or a device would never end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    std::fs::read(path)
}

/// The names of a host file. Lines that hold none are errors of that file.
fn lines(reader: &mut Reader<'_>, path: &Path, bytes: &[u8]) -> NameSet {
    let mut names = NameSet::default();
    let mut bad = 0;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (number, line) in (1..).zip(text.split(|octet| *octet == b'\n')) {
        let fault = match std::str::from_utf8(line) {
            Err(_) => "the line is not UTF-8".to_owned(),
            Ok(line) => match line.split('#').next().map(str::trim).filter(|name| !name.is_empty()) {
                None => continue,
                Some(name) => match names.insert(name) {
                    Ok(_) => continue,
                    Err(error) => format!("`{name}`: {error}"),
                },
            },
        };
        bad += 1;
        if bad <= MOST_FINDINGS {
            found(reader, path, Some(number), fault);
        }
    }
    if bad > MOST_FINDINGS {
        found(reader, path, None, format!("{} more lines hold no name", bad - MOST_FINDINGS));
    }
    names
}

fn found(reader: &mut Reader<'_>, path: &Path, line: Option<usize>, message: String) {
    let file = path.display().to_string();
    reader.report.findings.push(Finding { severity: Severity::Error, file, line, column: None, message });
}
