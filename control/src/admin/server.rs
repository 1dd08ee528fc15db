//! Answers on the admin socket, and serves metrics over HTTP.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use super::state::State;
use super::{Refusal, Request};
use crate::exit::Failure;

/// The longest request.
const LINE: u64 = 4096;
/// How long a peer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket file; removed when this goes.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// Listens at `path`, for the owner only. A socket that a crash left is replaced; one that answers is not.
///
/// # Errors
/// Another process answers there; the folder cannot be written.
pub fn bind(path: &Path) -> Result<(AdminSocket, UnixListener), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |what: &str, error: io::Error| {
        Failure::refused(format!("{}: {what}: {error}; correct `admin` in [gateway]", path.display()))
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| failed("its folder cannot be made", e))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Failure::refused(format!(
            "{}: another process answers on the admin socket: stop it, or choose another `admin` in [gateway]",
            path.display()
        )));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("cannot be replaced", e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| failed("cannot be bound", e))?;
    let socket = AdminSocket { path: path.to_owned() };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| failed("cannot be made private", e))?;
    Ok((socket, listener))
}

/// Serves the admin socket until the task is dropped.
pub async fn serve(listener: UnixListener, state: Arc<State>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                tokio::task::spawn_local(async move { timeout(PATIENCE, answer(stream, &state)).await });
            }
            Err(error) => {
                tracing::warn!(%error, "admin socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, state: &State) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LINE)).read_line(&mut line).await?;
    let mut reply = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status) => serde_json::to_string(&state.status()),
        Ok(Request::Flows) => serde_json::to_string(&state.flows()),
        Err(error) => serde_json::to_string(&Refusal {
            error: format!(
                "the request was not understood: {error}; allowed: {{\"op\":\"status\"}}, {{\"op\":\"flows\"}}"
            ),
        }),
    }?;
    reply.push('\n');
    write.write_all(reply.as_bytes()).await
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

/// Serves metrics in the Prometheus text format until the task is dropped.
pub async fn serve_metrics(listener: TcpListener, state: Arc<State>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                tokio::task::spawn_local(async move { timeout(PATIENCE, scrape(stream, &state)).await });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn scrape(mut stream: TcpStream, state: &State) -> io::Result<()> {
    let mut request = vec![0; 4096];
    let got = stream.read(&mut request).await?;
    let wanted =
        request.get(..got).is_some_and(|r| r.starts_with(b"GET /metrics ") || r.starts_with(b"GET / "));
    let (status, body) =
        if wanted { ("200 OK", state.metrics()) } else { ("404 Not Found", "GET /metrics\n".to_owned()) };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
