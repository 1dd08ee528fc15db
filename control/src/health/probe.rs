//! One probe of one server, from a socket of the gateway's own.
//!
//! A server that expects a PROXY header is sent one in front of what it is asked, with the probe's own addresses.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weir_core::policy::ProxyVersion;
use weir_core::proxy::{MAX_PROXY_HEADER, ProxyHeader};

use crate::config::{Check, Probe};

/// TLS record types (RFC 8446, section 5.1) and the handshake message that answers a ClientHello (section 4).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
/// Octets of a record's header.
const RECORD_HEADER: usize = 5;
/// Octets of a status line up to the status: `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

/// Probes a server once. Gives what was found, in words, or why it counts as failed.
pub async fn probe(server: SocketAddr, check: &Check, proxy: Option<ProxyVersion>) -> Result<String, String> {
    match timeout(check.timeout, ask(server, &check.probe, proxy)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer in {:?}", check.timeout)),
    }
}

async fn ask(server: SocketAddr, probe: &Probe, proxy: Option<ProxyVersion>) -> Result<String, String> {
    let connected = TcpStream::connect(server).await;
    let mut stream = connected.map_err(|error| format!("no connection: {}", plain(&error)))?;
    match probe {
        Probe::Tcp => {
            // Closed with a reset: a probe every few seconds should not leave a trail of TIME_WAIT.
            drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
            Ok("takes connections".to_owned())
        }
        Probe::Tls { host } => {
            let hello = client_hello(host.as_deref(), server)?;
            send(&mut stream, proxy, &hello).await?;
            tls_answer(&mut stream).await
        }
        Probe::Http { path, host, status } => {
            let host = host.clone().unwrap_or_else(|| server.to_string());
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            );
            send(&mut stream, proxy, request.as_bytes()).await?;
            http_answer(&mut stream, status).await
        }
    }
}

async fn send(stream: &mut TcpStream, proxy: Option<ProxyVersion>, question: &[u8]) -> Result<(), String> {
    let failed = |error: io::Error| format!("the question was not taken: {}", plain(&error));
    let mut octets = Vec::with_capacity(MAX_PROXY_HEADER + question.len());
    if let Some(version) = proxy {
        let (client, destination) =
            (stream.local_addr().map_err(failed)?, stream.peer_addr().map_err(failed)?);
        let header = ProxyHeader {
            version,
            client: client.into(),
            destination: destination.into(),
            host: None,
            alpn: None,
        };
        octets.resize(MAX_PROXY_HEADER, 0);
        let len = header.write(&mut octets).unwrap_or(0);
        octets.truncate(len);
    }
    octets.extend_from_slice(question);
    stream.write_all(&octets).await.map_err(failed)
}

/// A ClientHello with the name, or none. What follows is never looked at: no certificate is trusted for anything.
fn client_hello(host: Option<&str>, server: SocketAddr) -> Result<Vec<u8>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("no ClientHello could be made: {error}");
    let name = match host {
        Some(host) => ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?,
        None => ServerName::IpAddress(server.ip().into()),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| failed(&error))?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(&error))?;
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).map_err(|error| failed(&error))?;
    }
    Ok(hello)
}

async fn tls_answer(stream: &mut TcpStream) -> Result<String, String> {
    let mut start = [0; RECORD_HEADER + 2];
    stream.read_exact(&mut start).await.map_err(|error| format!("no ServerHello: {}", plain(&error)))?;
    match start {
        [HANDSHAKE, _, _, _, _, SERVER_HELLO, _] => Ok("answers with a ServerHello".to_owned()),
        [ALERT, _, _, _, _, _, alert] => Err(format!("no ServerHello: TLS alert {alert}")),
        _ => Err("no ServerHello: the answer is not TLS".to_owned()),
    }
}

async fn http_answer(stream: &mut TcpStream, expected: &[RangeInclusive<u16>]) -> Result<String, String> {
    let mut start = [0; STATUS_LINE];
    stream.read_exact(&mut start).await.map_err(|error| format!("no answer: {}", plain(&error)))?;
    let line = std::str::from_utf8(&start).ok().filter(|line| line.starts_with("HTTP/1."));
    let status = line.and_then(|line| line.split(' ').nth(1)?.parse::<u16>().ok());
    let status = status.ok_or_else(|| "the answer is not HTTP/1".to_owned())?;
    if expected.iter().any(|range| range.contains(&status)) {
        Ok(format!("answers with status {status}"))
    } else {
        Err(format!("answers with status {status}"))
    }
}

/// Without the number of the operating system's error.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        _ => error.to_string(),
    }
}
