//! What every scenario has at hand: the lab, the origins, the clients' trust, and the gateway if it runs.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;

use super::DemoError;
use super::client::{TlsClient, connect};
use super::gateway::Gateway;
use super::origin::{Authority, Nginx, Origin, Records};
use crate::lab::{Addresses, Capture, CapturedFrame, IPV4, IPV6, Lab, LabError, Namespace, TcpFrame};

/// Bytes of the large body, where nobody says another number.
pub const BODY_BYTES: u64 = 10 << 20;

/// An IP version; everything in the demo is played on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are played.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// As in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The lab's addresses of this family.
    pub const fn addresses(self) -> Addresses {
        match self {
            Self::V4 => IPV4,
            Self::V6 => IPV6,
        }
    }

    /// The origin's address with a port.
    pub fn origin(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses().servers[0], port)
    }
}

/// What a scenario found out, when all went as it should.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What happened, as a phrase for the report.
    pub what: String,
    /// The road of its connection and why; empty without a gateway.
    pub road: Road,
}

/// The road of a connection, as `weir flows` told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Road {
    /// `fast`, `relay` or `kernel`; empty without a gateway.
    pub name: String,
    /// The lane, where one is told.
    pub lane: String,
    /// Verdict and rule, or the reason.
    pub why: String,
}

impl fmt::Display for Road {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.lane.as_str()) {
            ("", _) => formatter.write_str("-"),
            (name, "") => formatter.write_str(name),
            (name, lane) => write!(formatter, "{name}/{lane}"),
        }
    }
}

/// A scenario went otherwise than expected; says how.
pub type Differs = String;

/// The place where scenarios are played.
#[derive(Debug)]
pub struct Stage<'lab> {
    /// The namespaces.
    pub lab: &'lab Lab,
    /// The servers.
    pub origin: Origin,
    /// The weir between them; `None`: the kernel of the gateway namespace just forwards.
    pub gateway: Option<Gateway<'lab>>,
    /// Of the large body that scenarios ask for.
    pub body_bytes: u64,
    /// An origin that wants PROXY headers, or why there is none.
    pub nginx: Result<Nginx, Differs>,
    tls: Arc<ClientConfig>,
    authority: Authority,
}

impl<'lab> Stage<'lab> {
    /// Starts the origins in `lab`; there is no gateway yet.
    ///
    /// # Errors
    /// [`DemoError`] when a port is taken or no certificate can be made.
    pub fn new(lab: &'lab Lab) -> Result<Self, DemoError> {
        let authority = Authority::new().map_err(super::origin::OriginError::from)?;
        let tls = authority.client_config().map_err(super::origin::OriginError::from)?;
        let origin = Origin::start(&lab.server, &authority)?;
        let nginx = Err("nginx was not started".into());
        Ok(Self { lab, origin, gateway: None, body_bytes: BODY_BYTES, nginx, tls, authority })
    }

    /// Starts nginx beside the origins, with a certificate for `name`. Where that cannot be, scenarios say why.
    pub fn start_nginx(&mut self, name: &str) {
        let pem = self.authority.pem(name).map_err(|error| error.to_string());
        self.nginx = pem.and_then(|pem| Nginx::start(&self.lab.server, &pem));
    }

    /// Who reached the origins, and with what.
    pub fn records(&self) -> &Records {
        self.origin.records()
    }

    /// Connects the usual client to the origin.
    ///
    /// # Errors
    /// How the connection failed.
    pub fn connect(&self, family: Family, port: u16) -> Result<TcpStream, Differs> {
        self.connect_from(family.addresses().client, family, port)
    }

    /// Connects the client with the address `source` to the origin.
    ///
    /// # Errors
    /// How the connection failed.
    pub fn connect_from(&self, source: IpAddr, family: Family, port: u16) -> Result<TcpStream, Differs> {
        self.connect_to(source, family.origin(port))
    }

    /// Connects the client with the address `source` to any server.
    ///
    /// # Errors
    /// How the connection failed.
    pub fn connect_to(&self, source: IpAddr, target: SocketAddr) -> Result<TcpStream, Differs> {
        connect(&self.lab.client, SocketAddr::new(source, 0), target)
            .map_err(|error| format!("connecting to {target} failed: {}", plainly(&error)))
    }

    /// Sends a ClientHello for `name` over `stream`.
    ///
    /// # Errors
    /// Of the stream.
    pub fn start_tls(&self, name: &str, stream: TcpStream) -> io::Result<TlsClient> {
        TlsClient::start(&self.tls, name, stream)
    }

    /// Begins to record on a device.
    ///
    /// # Errors
    /// Why the kernel refused.
    pub fn watch(&self, namespace: &Namespace, device: &str) -> Result<Watch, Differs> {
        let capture = self.lab.capture(namespace, device).map_err(|error: LabError| error.to_string())?;
        Ok(Watch(capture))
    }

    /// The road that the gateway says the connection of `stream` took; an empty one without a gateway.
    ///
    /// # Errors
    /// When the gateway does not know the connection.
    pub fn road_of(&self, stream: &TcpStream) -> Result<Road, Differs> {
        let client = own_address(stream)?;
        self.road_from(client)
    }

    /// As [`Self::road_of`], for a connection that may be closed already.
    ///
    /// # Errors
    /// When the gateway does not know the connection.
    pub fn road_from(&self, client: SocketAddr) -> Result<Road, Differs> {
        let Some(gateway) = &self.gateway else { return Ok(Road::default()) };
        let flow = gateway.flow_of(client)?;
        let words = [flow.verdict, flow.rule.or(flow.reason)];
        let why: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
        // The lane repeats the road's name where there is only one.
        let lane = flow.lane.filter(|lane| *lane != flow.road).unwrap_or_default();
        Ok(Road { name: flow.road, lane, why: why.join(", ") })
    }
}

/// The client's own address and port.
///
/// # Errors
/// Of getsockname(2).
pub fn own_address(stream: &TcpStream) -> Result<SocketAddr, Differs> {
    stream.local_addr().map_err(|error| format!("the client's own address is unknown: {error}"))
}

/// An error as a user would put it.
pub fn plainly(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "reset (RST)".into(),
        io::ErrorKind::UnexpectedEof => "closed before the end".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "nothing more came".into(),
        _ => error.to_string(),
    }
}

/// A recording of one device, read as TCP.
#[derive(Debug)]
pub struct Watch(Capture);

impl Watch {
    /// Ends the recording; the TCP frames whose one end is `client`.
    pub fn frames_of(self, client: SocketAddr) -> Vec<TcpFrame> {
        let frames = self.0.stop();
        let tcp = frames.iter().filter_map(CapturedFrame::tcp);
        tcp.filter(|frame| frame.source == client || frame.destination == client).collect()
    }
}
