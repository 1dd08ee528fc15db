//! Connections that a rule refuses, or that no server takes: the client is reset, and nothing it said reaches the
//! servers' link.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::{Case, DENIED_NAME, NOBODY_NAME};
use crate::demo::client;
use crate::demo::origin::{HTTP_PORT, HTTPS_PORTS};
use crate::demo::stage::{Differs, Road, Seen, Stage, own_address, plainly};
use crate::lab::{SERVER_DEVICE, TcpFrame};

/// After the reset, how long bytes that leaked have to show up on the servers' link.
const LEAK_TIME: Duration = Duration::from_millis(150);

/// TLS, refused by the name in the ClientHello.
pub(super) fn play_https(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let ask = |stream| ask(stage.start_tls(DENIED_NAME, stream)?, DENIED_NAME);
    let (frames, road) = play(stage, case, HTTPS_PORTS[0], ask)?;
    judge(case, &frames, road)
}

/// HTTP, refused by the Host header.
pub(super) fn play_http(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let (frames, road) = play(stage, case, HTTP_PORT, |stream| ask(stream, DENIED_NAME))?;
    judge(case, &frames, road)
}

/// HTTP, sent to a pool whose servers all refuse.
pub(super) fn play_no_server(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let (frames, road) = play(stage, case, HTTP_PORT, |stream| ask(stream, NOBODY_NAME))?;
    let mut asked: Vec<SocketAddr> =
        frames.iter().filter(|frame| frame.syn && !frame.ack).map(|frame| frame.destination).collect();
    asked.retain(|server| *server != case.target(HTTP_PORT));
    asked.sort_unstable();
    asked.dedup();
    match asked.len() {
        2 => Ok(Seen { what: "both servers refused, client reset, no payload on their link".into(), road }),
        count => Err(format!("reset, but {count} servers of the pool were asked instead of 2")),
    }
}

/// What a refusal looks like at the servers.
fn judge(case: Case, frames: &[TcpFrame], road: Road) -> Result<Seen, Differs> {
    let ended = frames.iter().any(|frame| frame.rst && !frame.outgoing);
    let what = match (case.variant.answers(), frames.is_empty(), ended) {
        (false, _, true) => "client and origin reset, origin saw 0 payload bytes",
        (false, _, false) => return Err("the client was reset, but the origin was not".into()),
        (true, true, _) => "client reset, origin never heard of it",
        (true, false, _) => return Err(format!("{} packets on the servers' link", frames.len())),
    };
    Ok(Seen { what: what.into(), road })
}

/// Asks for something of `name`; `Ok` says how it was answered, against expectation.
fn ask(mut stream: impl Read + Write, name: &str) -> io::Result<String> {
    let response = client::get(&mut stream, name, "/bytes/1000", &AtomicU64::new(0))?;
    Ok(format!("the request was answered with status {}", response.status))
}

/// Plays one refusal; `ask` as the function of that name. Gives what the servers' link saw, and the road.
fn play(
    stage: &Stage<'_>,
    case: Case,
    port: u16,
    ask: impl FnOnce(TcpStream) -> io::Result<String>,
) -> Result<(Vec<TcpFrame>, Road), Differs> {
    let watch = stage.watch(&stage.lab.server, SERVER_DEVICE)?;
    let stream = case.connect(stage, port)?;
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
    Ok((frames, stage.road_from(client)?))
}
