//! What the files of sysctl.d(5) say: values that somebody wants, and that come back with the next boot, `sysctl --system`, or a
//! device that is made.
//!
//! As systemd-sysctl(8) and sysctl(8) read them: of files with one name that of the first folder counts, all are read in the order
//! of their names, and the last line for a key wins; one that names the key goes before one with a pattern. sysctl(8) reads
//! /etc/sysctl.conf after them, and systemd where a link leads to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::sysctl::Key;

/// Those that come first hide files of the same name in the others.
const FOLDERS: [&str; 4] = ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"];
const LAST: &str = "/etc/sysctl.conf";

/// What a file says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// File and line.
    pub place: String,
    pub value: String,
}

/// A line that is about a key, or about those that a pattern fits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    key: Key,
    /// None: patterns are not to be applied to this key.
    value: Option<String>,
    place: String,
}

/// The lines of all files, in the order in which they come into force.
#[derive(Clone, Debug, Default)]
pub struct SysctlFiles {
    lines: Vec<Line>,
}

impl SysctlFiles {
    /// Reads those of this machine; what cannot be read says nothing.
    pub fn read() -> Self {
        let mut names: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for folder in FOLDERS {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "conf") {
                    names.entry(entry.file_name()).or_insert(path);
                }
            }
        }
        let mut files = Self::default();
        for path in names.into_values().chain([LAST.into()]) {
            files.add(&path, &fs::read_to_string(&path).unwrap_or_default());
        }
        files
    }

    fn add(&mut self, path: &Path, text: &str) {
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            // A key that is not there is no error then.
            let (key, tolerated) = line.strip_prefix('-').map_or((line, false), |rest| (rest, true));
            let (key, value) = match key.split_once('=') {
                Some((key, value)) => (key, Some(value.trim().to_owned())),
                None if tolerated => (key, None),
                None => continue,
            };
            let place = format!("{}:{number}", path.display());
            self.lines.push(Line { key: Key::from_dotted(key.trim()), value, place });
        }
    }

    /// What is said of a key at last.
    pub fn of(&self, key: &Key) -> Option<Said> {
        let said = |line: &Line| {
            let value = line.value.clone()?;
            Some(Said { place: line.place.clone(), value })
        };
        let named = |line: &&Line| line.key == *key || Some(&line.key) == key.alias().as_ref();
        if self.lines.iter().any(|line| named(&line)) {
            let lines = self.lines.iter().rev().filter(named);
            return lines.clone().find_map(said);
        }
        self.lines.iter().rev().filter(|line| fits(line.key.as_path(), key.as_path())).find_map(said)
    }
}

/// Whether a pattern with `*` and `?` fits a path; neither stands for a slash (glob(7)).
fn fits(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('/');
    let fit = path.split('/').all(|of_path| parts.next().is_some_and(|part| part_fits(part, of_path)));
    fit && parts.next().is_none()
}

fn part_fits(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| part_fits(rest.as_str(), &text[at..]))
        }
        Some(wanted) => {
            let mut of_text = text.chars();
            of_text.next().is_some_and(|c| wanted == '?' || wanted == c)
                && part_fits(rest.as_str(), of_text.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str], key: &str) -> Option<(String, String)> {
        let mut files = SysctlFiles::default();
        texts.iter().zip(b'a'..).for_each(|(text, name)| {
            files.add(Path::new(&format!("/etc/sysctl.d/{}.conf", char::from(name))), text);
        });
        files.of(&Key::new(key)).map(|said| (said.place, said.value))
    }

    #[test]
    fn last_line_wins_and_one_that_names_the_key_goes_before_a_pattern() {
        let rp_filter = "net/ipv4/conf/eth0.10/rp_filter";
        for (texts, key, wanted) in [
            (&["# net.ipv4.ip_forward=1\n; x\n\nnonsense\n"][..], "net/ipv4/ip_forward", None),
            (
                &["net.ipv4.ip_forward = 1\n", "x=1\n-net/ipv4/ip_forward=0"],
                "net/ipv4/ip_forward",
                Some(("b", 2, "0")),
            ),
            // The same switch by its other name.
            (&["net.ipv4.conf.all.forwarding=0"], "net/ipv4/ip_forward", Some(("a", 1, "0"))),
            (&["net.ipv6.conf.all.forwarding=0"], "net/ipv6/conf/all/forwarding", Some(("a", 1, "0"))),
            // Dots of a device's name are slashes, or everything is as a path.
            (&["net.ipv4.conf.eth0/10.rp_filter=1"], rp_filter, Some(("a", 1, "1"))),
            (&["net/ipv4/conf/eth0.10/rp_filter=1"], rp_filter, Some(("a", 1, "1"))),
            (&["net.ipv4.conf.*.rp_filter=1"], rp_filter, Some(("a", 1, "1"))),
            (&["net.ipv4.conf.eth?*.rp_filter=1"], rp_filter, Some(("a", 1, "1"))),
            (&["net.ipv4.*.rp_filter=1", "net.ipv4.conf.wan*.rp_filter=1"], rp_filter, None),
            (
                &["net.ipv4.conf.eth0/10.rp_filter=2", "net.ipv4.conf.*.rp_filter=1"],
                rp_filter,
                Some(("a", 1, "2")),
            ),
            (&["-net.ipv4.conf.eth0/10.rp_filter", "net.ipv4.conf.*.rp_filter=1"], rp_filter, None),
        ] {
            let wanted = wanted.map(|(file, line, value): (&str, u32, &str)| {
                (format!("/etc/sysctl.d/{file}.conf:{line}"), value.to_owned())
            });
            assert_eq!(said(texts, key), wanted, "{texts:?}");
        }
    }
}
