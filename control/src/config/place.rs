//! Where in a file something stands, for sentences about what is right by itself and cannot be done now.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::Source;

/// The text of a valid file.
#[derive(Clone, Debug)]
pub struct Places {
    source: Source,
}

impl Places {
    pub fn new(path: &Path, text: String) -> Self {
        Self { source: Source::new(path.display().to_string(), text) }
    }

    /// `file:line` of a key in a section, of the section where the key is not written, or `file` where neither is. `at`:
    /// which of several sections of that name.
    pub fn of(&self, section: &str, at: usize, key: &str) -> String {
        let (document, _) = DeTable::parse_recoverable(&self.source.text);
        let name = self.source.name.clone();
        let Some((written, value)) = entry(document.get_ref(), section) else { return name };
        let (table, offset) = match value.get_ref() {
            DeValue::Table(table) => (Some(table), written),
            DeValue::Array(array) => match array.get(at) {
                Some(item) => (item.get_ref().as_table(), item.span().start),
                None => return name,
            },
            _ => (None, written),
        };
        let offset = table.and_then(|table| entry(table, key)).map_or(offset, |(offset, _)| offset);
        format!("{name}:{}", self.source.line(offset))
    }
}

/// Where a key is written, and its value.
fn entry<'t, 'i>(table: &'t DeTable<'i>, key: &str) -> Option<(usize, &'t Spanned<DeValue<'i>>)> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(name, value)| (name.span().start, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_section_or_file_is_named_with_its_line() {
        let text =
            "[gateway]\nfail = \"open\"\n\n[[pool]]\nname = \"a\"\n[[pool]]\nname = \"b\"\nports = \"1-2\"\n";
        let places = Places::new(Path::new("x.toml"), text.to_owned());
        for (section, at, key, wanted) in [
            ("gateway", 0, "fail", "x.toml:2"),
            ("gateway", 0, "admin", "x.toml:1"),
            ("pool", 1, "ports", "x.toml:8"),
            ("pool", 0, "name", "x.toml:5"),
            ("pool", 7, "name", "x.toml"),
            ("workers", 0, "flows", "x.toml"),
        ] {
            assert_eq!(places.of(section, at, key), wanted, "{section} {at} {key}");
        }
    }
}
