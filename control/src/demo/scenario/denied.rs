//! Connections that a rule refuses: the client is reset, and nothing it said reaches the servers' link.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::DENIED_NAME;
use crate::demo::client;
use crate::demo::origin::{HTTP_PORT, HTTPS_PORTS};
use crate::demo::stage::{Differs, Family, Seen, Stage, own_address, plainly};
use crate::lab::SERVER_DEVICE;

/// After the reset, how long bytes that leaked have to show up on the servers' link.
const LEAK_TIME: Duration = Duration::from_millis(150);

/// TLS, refused by the name in the ClientHello.
pub(super) fn play_https(stage: &Stage<'_>, family: Family) -> Result<Seen, Differs> {
    play(stage, family, HTTPS_PORTS[0], |stream| ask(stage.start_tls(DENIED_NAME, stream)?))
}

/// HTTP, refused by the Host header.
pub(super) fn play_http(stage: &Stage<'_>, family: Family) -> Result<Seen, Differs> {
    play(stage, family, HTTP_PORT, ask)
}

/// Asks for something of the denied name; `Ok` says how it was answered, against expectation.
fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    let response = client::get(&mut stream, DENIED_NAME, "/bytes/1000", &AtomicU64::new(0))?;
    Ok(format!("the request was answered with status {}", response.status))
}

/// Plays one refusal; `ask` as the function of that name.
fn play(
    stage: &Stage<'_>,
    family: Family,
    port: u16,
    ask: impl FnOnce(TcpStream) -> io::Result<String>,
) -> Result<Seen, Differs> {
    let watch = stage.watch(&stage.lab.server, SERVER_DEVICE)?;
    let stream = stage.connect(family, port)?;
    let client = own_address(&stream)?;
    match ask(stream) {
        Ok(answered) => return Err(answered),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(format!("not reset but: {}", plainly(&error))),
    }
    std::thread::sleep(LEAK_TIME);
    let frames = watch.frames_of(client);
    let on_link: usize =
        frames.iter().filter(|frame| frame.source == client).map(|frame| frame.payload.len()).sum();
    let at_origin = stage.records().received_from(client);
    if on_link > 0 || at_origin > 0 {
        return Err(format!("reset, but {on_link} bytes leaked to the link, {at_origin} to the origin"));
    }
    let ended = frames.iter().any(|frame| frame.source == client && frame.rst);
    if !ended {
        return Err("the client was reset, but the origin was not".into());
    }
    let what = "client and origin reset, origin saw 0 payload bytes".into();
    Ok(Seen { what, road: stage.road_from(client)? })
}
