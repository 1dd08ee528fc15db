//! The two questions that people ask.

use rtnetlink::packet_route::route::RouteType;
use serde::Serialize;
use weir_sys::steering::Outcome;

use super::firewall::Filtered;
use super::nft::Verdict;
use super::road::Road;
use super::{Source, Way};

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Because {
    /// In one sentence.
    pub answer: String,
    /// What mends it; none: nothing is to be mended.
    pub mend: Option<String>,
    /// The way to the answer, line by line.
    pub chain: Vec<String>,
}

/// What was asked of it in order: the lines so far, and the first that fails.
#[derive(Default)]
struct Walk {
    chain: Vec<String>,
    failed: Option<(String, String)>,
}

impl Walk {
    /// One condition; those after the first that fails are not asked.
    fn ask(&mut self, holds: bool, yes: impl Into<String>, no: impl Into<String>, mend: impl Into<String>) {
        if self.failed.is_some() {
            return;
        }
        if holds {
            self.chain.push(format!("ok: {}", yes.into()));
        } else {
            let no = no.into();
            self.chain.push(format!("FAILS: {no}"));
            self.failed = Some((no, mend.into()));
        }
    }
}

/// "Why was this not intercepted?" None where it is.
pub fn not_intercepted(way: &Way, road: &Road) -> Option<Because> {
    if matches!(road.road, "fast" | "relay") {
        return None;
    }
    let mut walk = Walk::default();
    by_place(way, &mut walk);
    by_program(way, &mut walk);
    by_kernel(way, &mut walk);
    by_others(way, &mut walk);
    let (answer, mend) = match walk.failed {
        Some((answer, mend)) => (format!("it is not intercepted: {answer}"), Some(mend)),
        None => {
            (format!("every condition holds, and it is not intercepted all the same: {}", road.reason), None)
        }
    };
    Some(Because { answer, mend: mend.filter(|mend| !mend.is_empty()), chain: walk.chain })
}

/// Who asks whom, and whether an intercept means that.
fn by_place(way: &Way, walk: &mut Walk) {
    let device = way.ingress.device().unwrap_or("no device");
    let to = way.question.to;
    walk.ask(
        !way.ingress.local,
        "the client is another host",
        format!(
            "{} is this box's own address: only what comes in by a port is intercepted",
            way.question.from.ip()
        ),
        "connect from a host behind a port",
    );
    let own = way.next_hop.own || way.steered.as_ref().is_some_and(|s| s.syn == Outcome::OwnAddress);
    walk.ask(
        !own,
        format!("{} is no address of this box", to.ip()),
        format!("{} is an address of this box, and those are never intercepted", to.ip()),
        "nothing is wrong: nobody can lock himself out so; give the service an address that the box has not",
    );
    walk.ask(
        way.ingress.port.is_some(),
        format!("it comes in by {device}, which is a port"),
        format!("it comes in by {device}, which is no port of the configuration"),
        format!(
            "add a [[port]] with device = \"{device}\" and start weir again, or correct the route to {}",
            way.question.from.ip()
        ),
    );
    let Some(judged) = &way.judged else {
        return walk.ask(false, "", "no configuration could be read", "say -c FILE");
    };
    let name =
        judged.intercept.as_ref().map(|(name, origin)| format!("intercept {name} ({origin}) takes it"));
    let misses = judged.misses.join("; ");
    let no = if misses.is_empty() { "the configuration has no intercept".to_owned() } else { misses };
    let then = if way.gateway.is_running() { ", then `weir reload -c FILE`" } else { "" };
    let mend = format!("add {to} to the intercept that should take it (`from`, `to`, `tcp`){then}");
    walk.ask(name.is_some(), name.unwrap_or_default(), no, mend);
}

/// Whether the program is there and gives it to a worker.
fn by_program(way: &Way, walk: &mut Walk) {
    let file = way.config.as_ref().map_or("FILE".to_owned(), |file| file.display().to_string());
    let silent = way.gateway.silent.as_deref().unwrap_or_default();
    if way.gateway.is_stuck() {
        walk.ask(
            false,
            "",
            format!("weir hangs, and steering lets packets pass by it: {silent}"),
            "look at what it waits for, and start it again",
        );
    }
    let start = format!("weir run -c {file}");
    walk.ask(way.gateway.is_running(), "weir runs", format!("weir does not run: {silent}"), start);
    let lost = way.gateway.seen.as_ref().and_then(|seen| seen.lost.as_deref());
    walk.ask(
        lost.is_none(),
        "weir has the device on the fast road",
        format!("the device {}", lost.unwrap_or_default()),
        "once that is mended weir takes the device again by itself, within a second",
    );
    let Some(steered) = way.steered.as_ref().filter(|steered| steered.source != Source::Configuration) else {
        return;
    };
    let (look, says) = (&steered.look, steered.syn.sentence());
    let heartbeat = format!("the heartbeat is {} ms old", look.age() / 1_000_000);
    walk.ask(
        look.enabled && steered.syn != Outcome::Disabled,
        "steering is enabled",
        says,
        "wait until weir says that it is ready",
    );
    walk.ask(
        !matches!(steered.syn, Outcome::StalePass | Outcome::StaleDrop),
        heartbeat.clone(),
        format!("{heartbeat}: {says}"),
        "see `weir status`: a worker hangs, or the box has not the time for it",
    );
    let of_kernel = way.flow.is_some() && look.kernel_flow.is_some();
    walk.ask(
        !of_kernel,
        "its flow was not given to the kernel",
        format!(
            "its flow was given to the kernel, {}",
            way.flow.as_ref().map(|flow| flow.sentence()).unwrap_or_default()
        ),
        "open a new connection: this one keeps its road to its end",
    );
    walk.ask(
        !matches!(steered.syn, Outcome::NoSocketPass | Outcome::NoSocketDrop),
        "its queue has a worker",
        says,
        "set `queues` of the port to \"all\", and start weir again",
    );
}

/// Whether the kernel's side takes what is for the relay.
fn by_kernel(way: &Way, walk: &mut Walk) {
    if way.judged.as_ref().is_none_or(|judged| judged.relay.is_none()) {
        return;
    }
    let plan = "see `weir plan -c FILE` for what is missing; a running weir puts it back";
    walk.ask(way.nft.table, "nft has the table inet weir", "nft has no table inet weir", plan);
    let given = way.nft.hit.as_ref().is_some_and(|hit| matches!(hit.verdict, Verdict::Tproxy(_)));
    let no = match way.sockets.listener {
        Some(_) => "no rule of nft gives it to the relay".to_owned(),
        None => format!("nobody listens on port {} for the relay", way.sockets.listen),
    };
    walk.ask(given, "a rule of nft gives it to the relay", no, plan);
}

/// Whether rules of others let it through.
fn by_others(way: &Way, walk: &mut Walk) {
    let (from, to) = (way.question.from, way.question.to);
    if let Some(Filtered::Lost(chains)) = &way.filtered {
        let chains = chains.join(", ");
        let mend = format!(
            "let {chains} accept {from} -> {to}; `weir doctor -c FILE` has the command for what weir needs"
        );
        walk.ask(false, "", format!("{chains} loses it, by rules that are not weir's"), mend);
    }
}

/// "Why does it arrive at a local address although no interface has it?" None where it does not, and is not meant to.
pub fn local(way: &Way, road: &Road) -> Option<Because> {
    let given = way.nft.hit.as_ref().is_some_and(|hit| matches!(hit.verdict, Verdict::Tproxy(_)));
    let meant = way.judged.as_ref().is_some_and(|judged| judged.relay.is_some());
    if road.road != "relay" && !(given && meant) {
        return None;
    }
    let (to, mark) = (way.question.to, way.routes.mark);
    let plan = "see `weir plan -c FILE` for what is missing; a running weir puts it back";
    let mut walk = Walk::default();
    let hit = way.nft.hit.as_ref().filter(|hit| matches!(hit.verdict, Verdict::Tproxy(_) | Verdict::Accept));
    let marks = hit.map(|hit| {
        let mark = hit.mark.unwrap_or(0);
        format!("nft marks it with {mark:#x} (handle {}): {}", hit.handle, hit.text)
    });
    walk.ask(marks.is_some(), marks.unwrap_or_default(), "no rule of table inet weir marks it", plan);
    let marked = way.routes.marked.as_ref().and_then(|marked| marked.as_ref().ok());
    let rule = marked.and_then(|chosen| chosen.rule.clone()).filter(|rule| rule.contains("fwmark"));
    let missing = format!("no ip rule looks up a table for the mark {mark:#x}");
    walk.ask(
        rule.is_some(),
        format!("the ip rule for the mark: {}", rule.unwrap_or_default()),
        missing,
        plan,
    );
    let route = marked.filter(|chosen| chosen.kind == RouteType::Local).map(|chosen| &chosen.text);
    walk.ask(
        route.is_some(),
        format!(
            "its table has one route, by which every address is local: {}",
            route.map_or("", String::as_str)
        ),
        "the table that the mark leads to has no local route",
        plan,
    );
    let sockets = &way.sockets;
    let socket = sockets.client.as_ref().or(sockets.listener.as_ref());
    let text = socket.map(|socket| {
        let (state, at) = (socket.state, socket.local);
        format!(
            "the socket that gets it: {state} {at}, transparent: it may have addresses that are not the box's"
        )
    });
    let none = format!("no transparent socket: nobody listens on port {}", sockets.listen);
    walk.ask(text.is_some(), text.unwrap_or_default(), none, plan);
    by_others(way, &mut walk);
    let (answer, mend) = match walk.failed {
        None => (
            format!(
                "{} is no address of any interface; the packet is marked, a rule looks up a table for the mark, and there \
                 every address is local, so that the relay's transparent socket answers in the server's name",
                to.ip()
            ),
            None,
        ),
        Some((why, mend)) => (format!("it should arrive at the relay's socket, but {why}"), Some(mend)),
    };
    Some(Because { answer, mend, chain: walk.chain })
}
