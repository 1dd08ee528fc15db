//! Fragments of TCP are put together before anything looks at them (RFC 791 section 3.2, RFC 8200 section 4.5),
//! so that they are no way around a rule. Bounded: datagrams, pieces of each, time. An overlap discards the datagram
//! (RFC 5722, for IPv4 too). Called by the pipeline only.

use crate::drop::DropReason;
use crate::frame::Frame;
use crate::hold::Packet;
use crate::ids::{Nanos, PortId};
use crate::parse::{self, FragmentMeta, Parsed};
use crate::wire::addr::Addr;
use crate::wire::{self, ETH_LEN, IPPROTO_TCP, IPV6_FRAGMENT_LEN, IPV6_LEN, checksum};

/// The most pieces of one datagram: 64 KiB at the smallest usual MTU.
pub const MAX_PIECES: usize = 48;
/// How long the pieces of a datagram are waited for. The kernel waits 30 s; a gateway that holds frames cannot.
pub const TIMEOUT: Nanos = Nanos::from_secs(3);
/// A TCP header without options.
const TCP_MIN: u16 = 20;

#[derive(Debug)]
struct Piece<F> {
    frame: F,
    meta: FragmentMeta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    /// Pieces of one datagram come from one side.
    port: PortId,
    src: Addr,
    dst: Addr,
    id: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Datagram<F> {
    key: Option<Key>,
    deadline: Nanos,
    /// Length of the fragmentable part, known with the last piece.
    total: Option<u16>,
    pieces: Vec<Piece<F>>,
}

/// What came of a fragment.
#[derive(Debug)]
pub enum Reassembly<F> {
    /// Kept; more are missing.
    Pending,
    /// All are there: the segment in one frame.
    Tcp(Packet<F>),
    /// All are there, and behind extension headers it is not TCP.
    Other,
    /// So many fragments went to the pool, each for this reason.
    Dropped(DropReason, usize),
}

/// Datagrams under reassembly.
#[derive(Debug)]
pub struct Fragments<F> {
    slots: Vec<Datagram<F>>,
    used: usize,
}

impl<F: Frame> Fragments<F> {
    /// Room for `count` datagrams.
    pub fn new(count: usize) -> Self {
        let empty = || Datagram {
            key: None,
            deadline: Nanos(0),
            total: None,
            pieces: Vec::with_capacity(MAX_PIECES),
        };
        Self { slots: (0..count).map(|_| empty()).collect(), used: 0 }
    }

    /// Frames held.
    pub fn frames(&self) -> usize {
        if self.used == 0 { 0 } else { self.slots.iter().map(|d| d.pieces.len()).sum() }
    }

    /// Takes a fragment. When it completes a datagram, the whole is written into a frame of `pool` and the pieces go,
    /// in order of their offsets, to `pieces`. What is dropped goes to `pool`.
    pub fn push(
        &mut self,
        now: Nanos,
        frame: F,
        port: PortId,
        meta: FragmentMeta,
        pool: &mut Vec<F>,
        pieces: &mut Vec<F>,
    ) -> Reassembly<F> {
        let key = Key { port, src: meta.src, dst: meta.dst, id: meta.id, protocol: meta.protocol };
        let Some(datagram) = self.place(&key).and_then(|at| self.slots.get_mut(at)) else {
            pool.push(frame);
            return Reassembly::Dropped(DropReason::FragmentFull, 1);
        };
        if datagram.key.is_none() {
            datagram.key = Some(key);
            datagram.deadline = now.saturating_add(TIMEOUT);
            self.used += 1;
        }
        if datagram.has(&frame, &meta) {
            pool.push(frame);
            return Reassembly::Dropped(DropReason::FragmentDuplicate, 1);
        }
        let result = match datagram.add(frame, meta) {
            Ok(false) => return Reassembly::Pending,
            Ok(true) => datagram.join(port, pool),
            Err((reason, frame)) => {
                pool.push(frame);
                Err((reason, 1))
            }
        };
        self.used -= 1;
        match result {
            Ok(whole) => {
                pieces.extend(datagram.clear());
                whole.map_or(Reassembly::Other, Reassembly::Tcp)
            }
            Err((reason, others)) => {
                let count = others + datagram.pieces.len();
                pool.extend(datagram.clear());
                Reassembly::Dropped(reason, count)
            }
        }
    }

    /// Gives up datagrams whose time is over; returns how many frames went to `pool`.
    pub fn expire(&mut self, now: Nanos, pool: &mut Vec<F>) -> usize {
        if self.used == 0 {
            return 0;
        }
        let mut frames = 0;
        for datagram in self.slots.iter_mut().filter(|d| d.key.is_some() && d.deadline <= now) {
            frames += datagram.pieces.len();
            pool.extend(datagram.clear());
            self.used -= 1;
        }
        frames
    }

    fn place(&self, key: &Key) -> Option<usize> {
        self.slots
            .iter()
            .position(|d| d.key.as_ref() == Some(key))
            .or_else(|| self.slots.iter().position(|d| d.key.is_none()))
    }
}

impl<F: Frame> Datagram<F> {
    /// Empties the slot; its frames come out.
    fn clear(&mut self) -> impl Iterator<Item = F> + '_ {
        self.key = None;
        self.total = None;
        self.pieces.drain(..).map(|p| p.frame)
    }

    /// Whether this very piece has come before: a copy is no overlap (RFC 8200 section 4.5).
    fn has(&self, frame: &F, meta: &FragmentMeta) -> bool {
        self.pieces.iter().any(|p| {
            (p.meta.offset, p.meta.more) == (meta.offset, meta.more)
                && bytes_of(&p.frame, &p.meta) == bytes_of(frame, meta)
        })
    }

    /// Adds a piece; true when none is missing.
    fn add(&mut self, frame: F, meta: FragmentMeta) -> Result<bool, (DropReason, F)> {
        let (start, len) = (meta.offset, meta.end - meta.data);
        let end = u32::from(start) + u32::from(len);
        // All but the last come in units of eight octets; the first must hold the TCP header (RFC 1858, RFC 3128).
        let small = meta.protocol == IPPROTO_TCP && start == 0 && len < TCP_MIN;
        if len == 0 || end > 65_515 || (meta.more && len % 8 != 0) || small {
            return Err((DropReason::BadFragment, frame));
        }
        let end = end as u16;
        if self.pieces.len() == MAX_PIECES {
            return Err((DropReason::FragmentFull, frame));
        }
        let beyond = self.total.is_some_and(|total| end > total || (!meta.more && end != total));
        let overlaps = self.pieces.iter().any(|p| {
            let (s, e) = (p.meta.offset, p.meta.offset + (p.meta.end - p.meta.data));
            start < e && s < end || (!meta.more && e > end)
        });
        if beyond || overlaps {
            return Err((DropReason::FragmentOverlap, frame));
        }
        if !meta.more {
            self.total = Some(end);
        }
        self.pieces.push(Piece { frame, meta });
        let have: u32 = self.pieces.iter().map(|p| u32::from(p.meta.end - p.meta.data)).sum();
        let complete = self.total.is_some_and(|total| u32::from(total) == have);
        if complete {
            self.pieces.sort_unstable_by_key(|p| p.meta.offset);
        }
        Ok(complete)
    }

    /// The datagram in a frame of `pool`; `None` when it is not TCP. On an error the frame is in `pool` again.
    fn join(&self, port: PortId, pool: &mut Vec<F>) -> Result<Option<Packet<F>>, (DropReason, usize)> {
        let mut frame = pool.pop().ok_or((DropReason::NoFrame, 0))?;
        let fits = self.write(&self.pieces, &mut frame).is_some();
        // The chain of headers is in the first piece (RFC 7112), which tells whether it is TCP that does not fit.
        if !fits && self.write(self.pieces.get(..1).unwrap_or_default(), &mut frame).is_none() {
            pool.push(frame);
            return Err((DropReason::FragmentTooBig, 0));
        }
        let reason = match parse::parse(frame.data()) {
            Ok(Parsed::Tcp(mut meta)) if fits => {
                meta.reassembled = true;
                return Ok(Some(Packet { frame, port, meta }));
            }
            Ok(Parsed::NotTcp | Parsed::Icmp(_)) => {
                pool.push(frame);
                return Ok(None);
            }
            Ok(Parsed::Tcp(_)) => DropReason::FragmentTooBig,
            // A fragment of fragments: no sender makes such.
            Ok(Parsed::Fragment(_)) => DropReason::BadFragment,
            Err(reason) => reason,
        };
        pool.push(frame);
        Err((reason, 0))
    }

    fn write(&self, pieces: &[Piece<F>], frame: &mut F) -> Option<()> {
        let (first, last) = (pieces.first()?, pieces.last()?);
        let total = usize::from(last.meta.offset + (last.meta.end - last.meta.data));
        let v6 = first.meta.v6;
        let head_len = if v6 { first.meta.header } else { first.meta.data } as usize;
        if head_len + total > frame.capacity().min(usize::from(u16::MAX)) {
            return None;
        }
        frame.set_len(head_len + total);
        let bytes = frame.data_mut();
        wire::put(bytes, 0, first.frame.data().get(..head_len)?);
        for piece in pieces {
            wire::put(bytes, head_len + piece.meta.offset as usize, bytes_of(&piece.frame, &piece.meta));
        }
        if v6 {
            debug_assert!(first.meta.data == first.meta.header + IPV6_FRAGMENT_LEN as u16);
            wire::put(bytes, first.meta.named_at as usize, &[first.meta.protocol]);
            let len = (head_len + total).checked_sub(ETH_LEN + IPV6_LEN)? as u16;
            wire::put(bytes, ETH_LEN + 4, &len.to_be_bytes());
        } else {
            let len = (head_len - ETH_LEN + total) as u16;
            wire::put(bytes, ETH_LEN + 2, &len.to_be_bytes());
            wire::put(bytes, ETH_LEN + 6, &[0, 0]);
            wire::put(bytes, ETH_LEN + 10, &[0, 0]);
            let sum = !checksum::fold(checksum::sum(bytes.get(ETH_LEN..head_len)?, 0));
            wire::put(bytes, ETH_LEN + 10, &sum.to_be_bytes());
        }
        Some(())
    }
}

/// What a piece brings of its datagram.
fn bytes_of<'a, F: Frame>(frame: &'a F, meta: &FragmentMeta) -> &'a [u8] {
    frame.data().get(meta.data as usize..meta.end as usize).unwrap_or_default()
}
