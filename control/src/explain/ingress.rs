//! Where the client's packets come in: the device that the kernel's route to the client leaves by, or the one that is said.

use rtnetlink::packet_route::route::RouteType;
use weir_core::ids::PortId;
use weir_core::policy::Intercept;

use super::kernel::Kernel;
use super::route::{self, Lookup};
use super::{Layer, Question, Source, Step};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host::{LinkInfo, SubInterface};

/// Where it comes in.
#[derive(Clone, Debug, Default)]
pub struct Ingress {
    /// None where there is no way to the client. The sub-interface, of a VLAN.
    pub link: Option<LinkInfo>,
    /// Place and name of the port, where the device is one, or a VLAN of one.
    pub port: Option<(u8, String)>,
    /// The VLAN of the port.
    pub vlan: Option<Tagged>,
    /// The client is this box.
    pub local: bool,
}

/// A VLAN of a port.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// Its number.
    pub number: PortId,
    pub sub: SubInterface,
    /// The port's device.
    pub trunk: LinkInfo,
}

impl Ingress {
    /// The device's name.
    pub fn device(&self) -> Option<&str> {
        self.link.as_ref().map(|link| link.name.as_str())
    }

    pub fn ifindex(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.ifindex)
    }

    /// The device whose frames they are: what XDP and the workers know.
    pub fn wire(&self) -> Option<&LinkInfo> {
        self.vlan.as_ref().map(|vlan| &vlan.trunk).or(self.link.as_ref())
    }

    /// Where policy and steering know that they come in.
    pub fn number(&self) -> Option<PortId> {
        let port = || self.port.as_ref().map(|(at, _)| PortId(*at));
        self.vlan.as_ref().map(|vlan| vlan.number).or_else(port)
    }

    /// Whether the intercept takes clients from there.
    pub fn is_of(&self, intercept: &Intercept) -> bool {
        let from = |at: &u8| intercept.from.contains(PortId(*at));
        let vlan = self.vlan.as_ref().map(|vlan| &vlan.sub.vlan);
        self.port.as_ref().is_some_and(|(at, _)| from(at)) && intercept.vlan.takes(vlan)
    }
}

/// Finds it.
///
/// # Errors
/// `--in` names neither a port nor a device: usage.
pub async fn find(
    kernel: &Kernel,
    config: Option<&Config>,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Result<Ingress, Failure> {
    let asked = "by which port does it come in?";
    if let Some(name) = &question.ingress {
        let ports = config.into_iter().flat_map(|config| &config.ports);
        let device = ports.clone().find(|port| port.name == *name).map_or(name, |port| &port.device);
        let Some(link) = kernel.link_named(device) else {
            let names: Vec<&str> = ports.map(|port| port.name.as_str()).collect();
            return Err(Failure {
                exit: Exit::Usage,
                message: format!(
                    "--in {name}: neither a port nor a device here; ports are: {}",
                    names.join(", ")
                ),
            });
        };
        let ingress = of_link(kernel, config, link.clone());
        steps.push(Step::new(Layer::Ingress, Source::Configuration, asked, text(&ingress, "as --in says")));
        return Ok(ingress);
    }
    let lookup = Lookup::to(question.from.ip());
    let command = lookup.command(kernel);
    let step =
        |answer: String| Step::new(Layer::Ingress, Source::Kernel, asked, answer).detail([command.clone()]);
    let chosen = match route::lookup(kernel, &lookup).await {
        Ok(chosen) => chosen,
        Err(error) => {
            steps.push(step(format!(
                "the kernel has no route to the client ({error}): answers could not reach it; say --in PORT"
            )));
            return Ok(Ingress::default());
        }
    };
    let link = chosen.oif.and_then(|index| kernel.link(index)).cloned();
    if chosen.kind == RouteType::Local {
        steps.push(step("by none: the client's address is this box's own".to_owned()));
        return Ok(Ingress { link, local: true, ..Ingress::default() });
    }
    let ingress = link.map(|link| of_link(kernel, config, link)).unwrap_or_default();
    let how = "the kernel's route to the client leaves there; where answers go another way, say --in PORT";
    steps.push(step(text(&ingress, how)));
    Ok(ingress)
}

fn of_link(kernel: &Kernel, config: Option<&Config>, link: LinkInfo) -> Ingress {
    let tagged = |(number, sub): &(PortId, SubInterface)| {
        let trunk = kernel.link(sub.device).cloned()?;
        Some(Tagged { number: *number, sub: sub.clone(), trunk })
    };
    let vlan = kernel.picture.vlans.iter().find(|(_, sub)| sub.link.ifindex == link.ifindex).and_then(tagged);
    let device = vlan.as_ref().map_or(&link.name, |vlan| &vlan.trunk.name);
    let mut ports = (0..).zip(config.into_iter().flat_map(|config| &config.ports));
    let port = ports.find(|(_, port)| port.device == *device).map(|(at, port)| (at, port.name.clone()));
    Ingress { link: Some(link), port, vlan, local: false }
}

fn text(ingress: &Ingress, how: &str) -> String {
    let device = ingress.device().unwrap_or("no device");
    match (&ingress.port, &ingress.vlan) {
        (Some((_, name)), Some(vlan)) => {
            format!("VLAN {} of port {name}, device {device}: {how}", vlan.sub.vlan)
        }
        (Some((_, name)), None) => format!("port {name}, device {device}: {how}"),
        (None, _) => format!("device {device}, which is no port of the configuration: {how}"),
    }
}
