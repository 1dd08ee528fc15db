//! The legs of a connection: who is at their ends, and where the numbers of each begin.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_core::policy::Handshake;

use crate::bench::{client_of, server_of};
use crate::packet::{Family, SYN, Seen};

use super::syntax::{Packet, Side, Wire};

/// An address and a port.
pub(super) type End = (IpAddr, u16);

/// One leg.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub(super) client: End,
    pub(super) server: End,
    /// Initial sequence numbers, as this leg has them; `None`: to be learned.
    pub(super) client_isn: Option<u32>,
    pub(super) server_isn: Option<u32>,
}

impl Leg {
    pub(super) const fn end(&self, side: Side) -> End {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
    pub(super) const fn isn(&mut self, side: Side) -> &mut Option<u32> {
        match side {
            Side::Client => &mut self.client_isn,
            Side::Server => &mut self.server_isn,
        }
    }
}

/// All legs of a script, and what is said of them.
#[derive(Debug)]
pub(super) struct Legs {
    legs: HashMap<Wire, Leg>,
    family: Family,
    answers: bool,
    client_port: u16,
    server_port: u16,
    client_isn: u32,
    server_isns: [u32; 4],
    /// The servers of the pool, in the order in which they are first called.
    called: Vec<IpAddr>,
}

/// The port of the pool's servers.
pub(super) const POOL_PORT: u16 = 8443;

/// A server of the pool, from 1.
pub(super) fn pool_server(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 100 + number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 1, number.into()).into(),
    }
}

impl Legs {
    pub(super) fn new(family: Family, handshake: Handshake) -> Self {
        let mut legs = Self {
            legs: HashMap::new(),
            family,
            answers: handshake == Handshake::Answer,
            client_port: 40_000,
            server_port: 443,
            client_isn: 1000,
            server_isns: [900_000, 31_000_000, 32_000_000, 33_000_000],
            called: Vec::new(),
        };
        legs.anew();
        legs
    }

    /// The legs of the next connection: nothing is learned yet.
    fn anew(&mut self) {
        let client = (client_of(self.family), self.client_port);
        let leg = |server: IpAddr, isn: Option<u32>| Leg {
            client,
            server: (server, self.server_port),
            client_isn: Some(self.client_isn),
            server_isn: isn,
        };
        let own = self.server_isns[0];
        let mut legs = HashMap::from([
            // Whoever answers the client chooses the number.
            (Wire::Lan, leg(server_of(self.family), (!self.answers).then_some(own))),
            (Wire::Wan, leg(server_of(self.family), Some(own))),
        ]);
        for number in 1..=3 {
            let isn = self.server_isns[usize::from(number)];
            let server = self.called.get(usize::from(number) - 1).copied();
            let server = server.unwrap_or_else(|| pool_server(self.family, number));
            legs.insert(Wire::Pool(number), Leg { server: (server, POOL_PORT), ..leg(server, Some(isn)) });
        }
        self.legs = legs;
    }

    /// `client.isn`, `server.isn`, `pool1.isn`, `client.port`, `server.port`.
    pub(super) fn set(&mut self, key: &str, value: u32) {
        match key {
            "client.isn" => self.client_isn = value,
            "server.isn" => self.server_isns[0] = value,
            "pool1.isn" => self.server_isns[1] = value,
            "pool2.isn" => self.server_isns[2] = value,
            "pool3.isn" => self.server_isns[3] = value,
            "client.port" => self.client_port = value as u16,
            _ => self.server_port = value as u16,
        }
        self.anew();
    }

    /// The leg of a wire; what goes into the kernel has the numbers of the leg it came by.
    pub(super) fn get(&mut self, wire: Wire, side: Side) -> &mut Leg {
        let wire = match (wire, side) {
            (Wire::Kernel | Wire::Relay, Side::Client) => Wire::Lan,
            (Wire::Kernel | Wire::Relay, Side::Server) => Wire::Wan,
            _ => wire,
        };
        self.legs.get_mut(&wire).expect("every wire has a leg")
    }

    /// On which leg beyond the gateway a packet has left, and who it is from.
    pub(super) fn leg_of(&mut self, seen: &Seen) -> Wire {
        let to = seen.dst.0;
        let of_pool = (1..=3).any(|n| to == pool_server(self.family, n));
        if of_pool && seen.dst.1 == POOL_PORT && !self.called.contains(&to) {
            self.called.push(to);
            let number = self.called.len() as u8;
            if let Some(leg) = self.legs.get_mut(&Wire::Pool(number)) {
                leg.server.0 = to;
            }
        }
        self.wire_of(to)
    }

    /// The wire beyond the gateway to an address.
    pub(super) fn wire_of(&self, to: IpAddr) -> Wire {
        let number = self.called.iter().position(|called| *called == to);
        number.map_or(Wire::Wan, |n| Wire::Pool(n as u8 + 1))
    }

    /// Who sends a packet of a line.
    pub(super) const fn sender(wire: Wire, comes_in: bool, packet: &Packet) -> Side {
        match (packet.sender, wire) {
            (Some(side), _) => side,
            (None, Wire::Lan) if comes_in => Side::Client,
            (None, Wire::Lan) => Side::Server,
            (None, Wire::Kernel | Wire::Relay) => Side::Client,
            (None, _) if comes_in => Side::Server,
            (None, _) => Side::Client,
        }
    }

    /// The source of a leg that the gateway opens with an address or a port of its own is learned from its SYN.
    pub(super) fn learn_source(&mut self, wire: Wire, seen: &Seen) {
        if let (Wire::Pool(_), SYN) = (wire, seen.flags)
            && let Some(leg) = self.legs.get_mut(&wire)
        {
            leg.client = seen.src;
        }
    }
}
