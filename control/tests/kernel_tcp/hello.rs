//! What a client says first: a request or a ClientHello, with the connection's number in the name.

/// What stands before the number in every name.
const MARK: &[u8] = b"number-";
/// Digits of a number.
const DIGITS: usize = 7;

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Tls,
}

/// The first octets of the connection `number`.
pub fn head(kind: Kind, number: usize) -> Vec<u8> {
    let name = format!("number-{number:0DIGITS$}.example");
    match kind {
        Kind::Http => {
            format!("POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 1048576\r\n\r\n").into_bytes()
        }
        Kind::Tls => client_hello(&name),
    }
}

/// The number and the kind of a stream that begins so; `None` until it can be told.
pub fn read(start: &[u8]) -> Option<(Kind, usize)> {
    let at = start.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = std::str::from_utf8(start.get(at..at + DIGITS)?).ok()?;
    let kind = if start[0] == 22 { Kind::Tls } else { Kind::Http };
    Some((kind, digits.parse().ok()?))
}

/// A ClientHello for `host` in one record (RFC 8446 section 4.1.2).
fn client_hello(host: &str) -> Vec<u8> {
    let name = [&[0][..], &counted(host.as_bytes())].concat();
    let server_name = [&[0, 0][..], &counted(&counted(&name))].concat();
    let versions = [0, 43, 0, 3, 2, 3, 4];
    // A key share as large as today's, so that the ClientHello takes two segments.
    let share =
        [&[0, 51][..], &counted(&counted(&[&[0x11, 0xec][..], &counted(&[0x5a; 1216])].concat()))].concat();
    let extensions = counted(&[&server_name[..], &versions, &share].concat());
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let handshake = [&[1, 0][..], &counted(&body)].concat();
    [&[22, 3, 1][..], &counted(&handshake)].concat()
}

/// Octets behind their length in two octets.
fn counted(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes()[..], octets].concat()
}
