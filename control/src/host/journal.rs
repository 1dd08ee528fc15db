//! The old values of the sysctls that weir changes, on disk before the first of them changes.
//!
//! `apply` writes it, stop and `weir clean` read it. It names the boot and the network namespace that it is about: sysctls
//! die with either, so an older journal is about nothing that still exists. One JSON object a line, so that a file that is
//! damaged in one place still tells the rest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_sys::netns;

use super::HostError;
use super::sysctl::Key;

/// One changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    pub old: String,
    /// What weir wrote. A key that has another value by now was changed by somebody else, and is left to them.
    pub new: String,
    /// Keys that the kernel changed along with it.
    pub also: Vec<SideEffect>,
}

/// A sysctl that the kernel changes by itself when another is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideEffect {
    pub key: Key,
    pub old: String,
    /// What the kernel made of it; none when weir ended before it could look.
    pub new: Option<String>,
}

impl Entry {
    /// A change that is about to be made; `also`: what goes with it, and the values before.
    pub fn new(key: Key, old: String, new: String, also: BTreeMap<Key, String>) -> Self {
        let also = also.into_iter().map(|(key, old)| SideEffect { key, old, new: None }).collect();
        Self { key, old, new, also }
    }
}

/// What a journal is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    boot_id: String,
    netns: u64,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    head: Head,
    /// In the order of the changes.
    pub entries: Vec<Entry>,
    /// Lines that cannot be read.
    pub damaged: Vec<String>,
}

/// A number of the calling thread's network namespace. Its inode would not do: one that has ended leaves it to the next, and with it
/// the journal of a weir that was killed there.
pub fn netns_number() -> Result<u64, HostError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let inode = || Ok(fs::metadata(path).map_err(|e| HostError::file("read", path, e))?.ino());
    // Before Linux 5.14 there is nothing better.
    netns::cookie().or_else(|_| inode())
}

fn boot_id() -> Result<String, HostError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(|e| HostError::file("read", path, e))?.trim().to_owned())
}

impl Journal {
    /// The journal at `path` if it is about this boot and this namespace, else an empty one.
    ///
    /// # Errors
    /// [`HostError::File`]. A damaged file is none: what can be read of it counts.
    pub fn load(path: &Path) -> Result<Self, HostError> {
        let head = Head { boot_id: boot_id()?, netns: netns_number()? };
        match fs::read(path) {
            Ok(octets) => Ok(Self::parse(&String::from_utf8_lossy(&octets), head)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self { head, ..Self::default() }),
            Err(e) => Err(HostError::file("read", path, e)),
        }
    }

    fn parse(text: &str, here: Head) -> Self {
        let mut journal = Self { head: here, ..Self::default() };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Ok(entry) = serde_json::from_str(line) {
                journal.entries.push(entry);
            } else if let Ok(head) = serde_json::from_str::<Head>(line) {
                if head != journal.head {
                    return Self { head: journal.head, ..Self::default() };
                }
            } else {
                journal.damaged.push(line.to_owned());
            }
        }
        journal
    }

    /// Remembers a change that is about to be made. A key that is there already keeps its first old value.
    ///
    /// Offloads that go off with it become changes of their own: they are for [`super::Host::clean`] to restore when no XDP
    /// program is left, as those of the ports are, since a device may have become one by then.
    pub fn remember(&mut self, mut entry: Entry) {
        let also = std::mem::take(&mut entry.also).into_iter();
        let (merging, also): (Vec<_>, Vec<_>) = also.partition(|effect| effect.key.is_merging());
        entry.also = also;
        for SideEffect { key, old, .. } in merging {
            self.remember_one(Entry { key, old, new: "off".to_owned(), also: Vec::new() });
        }
        self.remember_one(entry);
    }

    fn remember_one(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|e| e.key == entry.key) {
            Some(known) => {
                known.new = entry.new;
                // Devices that appeared since have old values of their own.
                let fresh = |new: &SideEffect| !known.also.iter().any(|old| old.key == new.key);
                let fresh: Vec<SideEffect> = entry.also.into_iter().filter(fresh).collect();
                known.also.extend(fresh);
            }
            None => self.entries.push(entry),
        }
    }

    /// What was set, with what the kernel changed along.
    pub fn written(&self) -> BTreeMap<Key, String> {
        let mut written = BTreeMap::new();
        for Entry { key, new, also, .. } in &self.entries {
            written.extend(also.iter().filter_map(|effect| Some((effect.key.clone(), effect.new.clone()?))));
            written.insert(key.clone(), new.clone());
        }
        written
    }

    /// Whether something is to be restored of whose key `chosen` says so.
    pub fn has(&self, chosen: impl Fn(&Key) -> bool) -> bool {
        self.entries.iter().any(|entry| chosen(&entry.key))
    }

    /// Where the change is that is restored next.
    fn next(&self, chosen: &impl Fn(&Key) -> bool, above: &impl Fn(&Key) -> usize) -> Option<usize> {
        let chosen = self.entries.iter().enumerate().filter(|(_, entry)| chosen(&entry.key));
        chosen.min_by_key(|(at, entry)| (above(&entry.key), Reverse(*at))).map(|(at, _)| at)
    }

    /// Notes what the kernel made of the keys that go with `key`, now that it is written. Whether there are any.
    pub(super) fn note_side_effects(&mut self, key: &Key) -> Result<bool, HostError> {
        let Some(entry) = self.entries.iter_mut().find(|e| e.key == *key) else { return Ok(false) };
        for effect in &mut entry.also {
            effect.new = effect.key.read()?;
        }
        Ok(!entry.also.is_empty())
    }

    /// Replaces the file, or removes it when there is nothing to remember. It is complete at every moment.
    pub fn store(&self, path: &Path) -> Result<(), HostError> {
        let draft = PathBuf::from(format!("{}.new", path.display()));
        if self.entries.is_empty() && self.damaged.is_empty() {
            // A draft is what a weir leaves that is killed while it writes.
            for file in [path, &draft] {
                match fs::remove_file(file) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(HostError::file("remove", file, e));
                    }
                    _ => {}
                }
            }
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| HostError::file("create", folder, e))?;
        }
        let failed = |e: serde_json::Error| HostError::Kernel(format!("cannot write down old sysctls: {e}"));
        let mut text = serde_json::to_string(&self.head).map_err(failed)?;
        for entry in &self.entries {
            text.push('\n');
            text.push_str(&serde_json::to_string(entry).map_err(failed)?);
        }
        for line in &self.damaged {
            text.push('\n');
            text.push_str(line);
        }
        text.push('\n');
        let written = File::create(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, path));
        written.map_err(|e| HostError::file("write", path, e))
    }

    /// Restores what `chosen` says of its key, and forgets it: of what has the fewest devices `above` it first, and of that the last
    /// change. Returns the commands that it came to, with a remark where somebody else's value was left alone, and for each line of the
    /// file that cannot be read.
    pub fn restore(
        &mut self,
        path: &Path,
        chosen: impl Fn(&Key) -> bool,
        above: impl Fn(&Key) -> usize,
    ) -> Result<Vec<String>, HostError> {
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        while let Some(at) = self.next(&chosen, &above) {
            let Some(entry) = self.entries.get(at) else { break };
            if let Some(error) = restore(entry, &mut done)? {
                refused.push((entry.key.clone(), entry.old.clone(), error));
            }
            self.entries.remove(at);
            self.store(path)?;
        }
        for (key, old, error) in refused {
            // What a bond has, it has when its devices have it.
            done.push(match key.read()?.is_some_and(|now| now == old) {
                true => key.command(&old),
                false => format!("# {key} stays as it is: {error}"),
            });
        }
        done.extend(self.damaged.drain(..).map(|line| {
            let path = path.display();
            format!("# {path} was damaged: a sysctl that this line named keeps its value: {line}")
        }));
        self.store(path)?;
        Ok(done)
    }
}

/// An answer: why a device does not merge segments again.
fn restore(entry: &Entry, done: &mut Vec<String>) -> Result<Option<HostError>, HostError> {
    // No such key: its device is gone, and its value with it.
    let Some(now) = entry.key.read()? else { return Ok(None) };
    if now == entry.old {
        // Killed before it was written, or restored by somebody.
        return Ok(None);
    }
    if now != entry.new {
        done.push(format!("# {} is {now} by somebody else's hand: left alone", entry.key));
        return Ok(None);
    }
    // Looked at before the key itself is written, since that changes them all.
    let mut after = Vec::new();
    for effect in &entry.also {
        match effect.key.read()? {
            Some(now) if effect.new.as_ref().is_some_and(|new| now != *new) && now != effect.old => {
                done.push(format!("# {} is {now} by somebody else's hand: left alone", effect.key));
                after.push((&effect.key, now));
            }
            Some(_) => after.push((&effect.key, effect.old.clone())),
            None => {}
        }
    }
    match write(&entry.key, &entry.old) {
        Ok(()) => done.push(entry.key.command(&entry.old)),
        // A device under another that merges nothing, or that has somebody's program: no reason to keep the rest from going back.
        Err(error) if entry.key.is_merging() => return Ok(Some(error)),
        Err(error) => return Err(error),
    }
    for (key, value) in after {
        if key.read()?.is_some_and(|now| now != value) {
            write(key, &value)?;
        }
    }
    Ok(None)
}

fn write(key: &Key, value: &str) -> Result<(), HostError> {
    key.write(value).map_err(|e| HostError::Command { command: key.command(value), reason: e.to_string() })
}

#[cfg(test)]
mod tests;
