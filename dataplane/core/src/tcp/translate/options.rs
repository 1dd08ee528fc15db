//! The options of a segment, brought from one leg to the other.

use super::{BEHIND, TimestampMode, Translation, widen};
use crate::drop::DropReason;
use crate::frame::Frame;
use crate::ids::Nanos;
use crate::parse::Meta;
use crate::tcp::options::{
    self, ALIGNED_TIMESTAMPS, NOP, SACK, TIMESTAMPS, TIMESTAMPS_LEN, TcpOption, Timestamps,
};
use crate::tcp::seq::Seq;
use crate::wire::checksum::Change;
use crate::wire::{get_u32, patch, put};

/// The most octets of options that the data offset allows.
const MAX_OPTIONS: usize = 40;
/// As an index.
const INSERTED: usize = super::INSERTED as usize;
/// The most SACK blocks that fit beside timestamps (RFC 2018 section 3).
const BLOCKS_BESIDE_TIMESTAMPS: usize = 3;

impl Translation {
    /// Returns what the edits do to TCP's checksum.
    pub(super) fn options_to_server(&mut self, bytes: &mut [u8], meta: &Meta) -> Change {
        let sacks_stay = self.sack && self.delta == 0;
        if meta.options_of(bytes).is_empty() || (sacks_stay && self.timestamps == TimestampMode::None) {
            return Change::NONE;
        }
        let mut area = Area::read(meta.options_of(bytes));
        let old = area;
        for option in options::walk(old.octets()) {
            match (option.kind, option.len) {
                (SACK, _) if !self.sack => area.remove(option),
                (SACK, _) if self.delta != 0 => {
                    let (delta, base) = (self.delta, self.base);
                    area.map_blocks(option, |edge| Seq(edge.0.wrapping_sub(delta)), base, BEHIND);
                }
                (TIMESTAMPS, TIMESTAMPS_LEN) => self.timestamps_to_server(&mut area, option, meta),
                _ => {}
            }
        }
        area.write(bytes, meta)
    }

    fn timestamps_to_server(&mut self, area: &mut Area, option: TcpOption, meta: &Meta) {
        let Some(sent) = area.timestamps(option) else { return };
        match &mut self.timestamps {
            TimestampMode::None => {}
            TimestampMode::Both { offset, first } => {
                // Without ACK, TSecr says nothing (RFC 7323 section 3.2).
                if meta.flags.ack() {
                    let ecr = Seq(sent.ecr.wrapping_sub(*offset));
                    let ecr = if self.acked { ecr } else { ecr.max(Seq(*first)) };
                    area.put(option.at + 6, &ecr.0.to_be_bytes());
                }
            }
            TimestampMode::ClientOnly { echo, .. } => {
                *echo = Seq(*echo).max(Seq(sent.val)).0;
                area.remove(option);
            }
        }
    }

    /// As [`Translation::options_to_server`]; the segment may grow by an option.
    pub(super) fn options_to_client<F: Frame>(
        &self,
        frame: &mut F,
        meta: &mut Meta,
        now: Nanos,
    ) -> Result<Change, DropReason> {
        let prefix = i32::try_from(self.prefix).unwrap_or(i32::MAX);
        if self.timestamps == TimestampMode::None && prefix == 0 {
            return Ok(Change::NONE);
        }
        let mut area = Area::read(meta.options_of(frame.data()));
        let old = area;
        let mut has_timestamps = false;
        for option in options::walk(old.octets()) {
            match (option.kind, option.len) {
                (SACK, _) if prefix > 0 => area.map_blocks(option, |edge| edge, self.start, prefix),
                (TIMESTAMPS, TIMESTAMPS_LEN) => {
                    has_timestamps = true;
                    self.timestamps_to_client(&mut area, option, now);
                }
                _ => {}
            }
        }
        match self.own_timestamps(now) {
            Some(own) if !has_timestamps && self.growth(meta) > 0 => insert(frame, meta, area, own),
            _ => Ok(area.write(frame.data_mut(), meta)),
        }
    }

    fn timestamps_to_client(&self, area: &mut Area, option: TcpOption, now: Nanos) {
        let Some(sent) = area.timestamps(option) else { return };
        let offset = if let TimestampMode::Both { offset, .. } = self.timestamps { offset } else { 0 };
        let own = self.own_timestamps(now);
        let seen = own.unwrap_or(Timestamps { val: sent.val.wrapping_add(offset), ecr: sent.ecr });
        area.put(option.at + 2, &seen.val.to_be_bytes());
        area.put(option.at + 6, &seen.ecr.to_be_bytes());
    }

    /// The timestamps that weir makes for the client, where the server makes none.
    pub fn own_timestamps(&self, now: Nanos) -> Option<Timestamps> {
        let TimestampMode::ClientOnly { base, echo, .. } = self.timestamps else { return None };
        Some(Timestamps { val: base.wrapping_add((now.0 / 1_000_000) as u32), ecr: echo })
    }
}

/// Puts a timestamps option before the options in `area`.
fn insert<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    mut area: Area,
    own: Timestamps,
) -> Result<Change, DropReason> {
    if area.len + INSERTED > MAX_OPTIONS {
        area = area.condensed().ok_or(DropReason::Untranslatable)?;
    }
    let mut wider = Area { octets: [NOP; MAX_OPTIONS], len: area.len + INSERTED };
    wider.put(0, &ALIGNED_TIMESTAMPS);
    wider.put(4, &own.val.to_be_bytes());
    wider.put(8, &own.ecr.to_be_bytes());
    wider.put(INSERTED, area.octets());
    let had = usize::from(meta.payload - meta.l4).saturating_sub(20);
    let old = Area::read(meta.options_of(frame.data()));
    let mut change = Change::NONE;
    if wider.len > had {
        change += widen(frame, meta, (wider.len - had) as u16)?;
    }
    put(frame.data_mut(), usize::from(meta.l4) + 20, wider.octets());
    change += Change::of(old.octets(), wider.octets());
    Ok(change)
}

/// A copy of a segment's options. It starts on an even offset of the segment, so that it can be summed whole; within it,
/// options stand where they like.
#[derive(Clone, Copy, Debug)]
struct Area {
    octets: [u8; MAX_OPTIONS],
    len: usize,
}

impl Area {
    fn read(options: &[u8]) -> Self {
        let mut area = Self { octets: [0; MAX_OPTIONS], len: options.len().min(MAX_OPTIONS) };
        put(&mut area.octets, 0, options.get(..area.len).unwrap_or_default());
        area
    }

    fn octets(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        put(&mut self.octets, at, value);
    }

    /// Overwrites octets with NOPs.
    fn fill(&mut self, from: usize, to: usize) {
        if let Some(octets) = self.octets.get_mut(from..to) {
            octets.fill(NOP);
        }
    }

    fn remove(&mut self, option: TcpOption) {
        self.fill(option.at, option.at + option.len);
    }

    fn timestamps(&self, option: TcpOption) -> Option<Timestamps> {
        let (val, ecr) = (get_u32(&self.octets, option.at + 2)?, get_u32(&self.octets, option.at + 6)?);
        Some(Timestamps { val, ecr })
    }

    /// Maps the edges of SACK blocks, and removes the blocks that end no further than `floor`; one that only starts before it
    /// then starts there. `behind`: how far before `floor` is before it. An option of an impossible length is removed.
    fn map_blocks(&mut self, option: TcpOption, map: impl Fn(Seq) -> Seq, floor: Seq, behind: i32) {
        if option.len < 10 || option.len % 8 != 2 {
            return self.remove(option);
        }
        let is_below = |edge: Seq| (-behind..=0).contains(&edge.since(floor));
        let mut kept = option.at + 2;
        for at in (option.at + 2..option.at + option.len).step_by(8) {
            let edges = (get_u32(&self.octets, at), get_u32(&self.octets, at + 4));
            let (Some(left), Some(right)) = edges else { return };
            let (left, right) = (map(Seq(left)), map(Seq(right)));
            if is_below(right) {
                continue;
            }
            let left = if is_below(left) { floor } else { left };
            self.put(kept, &left.0.to_be_bytes());
            self.put(kept + 4, &right.0.to_be_bytes());
            kept += 8;
        }
        if kept == option.at + 2 {
            return self.remove(option);
        }
        self.put(option.at + 1, &[(kept - option.at) as u8]);
        self.fill(kept, option.at + option.len);
    }

    /// The same options without NOPs and with as few SACK blocks as fit beside timestamps; `None` when they still do not.
    fn condensed(&self) -> Option<Self> {
        let mut small = Self { octets: [NOP; MAX_OPTIONS], len: MAX_OPTIONS - INSERTED };
        let mut at = 0;
        for option in options::walk(self.octets()) {
            let most = if option.kind == SACK { 2 + 8 * BLOCKS_BESIDE_TIMESTAMPS } else { option.len };
            let len = option.len.min(most);
            if at + len > small.len {
                return None;
            }
            small.put(at, self.octets.get(option.at..option.at + len)?);
            small.put(at + 1, &[len as u8]);
            at += len;
        }
        Some(small)
    }

    /// Writes the options back to where they came from.
    fn write(&self, bytes: &mut [u8], meta: &Meta) -> Change {
        patch::set(bytes, usize::from(meta.l4) + 20, self.octets())
    }
}
