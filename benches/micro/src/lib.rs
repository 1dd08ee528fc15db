//! What single steps of weir cost in memory, without a device: the cases, and how they are counted.
//!
//! A [`Case`] does one batch of the same work again and again. `src/main.rs` takes its time, its allocations and (by running
//! itself under callgrind) its instructions; the criterion benchmark of weir-benches runs the same cases.

#![forbid(unsafe_code)]

pub mod bed;
pub mod cases;
pub mod count;

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
