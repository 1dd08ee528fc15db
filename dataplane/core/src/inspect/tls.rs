//! TLS records up to the end of the first handshake message (RFC 8446 section 5.1).
//!
//! Any record version is taken (servers differ in what they take), also empty records (RFC 8446 forbids them,
//! servers skip them), and a hello cut anywhere, its four octets of header included. What is not a handshake record
//! ends it, before the hello or between its parts: an alert, early data or a change of cipher has no place there.

use super::cursor::{Cursor, Piece};
use super::{HelloEnd, Outcome, hello};

/// Content type of handshake records.
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const RECORD_HEADER: usize = 5;
/// The longest record that a server may take before keys are agreed: 2^14, and the 2048 octets that TLS 1.2
/// grants to encrypted ones and some servers to all.
pub(super) const MAX_RECORD: usize = (1 << 14) + 2048;
pub(super) const CLIENT_HELLO: u8 = 1;
/// Message type and length.
const HANDSHAKE_HEADER: usize = 4;

/// How far the records have been read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Records {
    /// Where the header of the first record that is not yet there in full stands.
    header: u32,
    /// Handshake octets in the records before it.
    seen: u32,
    /// Length of the ClientHello with its header; 0 while unknown.
    total: u32,
}

impl Records {
    pub(super) fn inspect(&mut self, prefix: &[u8], limit: usize) -> Outcome {
        loop {
            let at = self.header as usize;
            match prefix.get(at) {
                None => return Outcome::More,
                Some(&HANDSHAKE) => {}
                Some(_) => return Outcome::OTHER,
            }
            let Some(record) = record(prefix, at) else {
                return Outcome::More;
            };
            if record.data.len() > MAX_RECORD {
                return Outcome::OTHER;
            }
            let there = record.data.end.min(prefix.len());
            let have = (self.seen as usize).saturating_add(there.saturating_sub(record.data.start));
            if have > 0 && self.seen == 0 && prefix.get(record.data.start) != Some(&CLIENT_HELLO) {
                return Outcome::OTHER;
            }
            if self.total == 0 && have >= HANDSHAKE_HEADER {
                self.total = total(prefix, have);
            }
            let total = self.total as usize;
            if total > 0 {
                if have >= total {
                    let end = record.data.start.saturating_add(total.saturating_sub(self.seen as usize));
                    let end = HelloEnd { at: end as u32, in_record: end < record.data.end };
                    return hello::read(Cursor::new(prefix, 0, total, self::record), end);
                }
                if least_end(&record, there, total.saturating_sub(have)) > limit {
                    return Outcome::OTHER;
                }
            }
            if record.data.end > prefix.len() {
                return Outcome::More;
            }
            self.seen = u32::try_from(have).unwrap_or(u32::MAX);
            self.header = u32::try_from(record.next).unwrap_or(u32::MAX);
        }
    }
}

/// Where the stream will end at the least when `missing` octets of the hello come after offset `there`: what the
/// present record has no room for needs another header.
fn least_end(record: &Piece, there: usize, missing: usize) -> usize {
    let here = record.data.end.saturating_sub(there);
    let header = if missing > here { RECORD_HEADER } else { 0 };
    there.saturating_add(missing).saturating_add(header)
}

/// Length of the handshake message with its header; its first four octets are there.
fn total(prefix: &[u8], have: usize) -> u32 {
    let mut cursor = Cursor::new(prefix, 0, have, record);
    let len = cursor.u8().and_then(|_| cursor.u24()).unwrap_or(u32::MAX >> 8);
    len.saturating_add(HANDSHAKE_HEADER as u32)
}

/// The record whose header stands at `at`, by its length field.
fn record(stream: &[u8], at: usize) -> Option<Piece> {
    let start = at.checked_add(RECORD_HEADER)?;
    let header: &[u8; RECORD_HEADER] = stream.get(at..start)?.try_into().ok()?;
    let [_, _, _, high, low] = *header;
    let end = start.checked_add(usize::from(u16::from_be_bytes([high, low])))?;
    Some(Piece { data: start..end, next: end })
}
