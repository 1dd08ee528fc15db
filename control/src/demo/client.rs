//! The clients of the demo: TCP from a chosen address and port, TLS with a chosen name, HTTP/1.1 over either.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::content::Hasher;
use crate::lab::Namespace;

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a client waits for the next byte, or for room to send one. TCP's retransmissions after a gateway
/// was replaced fit into it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest response head that is read.
const HEAD_BYTES: u64 = 64 << 10;

/// Connects from `source` (port 0: any) to `target` in `namespace`.
///
/// # Errors
/// Of the kernel: refused, unreachable, reset, timed out.
pub fn connect(namespace: &Namespace, source: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = namespace.run(|| Socket::new(Domain::for_address(target), Type::STREAM, None))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&target.into(), CONNECT_LIMIT)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// A TLS connection whose ClientHello has been sent, and nothing yet been read.
#[derive(Debug)]
pub struct TlsClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    hello_bytes: usize,
}

impl TlsClient {
    /// Sends a ClientHello that asks for `name`.
    ///
    /// # Errors
    /// `InvalidInput` when `name` is no host name, else of the stream.
    pub fn start(config: &Arc<ClientConfig>, name: &str, mut stream: TcpStream) -> io::Result<Self> {
        let asked = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut connection = ClientConnection::new(Arc::clone(config), asked).map_err(io::Error::other)?;
        let mut hello = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut hello)?;
        }
        stream.write_all(&hello)?;
        Ok(Self { hello_bytes: hello.len(), stream: StreamOwned::new(connection, stream) })
    }

    /// Bytes of the first flight: the records that carry the ClientHello.
    pub fn hello_bytes(&self) -> usize {
        self.hello_bytes
    }

    /// The connection below.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream.sock
    }

    /// The key exchange that both ends settled on, once the handshake is done.
    pub fn key_exchange(&self) -> Option<String> {
        let group = self.stream.conn.negotiated_key_exchange_group()?;
        Some(format!("{:?}", group.name()))
    }
}

impl Read for TlsClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for TlsClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What an origin answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Bytes of the body.
    pub length: u64,
    /// SHA-256 of the body as received, in hexadecimal.
    pub hash: String,
    /// SHA-256 that the origin announced.
    pub announced_hash: Option<String>,
    /// Client and destination, as the origin says a PROXY header named them.
    pub proxied: Option<String>,
    /// The body's first kilobyte.
    pub start: Vec<u8>,
}

impl Response {
    /// Whether all bytes came, and are those that the origin sent.
    pub fn is_intact(&self) -> bool {
        self.status == 200 && self.announced_hash.as_ref() == Some(&self.hash)
    }

    /// The body as text, as far as it was kept.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.start).into_owned()
    }
}

/// Asks for `path` of `host` over an open connection and reads the answer, adding to `progress` the bytes of
/// the body as they come. The connection stays open.
///
/// # Errors
/// Of the stream; `UnexpectedEof` when the body is cut off; `InvalidData` when the answer is not HTTP.
pub fn get(
    stream: &mut (impl Read + Write),
    host: &str,
    path: &str,
    progress: &AtomicU64,
) -> io::Result<Response> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: weir-demo\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    // One request is answered at a time, so nothing of a next answer is lost with this buffer.
    let mut stream = BufReader::new(stream);
    let head = read_head(&mut stream)?;
    let mut response = Response {
        status: head.status,
        length: 0,
        hash: String::new(),
        announced_hash: head.hash,
        proxied: head.proxied,
        start: Vec::new(),
    };
    let mut hasher = Hasher::default();
    let mut body = stream.take(head.length);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match body.read(&mut buffer) {
            // A machine that was frozen for a moment ends system calls that have a time limit.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        let room = 1024_usize.saturating_sub(response.start.len());
        response.start.extend_from_slice(&buffer[..count.min(room)]);
        response.length += count as u64;
        progress.fetch_add(count as u64, Ordering::Relaxed);
    }
    if body.limit() > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    response.hash = hasher.finish();
    Ok(response)
}

struct Head {
    status: u16,
    length: u64,
    hash: Option<String>,
    proxied: Option<String>,
}

fn read_head(stream: &mut impl BufRead) -> io::Result<Head> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1.1");
    let mut lines = stream.take(HEAD_BYTES).lines();
    let status_line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next());
    let mut head = Head {
        status: status.and_then(|code| code.parse().ok()).ok_or_else(invalid)?,
        length: 0,
        hash: None,
        proxied: None,
    };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line.split_once(':').ok_or_else(invalid)?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.trim().parse().map_err(|_| invalid())?,
            "x-sha256" => head.hash = Some(value.trim().to_owned()),
            "x-proxied" => head.proxied = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
