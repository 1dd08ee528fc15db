//! TCP as a middlebox sees it.

pub mod cookie;
pub mod flags;
pub mod grants;
pub mod options;
pub mod reassembly;
pub mod seq;
pub mod shown;
pub mod track;
pub mod translate;
