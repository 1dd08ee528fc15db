//! The lab, made comparable: offloads off, NAPI in threads that are bound to CPUs, routes for the flood's sources.

use weir_benches::Failure;
use weir_benches::bed::{Cpus, GatewayThreads, shell};
use weir_control::lab::{Lab, LabOptions};

const OFFLOADS: &str = "rx off tx off tso off gso off gro on";

/// A lab that is ready to be measured.
#[derive(Debug)]
pub struct Bed {
    pub lab: Lab,
    cpus: Cpus,
}

impl Bed {
    pub fn new() -> Result<Self, Failure> {
        let cpus = Cpus::take()?;
        let lab = Lab::new(&LabOptions { forwarding: Some(true), ..LabOptions::default() })?;
        shell(
            &lab.gateway,
            &format!(
                "ethtool -K lan0 {OFFLOADS}; ethtool -K wan0 {OFFLOADS}
                 ip route add 32.0.0.0/3 via 10.77.1.2
                 ip route add 2a00::/16 via fd77:1::2
                 for client in 10.77.1.2 fd77:1::2; do
                     ip neigh replace $client lladdr 02:77:00:00:00:01 dev lan0 nud permanent
                 done
                 for server in 192.0.2.10 2001:db8:2::10; do
                     ip neigh replace $server lladdr 02:77:00:00:00:04 dev wan0 nud permanent
                 done"
            ),
        )?;
        shell(
            &lab.client,
            &format!(
                "ethtool -K client0 {OFFLOADS}
                 for gateway in 10.77.1.1 fd77:1::1; do
                     ip neigh replace $gateway lladdr 02:77:00:00:00:02 dev client0 nud permanent
                 done
                 nft -f - <<'END'
                 table netdev flood {{
                     chain ingress {{
                         type filter hook ingress device client0 priority 0
                         ip daddr 32.0.0.0/3 drop
                         ip6 daddr 2a00::/16 drop
                     }}
                 }}\nEND"
            ),
        )?;
        shell(
            &lab.server,
            &format!(
                "ethtool -K server0 {OFFLOADS}
                 for gateway in 192.0.2.1 2001:db8:2::1; do
                     ip neigh replace $gateway lladdr 02:77:00:00:00:03 dev server0 nud permanent
                 done"
            ),
        )?;
        Ok(Self { lab, cpus })
    }

    /// As [`Cpus::bind_threads`].
    pub fn bind_threads(&self) -> Result<GatewayThreads, Failure> {
        self.cpus.bind_threads(&self.lab)
    }
}
