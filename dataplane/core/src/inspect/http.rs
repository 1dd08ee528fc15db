//! HTTP/1.x request heads (RFC 9112).
//!
//! The end of the head is looked for line by line, each octet once; then `httparse` reads the head, once. A head
//! that it refuses and some server might take is read by [`super::tolerant`].
//!
//! - An authority in the request target (absolute-form, CONNECT) wins over `Host` (RFC 9112 section 3.2.2: a server
//!   must ignore `Host` then).
//! - Several `Host` fields are read when they are the same, and otherwise unidentified: servers should answer 400
//!   (section 3.2), and those that do not take the first or the last.
//! - Lines end with LF, with or without CR; empty lines before the request line are skipped (section 2.2).
//! - A first line without `HTTP/` at its end is HTTP/0.9 or something else: [`Found::OTHER`], at once.

use super::request_line::{RequestLine, is_blank, is_token};
use super::{Alpn, Asked, Found, Outcome, tolerant};
use crate::policy::Protocol;

/// More fields than any browser sends; heads with more are read by [`super::tolerant`], which has no such limit.
const MAX_FIELDS: usize = 64;

/// How far the head has been read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    /// Where the line begins whose end has not been seen.
    line: u32,
    /// Octets before this one are known.
    scanned: u32,
    seen: Seen,
}

/// What of the head is known to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Nothing,
    Method,
    RequestLine,
}

impl Head {
    pub(super) fn inspect(&mut self, prefix: &[u8]) -> Outcome {
        while let Some(end) = find_lf(prefix, self.scanned as usize) {
            let line = prefix.get(self.line as usize..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let next = end.saturating_add(1);
            if line.is_empty() {
                if self.seen == Seen::RequestLine {
                    return Outcome::Done(read(prefix.get(..next).unwrap_or_default()));
                }
            } else if self.seen != Seen::RequestLine {
                if RequestLine::read(line).is_none() {
                    return Outcome::OTHER;
                }
                self.seen = Seen::RequestLine;
            }
            self.line = u32::try_from(next).unwrap_or(u32::MAX);
            self.scanned = self.line;
        }
        if prefix.get(self.line as usize..) == Some(b"\r") {
            // Half of an empty line: looked at again with its next octet.
            return Outcome::More;
        }
        if self.seen == Seen::Nothing && !self.read_method(prefix) {
            return Outcome::OTHER;
        }
        self.scanned = u32::try_from(prefix.len()).unwrap_or(u32::MAX);
        Outcome::More
    }

    /// Looks at a first line without its end; false when it can never become a request line.
    fn read_method(&mut self, prefix: &[u8]) -> bool {
        for byte in prefix.get(self.scanned as usize..).unwrap_or_default() {
            if is_blank(*byte) {
                self.seen = Seen::Method;
                return true;
            }
            if !is_token(*byte) {
                return false;
            }
        }
        true
    }
}

fn find_lf(prefix: &[u8], from: usize) -> Option<usize> {
    let at = prefix.get(from..)?.iter().position(|&b| b == b'\n')?;
    Some(from.saturating_add(at))
}

/// Reads a complete head, its empty line included.
fn read(head: &[u8]) -> Found {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = httparse::ParserConfig::default()
        .allow_multiple_spaces_in_request_line_delimiters(true)
        .parse_request(&mut request, head);
    let asked = match (parsed, request.method, request.path) {
        (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) => {
            let hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
            let hosts = hosts.map(|field| Asked::authority(field.value)).fold(Asked::Nothing, Asked::and);
            RequestLine { method: method.as_bytes(), target: target.as_bytes() }.asked().unwrap_or(hosts)
        }
        _ => tolerant::read(head),
    };
    Found::named(Protocol::Http, asked, Alpn::EMPTY)
}
