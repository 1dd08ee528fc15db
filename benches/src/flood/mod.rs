//! A SYN flood from random addresses, and a real client beside it.
//!
//! SYNs as Linux sends them, IPv4 and IPv6 in turn (benches/bpf/syn_flood.bpf.c), from random addresses whose answers are dropped at the client's
//! device.

mod client;
mod generator;

use weir_control::lab::Lab;

use crate::Failure;
use crate::bed::shell;

pub use client::{RealClient, Seen, try_once};
pub use generator::{Flood, Rate};

/// Routes to the flood's sources, and nobody who answers for them. Neighbours are fixed: a flood leaves no room to ask for them.
///
/// # Errors
/// A script fails.
pub fn prepare(lab: &Lab) -> Result<(), Failure> {
    shell(
        &lab.gateway,
        "ip route add 32.0.0.0/3 via 10.77.1.2
         ip route add 2a00::/16 via fd77:1::2
         for client in 10.77.1.2 fd77:1::2; do
             ip neigh replace $client lladdr 02:77:00:00:00:01 dev lan0 nud permanent
         done
         for server in 192.0.2.10 2001:db8:2::10; do
             ip neigh replace $server lladdr 02:77:00:00:00:04 dev wan0 nud permanent
         done",
    )?;
    shell(
        &lab.client,
        "for gateway in 10.77.1.1 fd77:1::1; do
             ip neigh replace $gateway lladdr 02:77:00:00:00:02 dev client0 nud permanent
         done
         nft -f - <<'END'
         table netdev flood {
             chain ingress {
                 type filter hook ingress device client0 priority 0
                 ip daddr 32.0.0.0/3 drop
                 ip6 daddr 2a00::/16 drop
             }
         }\nEND",
    )?;
    shell(
        &lab.server,
        "for gateway in 192.0.2.1 2001:db8:2::1; do
             ip neigh replace $gateway lladdr 02:77:00:00:00:03 dev server0 nud permanent
         done",
    )?;
    Ok(())
}
