//! Lists that a reload would not take as they are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{Config, is_same_file};
use crate::lists::List;

/// A sentence for each list of `config` whose file is empty and that the gateway, which gave this status, has with entries: it keeps
/// them, and what they decide is not known here.
pub fn kept(config: &Config, status: &Value) -> Vec<String> {
    let folder = PathBuf::from(format!("/proc/{}/cwd", status["pid"]));
    let in_force = status["lists"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entries = |path: &Path, kind: &str| {
        let is_it = |list: &&Value| {
            let file = list["file"].as_str().map(|file| folder.join(file));
            list["kind"] == kind && file.is_some_and(|file| is_same_file(&file, path))
        };
        in_force.iter().find(is_it)?["entries"].as_u64().filter(|entries| *entries > 0)
    };
    let blank = config.lists.iter().filter(|list| list.is_blank());
    let note = |list: &List| {
        let kind = list.content.kind().nouns();
        let entries = entries(&list.path, kind)?;
        let file = list.path.display();
        Some(format!(
            "list {file} is empty: a reload keeps the {entries} {kind} that are in force, and this is without them"
        ))
    };
    blank.filter_map(note).collect()
}
