//! Tests of configuration files, by what an operator writes and reads.

mod bad;
mod compiled;
mod examples;
mod lists;
mod output;
mod pools;
mod values;

use std::path::{Path, PathBuf};

use super::*;

/// Two ports; a test's own sections follow from line 7 on.
pub(super) const PORTS: &str = "\
[[port]]
name = \"lan\"
device = \"lan0\"
[[port]]
name = \"wan\"
device = \"wan0\"
";

/// An intercept that lacks nothing, on lines 7 to 11; more of its keys may follow from line 12 on.
pub(super) const WEB: &str = "\
[[intercept]]
name = \"web\"
from = \"lan\"
to = [\"0.0.0.0/0\", \"::/0\"]
tcp = [80, 443]
";

pub(super) fn read(text: &str) -> Result<(Config, Report), Report> {
    parse(Path::new("weir.toml"), text.to_owned())
}

/// A folder of a test's own, removed at its end.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-config-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
