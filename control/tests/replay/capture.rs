//! Captures of small connections.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use weir_control::{config, replay};

/// Client and server of each family.
pub const FAMILIES: [(&str, &str); 2] =
    [("10.1.0.2:40000", "192.0.2.10:443"), ("[2001:db8:1::2]:40000", "[2001:db8:2::10]:443")];

/// Everything that clients behind `lan` ask for; the rule stands on the last line but one.
pub const CONFIG: &str = r#"[[port]]
name = "lan"
device = "lan0"

[[port]]
name = "wan"
device = "wan0"

[[intercept]]
name = "web"
from = "lan"
to = ["0.0.0.0/0", "::/0"]
tcp = [80, 443]
rules = [
  { host = ["*.ads.example"], action = "reset" },
]
"#;

/// The line of [`CONFIG`]'s rule.
pub const RULE_LINE: usize = 15;

/// Where the tests of this binary write.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A pcap that grows, one packet a millisecond.
#[derive(Debug)]
pub struct Capture {
    file: Vec<u8>,
    at: u32,
}

impl Default for Capture {
    fn default() -> Self {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0]);
        for value in [0, 0, 65535, 1_u32] {
            file.extend(value.to_le_bytes());
        }
        Self { file, at: 0 }
    }
}

impl Capture {
    /// A frame of which the first `captured` octets were captured.
    pub fn cut(&mut self, frame: &[u8], captured: usize) -> &mut Self {
        let captured = captured.min(frame.len());
        self.at += 1;
        for value in [self.at / 1000, self.at % 1000 * 1000, captured as u32, frame.len() as u32] {
            self.file.extend(value.to_le_bytes());
        }
        self.file.extend(&frame[..captured]);
        self
    }

    pub fn frames(&mut self, frames: &[Vec<u8>]) -> &mut Self {
        for frame in frames {
            self.cut(frame, frame.len());
        }
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// Writes the capture under a name of the test's own.
    pub fn write(&self, name: &str) -> PathBuf {
        let path = folder().join(name);
        std::fs::write(&path, &self.file).expect("a capture written");
        path
    }

    /// What the library's replay makes of it, by [`CONFIG`].
    pub fn replay(&self, name: &str) -> replay::Replay {
        self.replay_by(CONFIG, name)
    }

    /// By another configuration.
    pub fn replay_by(&self, config: &str, name: &str) -> replay::Replay {
        let (config, _) =
            config::parse(Path::new("replay.toml"), config.to_owned()).expect("a valid configuration");
        replay::replay(&config.compile(1), &self.write(name)).expect("a capture read")
    }
}

/// One connection. The client's first sequence number is 1000, the server's 5000.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

impl Talk {
    pub fn of((client, server): (&str, &str)) -> Self {
        Self { client: client.parse().expect("a client"), server: server.parse().expect("a server") }
    }

    pub fn syn(&self) -> Vec<u8> {
        let step = step(self.client, self.server, 1000).syn();
        bytes(step, &[])
    }

    pub fn syn_ack(&self) -> Vec<u8> {
        let step = step(self.server, self.client, 5000).syn().ack(1001);
        bytes(step, &[])
    }

    /// The client's segment behind `sent` octets of its stream.
    pub fn client(&self, sent: u32, payload: &[u8]) -> Vec<u8> {
        bytes(step(self.client, self.server, 1001 + sent).ack(5001), payload)
    }

    /// The server's acknowledgment of `received` octets.
    pub fn server(&self, received: u32) -> Vec<u8> {
        bytes(step(self.server, self.client, 5001).ack(1001 + received), &[])
    }

    /// A connection up to the acknowledgment of its first bytes.
    pub fn whole(&self, payload: &[u8]) -> Vec<Vec<u8>> {
        vec![
            self.syn(),
            self.syn_ack(),
            self.client(0, &[]),
            self.client(0, payload),
            self.server(payload.len() as u32),
        ]
    }
}

type Step = PacketBuilderStep<TcpHeader>;

fn step(from: SocketAddr, to: SocketAddr, seq: u32) -> Step {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip: PacketBuilderStep<IpHeaders> = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        families => panic!("{families:?} is no connection"),
    };
    ip.tcp(from.port(), to.port(), seq, 64240)
}

fn bytes(step: Step, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write(&mut frame, payload).expect("a frame");
    frame
}

/// A request for a host.
pub fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// A ClientHello with a server name and ALPN names, in one record.
pub fn hello(host: &str, alpn: &[&str]) -> Vec<u8> {
    let names: Vec<u8> = alpn.iter().flat_map(|name| sized(1, name.as_bytes())).collect();
    let host = sized(2, &[vec![0], sized(2, host.as_bytes())].concat());
    let extensions = [vec![0, 0], sized(2, &host), vec![0, 16], sized(2, &sized(2, &names))].concat();
    let body =
        [vec![3, 3], vec![7; 32], vec![0], sized(2, &[0x13, 0x01]), sized(1, &[0]), sized(2, &extensions)]
            .concat();
    [vec![22, 3, 1], sized(2, &[vec![1], sized(3, &body)].concat())].concat()
}

/// Bytes behind their length, which has `octets` octets.
fn sized(octets: usize, bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u32).to_be_bytes();
    [&len[4 - octets..], bytes].concat()
}
