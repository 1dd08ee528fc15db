//! Headers are no way around a rule: whatever a request is wrapped in, a refused name reaches no server, and an allowed
//! one does where the wrapping is lawful.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::Duration;

use etherparse::TcpHeader;
use weir_control::demo::stage::Family;
use weir_control::lab::CapturedFrame;

use crate::config::{ALLOWED, DENIED, DROPPED, Settings};
use crate::idle::assert_idle;
use crate::raw::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, RawClient, fragment_header, padded};
use crate::weir::until;
use crate::world::{HTTP, World, play};

/// How long a leak has to show up.
const LEAK: Duration = Duration::from_millis(60);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
const TCP: u8 = 6;
/// What the server must never see, in whatever form, of a refused request.
const SECRET: &[u8] = b"secret-path";

/// What becomes of an allowed request in this wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    /// The server answers.
    Answered,
    /// Weir drops it, for a reason that is counted under this name.
    Dropped(&'static str),
}

/// One way to wrap a request.
struct Wrapping {
    name: &'static str,
    families: &'static [Family],
    allowed: Allowed,
    send: fn(&mut RawClient, &[u8]),
}

const BOTH: &[Family] = &Family::BOTH;
const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];

const WRAPPINGS: [Wrapping; 20] = [
    Wrapping { name: "plain", families: BOTH, allowed: Allowed::Answered, send: plain },
    Wrapping { name: "two fragments", families: BOTH, allowed: Allowed::Answered, send: two_fragments },
    Wrapping { name: "fragments, last first", families: BOTH, allowed: Allowed::Answered, send: backwards },
    Wrapping {
        name: "fragments of 24 bytes",
        families: BOTH,
        allowed: Allowed::Answered,
        send: small_pieces,
    },
    Wrapping {
        name: "fragments of 8 bytes",
        families: BOTH,
        // The first has no whole TCP header (RFC 1858, RFC 7112).
        allowed: Allowed::Dropped("bad-fragment"),
        send: tiny_pieces,
    },
    Wrapping {
        name: "overlapping fragments",
        families: BOTH,
        allowed: Allowed::Dropped("fragment-overlap"),
        send: overlapping,
    },
    Wrapping { name: "IPv4 options", families: V4, allowed: Allowed::Answered, send: ipv4_options },
    Wrapping { name: "hop-by-hop options", families: V6, allowed: Allowed::Answered, send: hop_by_hop },
    Wrapping { name: "destination options", families: V6, allowed: Allowed::Answered, send: destination },
    Wrapping { name: "a long header chain", families: V6, allowed: Allowed::Answered, send: long_chain },
    Wrapping { name: "an atomic fragment", families: V6, allowed: Allowed::Answered, send: atomic },
    Wrapping {
        name: "fragments behind options",
        families: V6,
        allowed: Allowed::Answered,
        send: behind_options,
    },
    Wrapping { name: "a routing header", families: V6, allowed: Allowed::Answered, send: routing },
    Wrapping { name: "one byte a segment", families: BOTH, allowed: Allowed::Answered, send: one_byte },
    Wrapping { name: "segments, last first", families: BOTH, allowed: Allowed::Answered, send: out_of_order },
    Wrapping {
        name: "a wrong checksum first",
        families: BOTH,
        allowed: Allowed::Answered,
        send: wrong_first,
    },
    Wrapping {
        name: "another name first, wrong checksum",
        families: BOTH,
        allowed: Allowed::Answered,
        send: decoy,
    },
    Wrapping {
        name: "overlapping segments",
        families: BOTH,
        allowed: Allowed::Answered,
        send: overlapping_segments,
    },
    Wrapping { name: "FIN with the request", families: BOTH, allowed: Allowed::Answered, send: with_fin },
    Wrapping { name: "urgent data", families: BOTH, allowed: Allowed::Answered, send: urgent },
];

fn plain(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |_| {});
}

fn two_fragments(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragments(&segment, &[0..40, 40..segment.len()]);
}

fn backwards(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragments(&segment, &[64..segment.len(), 24..64, 0..24]);
}

fn small_pieces(client: &mut RawClient, request: &[u8]) {
    pieces_of(client, request, 24);
}

fn tiny_pieces(client: &mut RawClient, request: &[u8]) {
    pieces_of(client, request, 8);
}

fn pieces_of(client: &mut RawClient, request: &[u8], size: usize) {
    let segment = client.segment(client.next, request, |_| {});
    let pieces: Vec<_> =
        (0..segment.len()).step_by(size).map(|at| at..(at + size).min(segment.len())).collect();
    client.send_fragments(&segment, &pieces);
}

/// The middle comes twice, the second time with other bytes.
fn overlapping(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_fragment(&segment[..40], 0, true);
    client.send_fragment(&[b'x'; 16], 32, true);
    client.send_fragment(&segment[40..], 40, false);
}

fn ipv4_options(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    // Router alert (RFC 2113), then no operation.
    client.send_ip(&segment, &[0x94, 4, 0, 0, 1, 1, 1, 0], TCP);
}

fn hop_by_hop(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &padded(TCP, 1), HOP_BY_HOP);
}

fn destination(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &padded(TCP, 5), DESTINATION);
}

fn long_chain(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    let mut chain = padded(DESTINATION, 2);
    for _ in 0..4 {
        chain.extend(padded(DESTINATION, 3));
    }
    chain.extend(padded(TCP, 1));
    client.send_ip(&segment, &chain, HOP_BY_HOP);
}

fn atomic(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &fragment_header(TCP, 0, false, 7), FRAGMENT);
}

fn behind_options(client: &mut RawClient, request: &[u8]) {
    let segment = [padded(TCP, 2), client.segment(client.next, request, |_| {})].concat();
    for (from, to) in [(0, 48), (48, segment.len())] {
        let header = fragment_header(DESTINATION, from, to < segment.len(), 9);
        client.send_ip(&segment[from..to], &header, FRAGMENT);
    }
}

/// Type 4 (SRv6 has it) with no segments left: receivers skip it (RFC 8200, section 4.4).
fn routing(client: &mut RawClient, request: &[u8]) {
    let segment = client.segment(client.next, request, |_| {});
    client.send_ip(&segment, &[TCP, 0, 253, 0, 0, 0, 0, 0], ROUTING);
}

/// As many segments as are held for one connection would be too many: the rest of the request is one.
fn one_byte(client: &mut RawClient, request: &[u8]) {
    let (bytes, rest) = request.split_at(60);
    for (at, byte) in (client.next..).zip(bytes) {
        client.send_segment(at, &[*byte], |_| {});
    }
    client.send_segment(client.next + bytes.len() as u32, rest, |_| {});
}

fn out_of_order(client: &mut RawClient, request: &[u8]) {
    let pieces: Vec<(u32, &[u8])> = (client.next..).step_by(16).zip(request.chunks(16)).collect();
    for (at, piece) in pieces.into_iter().rev() {
        client.send_segment(at, piece, |_| {});
    }
}

fn wrong_first(client: &mut RawClient, request: &[u8]) {
    let mut segment = client.segment(client.next, request, |_| {});
    segment[16] ^= 0x5a;
    client.send_ip(&segment, &[], TCP);
    plain(client, request);
}

/// A name that no rule mentions, in a segment that no server would take.
fn decoy(client: &mut RawClient, request: &[u8]) {
    let other =
        String::from_utf8_lossy(request).replace(DENIED, "innocent.host.").replace(DROPPED, "innocent.host.");
    let mut segment = client.segment(client.next, other.as_bytes(), |_| {});
    segment[16] ^= 0x5a;
    client.send_ip(&segment, &[], TCP);
    plain(client, request);
}

fn overlapping_segments(client: &mut RawClient, request: &[u8]) {
    let (first, second) = (&request[..30], &request[20..]);
    client.send_segment(client.next, first, |_| {});
    client.send_segment(client.next + 20, second, |_| {});
}

fn with_fin(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |tcp| tcp.fin = true);
}

fn urgent(client: &mut RawClient, request: &[u8]) {
    client.send_segment(client.next, request, |tcp| {
        tcp.psh = true;
        tcp.urgent_pointer = 1;
    });
}

fn request(name: &str) -> Vec<u8> {
    let secret = String::from_utf8_lossy(SECRET);
    format!("GET /{secret} HTTP/1.1\r\nhost: {name}\r\nuser-agent: by hand\r\n\r\n").into_bytes()
}

#[test]
fn refused_name_reaches_no_server_in_any_wrapping() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        let mut wrong = Vec::new();
        for (at, wrapping) in (0..).step_by(10).zip(&WRAPPINGS) {
            let names = [DENIED, DROPPED];
            let cases = wrapping.families.iter().flat_map(|family| names.map(|name| (*family, name)));
            for (port, (family, name)) in (20_000 + at..).zip(cases) {
                let mut client = RawClient::new(world, family, port, HTTP);
                if let Err(error) = refuse(world, &mut client, wrapping, name) {
                    wrong.push(format!("{name} in {}, {}: {error}", wrapping.name, client.local));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_idle_but_fragments(world);
    });
}

fn refuse(world: &World<'_>, client: &mut RawClient, wrapping: &Wrapping, name: &str) -> Result<(), String> {
    let watch = world.watch();
    client.connect();
    (wrapping.send)(client, &request(name));
    let mut rst = None;
    if name == DENIED && wrapping.allowed == Allowed::Answered {
        let expected = client.expected;
        rst = Some(client.receive(ANSWER, |tcp| tcp.rst && tcp.sequence_number == expected));
    } else {
        std::thread::sleep(LEAK);
    }
    let (_, far) = watch.stop_all();
    nothing_leaked(&far, client)?;
    match (world.received_from(client.local), rst) {
        (0, Some(None)) => Err("no exact reset".into()),
        (0, _) => Ok(()),
        (bytes, _) => Err(format!("the origin got {bytes} bytes")),
    }
}

/// No frame from the client carries payload, neither as TCP nor as a fragment of something.
fn nothing_leaked(frames: &[CapturedFrame], client: &RawClient) -> Result<(), String> {
    for frame in frames {
        if frame.bytes.windows(SECRET.len()).any(|window| window == SECRET) {
            return Err(format!("the request crossed: {frame:?}"));
        }
        if let Some(tcp) = frame.tcp().filter(|tcp| tcp.source == client.local && !tcp.payload.is_empty()) {
            return Err(format!("payload crossed: {tcp:?}"));
        }
    }
    Ok(())
}

/// Incomplete datagrams are kept for a while; everything else is given back at once.
fn assert_idle_but_fragments(world: &World<'_>) {
    until("all frames are free", || {
        let frames = world.weir.status()["frames"].clone();
        assert_eq!(frames["lost"], 0);
        frames["free"] == frames["total"]
    });
}

#[test]
fn allowed_name_is_answered_in_lawful_wrappings() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        let mut wrong = Vec::new();
        for (at, wrapping) in (0..).step_by(10).zip(&WRAPPINGS) {
            for (port, family) in (30_000 + at..).zip(wrapping.families) {
                let mut client = RawClient::new(world, *family, port, HTTP);
                if let Err(error) = allow(world, &mut client, wrapping) {
                    wrong.push(format!("{}, {}: {error}", wrapping.name, client.local));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", world.weir.status());
    });
}

fn allow(world: &World<'_>, client: &mut RawClient, wrapping: &Wrapping) -> Result<(), String> {
    let request = request(ALLOWED);
    let before = match wrapping.allowed {
        Allowed::Answered => 0,
        Allowed::Dropped(name) => world.weir.count("drops", name),
    };
    client.connect();
    (wrapping.send)(client, &request);
    let end = client.next.wrapping_add(request.len() as u32);
    match wrapping.allowed {
        Allowed::Answered => {
            // A FIN counts as one more.
            let taken = |tcp: &TcpHeader| !tcp.rst && tcp.acknowledgment_number.wrapping_sub(end) < 2;
            client.receive(ANSWER, taken).ok_or("not answered")?;
        }
        Allowed::Dropped(name) => until("the drop is counted", || world.weir.count("drops", name) > before),
    }
    client.send_segment(end, b"", |tcp| tcp.rst = true);
    Ok(())
}

#[test]
fn data_on_a_syn_does_not_cross_before_the_verdict() {
    play(&Settings::default(), |world| {
        world.lab.server.write_sysctl("net/ipv4/tcp_fastopen", "1027").expect("a sysctl");
        world.meet_neighbours();
        for (port, family) in (40_000..).zip(Family::BOTH) {
            let watch = world.watch();
            let mut client = RawClient::new(world, family, port, HTTP);
            let body = request(DENIED);
            client.send_segment(client.next, &body, |tcp| {
                tcp.syn = true;
                tcp.ack = false;
                // An empty TFO cookie request (RFC 7413), then no operation.
                tcp.set_options_raw(&[34, 2, 1, 1]).expect("short");
            });
            let answer = client.receive(crate::weir::PATIENCE, |tcp| tcp.syn && tcp.ack).expect("a SYN-ACK");
            assert_eq!(answer.acknowledgment_number, client.next.wrapping_add(1), "data was acknowledged");
            assert!(!answer.options.as_slice().starts_with(&[34]), "a cookie came: {answer:?}");
            client.next = client.next.wrapping_add(1);
            client.expected = answer.sequence_number.wrapping_add(1);
            plain(&mut client, &body);
            client.receive(crate::weir::PATIENCE, |tcp| tcp.rst).expect("a reset");
            let (_, far) = watch.stop_all();
            nothing_leaked(&far, &client).unwrap();
        }
        assert_idle(&world.weir);
    });
}

/// Nobody but a raw client can send more segments than are held: then the time for a verdict runs out.
#[test]
fn more_segments_than_are_held_take_the_verdict_for_the_unidentified() {
    let intercept = "unidentified = \"reset\"\nhold = { bytes = \"16KiB\", time = \"200ms\" }";
    play(&Settings { intercept, ..Settings::default() }, |world| {
        world.meet_neighbours();
        for (port, family) in (41_000..).zip(Family::BOTH) {
            let watch = world.watch();
            let mut client = RawClient::new(world, family, port, HTTP);
            client.connect();
            for (at, byte) in (client.next..).zip(request(ALLOWED)) {
                client.send_segment(at, &[byte], |_| {});
            }
            client.receive(ANSWER, |tcp| tcp.rst).expect("a reset");
            let (_, far) = watch.stop_all();
            nothing_leaked(&far, &client).unwrap();
            assert!(world.weir.count("drops", "hold-full") > 0, "all of them were held");
        }
        assert_idle(&world.weir);
    });
}

/// A kernel's client that pushes every byte by itself: its window lets a few go, and joins the others.
#[test]
fn name_that_a_client_pushes_byte_by_byte_is_judged() {
    play(&Settings::default(), |world| {
        world.meet_neighbours();
        for family in Family::BOTH {
            for name in [ALLOWED, DENIED] {
                let watch = world.watch();
                let mut stream = world.connect(family, HTTP);
                let client = stream.local_addr().unwrap();
                let request =
                    format!("GET /bytes/10 HTTP/1.1\r\nx-long: {}\r\nhost: {name}\r\n\r\n", "-".repeat(99));
                request.bytes().for_each(|byte| stream.write_all(&[byte]).expect("room to send"));
                let mut answer = [0; 12];
                let result = stream.read_exact(&mut answer);
                let (_, far) = watch.stop(client);
                if name == ALLOWED {
                    result.expect("an answer");
                    assert_eq!(&answer, b"HTTP/1.1 200", "{family:?}");
                } else {
                    let crossed: usize = far.tcp.iter().map(|frame| frame.payload.len()).sum();
                    assert_eq!(crossed, 0, "{family:?}: payload crossed");
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset, "{family:?}");
                }
            }
        }
    });
}
