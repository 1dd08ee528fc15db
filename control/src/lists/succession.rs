//! The lists of a configuration that takes the place of another. What is in force of a file stays when it was read later than
//! the other configuration was, and when the file has been emptied since: by a download that failed, say.

use super::{List, takes_nothing};
use crate::config::Config;

/// A list that stays in force instead of what was read of its file.
#[derive(Clone, Debug)]
pub struct Stay {
    pub list: List,
    /// What a report says of what was read, if that was nothing.
    pub found: String,
    /// Why it stays; none: it is the newer one.
    pub why: Option<String>,
}

/// Puts lists that stay in force into the rules of `config`; gives these.
pub fn keep(config: &mut Config, in_force: &[List]) -> Vec<Stay> {
    let stays: Vec<Stay> = config
        .lists
        .iter()
        .filter_map(|read| stay(read, in_force.iter().find(|old| is_of_same(read, old))?))
        .collect();
    for stay in &stays {
        drop(config.replace_list(stay.list.clone()));
    }
    stays
}

fn is_of_same(a: &List, b: &List) -> bool {
    a.path == b.path && a.content.kind() == b.content.kind()
}

fn stay(read: &List, before: &List) -> Option<Stay> {
    let why = match read.refusal_after(before) {
        _ if before.began > read.began => None,
        Some(refusal) => Some(before.still(&refusal.to_string())),
        None => return None,
    };
    Some(Stay { list: before.clone(), found: takes_nothing(&read.path, read.content.kind()), why })
}
