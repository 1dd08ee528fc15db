//! `host`, and the files with lists: `host_file`, `from_file`, `to_file`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_core::policy::{NameSet, Prefixes, RuleSpec};

use crate::config::section::{Item, Reader, Section};
use crate::lists::{self, Content, Kind, List, Missing, idn};

/// What `host` says of connections that ask for no name. (A name that is spelled so is written with its dot: `none.`)
const NONE: &str = "none";
/// What it says of those whose name is an address.
const ADDRESS: &str = "address";

/// What is done with files that hold lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// One that cannot be read is an error.
    Strict,
    /// One that cannot be read is noted, and holds nothing.
    Lenient,
    /// None is read, and all hold nothing: for who asks only where the admin socket is.
    Not,
}

/// Lists, each read once however many rules name it.
#[derive(Debug)]
pub struct ListFiles {
    folder: PathBuf,
    reading: Reading,
    pub read: Vec<List>,
    pub missing: Vec<Missing>,
}

impl ListFiles {
    /// `folder`: where names of files start from.
    pub fn new(folder: &Path, reading: Reading) -> Self {
        Self { folder: folder.to_owned(), reading, read: Vec::new(), missing: Vec::new() }
    }

    /// What a rule says of names.
    pub fn hosts(&mut self, reader: &mut Reader<'_>, section: &Section<'_>, rule: &mut RuleSpec) {
        if let Some(item) = section.get("host") {
            written(reader, &item, rule);
        }
        for content in self.files(reader, section, "host_file", Kind::Names) {
            if let Content::Names(names) = content {
                rule.host_lists.push(names);
            }
        }
    }

    /// The lists of prefixes that `key` names.
    pub fn prefixes(
        &mut self,
        reader: &mut Reader<'_>,
        section: &Section<'_>,
        key: &str,
    ) -> Vec<Arc<Prefixes>> {
        let contents = self.files(reader, section, key, Kind::Prefixes).into_iter();
        contents
            .filter_map(|c| if let Content::Prefixes(prefixes) = c { Some(prefixes) } else { None })
            .collect()
    }

    fn files(
        &mut self,
        reader: &mut Reader<'_>,
        section: &Section<'_>,
        key: &str,
        kind: Kind,
    ) -> Vec<Content> {
        let Some(item) = section.get(key) else { return Vec::new() };
        let elements = reader.list(&item);
        elements.iter().filter_map(|element| self.file(reader, element, kind)).collect()
    }

    fn file(&mut self, reader: &mut Reader<'_>, item: &Item<'_>, kind: Kind) -> Option<Content> {
        let path = self.folder.join(reader.string(item)?);
        if self.reading == Reading::Not {
            return Some(Content::nothing(kind));
        }
        let read = self.read.iter().map(|list| (&list.path, &list.content));
        let mut known = read.chain(self.missing.iter().map(|missing| (&missing.path, &missing.content)));
        if let Some((_, content)) = known.find(|(of, content)| **of == path && content.kind() == kind) {
            return Some(content.clone());
        }
        match lists::load_patiently(&path, kind) {
            Ok(list) => {
                if list.content.entries() == 0 {
                    reader.warn(&item.span, lists::takes_nothing(&path, kind));
                }
                let content = list.content.clone();
                self.read.push(list);
                Some(content)
            }
            Err(error) if self.reading == Reading::Lenient => {
                let content = Content::nothing(kind);
                self.missing.push(Missing { path, content: content.clone(), why: error.to_string() });
                Some(content)
            }
            Err(error) => reader.wrong(item, &format!("`{}` {error}", path.display())),
        }
    }
}

fn written(reader: &mut Reader<'_>, item: &Item<'_>, rule: &mut RuleSpec) {
    let mut names = NameSet::default();
    for element in reader.list(item) {
        let Some(pattern) = reader.string(&element) else { continue };
        match pattern {
            NONE => rule.host_none = true,
            ADDRESS => rule.host_address = true,
            _ => insert(reader, &element, &mut names, pattern),
        }
    }
    if !names.is_empty() {
        rule.host = Some(Arc::new(names));
    }
}

/// The names of a list in the file itself.
pub fn names(reader: &mut Reader<'_>, item: &Item<'_>) -> NameSet {
    let mut names = NameSet::default();
    for element in reader.list(item) {
        let Some(pattern) = reader.string(&element) else { continue };
        insert(reader, &element, &mut names, pattern);
    }
    names
}

fn insert(reader: &mut Reader<'_>, item: &Item<'_>, names: &mut NameSet, pattern: &str) {
    let inserted = idn::to_ascii(pattern)
        .and_then(|ascii| names.insert(&ascii).map_err(|error| format!("`{pattern}`: {error}")));
    if let Err(message) = inserted {
        reader.wrong::<()>(item, &message);
    }
}
