//! A lab with origins and a weir between them, and what clients do in it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket, Type};
use weir_control::demo::client::{self, Response};
use weir_control::demo::content;
use weir_control::demo::stage::{Family, Stage};
use weir_control::lab::{
    Capture, CapturedFrame, Lab, LabOptions, Namespace, TcpFrame, differences, host_state,
};

use crate::config::{ALLOWED, Settings};
use crate::weir::{PATIENCE, Weir, until, what_stays_wrong};

/// Port of the HTTP origin.
pub const HTTP: u16 = 80;
/// Port of the TLS origin.
pub const HTTPS: u16 = 443;
/// Clients' ports that tests choose themselves: the kernel gives them to no other connection.
const CHOSEN: &str = "41000-41999,45678";

/// The place of a test.
#[derive(Debug)]
pub struct World<'lab> {
    pub lab: &'lab Lab,
    pub stage: Stage<'lab>,
    pub weir: Weir<'lab>,
    /// The gateway before weir was there.
    pub before: String,
}

/// Plays `test` in a lab where weir runs as `settings` say. Afterwards weir must end as asked, and leave nothing.
pub fn play(settings: &Settings, test: impl FnOnce(&mut World<'_>)) {
    prepare(settings, |world| {
        world.weir.start();
        test(world);
    });
}

/// As [`play`], and weir is not started. What `test` leaves running is ended.
pub fn prepare(settings: &Settings, test: impl FnOnce(&mut World<'_>)) {
    let options = LabOptions { queues: settings.queues, forwarding: Some(true), ..LabOptions::default() };
    let Some(lab) = Lab::for_test(&options) else { return };
    lab.client.write_sysctl("net/ipv4/ip_local_reserved_ports", CHOSEN).expect("a sysctl");
    let stage = Stage::new(&lab).expect("origins can be started");
    let before = host_state(&lab.gateway).expect("the gateway can be looked at");
    let weir = Weir::new(&lab, &settings.to_string());
    let mut world = World { lab: &lab, stage, weir, before };
    test(&mut world);
    if world.weir.is_running() {
        let ended = world.weir.stop();
        assert_eq!(ended.code(), 0, "weir run ended with {ended:?}");
        world.assert_as_before();
    }
}

impl World<'_> {
    /// Nothing of weir's is left, and nothing else is missing.
    #[track_caller]
    pub fn assert_as_before(&self) {
        self.assert_state(&self.before);
    }

    /// The gateway is as it was. The kernel takes programs off and frees devices in its own time, and what this process has let go of
    /// a child has too, which some other test is about to start, until it is another program.
    #[track_caller]
    pub fn assert_state(&self, before: &str) {
        let difference = what_stays_wrong(|| {
            differences(before, &host_state(&self.lab.gateway).expect("the gateway can be looked at"))
        });
        assert!(difference.is_empty(), "left behind (+) or lost (-):\n{difference}");
    }

    /// Returns when a socket that this process has let go of is gone: a child that some other test is about to start has it, too, until it
    /// is another program. `socket` are words of the line that ss has for it: ` /run/a.sock `, `:80 `.
    #[track_caller]
    pub fn until_gone(&self, namespace: &Namespace, socket: &str) {
        until(&format!("{socket} is gone"), || !self.sh(namespace, "ss -Hanutx").contains(socket));
    }

    /// Connects the usual client to the usual server.
    #[track_caller]
    pub fn connect(&self, family: Family, port: u16) -> TcpStream {
        self.stage.connect(family, port).expect("the client can connect")
    }

    /// Connects the usual client to any server.
    pub fn connect_to(&self, family: Family, target: SocketAddr) -> io::Result<TcpStream> {
        client::connect(&self.lab.client, SocketAddr::new(family.addresses().client, 0), target)
    }

    /// Until weir knows the link-layer addresses of the usual client and server, the kernel sends its packets.
    #[track_caller]
    pub fn meet_neighbours(&self) {
        for family in Family::BOTH {
            until("weir knows both neighbours", || {
                let before = self.weir.count("punts", "no-neighbour");
                fetch_intact(&mut self.connect(family, HTTP), 1000);
                self.weir.count("punts", "no-neighbour") == before
            });
        }
    }

    /// Runs a command line in a namespace. Panics when it fails.
    pub fn sh(&self, namespace: &Namespace, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdin(Stdio::null());
        let output = namespace.run(|| command.output()).expect("sh");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}\n{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Adds a rule of nft to what comes in at the servers.
    pub fn filter_at_server(&self, rule: &str) {
        let chain = "add table inet test; add chain inet test input { type filter hook input priority 0; }";
        self.sh(&self.lab.server, &format!("nft '{chain}; add rule inet test input {rule}'"));
    }

    /// The usual server answers an ICMP echo request of the client.
    #[track_caller]
    pub fn ping(&self, family: Family) {
        let addresses = family.addresses();
        let (server, client) = (addresses.servers[0], addresses.client);
        let (domain, protocol, kind) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 8),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 128),
        };
        let socket = self.lab.client.run(|| Socket::new(domain, Type::RAW, Some(protocol))).expect("root");
        socket.bind(&SocketAddr::new(client, 0).into()).expect("the client's address");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // The kernel fills in ICMPv6's checksum; ICMPv4's is the complement of type, identifier and sequence.
        let mut request = [kind, 0, 0, 0, 0x77, 0x77, 0, 1];
        if family == Family::V4 {
            let sum = !(u16::from(kind) << 8).wrapping_add(0x7777).wrapping_add(1);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        socket.send_to(&request, &SocketAddr::new(server, 0).into()).expect("sent");
        let mut buffer = [0; 256];
        until("the server answers a ping", || {
            let length = (&socket).read(&mut buffer).expect("an answer");
            // Raw IPv4 sockets give the IP header as well.
            buffer[..length].ends_with(&[0x77, 0x77, 0, 1])
        });
    }

    /// Records at the client's and at the server's end of the links.
    pub fn watch(&self) -> Watch {
        let at = |namespace, device| self.lab.capture(namespace, device).expect("captures work");
        Watch { client: at(&self.lab.client, "client0"), server: at(&self.lab.server, "server0") }
    }

    /// Payload bytes of `client` that the origins got.
    pub fn received_from(&self, client: SocketAddr) -> u64 {
        self.stage.records().received_from(client)
    }
}

/// Asks the HTTP origin for `bytes` bytes.
pub fn fetch(stream: &mut TcpStream, host: &str, bytes: u64) -> io::Result<Response> {
    client::get(stream, host, &format!("/bytes/{bytes}"), &AtomicU64::new(0))
}

/// As [`fetch`], of an allowed name; every byte must come.
#[track_caller]
pub fn fetch_intact(stream: &mut TcpStream, bytes: u64) {
    let response = fetch(stream, ALLOWED, bytes).expect("an answer");
    assert!(response.is_intact() && response.length == bytes, "{response:?}");
}

/// Asks for `bytes` bytes of `host` and then sends as many; both must come whole. The server closes.
#[track_caller]
pub fn exchange_intact(stream: &mut TcpStream, host: &str, bytes: u64) {
    let response = fetch(stream, host, bytes).expect("an answer");
    assert!(response.is_intact() && response.length == bytes, "{response:?}");
    upload_intact(stream, host, bytes);
}

/// Sends `bytes` bytes to `host`, and compares the hash that the origin gives. The server closes.
#[track_caller]
pub fn upload_intact(stream: &mut TcpStream, host: &str, bytes: u64) {
    let mut body = vec![0; bytes as usize];
    content::fill(0, &mut body);
    let head =
        format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&body).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with(&content::hash(bytes)), "{answer}");
}

/// Whom the HTTP origin sees.
pub fn whoami(stream: &mut TcpStream, host: &str) -> io::Result<String> {
    client::get(stream, host, "/whoami", &AtomicU64::new(0)).map(|response| response.text())
}

/// Two recordings.
#[derive(Debug)]
pub struct Watch {
    client: Capture,
    server: Capture,
}

/// What was seen of a connection at one device.
#[derive(Debug)]
pub struct Seen {
    pub raw: Vec<CapturedFrame>,
    pub tcp: Vec<TcpFrame>,
}

impl Watch {
    /// Ends both recordings; what the client's and the server's end of the links saw of `client`'s connections.
    pub fn stop(self, client: SocketAddr) -> (Seen, Seen) {
        (of_client(self.client.stop(), client), of_client(self.server.stop(), client))
    }

    /// Ends both recordings; all frames.
    pub fn stop_all(self) -> (Vec<CapturedFrame>, Vec<CapturedFrame>) {
        (self.client.stop(), self.server.stop())
    }
}

fn of_client(frames: Vec<CapturedFrame>, client: SocketAddr) -> Seen {
    let of =
        |frame: &CapturedFrame| frame.tcp().filter(|tcp| tcp.source == client || tcp.destination == client);
    let raw: Vec<CapturedFrame> = frames.into_iter().filter(|frame| of(frame).is_some()).collect();
    let tcp = raw.iter().filter_map(of).collect();
    Seen { raw, tcp }
}

/// A download under way, at a rate that leaves time to do something to the gateway.
#[derive(Debug)]
pub struct Download {
    pub client: SocketAddr,
    bytes: u64,
    progress: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<Response>>,
}

impl Download {
    /// Starts it and returns when an eighth is there.
    #[track_caller]
    pub fn start(world: &World<'_>, family: Family, bytes: u64, rate: u64) -> Self {
        Self::start_on(world.connect(family, HTTP), bytes, rate)
    }

    /// As [`Self::start`], on a connection that is there.
    #[track_caller]
    pub fn start_on(stream: TcpStream, bytes: u64, rate: u64) -> Self {
        Self::start_from(stream, ALLOWED, bytes, rate)
    }

    /// As [`Self::start_on`], of `host`.
    #[track_caller]
    pub fn start_from(mut stream: TcpStream, host: &'static str, bytes: u64, rate: u64) -> Self {
        let client = stream.local_addr().expect("connected");
        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        let path = format!("/bytes/{bytes}?rate={rate}");
        let thread = std::thread::spawn(move || client::get(&mut stream, host, &path, &counter));
        let download = Self { client, bytes, progress, thread };
        until("the download begins", || download.progress() > bytes / 8);
        download
    }

    /// Bytes that have come.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Returns when `more` bytes have come since now.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let wanted = (self.progress() + more).min(self.bytes);
        until("the download goes on", || self.progress() >= wanted);
    }

    /// Waits for the end, which must be that of the whole body.
    #[track_caller]
    pub fn finish(self) {
        let seen = self.progress();
        let response = self.thread.join().expect("the client does not panic");
        let response = response.unwrap_or_else(|error| panic!("{} after {seen} bytes: {error}", self.client));
        assert!(response.is_intact() && response.length == self.bytes, "{}: {response:?}", self.client);
    }
}
