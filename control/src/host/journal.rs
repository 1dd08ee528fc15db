//! The old values of the sysctls that weir changes, on disk before the first of them changes.
//!
//! `apply` writes it, stop and `weir clean` read it. It names the boot and the network namespace that it is about: sysctls
//! die with either, so an older journal is about nothing that still exists.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HostError;
use super::sysctl::Key;

/// One changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    pub old: String,
    /// What weir wrote. A key that has another value by now was changed by somebody else, and is left to them.
    pub new: String,
    /// Keys that the kernel changed along with it, and their old values.
    pub also: Vec<(Key, String)>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    boot_id: String,
    netns: u64,
    /// In the order of the changes.
    pub entries: Vec<Entry>,
}

/// The inode of the calling thread's network namespace.
pub fn netns_inode() -> Result<u64, HostError> {
    let path = Path::new("/proc/thread-self/ns/net");
    Ok(fs::metadata(path).map_err(|e| HostError::file("read", path, e))?.ino())
}

fn boot_id() -> Result<String, HostError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(|e| HostError::file("read", path, e))?.trim().to_owned())
}

impl Journal {
    /// The journal at `path` if it is about this boot and this namespace, else an empty one.
    pub fn load(path: &Path) -> Result<Self, HostError> {
        let empty = Self { boot_id: boot_id()?, netns: netns_inode()?, entries: Vec::new() };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(empty),
            Err(e) => return Err(HostError::file("read", path, e)),
        };
        let found: Self = serde_json::from_str(&text).map_err(|e| {
            HostError::Kernel(format!(
                "{} is not a journal of weir ({e}): look at it and delete it; sysctls that it named keep their values",
                path.display()
            ))
        })?;
        let current = found.boot_id == empty.boot_id && found.netns == empty.netns;
        Ok(if current { found } else { empty })
    }

    /// Remembers a change that is about to be made. A key that is there already keeps its first old value.
    pub fn remember(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|e| e.key == entry.key) {
            Some(known) => known.new = entry.new,
            None => self.entries.push(entry),
        }
    }

    /// Replaces the file, or removes it when there is nothing to remember. It is complete at every moment.
    pub fn store(&self, path: &Path) -> Result<(), HostError> {
        if self.entries.is_empty() {
            return match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(HostError::file("remove", path, e)),
                _ => Ok(()),
            };
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| HostError::file("create", folder, e))?;
        }
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| HostError::Kernel(format!("cannot write down old sysctls: {e}")))?;
        let draft = PathBuf::from(format!("{}.new", path.display()));
        let written = File::create(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, path));
        written.map_err(|e| HostError::file("write", path, e))
    }

    /// Restores everything, last change first, and forgets it. Returns the commands that it came to, with a remark where
    /// somebody else's value was left alone.
    pub fn restore(&mut self, path: &Path) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        while let Some(entry) = self.entries.last().cloned() {
            restore(&entry, &mut done)?;
            self.entries.pop();
            self.store(path)?;
        }
        self.store(path)?;
        Ok(done)
    }

    /// Restores one key only: what `apply` does when a later step fails.
    pub(crate) fn take_back(&mut self, key: &Key, path: &Path) -> Result<(), HostError> {
        if let Some(at) = self.entries.iter().position(|e| e.key == *key) {
            restore(&self.entries[at], &mut Vec::new())?;
            self.entries.remove(at);
        }
        self.store(path)
    }
}

fn restore(entry: &Entry, done: &mut Vec<String>) -> Result<(), HostError> {
    // No such key: its device is gone, and its value with it.
    let Some(now) = entry.key.read()? else { return Ok(()) };
    if now == entry.old {
        return Ok(());
    }
    if now != entry.new {
        done.push(format!("# {} is {now} by somebody else's hand: left alone", entry.key));
        return Ok(());
    }
    for (key, old) in std::iter::once((&entry.key, &entry.old)).chain(entry.also.iter().map(|(k, o)| (k, o)))
    {
        if key.read()?.is_some_and(|now| now != *old) {
            let command = key.command(old);
            key.write(old)
                .map_err(|e| HostError::Command { command: command.clone(), reason: e.to_string() })?;
            if *key == entry.key {
                done.push(command);
            }
        }
    }
    Ok(())
}
