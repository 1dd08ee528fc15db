//! Tells that something happened in the folders where lists are, and whether a file is being written (inotify(7)).
//!
//! A list is reached by its path, and where that or a folder on it is a symbolic link, by what it leads to, and so on: each of
//! these files and links is watched for in its own folder, so that an editor's rename and a link that is set anew are seen.
//! What happens elsewhere (a folder further up that is renamed) is found by whoever looks at the file itself now and then.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// The most links that a path may lead through (path_resolution(7)).
const MOST_LINKS: usize = 40;

const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// A file, by the folder that is watched and its name in it.
type Place = (i32, OsString);

/// What is watched.
#[derive(Debug)]
pub struct Inotify {
    fd: OwnedFd,
    /// The lists whose paths lead over a file, and the file.
    places: HashMap<Place, (PathBuf, Vec<usize>)>,
}

/// What happened to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody has begun to write it, and goes on.
    Writing(usize),
    /// It was written, replaced, removed or its attributes changed.
    Done(usize),
}

impl Inotify {
    /// # Errors
    /// No more of them, or of watches, are allowed to this user.
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { fd, places: HashMap::new() })
    }

    /// Watches for the files and links that a list's path leads over now; those of before are forgotten with [`Self::clear`].
    pub fn add(&mut self, list: usize, path: &Path) {
        let mut file = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some((link, target)) = first_link(&file) else { break };
            self.watch(list, &link);
            file = target;
        }
        self.watch(list, &file);
    }

    /// Watches for one file, in its folder.
    fn watch(&mut self, list: usize, file: &Path) {
        let name = file.file_name().unwrap_or(OsStr::new(".")).to_owned();
        // What cannot be watched is looked at all the same, only later.
        if let Ok(watch) = inotify::add_watch(&self.fd, folder_of(file), EVENTS) {
            let place = self.places.entry((watch, name));
            place.or_insert_with(|| (file.to_owned(), Vec::new())).1.push(list);
        }
    }

    /// Forgets which lists are where.
    pub fn clear(&mut self) {
        self.places.clear();
    }

    /// What happened since the last call. `None`: too much to be told.
    pub fn take(&self) -> Option<Vec<News>> {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut room);
        let mut news = Vec::new();
        // Any error, but most of all: nothing left.
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                return None;
            }
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            let place = name.and_then(|name| self.places.get(&(event.wd(), name)));
            let Some((file, lists)) = place else { continue };
            let is_begun = flags.contains(ReadFlags::MODIFY)
                // A link that is made is there at once, a file has yet to be filled.
                || (flags.contains(ReadFlags::CREATE) && !file.is_symlink());
            let of = |list: &usize| if is_begun { News::Writing(*list) } else { News::Done(*list) };
            news.extend(lists.iter().map(of));
        }
        Some(news)
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

/// The first link on a path, be it the file or a folder on the way, and the path with what that leads to in its place.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut link = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        link.push(part);
        if let Ok(target) = std::fs::read_link(&link) {
            let mut target = folder_of(&link).join(target);
            target.extend(parts);
            return Some((link, target));
        }
    }
    None
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// As Kubernetes writes a volume anew: `..data` leads to a folder of a version, and is renamed over.
    #[test]
    fn folder_that_is_a_link_and_is_set_anew_is_told_at_once() {
        let root = std::env::temp_dir().join(format!("weir-inotify-{}", std::process::id()));
        for version in ["v1", "v2"] {
            std::fs::create_dir_all(root.join(version).join("lists")).unwrap();
            std::fs::write(root.join(version).join("lists/names.txt"), version).unwrap();
        }
        symlink("v1", root.join("..data")).unwrap();
        symlink("..data/lists/names.txt", root.join("names.txt")).unwrap();
        let mut inotify = Inotify::new().unwrap();
        inotify.add(7, &root.join("names.txt"));
        assert_eq!(inotify.take().unwrap(), []);
        symlink("v2", root.join("draft")).unwrap();
        std::fs::rename(root.join("draft"), root.join("..data")).unwrap();
        assert!(inotify.take().unwrap().contains(&News::Done(7)));
        // From then on the files of the other version count.
        inotify.clear();
        inotify.add(7, &root.join("names.txt"));
        std::fs::write(root.join("v2/lists/names.txt"), "v3").unwrap();
        assert!(inotify.take().unwrap().contains(&News::Done(7)));
        std::fs::remove_dir_all(root).unwrap();
    }
}
