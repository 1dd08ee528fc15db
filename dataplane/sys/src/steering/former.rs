//! Express lanes that a weir of another layout has left: their flows go on until they end, carried by the program that they were made for.
//!
//! Nothing is translated from one layout to another. The program of the other weir stays, pinned as its maps are, and stands behind this
//! one's: a packet that is of no flow in this lane goes on to the former lane's program (`express_next` in dataplane/bpf/express.h), and
//! what is of no flow there either comes back, to `weir_rest` of this program, which steers. Of several former lanes each leads to the
//! next. Since the other weir gives no sign of life any more, its program treats what is no plain segment as after a crash.
//! A SYN alone does not go there while there is a worker here: that knows which connection it would disturb ([`FormerLane::held`]).
//!
//! What this needs of the other layout is all that it may know of it, and holds in every layout from 8 on: the names of the pins; that
//! slot 0 of `express_next` is who comes next; the key, and how an entry begins ([`Head`]), by which it is seen when a flow has ended. A
//! lane of whose pins one is missing, or that the kernel does not tie to this one's, cannot be carried on.
//!
//! Devices and next hops are shared with former lanes whose layout of them is the same (`WAYS_LAYOUT`): these follow the host's changes.
//! Else they stay as they were.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::EbpfError;
use aya::maps::MapData;

use super::error::SteeringError;
use super::express::layout::{FIN, Head, Key, RST, TO_CLIENT, TRANSLATED, VOID};
use super::express::{Ends, SEEN_SHIFT};
use super::layout::LAYOUT;
use super::map::{Headed, Map};
use super::{REST, Steering, load_error, map_of, pin, xdp};

/// Its maps.
const FLOWS: &str = "express_flows";
/// The only slot of `express_next`.
pub(super) const NEXT: u32 = 0;
/// Entries read by one system call.
const ROOM: usize = 4096;

/// How long flows are kept without a packet, in ns.
#[derive(Clone, Copy, Debug)]
pub struct FormerTimes {
    /// Both ends have sent a FIN.
    pub closed: u64,
    /// One has sent an RST.
    pub reset: u64,
    /// Neither.
    pub idle: u64,
}

/// Flows that a former lane still has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub flows: u64,
    /// Of these, those that the kernel could not go on with.
    pub translated: u64,
}

/// A direction of a flow: where it goes, and by which next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormerFlow {
    pub came: (SocketAddr, SocketAddr),
    pub goes: (SocketAddr, SocketAddr),
    pub is_to_client: bool,
    pub hop: u16,
}

/// A layout whose lane cannot be carried on, and why.
pub type Refused = (u32, String);

/// A lane of another layout: cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub struct FormerLane {
    pub layout: u32,
    flows: Headed<Key, Head>,
    next: Map<u32, u32>,
    program: Arc<OwnedFd>,
}

/// The pins by which a lane is carried on.
pub(super) fn pins_of(folder: &Path, layout: u32) -> [PathBuf; 3] {
    let map = |map| pin::path_of(folder, map, layout);
    [map(FLOWS), map(pin::NEXT), pin::program_path(folder, layout)]
}

/// Other layouts of which a lane is there, the newest first.
pub(super) fn layouts(folder: &Path) -> Vec<u32> {
    let layout = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix(FLOWS)?.strip_prefix("-v")?.parse().ok()
    };
    let found = pin::pins(folder).unwrap_or_default();
    let mut layouts: Vec<u32> = found.iter().filter_map(layout).filter(|layout| *layout != LAYOUT).collect();
    layouts.retain(|layout| pins_of(folder, *layout).iter().all(|path| path.exists()));
    layouts.sort_unstable_by(|a, b| b.cmp(a));
    layouts
}

impl FormerLane {
    fn open(folder: &Path, layout: u32) -> Result<Self, SteeringError> {
        let [flows, next, program] = pins_of(folder, layout);
        let map =
            |path: &Path| MapData::from_pin(path).map_err(|error| failed(path, io::Error::other(error)));
        Ok(Self {
            layout,
            flows: Headed::new(FLOWS, &map(&flows)?)?,
            next: Map::new(pin::NEXT, &map(&next)?)?,
            program: Arc::new(pin::open_object(&program).map_err(|source| failed(&program, source))?),
        })
    }

    /// Its flows, for looking one up.
    pub(super) fn table(&self) -> Headed<Key, Head> {
        self.flows.clone()
    }

    /// Looks at all flows, at `now` (ns of CLOCK_MONOTONIC), and takes out those that have ended. Many system calls where there are
    /// many flows, one for about 4,000 that run.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn sweep(&self, now: u64, times: &FormerTimes) -> io::Result<Left> {
        let mut left = Left::default();
        self.read(|key, head| {
            if self.is_over(head, now, times)? {
                self.flows.remove(&head.back())?;
                self.flows.remove(key)?;
            } else if head.flags & TO_CLIENT == 0 {
                left.flows += 1;
                left.translated += u64::from(head.flags & TRANSLATED != 0);
            }
            Ok(())
        })?;
        Ok(left)
    }

    /// A connection of which these are the ends, in the direction from the first to the second, if it still carries one: source and
    /// destination of its packets as they go out. One that has ended is taken out, so that another of the same ends may begin.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn held(&self, (from, to): Ends) -> io::Result<Option<Ends>> {
        let key = Key::new(from, to);
        let Some(head) = self.flows.get(&key)? else { return Ok(None) };
        if head.flags & VOID == 0 && !has_ended(&head, self.flows.get(&head.back())?.as_ref()) {
            return Ok(Some(head.endpoints()));
        }
        self.flows.remove(&head.back())?;
        self.flows.remove(&key)?;
        Ok(None)
    }

    /// Calls `each` with every direction.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flows(&self, mut each: impl FnMut(FormerFlow)) -> io::Result<()> {
        self.read(|key, head| {
            let (came, goes) = (key.endpoints(), head.endpoints());
            each(FormerFlow { came, goes, is_to_client: head.flags & TO_CLIENT != 0, hop: head.hop });
            Ok(())
        })
    }

    fn is_over(&self, head: &Head, now: u64, times: &FormerTimes) -> io::Result<bool> {
        let is_quiet = |seen: u32, time: u64| (u64::from(seen) << SEEN_SHIFT).saturating_add(time) <= now;
        if head.flags & VOID == 0 && head.ended == 0 && !is_quiet(head.last_seen, times.idle) {
            return Ok(false);
        }
        let back = self.flows.get(&head.back())?;
        let seen = back.map_or(head.last_seen, |back| back.last_seen.max(head.last_seen));
        let flags = head.flags | back.map_or(0, |back| back.flags);
        let either = head.ended | back.map_or(0, |back| back.ended);
        let both = head.ended & back.map_or(FIN, |back| back.ended);
        let time = match (either & RST, both & FIN) {
            (0, 0) => times.idle,
            (0, _) => times.closed,
            _ => times.reset,
        };
        Ok(flags & VOID != 0 || is_quiet(seen, time))
    }

    fn read(&self, mut each: impl FnMut(&Key, &Head) -> io::Result<()>) -> io::Result<()> {
        let mut room = self.flows.room(ROOM);
        let mut at = None;
        loop {
            at = self.flows.read(at, &mut room)?;
            for (key, head) in room.entries() {
                each(&key, &head)?;
            }
            if at.is_none() {
                return Ok(());
            }
        }
    }
}

/// Whether a connection is known to have ended by what is noted of its two directions; so one is of which the other is gone.
pub(super) fn has_ended(head: &Head, back: Option<&Head>) -> bool {
    back.is_none_or(|back| (back.ended | head.ended) & RST != 0 || back.ended & head.ended & FIN != 0)
}

impl Steering {
    /// Ties the lanes that other layouts have left in [`Sizes::adopt`](super::Sizes::adopt) behind this one's, so that their flows go on;
    /// also none, where there is none any more. Before the program is on a device: it then takes the place of the one before without
    /// a packet missed. Returns them, and those that could not be tied, with the reason. Without a lane of its own the program has
    /// none behind it either.
    ///
    /// # Errors
    /// [`SteeringError::Load`], [`SteeringError::Map`].
    pub fn tie_former_lanes(&mut self) -> Result<(Vec<FormerLane>, Vec<Refused>), SteeringError> {
        let folder = self.adopt.clone().filter(|_| self.express.capacity() > 0);
        let mut refused = Vec::new();
        let mut lanes = Vec::new();
        for layout in folder.as_deref().map(layouts).unwrap_or_default() {
            match folder.as_deref().map(|folder| FormerLane::open(folder, layout)) {
                Some(Ok(lane)) => lanes.push(lane),
                Some(Err(error)) => refused.push((layout, error.to_string())),
                None => {}
            }
        }
        if !lanes.is_empty() {
            let rest = xdp(&mut self.ebpf, REST)?;
            rest.load().map_err(|error| load_error(EbpfError::ProgramError(error)))?;
        }
        self.former = lanes;
        refused.extend(self.tie()?);
        Ok((self.former.clone(), refused))
    }

    /// The last flow of a former lane has ended: its program and maps go, and their pins in `folder`.
    ///
    /// # Errors
    /// [`SteeringError::Map`], [`SteeringError::Pin`]; the lane then stays.
    pub fn end_former_lane(&mut self, folder: &Path, layout: u32) -> Result<(), SteeringError> {
        let Some(place) = self.former.iter().position(|lane| lane.layout == layout) else { return Ok(()) };
        let ended = self.former.remove(place);
        self.tie()?;
        for path in pins_of(folder, layout).iter().filter(|path| path.exists()) {
            pin::remove(path)?;
        }
        drop(ended);
        Ok(())
    }

    /// Each leads to the next, and the last to this program's rest. Those that cannot are left out, with the reason.
    fn tie(&mut self) -> Result<Vec<Refused>, SteeringError> {
        let first: Map<u32, u32> = map_of(&self.ebpf, pin::NEXT)?;
        let mut refused = Vec::new();
        if self.former.is_empty() {
            first.remove(&NEXT).map_err(SteeringError::of_map(pin::NEXT, "removing from"))?;
            return Ok(refused);
        }
        let rest = xdp(&mut self.ebpf, REST)?;
        let rest = rest.fd().map_err(|error| load_error(EbpfError::ProgramError(error)))?.as_fd();
        // From the last on: at no moment does the way lead round in a circle.
        let mut tied: Vec<FormerLane> = Vec::new();
        for lane in std::mem::take(&mut self.former).into_iter().rev() {
            let result = match tied.last() {
                Some(next) => lead(&lane.next, next.program.as_fd()),
                None => lead(&lane.next, rest),
            };
            match result {
                Ok(()) => tied.push(lane),
                Err(error) => refused.push((lane.layout, error.to_string())),
            }
        }
        tied.reverse();
        while let Some(lane) = tied.first() {
            match lead(&first, lane.program.as_fd()) {
                Ok(()) => break,
                Err(error) => refused.push((tied.remove(0).layout, error.to_string())),
            }
        }
        if tied.is_empty() {
            first.remove(&NEXT).map_err(SteeringError::of_map(pin::NEXT, "removing from"))?;
        }
        self.former = tied;
        Ok(refused)
    }
}

fn lead(next: &Map<u32, u32>, program: BorrowedFd<'_>) -> io::Result<()> {
    next.set(&NEXT, &u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX))
}

fn failed(path: &Path, source: io::Error) -> SteeringError {
    pin::error(path, "opening", source)
}
