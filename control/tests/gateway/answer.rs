//! `handshake = "answer"` with the kernel's TCP at both ends: weir completes the handshake, reads, and only then asks the
//! server.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::{CapturedFrame, Checksums};

use crate::config::{ALLOWED, DENIED, DROPPED, Settings};
use crate::idle::assert_idle;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, HTTPS, Seen, World, exchange_intact, fetch, play, whoami};

/// Bytes each way.
pub const MIB: u64 = 1 << 20;

fn answering() -> Settings {
    Settings { handshake: "answer", ..Settings::default() }
}

/// Options of a SYN or SYN-ACK.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Promised {
    pub mss: Option<u16>,
    pub window_scale: bool,
    pub sack: bool,
    pub timestamps: bool,
}

pub fn options(frame: &CapturedFrame) -> Promised {
    let packet = SlicedPacket::from_ethernet(&frame.bytes).expect("a frame");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let mut promised = Promised::default();
    for option in tcp.options_iterator() {
        match option.expect("sound options") {
            TcpOptionElement::MaximumSegmentSize(mss) => promised.mss = Some(mss),
            TcpOptionElement::WindowScale(_) => promised.window_scale = true,
            TcpOptionElement::SelectiveAcknowledgementPermitted => promised.sack = true,
            TcpOptionElement::Timestamp(..) => promised.timestamps = true,
            _ => {}
        }
    }
    promised
}

impl Seen {
    /// The options of every SYN and SYN-ACK, in order.
    pub fn promises(&self) -> Vec<Promised> {
        let syns = self.raw.iter().zip(&self.tcp).filter(|(_, tcp)| tcp.syn);
        syns.map(|(raw, _)| options(raw)).collect()
    }

    /// Nobody was reset, and every checksum is right.
    #[track_caller]
    pub fn assert_clean(&self) {
        for frame in &self.tcp {
            assert!(!frame.rst, "an RST: {frame:?}");
            assert_ne!(frame.checksums, Checksums::Wrong, "{frame:?}");
        }
    }
}

fn all_options(family: Family) -> Promised {
    let mss = if family == Family::V4 { 1460 } else { 1440 };
    Promised { mss: Some(mss), window_scale: true, sack: true, timestamps: true }
}

#[test]
fn allowed_connection_runs_both_ways_with_its_options_and_no_reset() {
    play(&answering(), |world| {
        for family in Family::BOTH {
            // What a server grants is known from the first connection on: until then its MSS leaves room for timestamps.
            exchange_intact(&mut world.connect(family, HTTP), ALLOWED, MIB);
            let watch = world.watch();
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            exchange_intact(&mut stream, ALLOWED, MIB);
            let flow = world.weir.flow(client);
            assert_eq!((&flow["road"], &flow["verdict"]), (&"fast".into(), &"allow".into()), "{flow}");
            drop(stream);
            let (near, far) = watch.stop(client);
            for seen in [near, far] {
                seen.assert_clean();
                assert_eq!(seen.promises(), [all_options(family), all_options(family)], "{family:?}");
            }
        }
        assert_idle(&world.weir);
    });
}

#[test]
fn server_hears_of_a_client_only_after_the_verdict() {
    play(&answering(), |world| {
        for family in Family::BOTH {
            for (port, host) in [(HTTP, DENIED), (HTTPS, DENIED), (HTTP, DROPPED)] {
                let watch = world.watch();
                let stream = world.connect(family, port);
                let client = stream.local_addr().unwrap();
                let patience = if host == DENIED { PATIENCE } else { Duration::from_millis(600) };
                stream.set_read_timeout(Some(patience)).unwrap();
                let error = match port {
                    HTTPS => client::get(
                        &mut world.stage.start_tls(host, stream).unwrap(),
                        host,
                        "/bytes/1",
                        &AtomicU64::new(0),
                    ),
                    _ => client::get(&mut &stream, host, "/bytes/1", &AtomicU64::new(0)),
                };
                let kind = error.unwrap_err().kind();
                let expected =
                    if host == DENIED { ErrorKind::ConnectionReset } else { ErrorKind::WouldBlock };
                assert_eq!(kind, expected, "{family:?} {host}");
                let (near, far) = watch.stop(client);
                assert!(far.tcp.is_empty(), "{family:?} {host}: the server's link saw {:?}", far.tcp);
                let resets = near.tcp.iter().filter(|frame| frame.rst && frame.destination == client).count();
                assert_eq!(resets > 0, host == DENIED, "{family:?} {host}");
            }
        }
        assert_idle(&world.weir);
    });
}

#[test]
fn stateless_cookies_are_always_redeemed_with_the_options_kept() {
    let intercept = "syn_cookies = \"always\"";
    play(&Settings { intercept, ..answering() }, |world| {
        for family in Family::BOTH {
            let watch = world.watch();
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            assert!(world.weir.find_flow(client).is_none_or(|flow| flow["stage"] != "syn-rcvd"));
            exchange_intact(&mut stream, ALLOWED, MIB);
            drop(stream);
            let (near, far) = watch.stop(client);
            for seen in [near, far] {
                seen.assert_clean();
                let promises = seen.promises();
                assert_eq!(promises.len(), 2, "{promises:?}");
                assert!(promises.iter().all(|p| p.sack && p.timestamps && p.window_scale), "{promises:?}");
            }
        }
        world.weir.assert_count("flows", "cookies-sent", 2);
        world.weir.assert_count("flows", "cookies-accepted", 2);
        assert_idle(&world.weir);
    });
}

#[test]
fn server_that_refuses_ends_the_client_with_a_reset() {
    play(&answering(), |world| {
        for family in Family::BOTH {
            // The lab's servers listen everywhere but on an address that only refuses.
            let target = SocketAddr::new(family.addresses().servers[2], HTTP);
            world.filter_at_server(&format!("{} tcp dport {HTTP} reject with tcp reset", to(target)));
            let mut stream = world.connect_to(family, target).expect("weir answers");
            let client = stream.local_addr().unwrap();
            let error = fetch(&mut stream, ALLOWED, 1000).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family:?}");
            assert_eq!(world.weir.flow(client)["reason"], "server-refused");
        }
        world.weir.assert_count("flows", "failed", 2);
        assert_idle(&world.weir);
    });
}

#[test]
fn many_clients_of_two_workers_all_finish() {
    play(&Settings { queues: 2, ..answering() }, |world| {
        hammer(world, ALLOWED, 64, 200_000);
        world.weir.comes_to("flows", "handed-over", 1);
        world.weir.assert_count("flows", "allowed", 64);
        assert_idle(&world.weir);
    });
}

/// How nft says that a packet is for this server.
pub fn to(server: SocketAddr) -> String {
    let family = if server.is_ipv4() { "ip" } else { "ip6" };
    format!("{family} daddr {}", server.ip())
}

/// `count` clients at once, of both families, each with `bytes` both ways.
pub fn hammer(world: &World<'_>, host: &str, count: usize, bytes: u64) {
    std::thread::scope(|scope| {
        for at in 0..count {
            scope.spawn(move || {
                let mut stream = world.connect(Family::BOTH[at % 2], HTTP);
                exchange_intact(&mut stream, host, bytes);
            });
        }
    });
}

#[test]
fn connection_is_closed_on_both_sides_and_forgotten() {
    play(&answering(), |world| {
        for family in Family::BOTH {
            let mut stream = world.connect(family, HTTP);
            let client = stream.local_addr().unwrap();
            assert_eq!(whoami(&mut stream, ALLOWED).expect("an answer"), client.to_string());
            drop(stream);
            until("the flow is closed", || world.weir.flow(client)["stage"] == "closed");
            let sockets = format!("ss -Htn state established '( sport = :{HTTP} )'");
            until("the server's socket is gone", || {
                !world.sh(&world.lab.server, &sockets).contains(&client.to_string())
            });
        }
    });
}
