//! `weir run --replace`: a process takes the place of the one that runs, and no connection attempt is lost.
//!
//! The new one asks over the admin socket of the old one, and gets by descriptor (SCM_RIGHTS, unix(7)) what cannot be made twice: the
//! lock, the relay's listeners with the clients that wait in them, the TUN devices. The old one then leaves the fast road: its program
//! and the kernel flows are pinned for the new one to take over, and until that runs new connections take the relay, which both serve.
//! The kernel's rules stay; the new one changes what its configuration has otherwise. When the new one is ready the old one stops
//! accepting, lets the relay's connections finish, and ends. When the new one fails before that, the old one goes on as before.
//!
//! What is said, a line each: new `{"op":"replace"}`; old its [`Offer`], then an octet with each descriptor; new `release`; old
//! `released`; new `done`. Whoever goes on before that has changed his mind.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::parts::Parts;
use crate::admin::{Refusal, Request};
use crate::config::Config;
use crate::exit::Failure;
use crate::host::{Host, HostError, Instance, Lock, PUNT_TUN, Paths, RELAY_TUN};

/// How long the other may take for what it does at once.
const PROMPT: Duration = Duration::from_secs(30);
/// How long a start may take.
const START: Duration = Duration::from_secs(180);
/// The longest line.
const LINE: usize = 64 * 1024;

const RELEASE: &str = "release";
const RELEASED: &str = "released";
const DONE: &str = "done";

/// What the old process has.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    pid: u32,
    listen: u16,
    /// What follows, in this order.
    descriptors: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Lock,
    Listener,
    RelayTun,
    PuntTun,
}

/// What a start takes over, if it does.
#[derive(Debug, Default)]
pub struct Inherited {
    pub listeners: Vec<OwnedFd>,
    /// With their names.
    pub tuns: Vec<(&'static str, OwnedFd)>,
}

/// The process whose place this one takes.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    pub pid: u32,
    pub lock: Lock,
    pub inherited: Inherited,
}

impl Predecessor {
    /// Asks the weir that runs in this network namespace for its place; none when none runs.
    ///
    /// # Errors
    /// It does not answer, refuses, or has something that a replacement cannot change. It goes on as before.
    pub fn find(config: &Config, paths: &Paths) -> Result<Option<Self>, Failure> {
        let Some(running) = Instance::read(&paths.instance) else { return Ok(None) };
        let path = running.admin.display().to_string();
        let failed = |error: io::Error| {
            Failure::refused(format!("{path}: process {} does not give its place: {error}", running.pid))
        };
        let mut stream = match UnixStream::connect(&running.admin) {
            Ok(stream) => stream,
            // It crashed: the lock says so, too.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        stream.set_read_timeout(Some(PROMPT)).map_err(failed)?;
        stream.set_write_timeout(Some(PROMPT)).map_err(failed)?;
        let request = serde_json::to_string(&Request::Replace).map_err(Failure::refused)?;
        writeln!(stream, "{request}").map_err(failed)?;
        let line = read_line(&stream).map_err(failed)?;
        if let Ok(Refusal { error }) = serde_json::from_str(&line) {
            return Err(Failure::refused(format!("{path}: {error}")));
        }
        let offer: Offer = serde_json::from_str(&line).map_err(Failure::refused)?;
        let mut lock = None;
        let mut inherited = Inherited::default();
        for kind in offer.descriptors {
            let descriptor = receive(&stream).map_err(failed)?;
            match kind {
                Kind::Lock => lock = Some(Lock::of_predecessor(descriptor)),
                Kind::Listener => inherited.listeners.push(descriptor),
                Kind::RelayTun => inherited.tuns.push((RELAY_TUN, descriptor)),
                Kind::PuntTun => inherited.tuns.push((PUNT_TUN, descriptor)),
            }
        }
        if offer.listen != config.fallback.listen {
            return Err(Failure::no(format!(
                "{}: `listen` in [fallback] cannot change while another takes weir's place: process {} has {}; put it back, or \
                 stop weir and start it again",
                config.file.display(),
                offer.pid,
                offer.listen
            )));
        }
        let lock = lock.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        Ok(Some(Self { stream, pid: offer.pid, lock, inherited }))
    }

    /// From here on it is this process that must get the fast road going.
    ///
    /// # Errors
    /// The old one cannot leave it; it goes on as before.
    pub fn release(&mut self) -> Result<(), Failure> {
        let pid = self.pid;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::refused(format!("process {pid} does not give its place: {error}"))
        };
        writeln!(self.stream, "{RELEASE}").map_err(|e| failed(&e))?;
        match read_line(&self.stream) {
            Ok(line) if line == RELEASED => Ok(()),
            Ok(line) => match serde_json::from_str::<Refusal>(&line) {
                Ok(refusal) => Err(failed(&refusal.error)),
                Err(_) => Err(failed(&"its answer was not understood")),
            },
            Err(error) => Err(failed(&error)),
        }
    }

    /// This process is ready: the old one finishes what runs on its relay, and ends.
    pub fn dismiss(mut self) -> Lock {
        if let Err(error) = self.lock.sign() {
            tracing::warn!(%error, "who meets the lock is told the process before this one");
        }
        if let Err(error) = writeln!(self.stream, "{DONE}") {
            tracing::warn!(pid = self.pid, %error, "the process before this one does not hear that it may end");
        }
        self.lock
    }
}

/// A line, octet by octet: nothing behind it may be taken, which could be a descriptor's.
fn read_line(mut stream: &UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut octet = [0; 1];
    while line.len() < LINE {
        stream.read_exact(&mut octet)?;
        if octet == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.push(octet[0]);
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut octet = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut octet)];
    rustix::net::recvmsg(stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    };
    ancillary.drain().find_map(rights).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn send(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(stream, &[IoSlice::new(b"d")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the old process does: gives its place to the one at the other end. Whether it is gone; if not, all is as before.
///
/// # Errors
/// The fast road cannot be had back from a process that failed.
pub async fn give(
    parts: &mut Parts,
    (host, paths, lock): (&Host, &Paths, &Lock),
    metrics: &mut Option<JoinHandle<()>>,
    stream: tokio::net::UnixStream,
) -> Result<bool, Failure> {
    let offered = offer(parts, lock, stream);
    let mut stream = match offered {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "another process wanted to take weir's place");
            return Ok(false);
        }
    };
    if hear(&mut stream, PROMPT).await.as_deref() != Some(RELEASE) {
        tracing::warn!("another process wanted to take weir's place, and has changed its mind");
        return Ok(false);
    }
    tracing::info!("another process takes weir's place: it gets the fast road");
    if let Err(failure) = parts.release(paths) {
        let refusal = serde_json::to_string(&Refusal { error: failure.message }).map_err(Failure::refused)?;
        drop(say(&mut stream, &refusal).await);
        parts.resume(host, paths).await?;
        return Ok(false);
    }
    if let Some(metrics) = metrics.take() {
        metrics.abort();
        drop(metrics.await);
    }
    if say(&mut stream, RELEASED).await.is_ok() && hear(&mut stream, START).await.as_deref() == Some(DONE) {
        return Ok(true);
    }
    tracing::error!("the process that wanted to take weir's place has failed: this one goes on");
    parts.resume(host, paths).await?;
    Ok(false)
}

/// Says what there is, and gives it.
fn offer(parts: &Parts, lock: &Lock, stream: tokio::net::UnixStream) -> io::Result<tokio::net::UnixStream> {
    let mut descriptors = vec![(Kind::Lock, lock.descriptor()?)];
    for listener in parts.relay_listeners()? {
        descriptors.push((Kind::Listener, listener));
    }
    for (kind, tun) in [Kind::RelayTun, Kind::PuntTun].into_iter().zip(parts.tuns()) {
        descriptors.push((kind, tun.descriptor()?));
    }
    let listen = parts.config.fallback.listen;
    let kinds = descriptors.iter().map(|(kind, _)| *kind).collect();
    let offer = serde_json::to_string(&Offer { pid: std::process::id(), listen, descriptors: kinds })?;
    let mut plain = stream.into_std()?;
    plain.set_nonblocking(false)?;
    plain.set_write_timeout(Some(PROMPT))?;
    writeln!(plain, "{offer}")?;
    for (_, descriptor) in &descriptors {
        send(&plain, descriptor.as_fd())?;
    }
    plain.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(plain)
}

async fn say(stream: &mut tokio::net::UnixStream, line: &str) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    stream.write_all(format!("{line}\n").as_bytes()).await
}

/// The next line; none when the other has gone, or says nothing for so long.
async fn hear(stream: &mut tokio::net::UnixStream, patience: Duration) -> Option<String> {
    let line = async {
        let mut line = Vec::new();
        while line.len() < LINE {
            match stream.read_u8().await.ok()? {
                b'\n' => return String::from_utf8(line).ok(),
                octet => line.push(octet),
            }
        }
        None
    };
    timeout(patience, line).await.ok().flatten()
}

/// Takes the lock, or with it the place of the process that has it.
///
/// # Errors
/// Another has the lock and does not give it, or cannot be replaced by this one.
pub fn lock(
    config: &Config,
    paths: &Paths,
    replace: bool,
) -> Result<(Option<Lock>, Option<Predecessor>), Failure> {
    if replace && let Some(found) = Predecessor::find(config, paths)? {
        return Ok((None, Some(found)));
    }
    match Lock::acquire() {
        Ok(lock) => Ok((Some(lock), None)),
        Err(error @ HostError::Locked { .. }) if !replace => {
            Err(Failure::refused(format!("{error}; `weir run --replace` takes its place")))
        }
        Err(error) => Err(Failure::refused(error)),
    }
}
