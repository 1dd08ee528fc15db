//! On which family, and by which way of setting connections up, a scenario is played.

use std::net::{SocketAddr, TcpStream};

use super::{ALLOWED_NAME, SENT_NAME};
use crate::demo::stage::{Differs, Family, Stage};

/// Who completes the client's handshake, and whose server the connection ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The server that the client asked for does both.
    Through,
    /// weir answers; the server that the client asked for is connected after the verdict.
    Answer,
    /// The server that the client asked for answers; then a server of a pool gets the connection in its place.
    Rebind,
    /// weir answers; a server of a pool is connected after the verdict.
    Send,
    /// The relay answers, and connects to a server of a pool.
    RelaySend,
}

impl Variant {
    /// Where a rule may refuse or take a connection, and nobody sends it elsewhere.
    pub const DIRECT: &'static [Self] = &[Self::Through, Self::Answer];
    /// Where a pool takes it.
    pub const TO_POOL: &'static [Self] = &[Self::Rebind, Self::Send];
    /// All of the fast road.
    pub const ALL: &'static [Self] = &[Self::Through, Self::Answer, Self::Rebind, Self::Send];

    /// As in the report: the handshake of the intercept, and whether the verdict is to send.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::Answer => "answer",
            Self::Rebind => "through, send",
            Self::Send => "answer, send",
            Self::RelaySend => "relay, send",
        }
    }

    /// Whether weir completes the client's handshake.
    pub const fn answers(self) -> bool {
        matches!(self, Self::Answer | Self::Send)
    }

    /// Whether a server of a pool gets the connection.
    pub const fn to_pool(self) -> bool {
        matches!(self, Self::Rebind | Self::Send | Self::RelaySend)
    }
}

/// One way to play a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Of both ends' addresses.
    pub family: Family,
    /// How the connection is set up.
    pub variant: Variant,
}

impl Case {
    /// Family and variant, as in the report.
    pub const fn names(self) -> (&'static str, &'static str) {
        (self.family.name(), self.variant.name())
    }

    /// Where the client connects to: the demo's configuration answers in the name of the second server.
    pub fn target(self, port: u16) -> SocketAddr {
        let servers = self.family.addresses().servers;
        SocketAddr::new(servers[usize::from(self.variant.answers())], port)
    }

    /// Where the connection must end: the third server is that of the pools.
    pub fn server(self, port: u16) -> SocketAddr {
        match self.variant.to_pool() {
            true => SocketAddr::new(self.family.addresses().servers[2], port),
            false => self.target(port),
        }
    }

    /// A name that is not refused.
    pub const fn name(self) -> &'static str {
        if self.variant.to_pool() { SENT_NAME } else { ALLOWED_NAME }
    }

    /// Connects the usual client.
    ///
    /// # Errors
    /// How the connection failed.
    pub fn connect(self, stage: &Stage<'_>, port: u16) -> Result<TcpStream, Differs> {
        stage.connect_to(self.family.addresses().client, self.target(port))
    }

    /// The connection of `client` reached the server that it had to reach, and no other got a byte of it.
    ///
    /// # Errors
    /// Where it went instead.
    pub fn check_server(self, stage: &Stage<'_>, client: SocketAddr, port: u16) -> Result<(), Differs> {
        let (expected, records) = (self.server(port), stage.records().of(client));
        let strayed = records.iter().find(|record| record.local != expected && record.received() > 0);
        match (strayed, records.iter().any(|record| record.local == expected)) {
            (Some(record), _) => Err(format!("{} got bytes, and should not", record.local)),
            (None, false) => Err(format!("it did not come to {expected}")),
            (None, true) => Ok(()),
        }
    }
}
