//! A device under the tester: AF_XDP on all its queues, and the program that brings it the test packets.

use std::collections::BTreeMap;

use aya::maps::{MapData, PerCpuArray, XskMap};
use aya::programs::{XdpMode, xdp::XdpLinkId};
use aya::{Ebpf, EbpfLoader};
use weir_sys::ethtool;
use weir_sys::waiter::Waiter;
use weir_sys::xsk::{Area, Frame, FrameSize, Mode, Queue, RingSizes};

use crate::Failure;
use crate::live::{map, program};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nic.bpf.o"));

/// Entries of each ring.
const RING: u32 = 2048;
/// As of the program.
const MAX_QUEUES: u32 = 64;
/// Frames that are moved at a time.
pub const BATCH: usize = 64;

/// How AF_XDP is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Asked {
    /// The best that the driver has.
    Auto,
    ZeroCopy,
    Copy,
    /// XDP by the network stack, for drivers that have none.
    Generic,
}

impl From<Asked> for Mode {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Auto => Self::Auto,
            Asked::ZeroCopy => Self::ZeroCopy,
            Asked::Copy | Asked::Generic => Self::Copy,
        }
    }
}

/// A device, taken. Dropping it gives it back.
pub struct Port {
    queues: Vec<Queue>,
    free: Vec<Frame>,
    arrived: PerCpuArray<MapData, u64>,
    device: String,
    mac: [u8; 6],
    /// With it the program leaves the device.
    _program: (Ebpf, XdpLinkId),
}

impl Port {
    /// Takes all queues of a device of the calling thread's namespace.
    ///
    /// # Errors
    /// XDP in the driver or AF_XDP is refused; each error names the device.
    pub fn open(device: &str, mode: Asked) -> Result<Self, Failure> {
        let index = ethtool::index_of(device).map_err(|error| format!("device {device}: {error}"))?;
        let channels = ethtool::channels_of(device).map_or(1, |channels| channels.receiving());
        let count = channels.clamp(1, MAX_QUEUES) as usize;
        // Drivers that count in KiB (igb, igc, ixgbe) would use 1024 octets of a frame of half a page.
        let (area, mut free) = Area::new(count * 2 * RING as usize, FrameSize::Page as usize, true)?;
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        program(&mut ebpf, "nic")?.load()?;
        let xdp = if mode == Asked::Generic { XdpMode::Skb } else { XdpMode::Driver };
        let link = program(&mut ebpf, "nic")?.attach(device, xdp).map_err(|error| {
            format!(
                "device {device}: no XDP in its driver (try generic), or a program is on it already: {error}"
            )
        })?;
        let mut sockets = XskMap::try_from(map(&mut ebpf, "xsks_map")?)?;
        let mut queues = Vec::new();
        for number in 0..count as u32 {
            // Half of the frames are for sending.
            let rings = RingSizes::all(RING);
            let queue = Queue::open(&area, device, index, number, mode.into(), rings, &mut free)?;
            sockets.set(number, queue.fd(), 0)?;
            queues.push(queue);
        }
        let arrived = PerCpuArray::try_from(ebpf.take_map("arrived").ok_or("no map arrived")?)?;
        let mac = ethtool::mac_of(device)?;
        Ok(Self { queues, free, arrived, device: device.into(), mac, _program: (ebpf, link) })
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// How the kernel really bound each queue.
    pub fn modes(&self) -> BTreeMap<u32, &'static str> {
        let mode = |queue: &Queue| if queue.zero_copy() { "zero-copy" } else { "copy" };
        self.queues.iter().map(|queue| (queue.queue(), mode(queue))).collect()
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Test packets that came in by each queue so far, whether or not the tester had room for them.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn arrived(&self) -> Result<Vec<u64>, Failure> {
        let of = |queue: usize| Ok(self.arrived.get(&(queue as u32), 0)?.iter().sum());
        (0..self.queues.len()).map(of).collect()
    }

    /// What receiving lost for want of room in the tester itself, so far.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn lost_here(&self) -> Result<u64, Failure> {
        let mut lost = 0;
        for queue in &self.queues {
            let stats = queue.stats()?;
            lost += stats.rx_dropped + stats.rx_ring_full + stats.rx_fill_ring_empty;
        }
        Ok(lost)
    }

    /// Wakes when something comes in.
    ///
    /// # Errors
    /// Of the ring that waits.
    pub fn waiter(&self) -> Result<Waiter, Failure> {
        let mut waiter = Waiter::new()?;
        self.queues.iter().try_for_each(|queue| waiter.add(queue.fd()))?;
        Ok(waiter)
    }

    /// Calls `each` with the queue and the octets of every packet that is there, a batch of each queue; what it returns is sent by the
    /// same queue. Returns how many there were.
    pub fn receive(&mut self, mut each: impl FnMut(usize, &[u8]) -> Option<Vec<u8>>) -> usize {
        let mut batch = Vec::with_capacity(BATCH);
        let mut answers = Vec::new();
        let mut got = 0;
        for (number, queue) in self.queues.iter_mut().enumerate() {
            got += queue.recv(&mut batch, BATCH);
            for mut frame in batch.drain(..) {
                match each(number, frame.data()) {
                    Some(answer) => {
                        put(&mut frame, &answer);
                        answers.push(frame);
                    }
                    None => self.free.push(frame),
                }
            }
            if !answers.is_empty() {
                queue.send(&mut answers);
                self.free.append(&mut answers);
            }
            queue.kick();
            queue.complete(&mut self.free);
            queue.fill(&mut self.free);
        }
        got
    }

    /// Sends up to `count` frames by a queue, each written by `write`, which says how long it is. Returns how many the queue took.
    pub fn send(
        &mut self,
        queue: usize,
        count: usize,
        mut write: impl FnMut(&mut [u8]) -> Option<usize>,
    ) -> usize {
        let Some(queue) = self.queues.get_mut(queue) else { return 0 };
        queue.kick();
        queue.complete(&mut self.free);
        let count = count.min(queue.tx_room()).min(BATCH).min(self.free.len());
        let mut batch = self.free.split_off(self.free.len() - count);
        for frame in &mut batch {
            let len = write(frame.buffer_mut()).unwrap_or(0);
            frame.set_len(len);
        }
        let sent = queue.send(&mut batch);
        self.free.append(&mut batch);
        sent
    }

    /// Sends these octets by a queue; whether it had room.
    pub fn send_one(&mut self, queue: usize, octets: &[u8]) -> bool {
        let write = |buffer: &mut [u8]| {
            buffer.get_mut(..octets.len())?.copy_from_slice(octets);
            Some(octets.len())
        };
        self.send(queue, 1, write) == 1
    }

    /// Frames that are on their way out.
    pub fn outstanding(&mut self) -> usize {
        for queue in &mut self.queues {
            queue.kick();
            queue.complete(&mut self.free);
        }
        self.queues.iter().map(Queue::outstanding).sum()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        for queue in self.queues.drain(..) {
            self.free.extend(queue.close());
        }
        // The area lives as long as the process; its frames are not given back one by one.
        std::mem::forget(std::mem::take(&mut self.free));
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("device", &self.device)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

fn put(frame: &mut Frame, octets: &[u8]) {
    if let Some(place) = frame.buffer_mut().get_mut(..octets.len()) {
        place.copy_from_slice(octets);
        frame.set_len(octets.len());
    }
}
