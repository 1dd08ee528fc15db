//! The corpus of what real clients send (`../shared/corpus` from the project's root; its README says what it holds),
//! and comparing what weir reads from it with what tshark read.

pub mod explained;
pub mod streams;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the corpus is. `None`, after one line that says so, where there is none: a clone has not got it; but CI must.
pub fn root() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if root.is_dir() {
        return Some(root);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI needs the corpus at {}", root.display());
    println!("skipped: there is no corpus at {}", root.display());
    None
}

/// A ClientHello of `clienthello/`, one TLS record.
#[derive(Clone, Debug)]
pub struct Hello {
    pub id: String,
    pub bytes: Vec<u8>,
    pub sni: String,
    /// Names joined by commas.
    pub alpn: String,
}

/// All of `clienthello/index.json`.
pub fn hellos(root: &Path) -> Vec<Hello> {
    let folder = root.join("clienthello");
    let index: serde_json::Value =
        serde_json::from_slice(&read(&folder.join("index.json"))).expect("index.json is JSON");
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().expect(key).to_owned();
    let entries = index.as_array().expect("index.json is a list");
    entries
        .iter()
        .map(|entry| {
            let id = text(entry, "id");
            let bytes = read(&folder.join(format!("{id}.bin")));
            Hello { id, bytes, sni: text(entry, "sni"), alpn: text(entry, "alpn") }
        })
        .collect()
}

/// The files of `browsers/`: the client's name, and its ClientHello as one TLS record.
pub fn browsers(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut browsers: Vec<_> = std::fs::read_dir(root.join("browsers"))
        .expect("browsers/")
        .map(|entry| entry.expect("an entry of browsers/").path())
        .map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), read(&path)))
        .collect();
    browsers.sort();
    browsers
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Client's and server's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.client, self.server)
    }
}

/// What was read from a connection's first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `tls`, `http`, or anything else for neither.
    pub protocol: String,
    /// Lower case, without port and trailing dot; empty for none.
    pub host: String,
    /// Names joined by commas; only looked at for TLS.
    pub alpn: String,
}

impl Reading {
    /// TLS or HTTP was read.
    pub fn is_identified(&self) -> bool {
        matches!(self.protocol.as_str(), "tls" | "http")
    }

    /// As far as tshark and weir should agree: a name without port, brackets and trailing dot; ALPN of TLS.
    fn comparable(&self) -> (&str, String, &str) {
        let host = self.host.to_ascii_lowercase();
        let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((literal, _)) => literal.to_owned(),
            None if host.parse::<IpAddr>().is_ok() => host,
            None => host.split(':').next().unwrap_or_default().to_owned(),
        };
        let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
        let alpn = if self.protocol == "tls" { self.alpn.as_str() } else { "" };
        (if self.is_identified() { self.protocol.as_str() } else { "" }, host, alpn)
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} [{}]", self.protocol, self.host, self.alpn)
    }
}

/// The readings of one capture's connections.
pub type Readings = BTreeMap<Ends, Reading>;

/// All of `pcap/expected.tsv`: what tshark read, by the capture's file name. Captures in which it found nothing are not
/// in there.
pub fn expected(root: &Path) -> BTreeMap<String, Readings> {
    let text = String::from_utf8(read(&root.join("pcap/expected.tsv"))).expect("expected.tsv is UTF-8");
    let mut captures: BTreeMap<String, Readings> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [file, src, sport, dst, dport, protocol, name, alpn, _origin] = fields[..] else {
            panic!("expected.tsv: {line:?} has not got nine fields");
        };
        let end = |address: &str, port: &str| {
            SocketAddr::new(address.parse().expect("an address"), port.parse().expect("a port"))
        };
        let ends = Ends { client: end(src, sport), server: end(dst, dport) };
        let reading = Reading { protocol: protocol.into(), host: name.into(), alpn: alpn.into() };
        captures.entry(file.to_owned()).or_default().insert(ends, reading);
    }
    captures
}

/// The captures of `pcap/`, in the order of their names.
pub fn captures(root: &Path) -> Vec<(String, PathBuf)> {
    let mut captures: Vec<_> = std::fs::read_dir(root.join("pcap"))
        .expect("pcap/")
        .map(|entry| entry.expect("an entry of pcap/").path())
        .filter(|path| path.extension().is_some_and(|kind| kind != "tsv"))
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
        .collect();
    captures.sort();
    captures
}

/// One connection on which tshark and weir do not agree.
#[derive(Clone, Debug)]
pub struct Disagreement {
    pub capture: String,
    pub ends: Ends,
    /// What tshark read; `None` when it found no request.
    pub expected: Option<Reading>,
    /// What weir read; `None` when it has not got the connection.
    pub seen: Option<Reading>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.capture, self.ends)?;
        let show =
            |reading: &Option<Reading>| reading.as_ref().map_or("nothing".to_owned(), Reading::to_string);
        write!(f, "expected {}, seen {}", show(&self.expected), show(&self.seen))
    }
}

/// Compares what weir read from a capture with what tshark read. A connection that tshark has no request of agrees
/// when weir could not identify it either.
pub fn compare(capture: &str, expected: &Readings, seen: &Readings) -> Vec<Disagreement> {
    let all: std::collections::BTreeSet<&Ends> = expected.keys().chain(seen.keys()).collect();
    all.into_iter()
        .map(|ends| Disagreement {
            capture: capture.to_owned(),
            ends: *ends,
            expected: expected.get(ends).cloned(),
            seen: seen.get(ends).cloned(),
        })
        .filter(|both| {
            let nothing = Reading::default();
            let expected = both.expected.as_ref().unwrap_or(&nothing);
            expected.comparable() != both.seen.as_ref().unwrap_or(&nothing).comparable()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::explained::Reader;
    use super::*;

    fn readings(rows: &[(u16, &str, &str, &str)]) -> Readings {
        rows.iter()
            .map(|(port, protocol, host, alpn)| {
                let client = SocketAddr::from(([192, 0, 2, 1], *port));
                let server = SocketAddr::from(([192, 0, 2, 2], 443));
                let reading = Reading {
                    protocol: (*protocol).to_owned(),
                    host: (*host).to_owned(),
                    alpn: (*alpn).to_owned(),
                };
                (Ends { client, server }, reading)
            })
            .collect()
    }

    #[test]
    fn readings_that_mean_the_same_agree() {
        let expected = readings(&[
            (1, "http", "A.example.:8080", ""),
            (2, "http", "[2001:db8::1]:80", ""),
            (3, "http", "2001:db8::1", "x"),
            (4, "tls", "a.example", "h2"),
        ]);
        let seen = readings(&[
            (1, "http", "a.example", ""),
            (2, "http", "2001:db8::1", ""),
            (3, "http", "2001:db8::1", "h2c"),
            (4, "tls", "a.example", "h2"),
            // Not identified, and not expected to be.
            (5, "other", "", ""),
        ]);
        assert!(compare("x.pcap", &expected, &seen).is_empty());
    }

    #[test]
    fn readings_that_differ_are_found_and_need_an_explanation() {
        let expected = readings(&[
            (1, "http", "a", ""),
            (2, "tls", "a", ""),
            (3, "tls", "a", "h2"),
            (4, "tls", "a", ""),
        ]);
        let seen =
            readings(&[(1, "http", "b", ""), (2, "http", "a", ""), (3, "tls", "a", ""), (5, "tls", "a", "")]);
        let found = compare("x.pcap", &expected, &seen);
        let ports: Vec<_> = found.iter().map(|one| one.ends.client.port()).collect();
        assert_eq!(ports, [1, 2, 3, 4, 5]);
        let complaints = explained::unexplained(Reader::Inspector, &found);
        assert_eq!(complaints.iter().filter(|line| line.starts_with("not explained: x.pcap")).count(), 5);
        assert!(complaints.iter().any(|line| line.starts_with("agrees, and needs no explanation any more")));
    }

    #[test]
    fn explanation_of_another_reading_is_a_complaint() {
        let server = SocketAddr::from(([10, 9, 8, 7], 8080));
        let one = |host: &str| Disagreement {
            capture: "0648b5d12f01.pcap".to_owned(),
            ends: Ends { client: SocketAddr::from(([10, 11, 12, 13], 54723)), server },
            expected: None,
            seen: Some(Reading { protocol: "http".to_owned(), host: host.to_owned(), alpn: String::new() }),
        };
        let of_it = |complaint: &String| complaint.contains("0648b5d12f01");
        assert!(!explained::unexplained(Reader::Pipeline, &[one("ts01-b.cloudsink.net")]).iter().any(of_it));
        let complaints = explained::unexplained(Reader::Pipeline, &[one("other.example")]);
        assert!(complaints.iter().any(|line| line.starts_with("not as explained") && of_it(line)));
    }
}
