//! The old process's side of [`super::handover`]: what it says to the one that takes its place, and hears from it, beside the event
//! loop, which goes on looking after the box. What is heard comes to [`super::end`], which decides.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc::Sender;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::end::End;
use super::handover::{Kind, LINE, Offer, PROMPT};
use super::parts::Parts;
use crate::admin::Refusal;
use crate::host::Lock;

/// How long a line may take to be written: there is room for it.
const WRITE: Duration = Duration::from_secs(1);
/// As long as the other lives.
const UNBOUNDED: Duration = Duration::from_secs(u32::MAX as u64);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The other has what cannot be made twice, and this process all that it had.
    Offered,
    /// The other gets the fast road going, and the kernel's side is its own. The relay serves here.
    Released,
    /// The other may serve, too. It cannot be taken back, unless it ends.
    Granted,
}

/// A place that is being given away.
#[derive(Debug)]
pub(super) struct Giving {
    stream: Rc<UnixStream>,
    ends: Sender<End>,
    /// How long the other's start may take.
    patience: Duration,
    pub stage: Stage,
}

impl Giving {
    /// Offers what there is.
    ///
    /// # Errors
    /// No more descriptors. The other has been told.
    pub async fn begin(
        stream: UnixStream,
        (parts, lock): (&Parts, &Lock),
        patience: Duration,
        ends: Sender<End>,
    ) -> io::Result<Self> {
        let giving = Self { stream: Rc::new(stream), ends, patience, stage: Stage::Offered };
        let offered = match collect(parts, lock) {
            Ok(offered) => offered,
            Err(error) => {
                giving.refuse(format!("what it would give cannot be duplicated: {error}")).await;
                return Err(error);
            }
        };
        let (stream, ends) = (giving.stream.clone(), giving.ends.clone());
        spawn_local(async move {
            let given = timeout(PROMPT, give(&stream, &offered)).await;
            let heard = match given {
                Ok(Ok(())) => hear(&stream, PROMPT).await,
                _ => None,
            };
            drop(ends.send(End::Heard(heard)).await);
        });
        Ok(giving)
    }

    /// Says that the next stage is reached, and listens on. Whether the other is still there.
    pub async fn reaches(&mut self, stage: Stage, word: &str) -> bool {
        if say(&self.stream, word).await.is_err() {
            return false;
        }
        self.stage = stage;
        let patience = if stage == Stage::Granted { UNBOUNDED } else { self.patience };
        let (stream, ends) = (self.stream.clone(), self.ends.clone());
        spawn_local(async move {
            let heard = hear(&stream, patience).await;
            drop(ends.send(End::Heard(heard)).await);
        });
        true
    }

    /// Says why the place is not given.
    pub async fn refuse(&self, why: String) {
        refuse(&self.stream, why).await;
    }

    /// Says a last word.
    pub async fn say(&self, word: &str) {
        // Whoever has gone does not miss it.
        drop(say(&self.stream, word).await);
    }
}

/// Tells another that it does not get this one's place.
pub(super) async fn refuse(stream: &UnixStream, why: String) {
    if let Ok(line) = serde_json::to_string(&Refusal { error: why }) {
        drop(say(stream, &line).await);
    }
}

/// What there is.
fn collect(parts: &Parts, lock: &Lock) -> io::Result<(Offer, Vec<OwnedFd>)> {
    let mut all = vec![(Kind::Lock, lock.descriptor()?)];
    all.extend(parts.relay_listeners()?.into_iter().map(|listener| (Kind::Listener, listener)));
    for (kind, tun) in [Kind::RelayTun, Kind::PuntTun].into_iter().zip(parts.tuns()) {
        all.push((kind, tun.descriptor()?));
    }
    let (kinds, descriptors) = all.into_iter().unzip();
    let listen = parts.config.fallback.listen;
    Ok((Offer { pid: std::process::id(), listen, descriptors: kinds }, descriptors))
}

async fn give(stream: &UnixStream, (offer, descriptors): &(Offer, Vec<OwnedFd>)) -> io::Result<()> {
    write(stream, &serde_json::to_string(offer)?).await?;
    for descriptor in descriptors {
        stream.async_io(Interest::WRITABLE, || send(stream, descriptor.as_fd())).await?;
    }
    Ok(())
}

fn send(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(stream, &[IoSlice::new(b"d")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

async fn say(stream: &UnixStream, line: &str) -> io::Result<()> {
    timeout(WRITE, write(stream, line)).await?
}

async fn write(stream: &UnixStream, line: &str) -> io::Result<()> {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next line; none when the other has gone, or says nothing for so long.
async fn hear(stream: &UnixStream, patience: Duration) -> Option<String> {
    let line = async {
        let (mut line, mut octet) = (Vec::new(), [0; 1]);
        while line.len() < LINE {
            stream.readable().await.ok()?;
            match stream.try_read(&mut octet) {
                Ok(0) => return None,
                Ok(_) if octet == *b"\n" => return String::from_utf8(line).ok(),
                Ok(_) => line.push(octet[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        None
    };
    timeout(patience, line).await.ok().flatten()
}
