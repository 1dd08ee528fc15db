//! The servers that the demo's clients talk to: HTTPS, HTTP and a protocol in which the server speaks first,
//! on every address of the server namespace, both families. They note who came and what they sent.

mod certificate;
mod http;
mod nginx;
mod record;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

pub use certificate::{Authority, CertificateError, Pem};
pub use nginx::{NGINX_BODY_BYTES, NGINX_HTTP_PORT, NGINX_HTTPS_PORT, Nginx};
pub use record::{Record, Records};

use crate::lab::{LabError, Namespace};
use record::CountedStream;

/// Ports of the HTTPS origin.
pub const HTTPS_PORTS: [u16; 2] = [443, 8443];
/// Port of the HTTP origin.
pub const HTTP_PORT: u16 = 80;
/// Ports of the origin that greets before the client has said anything.
pub const SERVER_FIRST_PORTS: [u16; 2] = [7777, 7778];
/// First line of the origin that speaks first.
pub const GREETING: &str = "220 weir demo origin, go ahead";
/// Longest line that is echoed.
const LINE_BYTES: u64 = 4096;
/// How long an origin waits for its client to send or to take something.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a port speaks.
#[derive(Clone, Debug)]
enum Service {
    Https(Arc<ServerConfig>),
    Http,
    ServerFirst,
}

/// The running origins. Dropping them closes their listeners and connections.
#[derive(Debug)]
pub struct Origin {
    records: Records,
    listeners: Vec<(Arc<TcpListener>, JoinHandle<()>)>,
}

impl Origin {
    /// Starts all origins in `namespace`, with certificates of `authority`.
    ///
    /// # Errors
    /// [`OriginError`] when a port is taken or TLS cannot be set up.
    pub fn start(namespace: &Namespace, authority: &Authority) -> Result<Self, OriginError> {
        let tls = authority.server_config()?;
        let mut origin = Self { records: Records::default(), listeners: Vec::new() };
        for port in HTTPS_PORTS {
            origin.listen(namespace, port, Service::Https(Arc::clone(&tls)))?;
        }
        origin.listen(namespace, HTTP_PORT, Service::Http)?;
        for port in SERVER_FIRST_PORTS {
            origin.listen(namespace, port, Service::ServerFirst)?;
        }
        Ok(origin)
    }

    /// Who came so far, and what they sent.
    pub fn records(&self) -> &Records {
        &self.records
    }

    fn listen(&mut self, namespace: &Namespace, port: u16, service: Service) -> Result<(), OriginError> {
        let listener = namespace.run(|| dual_stack_listener(port));
        let listener = Arc::new(listener.map_err(|source| OriginError::Listen { port, source })?);
        let (accepting, records) = (Arc::clone(&listener), self.records.clone());
        let thread = namespace.spawn(move || accept(&accepting, &records, &service))?;
        self.listeners.push((listener, thread));
        Ok(())
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        for (listener, thread) in self.listeners.drain(..) {
            // On Linux this makes accept(2) in the other thread return with an error.
            let _ = SockRef::from(&*listener).shutdown(Shutdown::Both);
            let _ = thread.join();
        }
        self.records.shut_down();
    }
}

/// Why the origins could not start.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// A port could not be opened.
    #[error("cannot listen on port {port} of the server namespace: {source}")]
    Listen {
        /// Which port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// Keys, certificates or the configuration of TLS.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The namespace.
    #[error(transparent)]
    Lab(#[from] LabError),
}

/// One socket for both families.
fn dual_stack_listener(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, records: &Records, service: &Service) {
    while let Ok((stream, _)) = listener.accept() {
        // A connection that was reset before it was taken is not worth a note.
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let Ok(stream) = records.open(stream) else { continue };
        let service = service.clone();
        // Detached: it ends when its client or the origin closes, or after PATIENCE.
        std::thread::spawn(move || {
            let peer = stream.peer;
            if let Err(error) = service.serve(stream) {
                tracing::debug!(%peer, %error, "origin: connection ended");
            }
        });
    }
}

impl Service {
    fn serve(&self, stream: CountedStream) -> io::Result<()> {
        let peer = stream.peer;
        match self {
            Self::Http => http::serve(stream, peer),
            Self::ServerFirst => speak_first(stream),
            Self::Https(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(connection, stream);
                http::serve(&mut stream, peer)?;
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }
}

/// Greets, then gives every line back until the client closes.
fn speak_first(stream: CountedStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{GREETING}\r\n").as_bytes())?;
    loop {
        let mut line = Vec::new();
        io::Read::take(&mut stream, LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        stream.get_mut().write_all(&line)?;
    }
}

#[cfg(test)]
mod tests;
