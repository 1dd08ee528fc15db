//! A text file and where in it things stand.

use std::ops::Range;

/// A file's text, with the starts of its lines.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, as it was named.
    pub name: String,
    pub text: String,
    /// Offset of each line's first octet.
    lines: Vec<usize>,
}

/// A range of octets in the text.
pub type Span = Range<usize>;

impl Source {
    pub fn new(name: String, text: String) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { name, text, lines }
    }

    /// Line and column, both from 1, of an octet; columns count characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        (line, column)
    }

    pub fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }
}
