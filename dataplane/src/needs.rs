//! What a dataplane is cut to: its frames, its tables, and what they take of memory.

use std::collections::BTreeSet;

use weir_core::flow::table::Capacity;
use weir_core::footprint::{self, Footprint};
use weir_core::fragments::MAX_PIECES;
use weir_core::ids::{PortId, PortSet};
use weir_core::pipeline::Config;

use crate::driver::afxdp::XskFrame;
use crate::gateway::{FRAMES_PER_QUEUE, HEADROOM, PortSpec, Spec, StartError};
use crate::rooms::Rooms;

/// What a dataplane takes of memory: its frames, and all workers' tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    pub frames: usize,
    pub tables: Footprint,
}

impl Needs {
    /// Of a dataplane as `spec` says.
    ///
    /// # Errors
    /// [`StartError::Mtu`].
    pub fn of(spec: &Spec) -> Result<Self, StartError> {
        let sockets: usize = spec.ports.iter().map(|p| p.queues.len()).sum();
        let workers = spec.ports.iter().flat_map(|p| &p.queues).collect::<BTreeSet<_>>().len().max(1);
        let frames = sockets * FRAMES_PER_QUEUE;
        let one = footprint::of::<XskFrame>(&pipeline_config(spec, 0, frames / workers, workers));
        let tables = Footprint {
            held: one.held.saturating_mul(workers),
            reserved: one.reserved.saturating_mul(workers),
        };
        Ok(Self { frames: frames * frame_size(&spec.ports)?, tables })
    }
}

/// What a worker's pipeline is made from, but for what is random.
pub(crate) fn pipeline_config(spec: &Spec, id: usize, frames: usize, workers: usize) -> Config {
    let mut partial = PortSet::default();
    for (at, _) in spec.ports.iter().enumerate().filter(|(_, p)| p.partial_checksums) {
        partial.insert(PortId(at as u8));
    }
    let per_worker = |n: usize| n.div_ceil(workers.max(1)).max(16);
    let flows = per_worker(spec.flows);
    Config {
        flows: Capacity { fast: flows, kernel: per_worker(spec.kernel_flows) },
        holds: per_worker(spec.holds).min(flows),
        hold_bytes: spec.hold_bytes,
        hold_frames: frames / 4,
        names: flows.min(65_536),
        // An eighth of the frames at most: fragments must not take what whole packets need.
        fragments: (frames / 8 / MAX_PIECES).clamp(4, 128),
        partial_checksums: partial,
        worker: id,
        workers,
        seed: 0,
        secret: [0; 32],
        is_replay: false,
    }
}

/// What each of so many workers can hold.
pub(crate) fn rooms(spec: &Spec, frames: usize, workers: usize) -> Rooms<XskFrame> {
    let config = pipeline_config(spec, 0, frames, workers);
    Rooms::new(workers, (config.holds, config.hold_bytes), config.flows.fast)
}

/// Octets that a frame can have: the smaller where every port's packets fit it.
pub const FRAME_SIZES: [usize; 2] = [2048, 4096];

/// The largest IP packet that a frame of `frame` octets holds, with as many tags as it may have, where a driver takes so many multiples of
/// `grain` octets of it as there are to receive into.
pub const fn largest_packet(frame: usize, grain: usize) -> usize {
    let tags = weir_core::vlan::MAX_TAGS * weir_core::vlan::TAG_LEN;
    (frame - HEADROOM) / grain * grain - weir_core::wire::ETH_LEN - tags
}

/// The smallest frame that every port's packets fit.
pub(crate) fn frame_size(ports: &[PortSpec]) -> Result<usize, StartError> {
    let [small, large] = FRAME_SIZES;
    let most = |p: &PortSpec, frame| largest_packet(frame, p.grain);
    let beyond = |frame: usize| ports.iter().find(move |p| p.mtu as usize > most(p, frame));
    match (beyond(small), beyond(large)) {
        (None, _) => Ok(small),
        (Some(_), None) => Ok(large),
        (_, Some(p)) => Err(StartError::Mtu { device: p.device.clone(), mtu: p.mtu, most: most(p, large) }),
    }
}

#[cfg(test)]
mod tests {
    use weir_sys::xsk::Mode;

    use super::*;

    fn port(mtu: u32, grain: usize) -> PortSpec {
        PortSpec {
            device: "eth1".into(),
            ifindex: 1,
            queues: vec![0],
            asked: "auto",
            mode: Mode::Auto,
            partial_checksums: false,
            mtu,
            grain,
        }
    }

    #[test]
    fn frames_are_as_large_as_the_packets_and_the_steps_of_the_drivers_buffers_ask_for() {
        for (mtu, grain, size) in [
            (1500, 1, Some(2048)),
            (1770, 1, Some(2048)),
            (1771, 1, Some(4096)),
            (3818, 1, Some(4096)),
            (3819, 1, None),
            (1500, 1024, Some(4096)),
            (3050, 1024, Some(4096)),
            (3051, 1024, None),
        ] {
            let ports = [port(1500, 1), port(mtu, grain)];
            assert_eq!(frame_size(&ports).ok(), size, "MTU {mtu}, in steps of {grain}");
        }
    }
}
