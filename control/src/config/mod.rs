//! Configuration files: read, checked, compiled into a [`weir_core::policy::Policy`].
//!
//! [`load`] is what `run`, `check`, `plan`, `doctor`, `explain` and `replay` call; [`check`] is its report alone. Both collect
//! everything that is wrong in one run, each finding with file, line and what is allowed. Keys that are not known are
//! errors, and so are values that this version cannot carry out: nothing in a file is silently ignored.
//!
//! Beyond what DESIGN section 9 lists: a list of one may be written without brackets (`from = "lan"`), and a rule may
//! have `tcp`, the ports of the destination.

mod check;
pub mod defaults;
mod model;
mod place;
mod read;
mod report;
mod section;
mod source;
#[cfg(test)]
mod tests;
pub(crate) mod values;

use std::path::Path;

use toml::de::DeTable;

pub use values::time;

pub use model::{
    Check, Config, Cores, Express, Fail, Fallback, Gateway, Identity, Idle, Limits, Mark, Mode, Pool, Port,
    Probe, Queues, Relay, Workers,
};
pub use place::Places;
pub use report::{Finding, ListReport, Report, Severity, Summary};

use read::Reading;
use section::Reader;
use source::Source;

use crate::lists::Stamp;

/// Reads and checks a file. With the configuration come its warnings; without it, the errors. Lists are looked for in the
/// file's own folder.
pub fn load(path: &Path) -> Result<(Config, Report), Report> {
    load_with_text(path).map(|(config, report, _)| (config, report))
}

/// As [`load`], with the text that was read.
pub fn load_with_text(path: &Path) -> Result<(Config, Report, String), Report> {
    load_with(path, Reading::Strict)
}

/// As [`load`], for who makes do with what is there: a file with a list that cannot be read is no error, but [`Config::missing`]
/// has it, and it holds nothing.
pub fn load_leniently(path: &Path) -> Result<(Config, Report), Report> {
    load_with(path, Reading::Lenient).map(|(config, report, _)| (config, report))
}

fn load_with(path: &Path, lists: Reading) -> Result<(Config, Report, String), Report> {
    // Before the text: should another file take its place meanwhile, that one has another stamp.
    let stamp = Stamp::of(path).ok();
    let text = text_of(path)?;
    let (config, report) = parse_with(path, text.clone(), lists)?;
    Ok((Config { stamp, ..config }, report, text))
}

/// As [`load`], for those who need no rules: the files with lists are not read, and their rules match nothing.
pub fn load_without_lists(path: &Path) -> Result<Config, Report> {
    parse_with(path, text_of(path)?, Reading::Not).map(|(config, _)| config)
}

/// Whether two names, which may be links, are of one file.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(a) == real(b)
}

fn text_of(path: &Path) -> Result<String, Report> {
    let name = path.display().to_string();
    let bytes =
        std::fs::read(path).map_err(|error| unreadable(&name, None, &format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|octet| **octet == b'\n').count() + 1;
        unreadable(&name, Some(line), "is not UTF-8")
    })
}

/// What is to be said about a file, for `weir check`.
pub fn check(path: &Path) -> Report {
    load(path).map_or_else(|report| report, |(_, report)| report)
}

/// Reads and checks `text` as if it were the file `path`.
pub fn parse(path: &Path, text: String) -> Result<(Config, Report), Report> {
    parse_with(path, text, Reading::Strict)
}

fn parse_with(path: &Path, text: String, lists: Reading) -> Result<(Config, Report), Report> {
    let source = Source::new(path.display().to_string(), text);
    let mut reader = Reader::new(&source);
    let (document, broken) = DeTable::parse_recoverable(&source.text);
    for error in &broken {
        // What follows from a broken line would only distract from it.
        let span = error.span().unwrap_or(0..0);
        reader.error(&span, syntax_error(error.message(), source.text.get(span.clone()).unwrap_or("")));
    }
    let config =
        if broken.is_empty() { Some(read::document(&mut reader, path, &document, lists)) } else { None };
    let mut report = reader.report;
    report.findings.sort_by_key(|f| (f.line, f.column));
    report.lists = config.iter().flat_map(|config| &config.lists).map(ListReport::of).collect();
    match config.filter(|_| report.is_ok()) {
        Some(config) => {
            report.summary = Some(summary(&config));
            Ok((config, report))
        }
        None => Err(report),
    }
}

/// The parser's sentence, with what it points at when that is short enough to be shown.
fn syntax_error(message: &str, at: &str) -> String {
    const SHOWN: usize = 40;
    let message = message.trim().replace('\n', ", ");
    let at = at.trim();
    if at.is_empty() || at.len() > SHOWN || at.contains('\n') {
        message
    } else {
        format!("{message}: `{at}`")
    }
}

fn summary(config: &Config) -> Summary {
    let rules = || config.intercepts.iter().flat_map(|intercept| &intercept.rules);
    Summary {
        ports: config.ports.len(),
        intercepts: config.intercepts.len(),
        rules: rules().count(),
        names: rules()
            .flat_map(|rule| rule.host.iter().chain(&rule.host_lists))
            .map(|names| names.len())
            .sum(),
        pools: config.pools.len(),
    }
}

/// The report on a file that has no text.
fn unreadable(name: &str, line: Option<usize>, message: &str) -> Report {
    let finding = Finding {
        severity: Severity::Error,
        file: name.to_owned(),
        line,
        column: None,
        message: message.to_owned(),
    };
    Report { file: name.to_owned(), findings: vec![finding], summary: None, ..Report::default() }
}
