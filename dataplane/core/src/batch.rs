//! Segments that are handled together.
//!
//! Frames and what was read from them stand apart: of a frame that leaves again nothing else is moved. Filled by the worker, emptied
//! by [`crate::pipeline::Pipeline::handle_batch`].

use crate::flow::key::FlowHasher;
use crate::hold::Packet;
use crate::hops::Hop;
use crate::ids::PortId;
use crate::parse::{self, Meta};

/// What is known of a frame that has come in.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub meta: Meta,
    /// Where it came in.
    pub port: PortId,
    /// Its checksum was filled in here.
    pub(crate) unsummed: bool,
    /// The slot to look at first for its connection.
    pub(crate) likely: u32,
    /// [`FlowHasher::hash_of`] its tuple: it has chosen the worker too.
    pub hash: u64,
    /// Its way out, once that is known.
    pub(crate) hop: Hop,
}

impl Seen {
    /// Nothing.
    const NONE: Self = Self::new(PortId(u8::MAX), Meta::NONE, 0);

    pub const fn new(port: PortId, meta: Meta, hash: u64) -> Self {
        Self { meta, port, hash, likely: u32::MAX, unsummed: false, hop: Hop::NONE }
    }

    /// Reads a frame that came by `port`. `false`: it is no plain segment, and this is worth nothing.
    #[inline(always)]
    pub fn read(&mut self, frame: &[u8], port: PortId, hasher: &FlowHasher) -> bool {
        let is_plain = parse::plain_into(frame, &mut self.meta);
        if is_plain {
            self.hash = hasher.hash_of(&self.meta.tuple);
            (self.port, self.unsummed) = (port, false);
        }
        is_plain
    }

    /// The frame and what is known of it, as the stages pass it on.
    #[inline]
    pub const fn packet<F>(&self, frame: F) -> Packet<F> {
        Packet { frame, port: self.port, meta: self.meta }
    }
}

/// Segments in the order in which they came.
#[derive(Debug)]
pub struct Batch<F> {
    pub(crate) frames: Vec<F>,
    /// Of each frame; behind them is what was of others.
    pub(crate) seen: Vec<Seen>,
}

impl<F> Batch<F> {
    /// Room for `capacity` segments.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { frames: Vec::with_capacity(capacity), seen: vec![Seen::NONE; capacity] }
    }

    /// Where what is known of the next frame is to stand; then [`Self::push_read`].
    #[inline]
    pub fn spare(&mut self) -> Option<&mut Seen> {
        let at = self.frames.len();
        if at >= self.seen.len() {
            self.seen.resize(at + 1, Seen::NONE);
        }
        self.seen.get_mut(at)
    }

    /// A frame of which [`Self::spare`] holds what was read.
    #[inline]
    pub fn push_read(&mut self, frame: F) {
        self.frames.push(frame);
    }

    /// A packet that was read elsewhere.
    pub fn push_packet(&mut self, packet: Packet<F>, hasher: &FlowHasher) {
        self.seen.truncate(self.frames.len());
        self.seen.push(Seen::new(packet.port, packet.meta, hasher.hash_of(&packet.meta.tuple)));
        self.frames.push(packet.frame);
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
