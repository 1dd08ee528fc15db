//! A file, line by line, whatever its size.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest line that is read; a longer one is passed over. Also the room that reading takes.
const LINE: usize = 64 * 1024;

/// By what a file that was replaced or written is told from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Whether there was no octet.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Of what the path leads to now.
    ///
    /// # Errors
    /// As stat(2); what is no regular file.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::regular(&std::fs::metadata(path)?)
    }

    fn regular(metadata: &Metadata) -> io::Result<Self> {
        // A pipe or a device would never end.
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A file that is being read.
#[derive(Debug)]
pub struct Open {
    path: PathBuf,
    file: File,
    pub stamp: Stamp,
}

/// One line, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Text(&'a str),
    NotUtf8,
    TooLong,
}

impl Open {
    /// # Errors
    /// As open(2); what is no regular file.
    pub fn new(path: &Path) -> io::Result<Self> {
        // Opening a pipe waits for its other end.
        Stamp::of(path)?;
        let file = File::open(path)?;
        let stamp = Stamp::regular(&file.metadata()?)?;
        Ok(Self { path: path.to_owned(), file, stamp })
    }

    /// Octets.
    pub const fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Whether the path still leads to what was read.
    ///
    /// # Errors
    /// As stat(2).
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Stamp::of(&self.path)? == self.stamp)
    }

    /// Calls `each` for every line, with its number from 1.
    ///
    /// # Errors
    /// As read(2).
    pub fn lines(&mut self, mut each: impl FnMut(u64, Line<'_>)) -> io::Result<()> {
        let mut room = vec![0; LINE];
        let (mut filled, mut number, mut skipping) = (0, 1, false);
        loop {
            let got = self.file.read(&mut room[filled..])?;
            filled += got;
            let mut start = 0;
            while let Some(len) = room[start..filled].iter().position(|octet| *octet == b'\n') {
                if !std::mem::take(&mut skipping) {
                    each(number, line(&room[start..start + len], number));
                }
                number += 1;
                start += len + 1;
            }
            room.copy_within(start..filled, 0);
            filled -= start;
            if got == 0 {
                if filled > 0 && !skipping {
                    each(number, line(&room[..filled], number));
                }
                return Ok(());
            }
            if filled == room.len() {
                if !skipping {
                    each(number, Line::TooLong);
                }
                (filled, skipping) = (0, true);
            }
        }
    }
}

fn line(octets: &[u8], number: u64) -> Line<'_> {
    let octets = octets.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(octets);
    std::str::from_utf8(octets).map_or(Line::NotUtf8, Line::Text)
}

impl Line<'_> {
    /// What is left of the line without its comment, which one of `marks` begins, and blanks around it; empty: nothing.
    /// `Err`: the line cannot be read.
    pub fn content(&self, marks: &[char]) -> Result<&str, &'static str> {
        match self {
            Self::Text(text) => Ok(text.split(marks).next().unwrap_or_default().trim()),
            Self::NotUtf8 => Err("the line is not UTF-8"),
            Self::TooLong => Err("the line has more than 65536 octets"),
        }
    }
}
