//! `[identity]`: how weir knows that it does not know a name.

use std::sync::Arc;

use super::lists;
use crate::config::defaults;
use crate::config::model::Identity;
use crate::config::section::{Item, Reader};

pub fn read(reader: &mut Reader<'_>, item: &Item<'_>) -> Identity {
    let mut identity = defaults::identity();
    let Some(section) = reader.table(item, "[identity]", &["ech_public_names"]) else { return identity };
    if let Some(item) = section.get("ech_public_names") {
        identity.ech_public_names = Arc::new(lists::names(reader, &item));
    }
    identity
}
