//! Rules of others on the kernel's road: the first packet is sent through a copy of the ruleset, in a namespace of its own
//! (`doctor`'s rehearsal). The host sees nothing of it.

use std::net::{IpAddr, SocketAddr};

use rtnetlink::packet_route::route::RouteType;
use weir_core::fib::NextHop;

use super::kernel::Kernel;
use super::road::Road;
use super::{Layer, Source, Step, Way};
use crate::doctor::ground;
use crate::doctor::rehearsal::{self, Case, Place};
use crate::doctor::ruleset;
use crate::host::{HostSpec, PUNT_TUN};

/// What the rules of others do to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// These chains lose it.
    Lost(Vec<String>),
    /// These chains may lose it, and it could not be tried, for this reason.
    Perhaps(Vec<String>, String),
}

/// What is sent, and what it meets.
struct Trial {
    case: Case,
    /// Who listens for it, where it is for this box itself.
    listens: Vec<SocketAddr>,
    /// What becomes of it, in words.
    done: &'static str,
}

/// Tries what the road of a new connection says of the kernel.
pub async fn ask(
    kernel: &Kernel,
    way: &Way,
    road: &Road,
    spec: Option<&HostSpec>,
    steps: &mut Vec<Step>,
) -> Option<Filtered> {
    let trial = trial(kernel, way, road, spec)?;
    let asked = "do the rules of others let it through?";
    let step = |answer: String| Step::new(Layer::Nft, Source::Kernel, asked, answer);
    let command = "nft list ruleset".to_owned();
    let chains = match ruleset::read() {
        Ok(chains) => chains,
        Err(why) => {
            steps.push(step(format!("not known: {why}")).detail([command]));
            return None;
        }
    };
    if !chains.iter().any(|chain| chain.is_ip() && chain.hook.is_some()) {
        steps.push(step("there are no chains of others".to_owned()).detail([command]));
        return None;
    }
    let place = place(kernel, way, spec, &trial).await;
    let tried = format!("tried in a namespace of its own: it comes in by {}", trial.case.into);
    match rehearsal::losing(&place, &trial.case, &chains) {
        Ok(lost) if lost.is_empty() => {
            steps.push(step(format!("yes: it is {}", trial.done)).detail([tried, command]));
            None
        }
        Ok(lost) => {
            steps.push(step(format!("no: {} loses it", lost.join(", "))).detail([tried, command]));
            Some(Filtered::Lost(lost))
        }
        Err(why) => {
            let suspects = rehearsal::suspects(&chains, &trial.case);
            let answer = match suspects.as_slice() {
                [] => format!("nothing on its way drops packets (not tried: {why})"),
                some => format!(
                    "perhaps not: {} on its way drops some packets (not tried: {why})",
                    some.join(", ")
                ),
            };
            steps.push(step(answer).detail([command]));
            (!suspects.is_empty()).then_some(Filtered::Perhaps(suspects, why))
        }
    }
}

/// What the kernel does with the packet by that road; none where it has nothing to do with it, or it lives already.
fn trial(kernel: &Kernel, way: &Way, road: &Road, spec: Option<&HostSpec>) -> Option<Trial> {
    let ingress = way.ingress.device().filter(|_| way.flow.is_none() && !way.ingress.local)?;
    let steered = way.steered.as_ref().filter(|steered| steered.source != Source::Configuration);
    let by_worker = steered.is_some_and(|steered| steered.syn.is_redirect());
    let into = match way.judged.as_ref().is_some_and(|judged| judged.relay.is_some()) {
        _ if !by_worker => ingress,
        true => way.nft.iif.as_deref().unwrap_or(ingress),
        false => PUNT_TUN,
    };
    let plain = way.routes.plain.as_ref().and_then(|plain| plain.as_ref().ok());
    let far = plain.and_then(|chosen| chosen.oif).map(|index| kernel.name(index));
    let far = far.filter(|far| far != "lo").unwrap_or_else(|| ingress.to_owned());
    let (from, to) = (way.question.from, way.question.to);
    let case = |into: &str, is_answered| rehearsal::first((from, to), (ingress, &far), into, is_answered);
    let waits = matches!(way.next_hop.server, NextHop::Unresolved(_));
    Some(match (road.road, plain.map(|chosen| chosen.kind)) {
        ("relay", _) => Trial {
            case: case(way.nft.iif.as_deref().unwrap_or(ingress), true),
            listens: rehearsal::relay(spec.map_or(way.sockets.listen, |spec| spec.listen)),
            done: "delivered to the relay",
        },
        ("kernel", Some(RouteType::Local)) => {
            Trial { case: case(into, true), listens: vec![to], done: "delivered to this box" }
        }
        ("kernel", Some(RouteType::Unicast)) => {
            Trial { case: case(into, false), listens: Vec::new(), done: "forwarded" }
        }
        ("fast", _) if by_worker && waits => Trial {
            case: case(PUNT_TUN, false),
            listens: Vec::new(),
            done: "forwarded, until the next hop is resolved",
        },
        _ => return None,
    })
}

/// The devices that it passes, with their addresses, and weir's table if it is there.
async fn place(kernel: &Kernel, way: &Way, spec: Option<&HostSpec>, trial: &Trial) -> Place {
    let spec = spec.cloned().unwrap_or_default();
    let mut devices = spec.ports.clone();
    devices.extend([trial.case.from.clone(), trial.case.far.clone()]);
    devices.sort();
    devices.dedup();
    let dumped = kernel.netlink.addresses().await.unwrap_or_default();
    let own = dumped.iter().filter_map(ground::own).filter_map(|(address, index, length)| {
        Some((devices.iter().find(|device| **device == kernel.name(index))?.clone(), address, length))
    });
    let mut own: Vec<(String, IpAddr, u8)> = own.collect();
    let to = way.question.to.ip();
    if kernel.is_own(to) && own.iter().all(|(_, address, _)| *address != to) {
        own.push(("lo".to_owned(), to, if to.is_ipv4() { 32 } else { 128 }));
    }
    Place { spec, has_table: way.nft.table, devices, own, listens: trial.listens.clone() }
}
