//! The origin's HTTP/1.1: enough of RFC 9112 for the demo's own client and for curl.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::demo::content::{self, Hasher};

/// Longest request head that is read.
const HEAD_BYTES: u64 = 64 << 10;
/// Most bytes a request may ask for or send.
const BODY_BYTES: u64 = 1 << 30;

/// One request, without its body.
#[derive(Debug, Default)]
struct Request {
    method: String,
    target: String,
    content_length: u64,
    close: bool,
}

/// Serves requests on one connection until the client closes it or asks to.
///
/// - `GET /bytes/N` gives the first N bytes of [`content`], and their hash in `x-sha256`;
///   `GET /bytes/N?rate=R` gives them at R bytes per second.
/// - `GET /whoami` gives the client's address and port as seen here.
/// - `POST` gives the hash of what was sent.
///
/// # Errors
/// Of the stream, and `InvalidData` on what is not HTTP.
pub(super) fn serve(stream: impl Read + Write, peer: SocketAddr) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        match (request.method.as_str(), request.target.as_str()) {
            ("GET", "/whoami") => respond(stream.get_mut(), "200 OK", "", peer.to_string().as_bytes())?,
            ("GET", target) => match asked_bytes(target) {
                Some((length, rate)) => send_bytes(stream.get_mut(), length, rate)?,
                None => respond(stream.get_mut(), "404 Not Found", "", b"try /bytes/N or /whoami\n")?,
            },
            ("POST", _) => {
                let hash = hash_body(&mut stream, request.content_length)?;
                respond(stream.get_mut(), "200 OK", "", hash.as_bytes())?;
            }
            _ => respond(stream.get_mut(), "405 Method Not Allowed", "allow: GET, POST\r\n", b"")?,
        }
        if request.close {
            break;
        }
    }
    Ok(())
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = stream.take(HEAD_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut request = match (words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0")) => {
            Request { method: method.into(), target: target.into(), ..Request::default() }
        }
        _ => return Err(invalid("no HTTP/1.1 request line")),
    };
    loop {
        line.clear();
        head.read_line(&mut line)?;
        let field = line.trim_end();
        if field.is_empty() {
            return if line.is_empty() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(Some(request))
            };
        }
        let (name, value) = field.split_once(':').ok_or_else(|| invalid("a header without a colon"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value.trim().parse().ok().filter(|length| *length <= BODY_BYTES);
                request.content_length = length.ok_or_else(|| invalid("a content-length out of bounds"))?;
            }
            "connection" => request.close = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}

/// Length and rate, if any, that `/bytes/N` or `/bytes/N?rate=R` asks for.
fn asked_bytes(target: &str) -> Option<(u64, Option<u64>)> {
    let rest = target.strip_prefix("/bytes/")?;
    let (length, rate) = match rest.split_once("?rate=") {
        Some((length, rate)) => (length, Some(rate.parse().ok().filter(|rate| *rate > 0)?)),
        None => (rest, None),
    };
    Some((length.parse().ok().filter(|length| *length <= BODY_BYTES)?, rate))
}

fn send_bytes(stream: &mut impl Write, length: u64, rate: Option<u64>) -> io::Result<()> {
    let hash = content::hash(length);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-sha256: {hash}\r\n\r\n")?;
    let started = Instant::now();
    let mut buffer = vec![0; 16 << 10];
    let mut sent = 0;
    while sent < length {
        if let Some(rate) = rate {
            let due = started + Duration::from_secs_f64(sent as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let part = buffer.len().min(usize::try_from(length - sent).unwrap_or(usize::MAX));
        content::fill(sent, &mut buffer[..part]);
        stream.write_all(&buffer[..part])?;
        sent += part as u64;
    }
    stream.flush()
}

fn hash_body(stream: &mut impl Read, length: u64) -> io::Result<String> {
    let mut hasher = Hasher::default();
    let mut body = stream.take(length);
    let mut buffer = vec![0; 16 << 10];
    loop {
        match body.read(&mut buffer)? {
            0 if body.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn respond(stream: &mut impl Write, status: &str, fields: &str, body: &[u8]) -> io::Result<()> {
    let mut response =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{fields}\r\n", body.len()).into_bytes();
    response.extend_from_slice(body);
    stream.write_all(&response)?;
    stream.flush()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
