//! The lab, made comparable: offloads off, NAPI in threads that are bound to CPUs, routes for the flood's sources.

use weir_benches::bed::{Cpus, GatewayThreads, shell};
use weir_benches::{Failure, flood};
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
        shell(&lab.gateway, &format!("ethtool -K lan0 {OFFLOADS}; ethtool -K wan0 {OFFLOADS}"))?;
        shell(&lab.client, &format!("ethtool -K client0 {OFFLOADS}"))?;
        shell(&lab.server, &format!("ethtool -K server0 {OFFLOADS}"))?;
        flood::prepare(&lab)?;
        Ok(Self { lab, cpus })
    }

    /// As [`Cpus::bind_threads`].
    pub fn bind_threads(&self) -> Result<GatewayThreads, Failure> {
        self.cpus.bind_threads(&self.lab, true)
    }
}
