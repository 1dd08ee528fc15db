//! A wire that loses, copies, damages, delays and reorders what goes over it, by a seed: for machines without netem.
//!
//! It joins two devices of the namespace it runs in, and carries frames from each to the other. Only TCP meets its
//! badness, so that a lost ARP reply does not cost a second. It counts what it did, and keeps the RSTs that it saw.
//! Frames that come faster than it carries them are lost at its sockets, and counted as well.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_sys::packet::PacketSocket;

use super::namespace::system;
use super::{CapturedFrame, Checksums, LabError, Namespace};

/// Octets of memory for frames that wait at each end: some thousand frames.
const WAITING: usize = 4 << 20;
/// Room for one frame.
const FRAME_BYTES: usize = 9216;
/// Frames that are taken from one end before the other has its turn.
const BURST: usize = 32;
/// How long it sleeps at most before it looks whether it should end.
const WAIT: Duration = Duration::from_millis(20);
/// RSTs that are kept to be looked at.
const KEPT: usize = 8;

/// How bad a wire is: one TCP segment in so many meets it; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Badness {
    /// Lost.
    pub loses: u64,
    /// Delivered twice.
    pub copies: u64,
    /// Delivered with another bit, which the checksum shows.
    pub damages: u64,
    /// Kept back, so that later ones overtake it.
    pub reorders: u64,
    /// For how long, at most.
    pub kept_back: Duration,
    /// What every frame takes.
    pub delay: Duration,
    /// Which ones.
    pub seed: u64,
}

/// What a wire has carried, both ways.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// Frames that came.
    pub frames: u64,
    /// And their octets.
    pub bytes: u64,
    pub lost: u64,
    pub copied: u64,
    pub damaged: u64,
    pub reordered: u64,
    /// Frames that came faster than they were carried.
    pub overrun: u64,
    /// Frames that the device at the other end did not take.
    pub refused: u64,
    /// TCP segments with RST that a host would take, of connections of which not both FINs had passed.
    pub resets: u64,
    /// The first of them.
    pub first_resets: Vec<CapturedFrame>,
    /// TCP segments with RST behind both FINs: where segments overtake each other, one may come when its receiver has
    /// closed, and is answered so (RFC 9293 section 3.10.7.1).
    pub late_resets: u64,
}

/// A wire in use. Dropping it ends it.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Carried>>,
}

impl Wire {
    /// Joins two devices of `namespace`.
    ///
    /// # Errors
    /// [`LabError::System`] when packet sockets are refused or there is no such device.
    pub(super) fn join(
        namespace: &Namespace,
        devices: [&str; 2],
        badness: Badness,
    ) -> Result<Self, LabError> {
        let open = |device: &str| {
            let socket = namespace.run(|| PacketSocket::open(device));
            let socket = socket.map_err(system(&format!("listen on {device}")))?;
            socket.set_receive_buffer(WAITING).map_err(system("enlarge a receive buffer"))?;
            Ok::<_, LabError>(socket)
        };
        let ends = [open(devices[0])?, open(devices[1])?];
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = namespace.spawn(move || Carrier::new(ends, badness).run(&flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; what it has carried.
    pub fn stop(mut self) -> Carried {
        self.finish()
    }

    fn finish(&mut self) -> Carried {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A frame under way: when it leaves, its number, by which end, and its octets.
type Waiting = (Instant, u64, usize, Vec<u8>);

/// The wire's thread.
#[derive(Debug)]
struct Carrier {
    ends: [PacketSocket; 2],
    badness: Badness,
    random: u64,
    waiting: BinaryHeap<Reverse<Waiting>>,
    count: u64,
    carried: Carried,
    /// Connections, by sender, whose FIN has passed.
    finished: HashSet<Vec<u8>>,
}

impl Carrier {
    fn new(ends: [PacketSocket; 2], badness: Badness) -> Self {
        let (waiting, carried) = (BinaryHeap::new(), Carried::default());
        let finished = HashSet::new();
        Self { ends, badness, random: badness.seed, waiting, count: 0, carried, finished }
    }

    fn run(mut self, stop: &AtomicBool) -> Carried {
        let mut buffer = vec![0; FRAME_BYTES];
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            self.release(now);
            let came = [0, 1].map(|from| self.take(from, now, &mut buffer));
            if came == [0, 0] {
                self.sleep();
            }
        }
        self.carried.overrun =
            self.ends.iter().filter_map(|end| end.take_dropped().ok()).map(u64::from).sum();
        self.carried
    }

    /// Sends the frames whose time has come.
    fn release(&mut self, now: Instant) {
        while self.waiting.peek().is_some_and(|Reverse((at, ..))| *at <= now)
            && let Some(Reverse((_, _, by, frame))) = self.waiting.pop()
        {
            self.send(by, &frame);
        }
    }

    /// Takes a burst of frames from one end; how many.
    fn take(&mut self, from: usize, now: Instant, buffer: &mut [u8]) -> usize {
        for taken in 0..BURST {
            // An error is the device going down or away: then there is nothing more.
            let Ok(Some(length)) = self.ends[from].recv(buffer, Duration::ZERO) else { return taken };
            let length = length.min(buffer.len());
            self.carry(1 - from, now, &mut buffer[..length]);
        }
        BURST
    }

    fn carry(&mut self, by: usize, now: Instant, frame: &mut [u8]) {
        self.carried.frames += 1;
        self.carried.bytes += frame.len() as u64;
        let Some(flags_at) = tcp_flags(frame) else { return self.send(by, frame) };
        if frame[flags_at] & (RST | SYN | FIN) != 0 {
            self.note_ends(frame, flags_at);
        }
        let bad = self.badness;
        if self.one_in(bad.loses) {
            self.carried.lost += 1;
            return;
        }
        if self.one_in(bad.damages) {
            self.carried.damaged += 1;
            // Within the TCP segment: its ports and numbers, flags, payload.
            let segment = flags_at - FLAGS..frame.len();
            let at = segment.start + self.draw() as usize % segment.len();
            frame[at] ^= 1 << (self.draw() % 8);
        }
        if self.one_in(bad.copies) {
            self.carried.copied += 1;
            self.deliver(by, now, bad.delay, frame);
        }
        let mut delay = bad.delay;
        if self.one_in(bad.reorders) {
            self.carried.reordered += 1;
            delay += bad.kept_back.mul_f64((self.draw() % 1000) as f64 / 1000.0);
        }
        self.deliver(by, now, delay, frame);
    }

    fn deliver(&mut self, by: usize, now: Instant, delay: Duration, frame: &[u8]) {
        if delay.is_zero() {
            return self.send(by, frame);
        }
        self.count += 1;
        self.waiting.push(Reverse((now + delay, self.count, by, frame.to_vec())));
    }

    fn send(&mut self, by: usize, frame: &[u8]) {
        if self.ends[by].send(frame).is_err() {
            self.carried.refused += 1;
        }
    }

    /// Notes where a connection begins, ends, or is reset.
    fn note_ends(&mut self, frame: &[u8], flags_at: usize) {
        let (sent, returned) = tuples(frame, flags_at - FLAGS);
        let flags = frame[flags_at];
        if flags & SYN != 0 {
            self.finished.remove(&sent);
        } else if flags & FIN != 0 {
            self.finished.insert(sent);
        } else if self.finished.contains(&sent) && self.finished.contains(&returned) {
            self.carried.late_resets += 1;
        } else {
            self.note_reset(frame);
        }
    }

    fn note_reset(&mut self, frame: &[u8]) {
        let time = SystemTime::now();
        let reset = CapturedFrame { bytes: frame.to_vec(), time, outgoing: false, checksum_partial: false };
        if reset.tcp().is_some_and(|segment| segment.checksums == Checksums::Wrong) {
            // Another wire has damaged it, its ports perhaps: no host takes it.
            return;
        }
        self.carried.resets += 1;
        if self.carried.first_resets.len() < KEPT {
            self.carried.first_resets.push(reset);
        }
    }

    /// Until a frame comes, or one that waits has to leave.
    fn sleep(&self) {
        let next = self
            .waiting
            .peek()
            .map_or(WAIT, |Reverse((at, ..))| at.saturating_duration_since(Instant::now()).min(WAIT));
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(next.subsec_nanos()) };
        let mut ends = [&self.ends[0], &self.ends[1]].map(|end| PollFd::new(end, PollFlags::IN));
        let _: Result<usize, _> = poll(&mut ends, Some(&timeout));
    }

    fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.draw().is_multiple_of(n)
    }

    /// The next number of the seed's (splitmix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
/// Where the flags stand in a TCP header.
const FLAGS: usize = 13;

/// Addresses and ports of a TCP segment whose header stands at `tcp`: as they are, and as an answer has them.
fn tuples(frame: &[u8], tcp: usize) -> (Vec<u8>, Vec<u8>) {
    let addresses = if frame[12..14] == [8, 0] { 26..34 } else { 22..54 };
    let (source, destination) = frame[addresses.clone()].split_at(addresses.len() / 2);
    let (from, to) = (&frame[tcp..tcp + 2], &frame[tcp + 2..tcp + 4]);
    ([source, destination, from, to].concat(), [destination, source, to, from].concat())
}

/// Where the flags of a TCP segment stand, if the frame is one: without VLAN tag, extension headers or fragments.
fn tcp_flags(frame: &[u8]) -> Option<usize> {
    let tcp = match frame.get(12..14)? {
        [8, 0] if frame.get(23)? == &6 && frame.get(20..22)? == [frame[20] & 0x40, 0] => {
            14 + usize::from(frame.get(14)? & 15) * 4
        }
        [0x86, 0xdd] if frame.get(20)? == &6 => 54,
        _ => return None,
    };
    (frame.len() >= tcp + 20).then_some(tcp + FLAGS)
}
