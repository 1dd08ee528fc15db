//! Connections that the gateway should let through.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;

use super::Case;
use crate::demo::client::{self, Response, TlsClient};
use crate::demo::origin::{GREETING, HTTPS_PORTS, SERVER_FIRST_PORTS};
use crate::demo::stage::{Differs, Seen, Stage, own_address, plainly};
use crate::lab::CLIENT_DEVICE;

/// Payload of one full segment on Ethernet without TCP options; a longer ClientHello needs two.
const SEGMENT_BYTES: usize = 1460;

/// A large body over TLS arrives as it was sent.
pub(super) fn play_https(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let mut tls = greet(stage, case)?;
    let response = fetch(&mut tls, case.name(), stage.body_bytes)?;
    let road = stage.road_of(tls.tcp())?;
    case.check_server(stage, own_address(tls.tcp())?, HTTPS_PORTS[0])?;
    let by = if case.variant.to_pool() { " from the pool's server" } else { "" };
    Ok(Seen { what: format!("{} MiB came{by}, hash equal", response.length >> 20), road })
}

/// A ClientHello of more than one segment is put together and let through.
pub(super) fn play_post_quantum(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    // At the client: on the gateway's devices AF_XDP takes frames before a packet socket sees them.
    let watch = stage.watch(&stage.lab.client, CLIENT_DEVICE)?;
    let mut tls = greet(stage, case)?;
    let hello = tls.hello_bytes();
    fetch(&mut tls, case.name(), 1000)?;
    let client = own_address(tls.tcp())?;
    case.check_server(stage, client, HTTPS_PORTS[0])?;
    let road = stage.road_of(tls.tcp())?;
    let group = tls.key_exchange().unwrap_or_else(|| "no key exchange".into());
    // Until the server's first payload, the client sends nothing but its ClientHello. Where no XDP program
    // is attached veth may show both segments as one frame that an offload would have cut.
    let frames = watch.frames_of(client);
    let hello_frames = frames.iter().take_while(|frame| frame.source == client || frame.payload.is_empty());
    let segments: usize = hello_frames.map(|frame| frame.payload.len().div_ceil(SEGMENT_BYTES)).sum();
    if hello <= SEGMENT_BYTES || segments < 2 {
        return Err(format!(
            "the ClientHello had {hello} bytes in {segments} segments: too short to show it"
        ));
    }
    if group != "X25519MLKEM768" {
        return Err(format!("both ends agreed on {group} instead of X25519MLKEM768"));
    }
    Ok(Seen { what: format!("{hello} bytes in {segments} segments, {group} agreed"), road })
}

/// A protocol in which the client waits for the server runs both ways.
pub(super) fn play_server_first(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    // Nothing is asked for by name: the rule that sends goes by the port.
    let port = SERVER_FIRST_PORTS[usize::from(case.variant.to_pool())];
    let stream = case.connect(stage, port)?;
    let mut lines = BufReader::new(&stream).lines();
    let mut next = |what: &str| match lines.next() {
        Some(Ok(line)) => Ok(line),
        Some(Err(error)) => Err(format!("{what}: {}", plainly(&error))),
        None => Err(format!("{what}: closed before the end")),
    };
    let greeting = next("the greeting")?;
    if greeting != GREETING {
        return Err(format!("the greeting was {greeting:?}"));
    }
    say(&stream, "over the weir")?;
    let echo = next("the echo")?;
    if echo != "over the weir" {
        return Err(format!("the echo was {echo:?}"));
    }
    let road = stage.road_of(&stream)?;
    case.check_server(stage, own_address(&stream)?, SERVER_FIRST_PORTS[0])?;
    Ok(Seen { what: "greeted, then echoed".into(), road })
}

fn say(mut stream: &TcpStream, line: &str) -> Result<(), Differs> {
    stream.write_all(format!("{line}\r\n").as_bytes()).map_err(|error| plainly(&error))
}

/// Opens a connection and sends a ClientHello for a name that is not refused.
pub(super) fn greet(stage: &Stage<'_>, case: Case) -> Result<TlsClient, Differs> {
    let stream = case.connect(stage, HTTPS_PORTS[0])?;
    stage.start_tls(case.name(), stream).map_err(|error| format!("the ClientHello: {}", plainly(&error)))
}

fn fetch(tls: &mut TlsClient, name: &str, bytes: u64) -> Result<Response, Differs> {
    let progress = AtomicU64::new(0);
    let response = client::get(tls, name, &format!("/bytes/{bytes}"), &progress);
    let response = response
        .map_err(|error| format!("{} after {} of {bytes} bytes", plainly(&error), progress.into_inner()))?;
    if response.length != bytes || !response.is_intact() {
        return Err(format!("status {}, {} bytes, wrong hash", response.status, response.length));
    }
    Ok(response)
}
