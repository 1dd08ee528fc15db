//! Heads that RFC 9112 forbids and some servers take all the same.
//!
//! Such heads are written to be read in two ways: by the one who looks on, and by the server. So every line that any
//! server could take for a `Host` field counts, and they must all agree. A line counts as `Host` when that stands
//! before its colon, with blanks or control octets around it: after whitespace before the colon (section 5.1), as a
//! folded line (section 5.2) or the first line after the request line (section 2.2), after a bare CR (section 2.2).

use super::Asked;
use super::request_line::RequestLine;

/// Reads a head up to its empty line, that has a request line.
pub(super) fn read(head: &[u8]) -> Asked {
    let mut lines = head
        .split(|&b| b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .skip_while(|line| line.is_empty());
    let Some(request) = lines.next().and_then(RequestLine::read) else {
        return Asked::Unreadable;
    };
    let hosts = hosts(lines);
    request.asked().unwrap_or(hosts)
}

fn hosts<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Asked {
    let mut asked = Asked::Nothing;
    // What the last Host field asks for, while lines may still be folded into it.
    let mut open: Option<Asked> = None;
    for line in lines {
        let folded = line.first().is_some_and(|&first| first == b' ' || first == b'\t');
        let inside = hidden(line);
        if let (true, Some(before)) = (folded, open) {
            // A value over two lines has a blank in it, unless one of them has nothing.
            let more = Asked::authority(line);
            open = Some(match (before, more) {
                (before, Asked::Nothing) => before,
                (Asked::Nothing, more) => more,
                _ => Asked::Unreadable,
            });
        } else {
            asked = asked.and(open.take().unwrap_or(Asked::Nothing));
            open = host_field(line).filter(|_| !folded);
        }
        let alone = host_field(line).filter(|_| folded).unwrap_or(Asked::Nothing);
        asked = asked.and(alone).and(inside);
    }
    asked.and(open.unwrap_or(Asked::Nothing))
}

/// What `Host` fields after bare CRs in a line ask for.
fn hidden(line: &[u8]) -> Asked {
    let parts = line.split(|&b| b == b'\r').skip(1);
    parts.filter_map(host_field).fold(Asked::Nothing, Asked::and)
}

/// What a line asks for if a server could take it for a `Host` field.
fn host_field(line: &[u8]) -> Option<Asked> {
    let (name, value) = line.split_at_checked(line.iter().position(|&b| b == b':')?)?;
    let is_ignored = |b: &u8| *b <= b' ' || *b == 0x7f;
    let mut name = name;
    while let Some((_, rest)) = name.split_first().filter(|(first, _)| is_ignored(first)) {
        name = rest;
    }
    while let Some((_, rest)) = name.split_last().filter(|(last, _)| is_ignored(last)) {
        name = rest;
    }
    name.eq_ignore_ascii_case(b"host").then(|| Asked::authority(value.get(1..).unwrap_or_default()))
}
