//! What the inspector answers, as tables: bytes in, name out.

mod h2;
mod http;
mod properties;
mod tls;

use super::{Found, Inspector, Outcome};
use crate::policy::Protocol;

/// The hold of the example configuration.
const BUDGET: usize = 16 * 1024;

/// What all of `bytes` at once are. `None`: more is needed.
fn at_once(bytes: &[u8]) -> Option<Found> {
    match Inspector::default().inspect(bytes, BUDGET) {
        Outcome::More => None,
        Outcome::Done(found) => Some(found),
    }
}

/// The same when the stream grows to each of `ends` in turn: the first answer, and after how many octets.
fn by_cuts(bytes: &[u8], ends: impl Iterator<Item = usize>) -> Option<(Found, usize)> {
    let mut inspector = Inspector::default();
    for end in ends {
        if let Outcome::Done(found) = inspector.inspect(&bytes[..end], BUDGET) {
            return Some((found, end));
        }
    }
    None
}

/// One octet at a time.
fn by_octets(bytes: &[u8]) -> Option<(Found, usize)> {
    by_cuts(bytes, 1..=bytes.len())
}

/// An answer in short: protocol, name, ALPN names.
fn short(found: Option<Found>) -> (&'static str, String, String) {
    let Some(found) = found else {
        return ("more", String::new(), String::new());
    };
    let protocol = match found.protocol {
        Protocol::Tls => "tls",
        Protocol::Http => "http",
        Protocol::Other => "other",
    };
    let alpn: Vec<_> = found.alpn.names().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    (protocol, found.host.map(|host| host.as_str().to_owned()).unwrap_or_default(), alpn.join(","))
}

/// Asserts protocol and name, whether the bytes come at once or one at a time.
#[track_caller]
fn expect(bytes: &[u8], protocol: &str, host: &str) {
    let seen = short(at_once(bytes));
    let shown = bytes.escape_ascii();
    assert_eq!((seen.0, seen.1.as_str()), (protocol, host), "{shown}");
    let slow = short(by_octets(bytes).map(|(found, _)| found));
    assert_eq!(slow, seen, "one octet at a time: {shown}");
}

/// A small generator of repeatable randomness (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A ClientHello as a handshake message, from its extensions.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    message(&body)
}

/// A body behind the header of a ClientHello.
fn message(body: &[u8]) -> Vec<u8> {
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// One TLS record.
fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 1];
    record.extend((payload.len() as u16).to_be_bytes());
    record.extend(payload);
    record
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut extension = kind.to_be_bytes().to_vec();
    extension.extend((content.len() as u16).to_be_bytes());
    extension.extend(content);
    extension
}

/// A server_name extension with entries of (type, name).
fn server_names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = entries
        .iter()
        .flat_map(|(kind, name)| {
            let mut entry = vec![*kind];
            entry.extend((name.len() as u16).to_be_bytes());
            entry.extend(*name);
            entry
        })
        .collect();
    let mut content = (list.len() as u16).to_be_bytes().to_vec();
    content.extend(list);
    extension(0, &content)
}

fn sni(name: &str) -> Vec<u8> {
    server_names(&[(0, name.as_bytes())])
}

/// An ALPN extension.
fn alpn(names: &[&str]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
    let mut content = (list.len() as u16).to_be_bytes().to_vec();
    content.extend(list);
    extension(16, &content)
}

/// A hello for `name`, in one record.
fn simple(name: &str) -> Vec<u8> {
    record(22, &hello(&sni(name)))
}
