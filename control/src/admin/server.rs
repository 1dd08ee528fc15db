//! Answers on the admin socket, and serves metrics over HTTP.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::WriteHalf;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::state::State;
use super::{Refusal, Request};
use crate::exit::Failure;
use crate::explain::gateway;
use crate::host::instance::is_dead_socket;
use crate::host::sockets::is_listened_at;
use crate::run::drain::{Drain, Drained};
use crate::run::end::End;
use crate::run::reload::Reloader;

/// The longest request.
const LINE: u64 = 4096;
/// How long a peer may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections served at once on each listener; more wait in its queue.
const MOST: usize = 64;

/// The socket file; removed when this goes, unless another has taken its place.
#[derive(Debug)]
pub struct AdminSocket {
    /// Where it is, and where it is to be.
    path: PathBuf,
    place: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if file_of(&self.path).is_ok_and(|file| file == self.file) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

impl AdminSocket {
    /// Puts the socket in the place of that of the process before.
    ///
    /// # Errors
    /// What the file system says.
    pub fn take_place(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.place)?;
        self.path.clone_from(&self.place);
        Ok(())
    }
}

fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Listens at `path`, for the owner only. A socket that a crash left is replaced; one that answers is not, nor is anything that is no
/// socket. `replaces`: the one of the process whose place this one takes may answer; this one listens beside it until
/// [`AdminSocket::take_place`].
///
/// # Errors
/// Another process answers there; something else is there; the folder cannot be written.
pub fn bind(path: &Path, replaces: Option<&Path>) -> Result<(AdminSocket, UnixListener), Failure> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let failed = |what: &str, error: io::Error| {
        Failure::refused(format!("{}: {what}: {error}; correct `admin` in [gateway]", path.display()))
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| failed("its folder cannot be made", e))?;
    }
    let is_before = |before| file_of(before).ok().is_some_and(|before| file_of(path).ok() == Some(before));
    if !replaces.is_some_and(is_before) && is_listened_at(path).unwrap_or(false) {
        return Err(Failure::refused(format!(
            "{}: another process answers on the admin socket: stop it, or choose another `admin` in [gateway]",
            path.display()
        )));
    }
    let is_there = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Failure::refused(format!(
            "{}: there is something that is no socket, and weir does not replace it: correct `admin` in [gateway]",
            path.display()
        ))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("cannot be looked at", e)),
    };
    is_there(path)?;
    let (place, beside) = (path, beside(path));
    let path = if replaces.is_some() { beside.as_path() } else { place };
    if is_there(path)? {
        std::fs::remove_file(path).map_err(|e| failed("cannot be replaced", e))?;
    }
    let listener = UnixListener::bind(path).map_err(|e| failed("cannot be bound", e))?;
    let file = file_of(path).map_err(|e| failed("cannot be looked at", e))?;
    let socket = AdminSocket { path: path.to_owned(), place: place.to_owned(), file };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| failed("cannot be made private", e))?;
    Ok((socket, listener))
}

/// Where a process listens that has not yet taken the place of the one before.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes what a process left that was killed before it could take the place of this one at `path`.
pub fn forget_failed(path: &Path) {
    let beside = beside(path);
    if is_dead_socket(&beside) {
        drop(std::fs::remove_file(beside));
    }
}

/// Serves the admin socket until the task is dropped, and its connections with it.
pub async fn serve(listener: UnixListener, state: Arc<State>, reloader: Reloader, ends: mpsc::Sender<End>) {
    // A list of all flows is large, and threads wait for it: one at a time.
    let listing = Arc::new(Mutex::new(()));
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if peers.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    let (state, listing) = (state.clone(), listing.clone());
                    let (reloader, ends) = (reloader.clone(), ends.clone());
                    peers.spawn_local(async move { drop(answer(stream, state, listing, reloader, ends).await) });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    state: Arc<State>,
    listing: Arc<Mutex<()>>,
    reloader: Reloader,
    ends: mpsc::Sender<End>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(read.take(LINE)).read_line(&mut line)).await??;
    // Workers are waited for, and lists may be long: not on the event loop, which has the box to look after.
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status) => spawn_blocking(move || serde_json::to_string(&state.status())).await?,
        Ok(Request::Flows) => {
            // Goes with the thread: a peer that leaves does not let another list begin.
            let turn = listing.lock_owned().await;
            let list = move || {
                let _turn = turn;
                serde_json::to_string(&state.flows())
            };
            spawn_blocking(list).await?
        }
        Ok(Request::Explain { from, to, device, tags, host }) => {
            let turn = listing.lock_owned().await;
            let explain = move || {
                let _turn = turn;
                serde_json::to_string(&gateway::answer(
                    &state,
                    (from, to),
                    (device.as_deref(), tags),
                    host.as_deref(),
                ))
            };
            spawn_blocking(explain).await?
        }
        Ok(Request::Reload { file, reevaluate }) => {
            // Not of this peer's life: what was begun is finished when it leaves.
            let reload =
                tokio::task::spawn_local(async move { reloader.reload(file.as_deref(), reevaluate).await });
            match reload.await? {
                Ok(answer) => serde_json::to_string(&answer),
                Err(error) => serde_json::to_string(&Refusal { error: error.to_string() }),
            }
        }
        Ok(Request::Leave { deadline_ms }) => {
            let (end, told) = Drain::within(Duration::from_millis(deadline_ms));
            return leave(write, end, told, ends).await;
        }
        Ok(Request::Replace { patience_ms }) => {
            let stopping = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            let patience = patience_ms.map(Duration::from_millis);
            return ends.send(End::Replaced(stream, patience)).await.map_err(stopping);
        }
        Ok(Request::Drain { pool, server, undo }) => match state.health.drain(&pool, server, !undo) {
            Ok(pool) => serde_json::to_string(&pool),
            Err(error) => serde_json::to_string(&Refusal { error: error.to_string() }),
        },
        Err(error) => serde_json::to_string(&Refusal {
            error: format!(
                "the request was not understood: {error}; allowed: {{\"op\":\"status\"}}, {{\"op\":\"flows\"}}, \
                 {{\"op\":\"drain\",\"pool\":NAME,\"server\":ADDRESS}}, {{\"op\":\"explain\",\"from\":ADDRESS,\"to\":ADDRESS}}, \
                 {{\"op\":\"reload\",\"reevaluate\":true or false}}, {{\"op\":\"leave\",\"deadline_ms\":NUMBER}}"
            ),
        }),
    };
    let mut reply = reply?;
    reply.push('\n');
    timeout(PATIENCE, write.write_all(reply.as_bytes())).await?
}

/// Answers when the box has drained; then it may end.
async fn leave(
    mut write: WriteHalf<'_>,
    drain: Drain,
    told: oneshot::Receiver<Result<Drained, String>>,
    ends: mpsc::Sender<End>,
) -> io::Result<()> {
    let stopping = || io::Error::from(io::ErrorKind::BrokenPipe);
    ends.send(End::Drained(drain)).await.map_err(|_| stopping())?;
    let drained = told.await.map_err(|_| stopping())?;
    let mut reply = match &drained {
        Ok(drained) => serde_json::to_string(drained)?,
        Err(why) => serde_json::to_string(&Refusal { error: why.clone() })?,
    };
    reply.push('\n');
    let written = timeout(PATIENCE, write.write_all(reply.as_bytes())).await;
    // Weir ends when the last of these has gone.
    drop(drained);
    written?
}

/// Listens for scrapes.
///
/// # Errors
/// The address is taken, or not the box's.
pub async fn bind_metrics(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::refused(format!(
            "metrics cannot be served on {address}: {error}; correct `metrics` in [gateway]"
        ))
    })
}

/// Serves metrics in the Prometheus text format until the task is dropped, and its connections with it.
pub async fn serve_metrics(listener: TcpListener, state: Arc<State>) {
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if peers.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    let scrape = timeout(PATIENCE, scrape(stream, state.clone()));
                    peers.spawn_local(async move { drop(scrape.await) });
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn scrape(mut stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut request = vec![0; 4096];
    let got = stream.read(&mut request).await?;
    let wanted =
        request.get(..got).is_some_and(|r| r.starts_with(b"GET /metrics ") || r.starts_with(b"GET / "));
    let (status, body) = if wanted {
        ("200 OK", spawn_blocking(move || state.metrics()).await?)
    } else {
        ("404 Not Found", "GET /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
