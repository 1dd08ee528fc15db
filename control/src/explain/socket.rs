//! The relay's sockets, as the kernel finds them for a packet (sock_diag): the connected ones of both legs, the listener.

use std::io;
use std::net::SocketAddr;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket as Netlink, SocketAddr as NetlinkAddr};

use super::{Layer, Question, Source, Step};
use crate::host::HostSpec;

/// INET_DIAG_SOCKOPT of linux/inet_diag.h, and its bit `transparent`.
const SOCKOPT: u16 = 22;
const TRANSPARENT: u8 = 1 << 5;

/// A socket of this box.
#[derive(Clone, Debug)]
pub struct Socket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: &'static str,
    pub inode: u32,
    /// IP_TRANSPARENT; none: the kernel does not say (TIME-WAIT, SYN-RECEIVED).
    pub transparent: Option<bool>,
    pub mark: Option<u32>,
}

/// What was found for the connection.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// Of the client's leg: local address is what the client asked for.
    pub client: Option<Socket>,
    /// Of the server's leg: local address is the client's.
    pub server: Option<Socket>,
    /// The transparent listener.
    pub listener: Option<Socket>,
    /// Its port.
    pub listen: u16,
    /// Why the kernel was not asked, or did not answer.
    pub unknown: Option<String>,
}

impl Socket {
    fn text(&self) -> String {
        let transparent = match self.transparent {
            Some(true) => ", transparent",
            Some(false) => ", not transparent",
            None => "",
        };
        let mark = self.mark.filter(|mark| *mark != 0).map(|mark| format!(", mark {mark:#x}"));
        let mark = mark.unwrap_or_default();
        format!("{} {} <- {}{transparent}{mark}, inode {}", self.state, self.local, self.remote, self.inode)
    }
}

/// Looks for all three.
pub fn find(question: &Question, spec: Option<&HostSpec>, steps: &mut Vec<Step>) -> Sockets {
    let listen = spec.map_or_else(|| HostSpec::default().listen, |spec| spec.listen);
    let mut sockets = Sockets { listen, ..Sockets::default() };
    let at = |port| SocketAddr::new(question.to.ip(), port);
    let connected = |socket: Option<Socket>| socket.filter(|socket| socket.state != LISTEN);
    let result = (|| -> io::Result<()> {
        sockets.client = connected(lookup(question.to, question.from)?);
        sockets.server = connected(lookup(question.from, question.to)?);
        sockets.listener = lookup(at(listen), question.from)?.filter(|socket| socket.state == LISTEN);
        Ok(())
    })();
    let mut step = |question: &str, answer: String, detail: String| {
        steps.push(Step::new(Layer::Socket, Source::Kernel, question, answer).detail([detail]));
    };
    if let Err(error) = result {
        step("which sockets has it?", format!("the kernel does not say: {error}"), "ss -tn".to_owned());
        sockets.unknown = Some(error.to_string());
        return sockets;
    }
    let text = |socket: &Option<Socket>| socket.as_ref().map_or("none".to_owned(), Socket::text);
    let ss = |local: SocketAddr, remote: SocketAddr| format!("ss -tne src {local} dst {remote}");
    let (from, to) = (question.from, question.to);
    step("has the client's leg a socket?", text(&sockets.client), ss(to, from));
    step("has the server's leg one?", text(&sockets.server), ss(from, to));
    let listener = match &sockets.listener {
        Some(listener) => listener.text(),
        None => "none: without it the tproxy rule does nothing, and the packet goes on".to_owned(),
    };
    step("has the relay a listener?", listener, format!("ss -tlne sport = :{listen}"));
    sockets
}

const LISTEN: &str = "LISTEN";

/// The socket that the kernel would give a packet to: the connected one, else one that listens.
///
/// # Errors
/// What the kernel says, but for "there is none".
pub fn lookup(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
    let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    netlink.bind_auto()?;
    netlink.connect(&NetlinkAddr::new(0, 0))?;
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            // INET_DIAG_NOCOOKIE.
            cookie: [0xff; 8],
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netlink.send(&bytes, 0)?;
    let (answer, _) = netlink.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(Some(of(&response))),
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            let none = error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error());
            if none { Ok(None) } else { Err(error) }
        }
        other => Err(io::Error::other(format!("the kernel answered {other:?}"))),
    }
}

fn of(response: &InetResponse) -> Socket {
    let (header, id) = (&response.header, &response.header.socket_id);
    let mut socket = Socket {
        local: SocketAddr::new(id.source_address, id.source_port),
        remote: SocketAddr::new(id.destination_address, id.destination_port),
        state: state(header.state),
        inode: header.inode,
        transparent: None,
        mark: None,
    };
    for nla in &response.nlas {
        match nla {
            Nla::Mark(mark) => socket.mark = Some(*mark),
            Nla::Other(other) if other.kind() == SOCKOPT => socket.transparent = transparent(other),
            _ => {}
        }
    }
    socket
}

fn transparent(nla: &DefaultNla) -> Option<bool> {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value.first().map(|bits| bits & TRANSPARENT != 0)
}

/// The names of include/net/tcp_states.h, as `ss` has them.
const fn state(state: u8) -> &'static str {
    match state {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 | 12 => "SYN-RECV",
        4 => "FIN-WAIT-1",
        5 => "FIN-WAIT-2",
        6 => "TIME-WAIT",
        7 => "UNCONN",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        TCP_LISTEN => LISTEN,
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}
