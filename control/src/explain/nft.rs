//! The rule of the table `inet weir` that takes the client's SYN on the kernel road, read from the kernel.

mod packet;
mod rules;
#[cfg(test)]
mod tests;

use rtnetlink::packet_route::route::RouteType;
use serde_json::Value;
use weir_core::fib::{NextHop, Ways};
use weir_core::policy::Handshake;

use super::ingress::Ingress;
use super::kernel::Kernel;
use super::policy::Judged;
use super::route::{self, Lookup};
use super::socket::Sockets;
use super::{Layer, Question, Source, Step};
use crate::host::{RELAY_TUN, nft};
pub use packet::Packet;
pub use rules::{Hit, Table, Verdict};

/// What the table does with it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The device that it comes in by here: the relay's, for what a worker gives to the relay.
    pub iif: Option<String>,
    /// None: there is no table, or no rule takes it.
    pub hit: Option<Hit>,
    /// The same, of a packet that comes by the ingress device itself.
    pub direct: Option<Hit>,
    /// Whether there is a table.
    pub table: bool,
    /// Why it could not be read.
    pub unknown: Option<String>,
}

/// Reads the table and finds the rule.
pub async fn ask(
    kernel: &Kernel,
    ingress: &Ingress,
    judged: Option<&Judged>,
    sockets: &Sockets,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Answer {
    let asked = "which rule of table inet weir takes its SYN, on the kernel road?";
    let step = |answer: String| Step::new(Layer::Nft, Source::Kernel, asked, answer);
    let command = "nft -a list table inet weir".to_owned();
    let table = match read() {
        Ok(Some(table)) => table,
        Ok(None) => {
            steps.push(
                step("none: there is no such table, so nothing is marked".to_owned()).detail([command]),
            );
            return Answer::default();
        }
        Err(why) => {
            steps.push(step(format!("not known: {why}")).detail([command]));
            return Answer { unknown: Some(why), ..Answer::default() };
        }
    };
    let local = kind_of(kernel, question).await;
    let packet = |iif: &str| Packet {
        iif: iif.to_owned(),
        from: question.from,
        to: question.to,
        opens: true,
        fib: local.clone(),
        socket: sockets.client.clone(),
        listener: sockets.listener.as_ref().map(|_| sockets.listen),
    };
    let direct = ingress.device().and_then(|device| table.walk(&packet(device)));
    // Of a fast road's intercept, what is for the relay comes by the relay's own device: by a rule, or as there is no port
    // towards the server.
    let by_worker = judged.is_some_and(|judged| {
        let no_port = kernel.picture.fib.ways(question.to.ip()) == Ways::One(NextHop::Kernel);
        let fast = judged.handshake.is_some_and(|handshake| handshake != Handshake::Relay);
        fast && (judged.relay.is_some() || (no_port && !judged.answers_and_sends))
    });
    let by_tun = by_worker && kernel.link_named(RELAY_TUN).is_some();
    let iif = if by_tun { Some(RELAY_TUN.to_owned()) } else { ingress.device().map(str::to_owned) };
    let hit = if by_tun { table.walk(&packet(RELAY_TUN)) } else { direct.clone() };
    let device = iif.as_deref().unwrap_or("no device");
    steps.push(describe(step, hit.as_ref(), device, &command));
    if let (Some(_), Some(device)) = (&sockets.client, ingress.device()) {
        // What follows the SYN comes in by the port itself, whoever had the SYN.
        let following = table.walk(&Packet { opens: false, ..packet(device) });
        let asked = "and which one a packet that follows?";
        let step = |answer: String| Step::new(Layer::Nft, Source::Kernel, asked, answer);
        steps.push(describe(step, following.as_ref(), device, &command));
    }
    Answer { iif, hit, direct, table: true, unknown: None }
}

/// A step of a rule, or of none.
fn describe(step: impl Fn(String) -> Step, hit: Option<&Hit>, device: &str, command: &str) -> Step {
    let Some(hit) = hit else {
        return step("none: it passes the table unmarked".to_owned())
            .detail([format!("comes in by {device}"), command.to_owned()]);
    };
    let mark = hit.mark.map(|mark| format!("the mark is {mark:#x} then"));
    let counter = match hit.counter {
        Some((packets, octets)) => format!("counted {packets} packets, {octets} octets"),
        None => "the rule has no counter".to_owned(),
    };
    let lines = [format!("comes in by {device}; {}", hit.verdict.sentence()), counter];
    step(format!("handle {}: {}", hit.handle, hit.text))
        .detail(lines.into_iter().chain(mark).chain(hit.doubts.clone()).chain([command.to_owned()]))
}

/// The kind of the destination's address, as `fib daddr type` has it.
async fn kind_of(kernel: &Kernel, question: &Question) -> String {
    if kernel.is_own(question.to.ip()) {
        return "local".to_owned();
    }
    match route::lookup(kernel, &Lookup::to(question.to.ip())).await.map(|chosen| chosen.kind) {
        Ok(RouteType::Local) => "local",
        Ok(RouteType::Broadcast) => "broadcast",
        Ok(RouteType::Anycast) => "anycast",
        Ok(RouteType::Multicast) => "multicast",
        _ => "unicast",
    }
    .to_owned()
}

/// The table of this namespace; none where there is none.
fn read() -> Result<Option<Table>, String> {
    let list = |options: &[&str]| nft::list(options).map_err(|error| error.to_string());
    let Some(text) = list(&["-a"])? else { return Ok(None) };
    let Some(json) = list(&["-j", "-a"])? else { return Ok(None) };
    let json: Value =
        serde_json::from_str(&json).map_err(|error| format!("nft's JSON cannot be read: {error}"))?;
    Ok(Some(Table::new(&json, &text)))
}
