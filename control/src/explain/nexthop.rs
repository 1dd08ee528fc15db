//! The next hops towards server and client: device, neighbour, MTU; and what the fast road has of the way to the server.

use std::net::IpAddr;

use weir_core::fib::NextHop;
use weir_core::ids::PortId;

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
    let next = kernel.picture.fib.next_hop(server);
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
            "none: no route by a port, or one that is the kernel's alone (multipath, its own MTU, blackhole, tunnel)"
                .to_owned()
        }
    };
    let plain = routes.plain.as_ref().and_then(|plain| plain.as_ref().ok());
    let detail = plain.map(|chosen| format!("the kernel's route: {}", chosen.text));
    let asked = "which way has the fast road to the server?";
    steps.push(Step::new(Layer::NextHop, Source::Kernel, asked, answer).detail(detail));
    Hops { server: next, own }
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
