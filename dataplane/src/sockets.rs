//! Opens the sockets of the ports, at the start and when a device comes back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::ids::PortId;
use weir_sys::steering::Steering;
use weir_sys::xsk::{Area, Frame, Mode, Queue, RingSizes, XskError};

use crate::driver::afxdp::AfXdp;
use crate::gateway::{PortSpec, PortState, RING, Spec, StartError};

/// How long the kernel may take to give back the queue of a socket that is closed: it does so later, when it is at leisure.
const GIVEN_BACK: Duration = Duration::from_secs(3);

/// Opens the sockets of one queue number on every port that has it, and tells steering of them. Frames for their fill rings come
/// from `pool`.
pub fn open_queues(
    spec: &Spec,
    steering: &Steering,
    area: &Arc<Area>,
    queue: u32,
    states: &mut [PortState],
    pool: &mut Vec<Frame>,
) -> Result<AfXdp, StartError> {
    let mut opened = Vec::new();
    for (at, port) in spec.ports.iter().enumerate().filter(|(_, p)| p.queues.contains(&queue)) {
        let is_busy = |error: &XskError| matches!(error, XskError::Socket { source, .. } if source.kind() == io::ErrorKind::ResourceBusy);
        let begun = Instant::now();
        let socket = loop {
            match open_queue(area, port, queue, pool) {
                Err(error) if is_busy(&error) && begun.elapsed() < GIVEN_BACK => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other?,
            }
        };
        if let Some(state) = states.get_mut(at) {
            state.zero_copy &= socket.zero_copy();
        }
        steering.set_socket(at as u32, queue, socket.fd())?;
        opened.push((PortId(at as u8), socket));
    }
    Ok(AfXdp::new(opened))
}

/// Asked for zero-copy where the driver has none, the port runs in copy mode: [`PortState::zero_copy`] tells.
pub fn open_queue(
    area: &Arc<Area>,
    port: &PortSpec,
    queue: u32,
    supply: &mut Vec<Frame>,
) -> Result<Queue, XskError> {
    let sizes = sizes(port.grain);
    let mut open = |mode| Queue::open(area, &port.device, port.ifindex, queue, mode, sizes, supply);
    match open(port.mode) {
        // Drivers say it in their own ways: virtio-net without iommu_platform calls it an invalid argument.
        Err(error) if port.mode == Mode::ZeroCopy && has_none(&error) => open(Mode::Copy).map_err(|_| error),
        other => other,
    }
}

/// igb and its kin ring for the queue that sends when they are asked to look for frames to receive into, so that a port whose NIC
/// has run out of them stands still. A worker that reads nothing for a while must leave the NIC some: what waits to be read is
/// less than what was given.
fn sizes(grain: usize) -> RingSizes {
    let all = RingSizes::all(RING);
    if grain > 1 { RingSizes { rx: RING / 2, ..all } } else { all }
}

fn has_none(error: &XskError) -> bool {
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error, XskError::Socket { source, .. } if matches!(source.kind(), InvalidInput | Unsupported))
}

/// Of ports whose sockets are yet to be opened.
pub fn port_states(ports: &[PortSpec]) -> Vec<PortState> {
    let state = |p: &PortSpec| PortState {
        device: p.device.clone(),
        queues: p.queues.clone(),
        asked: p.asked,
        zero_copy: !p.queues.is_empty(),
    };
    ports.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_drivers_that_do_not_wake_keep_frames_to_receive_into() {
        let (igb, other) = (sizes(1024), sizes(1));
        assert!(igb.rx < igb.fill, "{igb:?}");
        assert_eq!((other.rx, other.fill), (RING, RING));
    }
}
