//! The request line (RFC 9112 section 3), as widely as servers take it.

use super::Asked;

/// `method` and `target` as they stand; the version is only known to be one.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
}

impl<'a> RequestLine<'a> {
    /// Reads a line without its end: a method of any name, something, and at the end `HTTP/` with a digit, in any
    /// case, apart by any blanks. Blanks within the target are the target's.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let line = trim(line);
        let (method, rest) = line.split_at_checked(line.iter().position(|&b| is_blank(b))?)?;
        if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
            return None;
        }
        let last = rest.iter().rposition(|&b| is_blank(b))?;
        let (target, version) = rest.split_at_checked(last.saturating_add(1))?;
        let target = trim(target);
        let digit =
            version.split_at_checked(5).filter(|(http, _)| http.eq_ignore_ascii_case(b"HTTP/"))?.1.first()?;
        (digit.is_ascii_digit() && !target.is_empty()).then_some(Self { method, target })
    }

    /// What the target asks for: in absolute-form, and with CONNECT; `None` where it has no authority, and the `Host`
    /// field counts. CONNECT's is the first word of the target: proxies take one with a path behind it.
    pub(super) fn asked(&self) -> Option<Asked> {
        if let Some(authority) = authority_of_absolute(self.target) {
            return Some(authority);
        }
        if !self.method.eq_ignore_ascii_case(b"CONNECT") || self.target.starts_with(b"/") {
            return None;
        }
        Some(match Asked::authority(self.target.split(|&b| is_blank(b)).next()?) {
            Asked::Nothing => Asked::Unreadable,
            asked => asked,
        })
    }
}

/// The authority of `scheme://[user@]host[:port]...`. An empty one is invalid in HTTP (RFC 9110 section 4.2.1), and
/// two `@` are read differently by different servers.
fn authority_of_absolute(target: &[u8]) -> Option<Asked> {
    let colon = target.iter().position(|&b| b == b':')?;
    let (scheme, rest) = target.split_at_checked(colon)?;
    let rest = rest.strip_prefix(b"://")?;
    let is_scheme = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    if !scheme.first()?.is_ascii_alphabetic() || !scheme.iter().all(is_scheme) {
        return None;
    }
    let authority = rest.split(|b| matches!(b, b'/' | b'?' | b'#' | b'\\')).next()?;
    let mut parts = authority.split(|&b| b == b'@');
    let host = match (parts.next(), parts.next(), parts.next()) {
        (Some(host), None, _) | (_, Some(host), None) => host,
        _ => return Some(Asked::Unreadable),
    };
    match Asked::authority(host) {
        Asked::Nothing => Some(Asked::Unreadable),
        asked => Some(asked),
    }
}

/// What RFC 9112 section 3 lets a lenient server take for the space between the parts.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let Some((_, rest)) = text.split_first().filter(|(first, _)| is_blank(**first)) {
        text = rest;
    }
    while let Some((_, rest)) = text.split_last().filter(|(last, _)| is_blank(**last)) {
        text = rest;
    }
    text
}

/// An octet of a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
