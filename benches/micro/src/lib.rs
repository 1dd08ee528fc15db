//! What single steps of weir cost in memory, without a device: the cases, and how they are counted.
//!
//! A [`Case`] does one batch of the same work again and again. `src/main.rs` takes its time, its allocations and (by running
//! itself under callgrind) its instructions; the criterion benchmark of weir-benches runs the same cases.
//!
//! Where the 366 instructions of a packet of an established connection go (`pipeline/*`; it was 634): 80 to read the headers, 24 to
//! hash, 28 to find the connection and have its memory fetched, 110 to know it and to note the segment, 40 to rewrite and queue
//! the frame, 54 for the copy that a NIC does (`copy/*`), and some 30 for moving frames from vector to vector. IPv6 takes 12 more.
//!
//! Of a million connections the cache lines that a packet needs cost 27 ns by themselves, in huge pages and a batch at a time (`memory/*`; 50 in
//! plain ones), of some 80 for the whole pipeline, which takes 24 with a thousand: the two are not done at once. By a profile, 18 go by at
//! the instruction that fetches a connection, 10 where the index's slot is read, 4 at its tags, 5 where the connection is first read, and 19
//! in the copy from 21 MB of segments (4 when nothing else is done). Probably the processor gets past a fetch only when it knows where the
//! memory is, and a guest's pages are looked up twice over (there are no counters here that would tell); a fetch by another instruction than
//! a load does not hide that. How many lines are fetched of a connection matters less than that one has to be: with all that an
//! IPv4 packet needs in one line instead of two, in three pairs of runs 82.7, 80.7 and 82.3 became 82.4, 78.8 and 80.3; in five later ones the
//! medians were 76.5 and 71.9, all between 60 and 86; in three on a busy host 112 and 137. So it is not shown that this alone helps; of
//! IPv6, whose packets now need two lines, the medians of three went from 132 to 94.
//!
//! Two workers, each with half of the connections, do 2.0 times what one does (`workers/2/*`; 2.4 of a million, of which each has fewer).
//!
//! A connection holds 298 octets, all in, where its handshake passed through, and 490 where weir answered, which has a server leg
//! (`resident/*`): 256 are its record, 20 the index, 12 its timer, 4 the list of free slots. A million are 284 MiB and 468 MiB, without UMEM.
//! Of the record 253 octets are used, 68 of them only while a connection opens, is inspected, or comes back from the express lane; without these
//! it would be three cache lines.
//!
//! What was tried of that and did not win: an index of buckets of half a cache line, tags and slots together, which are fetched when the
//! headers have been read (20 instructions more, as fast); looking for a connection and fetching it 16 segments before its turn,
//! instead of a batch at once (between as fast and 10 ns slower). Only half of a pair of lines fetched, in the hope that the processor
//! brings the other: it does not here (in a model of this, 36 ns became 103). What may: connections of fewer octets. In that model,
//! of which one line each is read and written, 64 octets apart took 26 to 34 ns (once 44), 256 octets apart 37 to 47.
//!
//! What was tried and did not win: reading headers inside the worker's loop (all registers spill: 30 more); one reader whose last part
//! is the same code for both families (offsets in registers: 15 more); rewriting each frame as soon as its connection is known
//! (40 more than first to note a run of segments, then to rewrite their frames); reading both ports, or both sequence numbers, of a header as
//! one word (2 more).

#![forbid(unsafe_code)]

pub mod bed;
pub mod cases;
pub mod count;
pub mod resident;
pub mod workers;

use std::fmt;

/// Packets, or lookups, of one call of [`Case::batch`].
pub const BATCH: usize = 64;

/// What is done to a batch.
type Work = Box<dyn FnMut()>;

/// One thing that is measured.
pub struct Case {
    /// `group/what/how many`.
    pub name: String,
    /// Whether callgrind counts it: not those whose preparation alone would take it minutes.
    pub is_counted: bool,
    prepare: Box<dyn Fn() -> Work>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Case {
    /// `prepare` makes what a batch needs, and returns what does a batch.
    pub fn new<W: FnMut() + 'static>(name: impl Into<String>, prepare: impl Fn() -> W + 'static) -> Self {
        let prepare = Box::new(move || Box::new(prepare()) as Work);
        Self { name: name.into(), is_counted: true, prepare }
    }

    /// The same, without callgrind.
    pub fn uncounted(self) -> Self {
        Self { is_counted: false, ..self }
    }

    /// Prepares; each call of what comes back does [`BATCH`] units of work.
    pub fn prepare(&self) -> Work {
        (self.prepare)()
    }
}
