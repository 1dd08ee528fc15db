//! Headers are no way around a rule: whatever a request is wrapped in, a refused name reaches no server, and an allowed
//! one does where the wrapping is lawful.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::Duration;

use etherparse::TcpHeader;
use weir_control::demo::stage::Family;
use weir_control::lab::CapturedFrame;

use crate::config::{ALLOWED, DENIED, DROPPED, Settings};
use crate::idle::assert_idle;
use crate::raw::RawClient;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, World, play};
use crate::wrappings::{Allowed, WRAPPINGS, Wrapping, plain};

/// How long a leak has to show up.
const LEAK: Duration = Duration::from_millis(60);
/// How long an answer may take.
const ANSWER: Duration = PATIENCE;
/// What the server must never see, in whatever form, of a refused request.
const SECRET: &[u8] = b"secret-path";

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
            world.weir.comes_to("drops", "hold-full", 1);
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
