//! What weir reads from the corpus, against what tshark and tls-parser read.

mod captures;
mod hellos;
// The same captures through the whole pipeline.
mod replay;
mod roads;
mod second;
