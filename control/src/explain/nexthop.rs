//! The next hops towards server and client: device, neighbour, MTU; and what the fast road has of the way to the server.

use std::net::IpAddr;

use weir_core::fib::{Fib, Member, NextHop, Way, Ways};
use weir_core::flow::key::{FlowKey, Tuple};
use weir_core::ids::PortId;

use super::flow::Living;
use super::kernel::{Kernel, mac};
use super::policy::Judged;
use super::route::{self, Lookup, Routes};
use super::{Layer, Question, Source, Step};

/// What the fast road sees.
#[derive(Clone, Copy, Debug)]
pub struct Hops {
    /// The way to the server: as the worker looks it up.
    pub server: NextHop,
    /// The server is the box itself: nothing is forwarded.
    pub own: bool,
}

/// Asks for both ways.
pub async fn find(
    kernel: &Kernel,
    judged: Option<&Judged>,
    living: Option<&Living>,
    routes: &Routes,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Hops {
    let server = judged.and_then(|judged| judged.server).unwrap_or(question.to).ip();
    let own = kernel.is_own(server);
    if own {
        let answer = "none: the destination is this box";
        steps.push(Step::new(Layer::NextHop, Source::Kernel, "which next hop has the server?", answer));
    } else {
        hop(kernel, "server", server, steps).await;
    }
    hop(kernel, "client", question.from.ip(), steps).await;
    let fib = &kernel.picture.fib;
    let key = FlowKey::of(&Tuple { src: question.from.into(), dst: question.to.into() });
    let (next, taken) = match fib.ways(server) {
        Ways::One(hop) => (hop, None),
        Ways::Several(number) => match taken(fib, number, server, &key, living) {
            Some(member) => (fib.hop_by(&member, server), Some((number, member))),
            None => (NextHop::Kernel, None),
        },
    };
    if let Some((number, member)) = &taken {
        steps.push(ways(kernel, server, *number, member, living, routes));
    }
    let answer = match next {
        NextHop::Forward { port, dst_mac, mtu, .. } => {
            format!("by {} to {}, MTU {mtu}", device(kernel, port), mac(&dst_mac))
        }
        NextHop::Unresolved(port) => format!(
            "by {}, whose neighbour is not resolved, or whose link is down: the kernel takes each packet until it is",
            device(kernel, port)
        ),
        NextHop::Kernel if own => "none: the destination is this box".to_owned(),
        NextHop::Kernel => {
            "none: no route by a port, or one that is the kernel's alone (another device, its own MTU, blackhole, tunnel)"
                .to_owned()
        }
    };
    let plain = routes.plain.as_ref().and_then(|plain| plain.as_ref().ok());
    let detail = plain.map(|chosen| format!("the kernel's route: {}", chosen.text));
    let asked = "which way has the fast road to the server?";
    steps.push(Step::new(Layer::NextHop, Source::Kernel, asked, answer).detail(detail));
    Hops { server: next, own }
}

/// The way that the connection takes, or would take.
fn taken(fib: &Fib, number: u32, server: IpAddr, key: &FlowKey, living: Option<&Living>) -> Option<Member> {
    let lives = living.and_then(|living| living.way);
    let lives = lives.and_then(|(port, router)| {
        fib.group(number)?.members().find(|member| (member.port.0, member.router) == (port, router))
    });
    lives.copied().or_else(|| fib.pick(number, server, key, Way::NONE).0)
}

/// Of several ways: which there are, which one this connection has, and which one the kernel would give it.
fn ways(
    kernel: &Kernel,
    server: IpAddr,
    number: u32,
    taken: &Member,
    living: Option<&Living>,
    routes: &Routes,
) -> Step {
    let fib = &kernel.picture.fib;
    let members: Vec<&Member> = fib.group(number).iter().flat_map(|group| group.members()).collect();
    let why = match living.and_then(|living| living.way) {
        Some(_) => "the connection has taken it, and stays as long as it lives",
        None => "the best mark of those that live, by the hash of the connection's addresses and ports",
    };
    let answer = format!("{} of {}: {why}", by(kernel, server, taken), members.len());
    let lines = members.into_iter().map(|member| {
        let state = match fib.hop_by(member, server) {
            _ if member.dead => "dead, or its link is down".to_owned(),
            NextHop::Forward { dst_mac, .. } => format!("lives, {}", mac(&dst_mac)),
            NextHop::Unresolved(_) => "its neighbour is not resolved, or its link is down".to_owned(),
            NextHop::Kernel => "its device is gone".to_owned(),
        };
        format!("{}, weight {}: {state}", by(kernel, server, member), member.weight)
    });
    let plain = routes.plain.as_ref().and_then(|plain| plain.as_ref().ok());
    let kernels = plain.map(|chosen| {
        let device = chosen.oif.map_or_else(|| "no device".to_owned(), |index| kernel.name(index));
        let next = chosen.gateway.unwrap_or(server);
        format!("the kernel would choose {next} on {device}, by a hash of its own")
    });
    let asked = "which of the route's ways does it take?";
    Step::new(Layer::NextHop, Source::Kernel, asked, answer).detail(lines.chain(kernels))
}

/// A way in words.
fn by(kernel: &Kernel, server: IpAddr, member: &Member) -> String {
    format!("{} on {}", member.router.unwrap_or(server), device(kernel, member.port))
}

fn device(kernel: &Kernel, port: PortId) -> String {
    let link = kernel.picture.ports.get(usize::from(port.0)).and_then(Option::as_ref);
    link.map_or_else(|| format!("port {}", port.0), |link| link.name.clone())
}

async fn hop(kernel: &Kernel, who: &str, to: IpAddr, steps: &mut Vec<Step>) {
    let asked = format!("which next hop has the {who}?");
    let lookup = Lookup::to(to);
    let command = lookup.command(kernel);
    let chosen = match route::lookup(kernel, &lookup).await {
        Ok(chosen) => chosen,
        Err(error) => {
            let step = Step::new(Layer::NextHop, Source::Kernel, &asked, format!("none: {error}"));
            return steps.push(step.detail([command]));
        }
    };
    let index = chosen.oif.unwrap_or(0);
    let next = chosen.gateway.unwrap_or(to);
    let neighbour = match kernel.neighbour(index, next) {
        Some((state, mac)) => format!("{state}, {}", mac.unwrap_or_else(|| "no address".to_owned())),
        None => "no entry".to_owned(),
    };
    let mtu = kernel.link(index).map_or(0, |link| link.mtu).min(chosen.mtu.unwrap_or(u32::MAX));
    let name = kernel.name(index);
    let answer = format!("{next} on {name}: neighbour {neighbour}; MTU {mtu}");
    let lines = [command, format!("ip neigh show {next} dev {name}")];
    steps.push(Step::new(Layer::NextHop, Source::Kernel, &asked, answer).detail(lines));
}
