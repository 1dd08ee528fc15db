//! weir's AF_XDP driver with no pipeline behind it, as the ceiling for its workers: the same steering program, sockets, batches and
//! sleep, and of each packet only the link-layer addresses are changed. A process of its own (`weir-bench bypass`), as weir is.

use std::time::Duration;

use weir_core::frame::Frame as _;
use weir_core::ids::PortId;
use weir_core::wire::edit;
use weir_dataplane::driver::Driver as _;
use weir_dataplane::driver::afxdp::{AfXdp, XskFrame};
use weir_dataplane::gateway::FRAMES_PER_QUEUE;
use weir_dataplane::heartbeat::BREATH;
use weir_dataplane::worker::BATCH;
use weir_sys::steering::{AttachMode, InterceptTable, Steering};
use weir_sys::waiter::Waiter;
use weir_sys::xsk::{Area, FrameSize, Mode, Queue, RingSizes};
use weir_sys::{clock, ethtool};

use super::{SIDES, Side};
use crate::Failure;

/// What it says when it forwards.
pub const READY: &str = "ready";
/// As of weir's workers: rounds without work before it sleeps, and its sleep while frames are still to be sent.
const SPINS: u32 = 64;
const SHORT_SLEEP: Duration = Duration::from_micros(200);
/// It is taken for alive for so long, in ns.
const ALIVE: u64 = 3_600_000_000_000;

/// Forwards in the calling thread's namespace until the process is killed.
///
/// # Errors
/// XDP or AF_XDP is refused.
pub fn run() -> Result<(), Failure> {
    let (steering, driver, free) = open()?;
    println!("{READY}");
    forward(driver, free)?;
    drop(steering);
    Ok(())
}

fn open() -> Result<(Steering, AfXdp, Vec<XskFrame>), Failure> {
    let mut steering = Steering::load(&Default::default())?;
    let (area, mut free) = Area::new(SIDES.len() * FRAMES_PER_QUEUE, FrameSize::Half as usize, true)?;
    let mut queues = Vec::new();
    for (port, side) in (0..).zip(SIDES) {
        let index = ethtool::index_of(side.device)?;
        steering.attach(side.device, index, AttachMode::Native)?;
        steering.set_port(index, port)?;
        let rings = RingSizes::default();
        let queue = Queue::open(&area, side.device, index, 0, Mode::Auto, rings, &mut free)?;
        steering.set_socket(port, 0, queue.fd())?;
        queues.push((PortId(port as u8), queue));
    }
    let mut table = InterceptTable::default();
    table.add(0, ["0.0.0.0/0".parse()?, "::/0".parse()?], [(0, u16::MAX)], [0, 1], false);
    steering.set_intercepts(&table)?;
    steering.set_limits(ALIVE, false)?;
    steering.heartbeat(clock::monotonic_ns())?;
    Ok((steering, AfXdp::new(queues), free.into_iter().map(XskFrame).collect()))
}

fn forward(mut driver: AfXdp, mut free: Vec<XskFrame>) -> Result<(), Failure> {
    let mut waiter = Waiter::new()?;
    driver.fds().try_for_each(|fd| waiter.add(fd))?;
    let mut batch = Vec::with_capacity(BATCH);
    let mut leaving = [const { Vec::new() }; SIDES.len()];
    let mut quiet = 0;
    loop {
        let mut work = 0;
        for from in 0..SIDES.len() {
            let to = SIDES.len() - 1 - from;
            work += driver.receive(PortId(from as u8), &mut batch, BATCH);
            let Side { mac, peer, .. } = SIDES[to];
            for mut frame in batch.drain(..) {
                edit::set_macs(frame.data_mut(), &[peer, mac]);
                leaving[to].push(frame);
            }
        }
        for (port, frames) in (0..).zip(&mut leaving) {
            if !frames.is_empty() {
                driver.send(PortId(port), frames);
                // What finds no room is lost, as on a wire.
                free.append(frames);
            }
        }
        driver.supply(&mut free);
        quiet = if work > 0 { 0 } else { quiet + 1 };
        if quiet >= SPINS {
            let patience = if driver.outstanding() > 0 { SHORT_SLEEP } else { BREATH };
            waiter.wait(patience, || false)?;
        }
    }
}
