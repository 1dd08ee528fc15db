//! Reads tables key by key and collects everything that is wrong with them.

use std::ops::RangeInclusive;
use std::rc::Rc;

use toml::de::{DeTable, DeValue};

use super::report::{Finding, Report, Severity};
use super::source::{Source, Span};

/// The file being read and what was found in it so far.
#[derive(Debug)]
pub struct Reader<'s> {
    pub source: &'s Source,
    pub report: Report,
}

/// One table of the file.
#[derive(Clone, Debug)]
pub struct Section<'t> {
    /// As messages call it: `[[port]]`, `a rule`.
    pub title: Rc<str>,
    table: &'t DeTable<'t>,
    pub span: Span,
}

/// One value, and what messages call it.
#[derive(Clone, Debug)]
pub struct Item<'t> {
    /// `` `mode` in [[port]] ``
    what: Rc<str>,
    value: &'t DeValue<'t>,
    pub span: Span,
    /// Of the key; messages on keys that must not be there point at it.
    pub key: Span,
}

impl<'s> Reader<'s> {
    pub fn new(source: &'s Source) -> Self {
        Self { source, report: Report { file: source.name.clone(), ..Report::default() } }
    }

    pub fn error(&mut self, at: &Span, message: impl Into<String>) {
        self.found(Severity::Error, at, message.into());
    }

    pub fn warn(&mut self, at: &Span, message: impl Into<String>) {
        self.found(Severity::Warning, at, message.into());
    }

    fn found(&mut self, severity: Severity, at: &Span, message: String) {
        let (line, column) = self.source.position(at.start);
        let file = self.source.name.clone();
        self.report.findings.push(Finding {
            severity,
            file,
            line: Some(line),
            column: Some(column),
            message,
        });
    }

    /// `file:line`, as rules and intercepts carry it.
    pub fn origin(&self, at: &Span) -> String {
        format!("{}:{}", self.source.name, self.source.line(at.start))
    }

    /// The table of an item; keys that are not allowed are errors.
    pub fn table<'t>(&mut self, item: &Item<'t>, title: &str, keys: &[&str]) -> Option<Section<'t>> {
        match item.value.as_table() {
            Some(table) => Some(self.section(table, item.span.clone(), title, keys)),
            None => self.wrong_type(item, "a table"),
        }
    }

    /// A table; keys that are not allowed are errors.
    pub fn section<'t>(
        &mut self,
        table: &'t DeTable<'t>,
        span: Span,
        title: &str,
        keys: &[&str],
    ) -> Section<'t> {
        let place = if title.is_empty() { String::new() } else { format!(" in {title}") };
        for key in table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
            let message = format!("unknown key `{}`{place}; allowed: {}", key.get_ref(), keys.join(", "));
            self.error(&key.span(), message);
        }
        Section { title: title.into(), table, span }
    }

    /// The value of a key that must be there.
    pub fn require<'t>(&mut self, section: &Section<'t>, key: &str) -> Option<Item<'t>> {
        let item = section.get(key);
        if item.is_none() {
            self.error(&section.span, format!("{} has no `{key}`, which must be written", section.title));
        }
        item
    }

    /// The elements of a list; of a value that is no list, itself. An empty list is an error.
    pub fn list<'t>(&mut self, item: &Item<'t>) -> Vec<Item<'t>> {
        let Some(array) = item.value.as_array() else { return vec![item.clone()] };
        if array.is_empty() {
            self.error(&item.span, format!("{}: the list is empty; leave the key out or fill it", item.what));
        }
        item.elements()
    }

    /// A list of tables, as `[[title]]` or inline; a table alone is an error.
    pub fn tables<'t>(&mut self, item: &Item<'t>, title: &str, keys: &[&str]) -> Vec<Section<'t>> {
        if !item.value.is_array() {
            self.wrong_type::<()>(item, &format!("a list of tables ({title})"));
            return Vec::new();
        }
        item.elements().iter().filter_map(|element| self.table(element, title, keys)).collect()
    }

    pub fn string<'t>(&mut self, item: &Item<'t>) -> Option<&'t str> {
        match item.value.as_str() {
            Some(text) => Some(text),
            None => self.wrong_type(item, "a string"),
        }
    }

    /// A string that `parse` reads.
    pub fn parsed<T>(&mut self, item: &Item<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.string(item)?) {
            Ok(value) => Some(value),
            Err(message) => self.wrong(item, &message),
        }
    }

    /// A string out of few.
    pub fn choice<T: Copy>(&mut self, item: &Item<'_>, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string(item)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(item, &format!("unknown value `{text}`; allowed: {}", names.join(", ")))
    }

    pub fn boolean(&mut self, item: &Item<'_>) -> Option<bool> {
        match item.value.as_bool() {
            Some(value) => Some(value),
            None => self.wrong_type(item, "true or false"),
        }
    }

    pub fn integer(&mut self, item: &Item<'_>, allowed: RangeInclusive<u32>) -> Option<u32> {
        let Some(integer) = item.value.as_integer() else { return self.wrong_type(item, "an integer") };
        let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match value.and_then(|value| u32::try_from(value).ok()).filter(|value| allowed.contains(value)) {
            Some(value) => Some(value),
            None => {
                let (low, high) = allowed.into_inner();
                self.wrong(item, &format!("{} is not allowed; allowed: {low} to {high}", integer.as_str()))
            }
        }
    }

    /// The value is of the right type and means nothing.
    pub fn wrong<T>(&mut self, item: &Item<'_>, message: &str) -> Option<T> {
        self.error(&item.span, format!("{}: {message}", item.what));
        None
    }

    pub fn wrong_type<T>(&mut self, item: &Item<'_>, expected: &str) -> Option<T> {
        self.wrong(item, &format!("expected {expected}, found {}", item.type_name()))
    }
}

impl<'t> Section<'t> {
    pub fn get(&self, key: &str) -> Option<Item<'t>> {
        let (key, value) = self.table.get_key_value(key)?;
        let place = if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) };
        let what = format!("`{}`{place}", key.get_ref()).into();
        Some(Item { what, value: value.get_ref(), span: value.span(), key: key.span() })
    }
}

impl<'t> Item<'t> {
    pub fn is_integer(&self) -> bool {
        self.value.is_integer()
    }

    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub fn is_string(&self) -> bool {
        self.value.is_str()
    }

    /// `` `mode` in [[port]] ``
    pub fn what(&self) -> &str {
        &self.what
    }

    fn elements(&self) -> Vec<Item<'t>> {
        let values = self.value.as_array().into_iter().flat_map(|array| array.iter());
        values.map(|v| Item { value: v.get_ref(), span: v.span(), ..self.clone() }).collect()
    }

    fn type_name(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }
}
