//! The steering program's conditions, in its order (dataplane/bpf/weir.bpf.c), up to the one that decides.

use weir_core::ids::InterceptId;
use weir_core::policy::{Handshake, Policy};
use weir_sys::clock;
use weir_sys::steering::{Found, InFormer, InLane, Look, Maps, Outcome, Packet};

use super::gateway::{self, Gateway};
use super::ingress::Ingress;
use super::kernel::Kernel;
use super::{Layer, Question, Source, Step};
use crate::run::convert;

/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;

/// What becomes of the client's packets at the XDP program.
#[derive(Clone, Debug)]
pub struct Steered {
    pub look: Look,
    /// Of a SYN.
    pub syn: Outcome,
    /// Of a packet that follows.
    pub segment: Outcome,
    /// Where the maps were read; [`Source::Configuration`]: there are none, this is what they would hold.
    pub source: Source,
    /// Queues that a worker's socket serves; none: not known.
    pub queues: Option<Vec<u32>>,
}

/// Asks the gateway's program; or, when the gateway does not answer, the one that is on the device; or, when there is none,
/// says what it would do by the configuration. None where there is none to ask.
///
/// # Errors
/// There is one, and it cannot be looked at: why.
pub fn ask(
    gateway: &Gateway,
    ingress: &Ingress,
    policy: Option<&Policy>,
    kernel: &Kernel,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Result<Option<Steered>, String> {
    let asked = "is the steering program there?";
    let step = |source, answer: String| Step::new(Layer::Steering, source, asked, answer);
    let Some(link) = ingress.wire() else {
        steps.push(step(
            Source::Kernel,
            "not asked: it is not known where the client's packets come in".into(),
        ));
        return Ok(None);
    };
    if ingress.local {
        let answer = "it does not matter: what this box itself sends comes in by no device";
        steps.push(step(Source::Kernel, answer.into()));
        return Ok(None);
    }
    let tags = ingress.vlan.as_ref().map(|vlan| convert::vlan_tags(&vlan.sub.vlan));
    let packet = Packet { from: question.from, to: question.to, ifindex: link.ifindex, tags };
    let (found, queues, source) = match &gateway.seen {
        Some(seen) => (seen.steered.clone(), Some(seen.queues.clone()), Source::Gateway),
        None => (of_device(link.xdp, &packet), None, Source::Kernel),
    };
    let there = link.xdp.map(|id| format!("yes: XDP program {id} on {}", link.name));
    match (found, there) {
        (Some(Ok(found)), Some(there)) => {
            steps.push(step(Source::Kernel, there).detail([format!("ip -d link show dev {}", link.name)]));
            Ok(Some(walk(kernel, found.look, Some(&found), source, queues, policy, steps)))
        }
        (Some(Err(why)), _) => {
            steps.push(step(source, format!("its maps cannot be read: {why}")));
            Err(why)
        }
        (found, _) => {
            let why = match (gateway.is_running(), found) {
                (true, Some(_)) => format!(
                    "no: the gateway has one, but not on {}: packets by it take the kernel's road",
                    link.name
                ),
                (true, None) => {
                    "no: no intercept of the gateway has a fast road, so the kernel's road takes all".into()
                }
                (false, _) => {
                    let other = link.xdp.map(|id| {
                        format!("; XDP program {id}, which is there, is another's or has just gone")
                    });
                    format!("no: no program of weir's is on {}{}", link.name, other.unwrap_or_default())
                }
            };
            steps.push(step(Source::Kernel, why));
            if gateway.is_running() {
                return Ok(None);
            }
            let Some(policy) = policy else { return Ok(None) };
            let look = expected(policy, ingress, kernel, question);
            Ok(Some(walk(kernel, look, None, Source::Configuration, None, Some(policy), steps)))
        }
    }
}

/// Looks into the program that is attached to a device, whoever runs or does not.
fn of_device(program: Option<u32>, packet: &Packet) -> Option<Result<gateway::Steered, String>> {
    match Maps::of_program(program?) {
        Ok(maps) => maps.map(|maps| gateway::steer(&maps, packet)),
        Err(error) => Some(Err(error.to_string())),
    }
}

/// What the maps would hold with this configuration, right after a start.
fn expected(policy: &Policy, ingress: &Ingress, kernel: &Kernel, question: &Question) -> Look {
    let bits = |of: &dyn Fn(&weir_core::policy::Intercept) -> bool| {
        let intercepts = (0..64).zip(policy.intercepts());
        intercepts.filter(|(_, i)| of(i)).fold(0, |all, (bit, _)| all | 1u64 << bit)
    };
    let found = |at: std::net::SocketAddr| {
        let prefix = bits(&|i| i.to().contains(at.ip()));
        Found { prefix: (prefix != 0).then_some(prefix), tcp: bits(&|i| i.tcp().contains(at.port())) }
    };
    let now = clock::monotonic_ns();
    Look {
        now,
        own: kernel.is_own(question.to.ip()),
        enabled: true,
        heartbeat: now,
        limit: u64::MAX,
        port: ingress.port.as_ref().map(|(at, _)| u32::from(*at)),
        tagged: ingress.vlan.is_some(),
        vlan: ingress.vlan.as_ref().map(|vlan| (u32::from(vlan.number.0), vlan.sub.link.ifindex)),
        mac: ingress.link.as_ref().and_then(|link| link.mac),
        relay_mask: bits(&|i| i.handshake == Handshake::Relay),
        translated: bits(&weir_core::policy::Intercept::translates),
        from_port: bits(&|intercept| ingress.is_of(intercept)),
        to_server: found(question.to),
        to_client: found(question.from),
        pool_server: policy.has_server(&question.from.into()),
        ..Look::default()
    }
}

/// One step for each condition, and one for the answer.
fn walk(
    kernel: &Kernel,
    look: Look,
    program: Option<&gateway::Steered>,
    source: Source,
    queues: Option<Vec<u32>>,
    policy: Option<&Policy>,
    steps: &mut Vec<Step>,
) -> Steered {
    let said = |said: Option<&Result<String, String>>, steps: Outcome| {
        let named = |name: &String| Outcome::ALL.into_iter().find(|outcome| outcome.name() == name.as_str());
        said.and_then(|said| said.as_ref().ok()).and_then(named).unwrap_or(steps)
    };
    let syn = said(program.map(|p| &p.syn), look.outcome(true));
    let segment = said(program.map(|p| &p.segment), look.outcome(false));
    let mut ask = |question: &str, answer: String| {
        steps.push(Step::new(Layer::Steering, source, question, answer));
    };
    conditions(kernel, &look, syn, queues.as_deref(), policy, &mut ask);
    let mut answer = format!("a SYN: {}: {}", syn.name(), syn.sentence());
    if source == Source::Configuration {
        answer = format!("nothing runs; with this configuration, {answer}");
    }
    let mut step = Step::new(Layer::Steering, source, "what does it say?", answer);
    if segment != syn {
        step.detail.push(format!("a packet that follows: {}: {}", segment.name(), segment.sentence()));
    }
    step.detail.push(match program.map(|program| &program.syn) {
        Some(Ok(_)) => {
            "said by the program itself, which the kernel ran on a made SYN and a copy of these entries \
             (BPF_PROG_TEST_RUN); no counter moved"
                .to_owned()
        }
        Some(Err(why)) => format!("by its conditions as above; the program was not run: {why}"),
        None => "by its conditions as above; there is no program to run".to_owned(),
    });
    steps.push(step);
    Steered { look, syn, segment, source, queues }
}

fn conditions(
    kernel: &Kernel,
    look: &Look,
    outcome: Outcome,
    queues: Option<&[u32]>,
    policy: Option<&Policy>,
    ask: &mut dyn FnMut(&str, String),
) {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    if look.tagged {
        let no = || "no: the gateway does not know it, or not yet".to_owned();
        ask(
            "is its VLAN one of the port's?",
            look.vlan.map_or_else(no, |(number, _)| format!("yes: number {number}")),
        );
        if look.vlan.is_none() {
            return;
        }
    }
    lanes(kernel, look, ask);
    ask("to an address of this box?", yes_no(look.own));
    if look.own {
        return;
    }
    ask("is steering enabled?", yes_no(look.enabled));
    if !look.enabled {
        return;
    }
    let (age, limit) = (look.age() / MS, look.limit / MS);
    let alive = if look.is_alive() { "yes" } else { "no" };
    if look.limit != u64::MAX {
        let closed = if look.closed { "; the box fails closed" } else { "" };
        ask("is there a sign of life?", format!("{alive}: heartbeat {age} ms old, limit {limit} ms{closed}"));
    }
    if outcome == Outcome::StalePass && !look.closed {
        return;
    }
    ask("is the flow in the map of kernel flows?", kernel_flow(look));
    let port = look.port.map_or("no: the device is no port".to_owned(), |port| format!("yes: number {port}"));
    ask("is the device a port?", port);
    if look.port.is_none() {
        return;
    }
    if let Some(mac) = look.mac {
        ask("is the frame for the port?", format!("yes, when it is sent to {}", super::kernel::mac(&mac)));
    }
    if look.to_server.prefix == Some(0) {
        return ask("is it of an intercept?", "no: the destination lies in a prefix of this box".to_owned());
    }
    ask("is it of an intercept?", intercepts(look, policy));
    let first = look.server_bits() & look.server_bits().wrapping_neg();
    if first != 0 {
        let relay = first & look.relay_mask != 0;
        ask("does that intercept take the relay (handshake = \"relay\")?", yes_no(relay));
    }
    if look.pool_server {
        ask("is it from a server of a pool?", "yes".to_owned());
    }
    if outcome.is_redirect()
        && let Some(queues) = queues
    {
        ask("has the queue a worker's socket?", format!("queues {queues:?} of the device have one"));
    }
}

fn lanes(kernel: &Kernel, look: &Look, ask: &mut dyn FnMut(&str, String)) {
    if look.has_lane {
        ask(
            "is the flow in the express lane?",
            look.lane.as_ref().map_or("no".to_owned(), |lane| in_lane(look, lane, kernel)),
        );
    }
    if let Some(former) = &look.former {
        ask("is it in the lane that another version of weir has left?", in_former(look, former));
    }
}

fn in_lane(look: &Look, lane: &InLane, kernel: &Kernel) -> String {
    let (from, to) = lane.goes;
    let way = match lane.hop {
        Some((index, mac)) => {
            format!("by {} to {}", kernel.name(index), super::kernel::mac(&mac))
        }
        None => "when its next hop is known again; until then the worker sends them".to_owned(),
    };
    if lane.stands_by {
        return format!(
            "it stands by: a worker gets its packets; without one they leave from {from} to {to} {way}, but for a SYN"
        );
    }
    if lane.changes {
        return format!(
            "it changes over from its worker, which gets its packets until the next pause; then they leave from {from} to {to} {way}, but \
             for a SYN"
        );
    }
    if lane.is_stray {
        return format!(
            "yes, and no worker knows it, since there was no room for it when weir started: its packets leave from {from} to {to} {way}, \
             but for a SYN"
        );
    }
    format!(
        "yes: its packets leave from {from} to {to} {way}; {} so far, the last about {} s ago; a SYN is decided anew",
        lane.packets,
        look.now.saturating_sub(lane.last_seen) / (1000 * MS)
    )
}

fn in_former(look: &Look, former: &InFormer) -> String {
    let (from, to) = former.goes;
    format!(
        "yes: the program of that version sends its packets on from {from} to {to} until it ends; the last passed about {} s ago",
        look.now.saturating_sub(former.last_seen) / (1000 * MS)
    )
}

fn kernel_flow(look: &Look) -> String {
    match &look.kernel_flow {
        Some(flow) => format!(
            "yes, last seen {} ms ago: its packets pass; a SYN is decided anew",
            look.now.saturating_sub(flow.last_seen) / MS
        ),
        None => "no".to_owned(),
    }
}

/// The bits, and the intercept that the first of them stands for.
fn intercepts(look: &Look, policy: Option<&Policy>) -> String {
    let (server, client) = (look.server_bits(), look.client_bits());
    let name = |bits: u64| {
        let id = InterceptId(bits.trailing_zeros() as u8);
        policy.and_then(|policy| policy.get(id)).map_or_else(
            || format!("number {}", id.0),
            |intercept| format!("{} ({})", intercept.name, intercept.origin),
        )
    };
    if server != 0 {
        return format!("yes, from client to server: intercept {} (bits {server:#x})", name(server));
    }
    if client != 0 {
        return format!("yes, from server to client: intercept {} (bits {client:#x})", name(client));
    }
    format!(
        "no: bits of the destination {:#x}, of its port {:#x}, of the port that it comes in by {:#x} have none in common",
        look.to_server.prefix.unwrap_or(0),
        look.to_server.tcp,
        look.from_port
    )
}
