//! `weir run --replace`: a process takes the place of the one that runs, and no connection attempt is lost.
//!
//! The new one asks over the admin socket of the old one, and gets by descriptor (SCM_RIGHTS, unix(7)) what cannot be made twice: the
//! lock, the relay's listeners with the clients that wait in them, the TUN devices. The old one then leaves the fast road: its program
//! and the kernel flows are pinned for the new one to take over, and until that runs new connections take the relay, which both serve.
//! The kernel's rules stay; the new one changes what its configuration has otherwise. When the new one is ready the old one stops
//! accepting, lets the relay's connections finish, and ends. When the new one fails before that, the old one goes on as before.
//!
//! What is said, a line each: new `{"op":"replace"}`; old its [`Offer`], then an octet with each descriptor; new `release`; old
//! `released`; new `done`, when nothing of its start can fail any more; old `gone`; new `serves`; old `left`. Whoever goes on before
//! `release` has changed his mind. Only what has heard `gone` accepts connections, and only what has heard `serves` accepts none any
//! more, so no end of either leaves two that serve, or none. What has heard `left`, or that the old one has gone, says that it is
//! ready: from then on no new connection is the old one's, whatever becomes of that. The old one says why it does not go on: with a refusal, or with `ends` when it was told
//! to end meanwhile; then what is installed is the new one's to remove.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::{Deserialize, Serialize};

use crate::admin::{Refusal, Request};
use crate::config::Config;
use crate::exit::Failure;
use crate::host::lock::is_alive;
use crate::host::sockets::stream_to;
use crate::host::{HostError, Instance, Lock, PUNT_TUN, Paths, RELAY_TUN};

/// How long the other may take for what it does at once.
pub(super) const PROMPT: Duration = Duration::from_secs(30);
/// How long a start may take, unless the new process says otherwise.
pub(super) const START: Duration = Duration::from_secs(180);
/// How long the old one may take to accept nothing any more.
const LEAVING: Duration = Duration::from_secs(5);
/// The longest line.
pub(super) const LINE: usize = 64 * 1024;
/// Between two looks whether the old process has ended.
const PAUSE: Duration = Duration::from_millis(10);
/// From the end of a killed process's descriptors to its own.
const DYING: Duration = Duration::from_millis(500);

pub(super) const RELEASE: &str = "release";
pub(super) const RELEASED: &str = "released";
pub(super) const DONE: &str = "done";
pub(super) const GONE: &str = "gone";
pub(super) const SERVES: &str = "serves";
pub(super) const LEFT: &str = "left";
pub(super) const ENDS: &str = "ends";

/// What the old process has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub pid: u32,
    pub listen: u16,
    /// What follows, in this order.
    pub descriptors: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
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
    /// Where it can be asked.
    pub admin: PathBuf,
    /// It has said that it was told to end.
    ends: bool,
}

/// What becomes of the process whose place this one has failed to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on, and what is installed is its own.
    Lives,
    /// It was told to end, and has.
    Stopped,
    /// It ended by itself.
    Died,
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
        let mut stream = match stream_to(&running.admin) {
            Ok(stream) => stream,
            // It crashed: the lock says so, too.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(failed(io::Error::other(
                    "it hangs: as many as can have asked it, and it takes none",
                )));
            }
            Err(error) => return Err(failed(error)),
        };
        stream.set_read_timeout(Some(PROMPT)).map_err(failed)?;
        stream.set_write_timeout(Some(PROMPT)).map_err(failed)?;
        let request =
            serde_json::to_string(&Request::Replace { patience_ms: None }).map_err(Failure::refused)?;
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
        Ok(Some(Self { stream, pid: offer.pid, lock, inherited, admin: running.admin, ends: false }))
    }

    /// From here on it is this process that must get the fast road going.
    ///
    /// # Errors
    /// The old one cannot leave it; it goes on as before.
    pub fn release(&mut self) -> Result<(), Failure> {
        writeln!(self.stream, "{RELEASE}").map_err(|error| self.refused(&error))?;
        let answer = read_line(&self.stream);
        self.expect(RELEASED, answer)
    }

    /// This process is ready: from here on it accepts connections, too.
    ///
    /// # Errors
    /// The old one has not waited for so long, and goes on; or was told to end.
    pub fn depart(&mut self) -> Result<(), Failure> {
        // Where it cannot be written, the answer is there, or an end.
        drop(writeln!(self.stream, "{DONE}"));
        let answer = read_line(&self.stream).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                // What it has said by now, counts; what it says from now on, it will see to be in vain.
                self.stream.shutdown(Shutdown::Read)?;
                read_line(&self.stream)
            }
            _ => Err(error),
        });
        if answer.is_err() && !self.is_alive() {
            tracing::warn!(pid = self.pid, "the process before this one has ended by itself");
            return Ok(());
        }
        self.expect(GONE, answer)
    }

    /// This process serves: the old one takes nothing new any more, lets what runs on its relay finish, and ends.
    pub fn dismiss(mut self) -> Lock {
        if let Err(error) = self.lock.sign() {
            tracing::warn!(%error, "who meets the lock is told the process before this one");
        }
        // Where it cannot be written, the other has ended.
        drop(writeln!(self.stream, "{SERVES}"));
        drop(self.stream.set_read_timeout(Some(LEAVING)));
        match read_line(&self.stream) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                tracing::warn!(pid = self.pid, "the process before this one may still take connections");
            }
            // Or it has gone.
            _ => {}
        }
        self.lock
    }

    /// Whether the old one goes on, now that this one has failed.
    pub fn fate(&mut self) -> Fate {
        // What it may have said is there.
        drop(self.stream.set_read_timeout(Some(PAUSE)));
        let is_silent = loop {
            match read_line(&self.stream) {
                Ok(line) => self.ends |= line == ENDS,
                Err(error) => {
                    break matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        };
        // Who has hung up may have been killed: its descriptors are closed before it counts as dead.
        let patience = match (self.ends, is_silent) {
            (true, _) => PROMPT,
            (false, false) => DYING,
            (false, true) => Duration::ZERO,
        };
        let deadline = Instant::now() + patience;
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        match (self.is_alive(), self.ends) {
            (true, _) => Fate::Lives,
            (false, true) => Fate::Stopped,
            (false, false) => Fate::Died,
        }
    }

    fn is_alive(&self) -> bool {
        i32::try_from(self.pid).is_ok_and(is_alive)
    }

    /// Its answer is this word.
    fn expect(&mut self, word: &str, answer: io::Result<String>) -> Result<(), Failure> {
        let line = answer.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                self.refused(&"it has turned away")
            }
            _ => self.refused(&error),
        })?;
        if line == word {
            return Ok(());
        }
        self.ends |= line == ENDS;
        Err(match serde_json::from_str::<Refusal>(&line) {
            Ok(refusal) => self.refused(&refusal.error),
            Err(_) if self.ends => self.refused(&"it was told to end"),
            Err(_) => self.refused(&"its answer was not understood"),
        })
    }

    fn refused(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::refused(format!("process {} does not give its place: {why}", self.pid))
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
    // A socket with a timeout is told of what interrupts it: the kernel does not go on waiting by itself (signal(7)).
    rustix::io::retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut octet)];
        rustix::net::recvmsg(stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    };
    ancillary.drain().find_map(rights).ok_or_else(|| io::ErrorKind::InvalidData.into())
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

#[cfg(test)]
mod tests;
