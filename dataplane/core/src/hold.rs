//! The client's first bytes, held until there is a verdict (DESIGN section 5), and remembered until the server has
//! acknowledged them, so that what the server receives is what was inspected.
//!
//! A fixed number of holds, each with a buffer for the contiguous reading and room for a bounded number of frames.
//! Called by the pipeline only.

use std::ops::Range;

use crate::ids::PortId;
use crate::inspect::{Found, Inspector, Outcome};
use crate::parse::Meta;
use crate::tcp::options;
use crate::tcp::reassembly::Ranges;
use crate::tcp::seq::Seq;

/// The most frames a hold keeps; more wait at the client.
pub const MAX_FRAMES: usize = 64;

/// A frame, where it came in, and what it is.
#[derive(Debug)]
pub struct Packet<F> {
    pub frame: F,
    pub port: PortId,
    pub meta: Meta,
}

/// Why a segment was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Outside of what can be held.
    OutOfWindow,
    /// No room for another frame or range.
    Full,
    /// Other bytes than came before for the same sequence numbers.
    Changed,
    /// Nothing that is not held already.
    Duplicate,
}

/// One connection's first bytes.
#[derive(Debug)]
pub struct Hold<F> {
    is_open: bool,
    /// The sequence number of the first octet.
    pub start: Seq,
    /// The most octets.
    pub budget: u32,
    /// Where a held FIN ends the stream, in octets from `start`.
    fin: Option<u32>,
    /// Octets that the verdict was taken on, once there is one.
    inspected: Option<u32>,
    /// Where what is read now begins: 0, or the octet of the second hello.
    from: u32,
    ranges: Ranges,
    inspector: Inspector,
    pub frames: Vec<Packet<F>>,
}

impl<F> Hold<F> {
    fn empty() -> Self {
        Self {
            is_open: false,
            start: Seq(0),
            budget: 0,
            fin: None,
            inspected: None,
            from: 0,
            ranges: Ranges::default(),
            inspector: Inspector::default(),
            frames: Vec::with_capacity(MAX_FRAMES),
        }
    }
}

/// Memory for holds, made where there is time for that.
#[derive(Debug)]
pub struct Room<F> {
    slots: Vec<Hold<F>>,
    free: Vec<u32>,
    bytes: Vec<u8>,
    /// Of each hold.
    octets: usize,
}

impl<F> Room<F> {
    /// For `count` holds of up to `octets` octets each.
    pub fn new(count: usize, octets: usize) -> Self {
        Self {
            slots: (0..count).map(|_| Hold::empty()).collect(),
            free: (0..count as u32).rev().collect(),
            bytes: vec![0; count * octets],
            octets,
        }
    }

    /// How many holds it has room for, and of how many octets.
    pub fn size(&self) -> (usize, usize) {
        (self.slots.len(), self.octets)
    }
}

/// All holds of a worker.
#[derive(Debug)]
pub struct Holds<F> {
    slots: Vec<Hold<F>>,
    free: Vec<u32>,
    /// One buffer of `room` octets a slot.
    bytes: Vec<u8>,
    room: usize,
    /// Holds in use at a time.
    most: usize,
    frames: usize,
    max_frames: usize,
}

impl<F> Holds<F> {
    /// `count` holds of up to `room` octets each, with at most `max_frames` frames in all.
    pub fn new(count: usize, room: usize, max_frames: usize) -> Self {
        let Room { slots, free, bytes, octets } = Room::new(count, room);
        Self { slots, free, bytes, room: octets, most: count, frames: 0, max_frames }
    }

    /// From now on there are `count` holds, as far as there is memory for them; those in use keep what they have.
    pub fn set_most(&mut self, count: usize) {
        self.most = count.min(self.slots.len());
    }

    /// Takes larger memory in the place of its own, which is then in `fresh`. Nothing is allocated and nothing freed. One that
    /// is smaller in either way is left where it is.
    pub fn take_room(&mut self, fresh: &mut Room<F>) {
        if fresh.slots.len() < self.slots.len() || fresh.octets < self.room {
            return;
        }
        for (id, (old, new)) in self.slots.iter_mut().zip(&mut fresh.slots).enumerate() {
            if old.is_open {
                std::mem::swap(old, new);
                let bytes = self.bytes.get(id * self.room..(id + 1) * self.room).unwrap_or_default();
                crate::wire::put(&mut fresh.bytes, id * fresh.octets, bytes);
            }
        }
        std::mem::swap(&mut self.slots, &mut fresh.slots);
        std::mem::swap(&mut self.bytes, &mut fresh.bytes);
        std::mem::swap(&mut self.free, &mut fresh.free);
        std::mem::swap(&mut self.room, &mut fresh.octets);
        self.free.clear();
        let slots = self.slots.iter().enumerate().rev();
        self.free.extend(slots.filter(|(_, hold)| !hold.is_open).map(|(id, _)| id as u32));
    }

    /// Octets that so many holds of that room hold.
    pub const fn octets(count: usize, room: usize) -> usize {
        let slot = size_of::<Hold<F>>() + MAX_FRAMES * size_of::<Packet<F>>() + size_of::<u32>();
        count.saturating_mul(slot.saturating_add(room))
    }

    /// Holds in use, and frames in them.
    pub fn in_use(&self) -> (usize, usize) {
        (self.slots.len() - self.free.len(), self.frames)
    }

    /// Whether more than half of them are in use.
    pub fn is_crowded(&self) -> bool {
        2 * self.in_use().0 > self.most
    }

    /// The most octets of one hold.
    pub const fn room(&self) -> usize {
        self.room
    }

    /// Takes a hold for a connection whose first octet is `start`.
    pub fn open(&mut self, start: Seq, budget: u32) -> Option<u32> {
        if self.slots.len() - self.free.len() >= self.most {
            return None;
        }
        let id = self.free.pop()?;
        let hold = self.slots.get_mut(id as usize)?;
        hold.is_open = true;
        hold.start = start;
        hold.budget = budget.min(self.room as u32);
        hold.fin = None;
        hold.inspected = None;
        hold.from = 0;
        hold.ranges = Ranges::default();
        hold.inspector = Inspector::default();
        Some(id)
    }

    /// Gives the hold back; its frames go to `out`. Returns how many there were.
    pub fn close(&mut self, id: u32, out: &mut Vec<F>) -> usize {
        let Some(hold) = self.slots.get_mut(id as usize) else { return 0 };
        hold.is_open = false;
        let count = self.drop_frames(id, out);
        self.free.push(id);
        count
    }

    /// Gives the hold's frames to `out`, and keeps its bytes. Returns how many there were.
    pub fn drop_frames(&mut self, id: u32, out: &mut Vec<F>) -> usize {
        let Some(hold) = self.slots.get_mut(id as usize) else { return 0 };
        let count = hold.frames.len();
        self.frames -= count;
        out.extend(hold.frames.drain(..).map(|p| p.frame));
        count
    }

    /// Takes the held frames out, in the order of their sequence numbers; the bytes stay for comparison.
    pub fn release(&mut self, id: u32, out: &mut Vec<Packet<F>>) {
        let Some(hold) = self.slots.get_mut(id as usize) else { return };
        self.frames -= hold.frames.len();
        let start = hold.start;
        hold.frames.sort_unstable_by_key(|p| p.meta.seq.since(start));
        out.append(&mut hold.frames);
    }

    /// As [`Self::release`], but only frames whose payload ends within the first `upto` octets.
    pub fn release_some(&mut self, id: u32, upto: u32, out: &mut Vec<Packet<F>>) {
        let Some(hold) = self.slots.get_mut(id as usize) else { return };
        let start = hold.start;
        hold.frames.sort_unstable_by_key(|p| p.meta.seq.since(start));
        let some = hold.frames.iter().take_while(|p| payload_end(p, start) <= i64::from(upto)).count();
        self.frames -= some;
        out.extend(hold.frames.drain(..some));
    }

    /// Whether a held frame begins before octet `at` and goes on behind octet `upto`.
    pub fn has_frame_across(&self, id: u32, at: u32, upto: u32) -> bool {
        self.get(id).is_some_and(|h| {
            let mut frames = h.frames.iter();
            frames.any(|p| {
                i64::from(p.meta.seq.since(h.start)) < i64::from(at)
                    && payload_end(p, h.start) > i64::from(upto)
            })
        })
    }

    /// The octets that are held without a gap.
    pub fn reading(&self, id: u32) -> &[u8] {
        let base = id as usize * self.room;
        self.bytes.get(base..base + self.contiguous(id) as usize).unwrap_or_default()
    }

    pub fn get(&self, id: u32) -> Option<&Hold<F>> {
        self.slots.get(id as usize)
    }

    /// Octets held without a gap.
    pub fn contiguous(&self, id: u32) -> u32 {
        self.get(id).map_or(0, |h| h.ranges.contiguous())
    }

    /// The verdict is taken on what is held now; what comes later was not inspected.
    pub fn seal(&mut self, id: u32) {
        if let Some(hold) = self.slots.get_mut(id as usize) {
            hold.inspected.get_or_insert(hold.ranges.contiguous());
        }
    }

    /// The first `octets` were inspected, and the rest was not.
    pub fn seal_at(&mut self, id: u32, octets: u32) {
        if let Some(hold) = self.slots.get_mut(id as usize) {
            hold.inspected = Some(octets);
        }
    }

    /// From now on another hello is read, which begins at octet `at`.
    pub fn read_from(&mut self, id: u32, at: u32) {
        if let Some(hold) = self.slots.get_mut(id as usize) {
            (hold.from, hold.inspector) = (at, Inspector::default());
        }
    }

    /// Octets that were inspected.
    pub fn inspected(&self, id: u32) -> u32 {
        self.get(id).map_or(0, |h| h.inspected.unwrap_or_else(|| h.ranges.contiguous()))
    }

    /// Whether all octets are held up to the client's FIN, or up to the budget: more will not come.
    pub fn is_complete(&self, id: u32) -> bool {
        self.get(id).is_some_and(|h| {
            let contiguous = h.ranges.contiguous();
            contiguous >= h.budget || h.fin.is_some_and(|fin| fin <= contiguous)
        })
    }

    /// Whether any octet or FIN is held.
    pub fn holds_any(&self, id: u32) -> bool {
        self.get(id).is_some_and(|h| !h.frames.is_empty())
    }

    /// Takes a segment's bytes into the reading and its frame into the hold. On refusal the frame comes back. `payload` may
    /// leave out what stands before the hold.
    pub fn push(
        &mut self,
        id: u32,
        packet: Packet<F>,
        payload: Range<usize>,
    ) -> Result<(), (Refused, Packet<F>)>
    where
        F: crate::frame::Frame,
    {
        if self.frames >= self.max_frames {
            return Err((Refused::Full, packet));
        }
        let left_out = payload.start.saturating_sub(usize::from(packet.meta.payload));
        let seq = packet.meta.seq.add(left_out as u32);
        let bytes = packet.frame.data().get(payload).unwrap_or_default();
        let fin = packet.meta.flags.fin();
        match self.take_bytes(id, seq, bytes, fin) {
            Err(refused) => Err((refused, packet)),
            Ok(()) => {
                self.frames += 1;
                if let Some(hold) = self.slots.get_mut(id as usize) {
                    if fin {
                        let end = packet.meta.seq.add(packet.meta.payload_len()).since(hold.start);
                        hold.fin = u32::try_from(end).ok();
                    }
                    hold.frames.push(packet);
                }
                Ok(())
            }
        }
    }

    fn take_bytes(&mut self, id: u32, seq: Seq, bytes: &[u8], fin: bool) -> Result<(), Refused> {
        let room = self.room;
        let hold = self.slots.get_mut(id as usize).ok_or(Refused::Full)?;
        if hold.frames.len() >= MAX_FRAMES {
            return Err(Refused::Full);
        }
        let offset = seq.since(hold.start);
        let end = i64::from(offset) + bytes.len() as i64;
        // A segment may go beyond the budget (the reading ends there), but it must begin within.
        if offset < 0 || i64::from(offset) > i64::from(hold.budget) {
            return Err(Refused::OutOfWindow);
        }
        let (start, end) = (offset as u32, end.min(i64::from(hold.budget)) as u32);
        let base = id as usize * room;
        let buffer = self.bytes.get_mut(base..base + room).ok_or(Refused::Full)?;
        if differs(&hold.ranges, buffer, start, end, bytes) {
            return Err(Refused::Changed);
        }
        // A frame is kept for what it brings: repetitions would fill the box.
        let brings_fin = fin && hold.fin.is_none();
        if !brings_fin && (start < end && hold.ranges.covers(start, end) || bytes.is_empty()) {
            return Err(Refused::Duplicate);
        }
        hold.ranges.add(start, end).map_err(|_| Refused::Full)?;
        let len = end.saturating_sub(start) as usize;
        crate::wire::put(buffer, start as usize, bytes.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Whether a segment brings, for sequence numbers that were inspected, other bytes.
    pub fn changed(&self, id: u32, seq: Seq, bytes: &[u8]) -> bool {
        let Some(hold) = self.get(id) else { return false };
        let base = id as usize * self.room;
        let Some(buffer) = self.bytes.get(base..base + self.room) else { return false };
        let from = i64::from(seq.since(hold.start));
        let skip = (-from).clamp(0, bytes.len() as i64);
        let start = (from + skip) as u32;
        let bytes = bytes.get(skip as usize..).unwrap_or_default();
        let end = start.saturating_add(bytes.len() as u32).min(hold.budget);
        differs(&hold.ranges, buffer, start, end, bytes)
    }

    /// The newest TSecr of the frames held: the last clock that their sender saw (RFC 7323 section 4.3).
    pub fn last_echo(&self, id: u32) -> Option<u32>
    where
        F: crate::frame::Frame,
    {
        let echo = |p: &Packet<F>| options::timestamps(p.meta.options_of(p.frame.data())).map(|ts| ts.ecr);
        let newer = |a: u32, b: u32| if (b.wrapping_sub(a) as i32) > 0 { b } else { a };
        self.get(id)?.frames.iter().filter_map(echo).reduce(newer)
    }

    /// What the reading was found to be, read anew.
    pub fn found(&self, id: u32) -> Option<Found> {
        let hold = self.get(id)?;
        let base = id as usize * self.room;
        let prefix = self.bytes.get(base + hold.from as usize..base + hold.ranges.contiguous() as usize)?;
        match Inspector::default().inspect(prefix, hold.budget.saturating_sub(hold.from) as usize) {
            Outcome::Done(found) => Some(found),
            Outcome::More => None,
        }
    }

    /// Shows the reading so far to the inspector.
    pub fn inspect(&mut self, id: u32) -> Outcome {
        let base = id as usize * self.room;
        let Some(hold) = self.slots.get_mut(id as usize) else { return Outcome::More };
        let len = hold.ranges.contiguous() as usize;
        let prefix = self.bytes.get(base + hold.from as usize..base + len).unwrap_or_default();
        hold.inspector.inspect(prefix, hold.budget.saturating_sub(hold.from) as usize)
    }
}

/// Where a frame's payload ends, in octets from `start`.
fn payload_end<F>(packet: &Packet<F>, start: Seq) -> i64 {
    i64::from(packet.meta.seq.since(start)) + i64::from(packet.meta.payload_len())
}

/// Whether `bytes`, which stand at `[start, end)`, differ from what `buffer` has there.
fn differs(ranges: &Ranges, buffer: &[u8], start: u32, end: u32, bytes: &[u8]) -> bool {
    ranges.overlap(start, end).any(|(s, e)| {
        let new = bytes.get((s - start) as usize..(e - start) as usize);
        buffer.get(s as usize..e as usize) != new
    })
}
