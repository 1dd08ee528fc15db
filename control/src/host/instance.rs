//! What a running weir tells others about itself on disk: the process, its configuration, its admin socket.
//!
//! The lock (see `lock`) says that there is another; this says which. Written by `weir run` when it has the lock, removed at
//! its end, and by `weir clean` and the next start after a crash. /run is shared between network namespaces, so the file's
//! name carries the namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HostError;
use super::sockets::is_listened_at;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub pid: u32,
    /// Absolute.
    pub config: PathBuf,
    pub admin: PathBuf,
}

/// This process, as others see it; the file goes with this value.
#[derive(Debug)]
pub struct Registered {
    path: PathBuf,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Another may have taken this one's place.
        if Instance::read(&self.path).is_none_or(|found| found.pid == std::process::id()) {
            drop(fs::remove_file(&self.path));
            remove_if_empty(self.path.parent());
        }
    }
}

impl Instance {
    /// This process.
    pub fn here(config: &Path, admin: &Path) -> Self {
        let config = std::path::absolute(config).unwrap_or_else(|_| config.to_path_buf());
        Self { pid: std::process::id(), config, admin: admin.to_path_buf() }
    }

    /// Writes it down. Only who holds the lock may.
    ///
    /// # Errors
    /// [`HostError::File`].
    pub fn register(&self, path: &Path) -> Result<Registered, HostError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| HostError::file("create", folder, e))?;
        }
        let text = serde_json::to_string(self)
            .map_err(|e| HostError::Kernel(format!("cannot write down who runs here: {e}")))?;
        fs::write(path, text).map_err(|e| HostError::file("write", path, e))?;
        Ok(Registered { path: path.to_path_buf() })
    }

    /// What is written down; none when there is nothing, or nothing that can be read.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }
}

/// Removes what a weir that crashed left: the file, and its admin socket if nobody answers there. For those who hold the
/// lock. Returns the commands that it came to.
///
/// # Errors
/// [`HostError::File`].
pub(super) fn remove_crashed(path: &Path) -> Result<Vec<String>, HostError> {
    let mut done = Vec::new();
    let found = Instance::read(path);
    if found.as_ref().is_some_and(|found| found.pid == std::process::id()) {
        return Ok(done);
    }
    let socket = found.map(|found| found.admin).filter(|socket| is_dead_socket(socket));
    for file in socket.iter().map(PathBuf::as_path).chain([path]) {
        match fs::remove_file(file) {
            Ok(()) => done.push(format!("rm {}", file.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(HostError::file("remove", file, e)),
        }
    }
    remove_if_empty(path.parent());
    Ok(done)
}

/// Whether it is a socket on which nobody listens.
pub fn is_dead_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && is_listened_at(path).is_ok_and(|listens| !listens)
}

/// /run/weir, when nothing of anybody's is in it.
fn remove_if_empty(folder: Option<&Path>) {
    let _ = folder.map(fs::remove_dir);
}
