//! `weir doctor`: asks the host whether weir can work on it, or works on it, as its configuration says.
//!
//! Every probe asks the kernel (netlink, ethtool, /proc, /sys, a trial attachment of the steering program with AF_XDP
//! sockets, a copy of the ruleset in a namespace of its own) and answers with findings: what is so, why it matters, and the
//! command that mends it. A running gateway is asked over its admin socket and not disturbed; the host stays as it is.
//!
//! [`ground`] is what all probes look at; each other file is one group of probes.

mod conntrack;
mod cpu;
mod driver;
pub mod finding;
pub(crate) mod ground;
mod interrupts;
mod kernel;
mod leftovers;
mod limits;
mod listeners;
mod netfilter;
mod offloads;
mod packages;
mod port;
mod queues;
pub(crate) mod rehearsal;
pub mod report;
mod routing;
mod rss;
mod rule_words;
pub(crate) mod ruleset;
mod sent;
mod sysctls;
mod trial;
mod tuning;

pub use finding::{Finding, Findings, NoCommand, NotProbed, Severity};
pub use report::Report;

use crate::config::Config;
use crate::exit::Failure;
use ground::Ground;

/// Looks at the host of the calling thread's network namespace.
///
/// # Errors
/// The kernel does not even list its links, addresses, rules and routes.
pub fn examine(config: &Config) -> Result<Report, Failure> {
    let ground = Ground::gather(config)?;
    let mut found = Findings::default();
    let probes: [fn(&Ground<'_>, &mut Findings); 17] = [
        kernel::probe,
        limits::probe,
        leftovers::probe,
        listeners::probe,
        port::probe,
        driver::probe,
        tuning::probe,
        queues::probe,
        rss::probe,
        offloads::probe,
        sysctls::probe,
        routing::probe,
        netfilter::probe,
        conntrack::probe,
        rehearsal::probe,
        cpu::probe,
        // Last: it is the only one that changes something of the ports for a moment.
        trial::probe,
    ];
    for probe in probes {
        probe(&ground, &mut found);
    }
    let ports = config.ports.iter().map(|port| (port.name.clone(), port.device.clone())).collect();
    let running = ground.running.as_ref().and_then(|status| status["pid"].as_u64());
    Ok(Report { found, ports, running })
}
