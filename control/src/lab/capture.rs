//! Records the frames of one device of the lab, so that tests can look at addresses, ports, TTL and checksums.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_sys::capture::CaptureSocket;

use super::namespace::system;
use super::{LabError, Namespace};

/// Room for one frame: 64 KiB of payload as an offload passes it, and its headers.
const FRAME_BYTES: usize = (64 << 10) + 256;
/// How long the recording thread sleeps at most before it looks whether it should stop.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long `stop` goes on reading while frames still come.
const DRAIN: Duration = Duration::from_millis(200);

/// One frame as the device sent or received it, from its Ethernet header on.
#[derive(Clone, Debug)]
pub struct CapturedFrame {
    /// The frame's bytes.
    pub bytes: Vec<u8>,
    /// When the kernel saw it.
    pub time: SystemTime,
    /// The device sent it, else it received it.
    pub outgoing: bool,
    /// The transport checksum was left to an offload and holds only the pseudo header's sum.
    pub checksum_partial: bool,
}

/// A recording in progress. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<CapturedFrame>>>,
}

impl Capture {
    /// Begins to record; frames of `device` from now on are in the result.
    ///
    /// # Errors
    /// [`LabError::NoDevice`], or [`LabError::System`] when packet sockets are refused.
    pub(super) fn start(namespace: &Namespace, device: &str) -> Result<Self, LabError> {
        let socket = namespace.run(|| -> Result<CaptureSocket, LabError> {
            let probe =
                std::net::UdpSocket::bind("[::]:0").map_err(system("open a socket to look up a device"))?;
            let index = rustix::net::netdevice::name_to_index(&probe, device)
                .map_err(|_| LabError::NoDevice { device: device.into(), namespace: namespace.name() })?;
            CaptureSocket::open(index).map_err(system(&format!("capture on {device}")))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = namespace.spawn(move || record(&socket, &flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the recording and returns what was seen, in order, with all that was under way when called.
    pub fn stop(mut self) -> Vec<CapturedFrame> {
        self.finish()
    }

    fn finish(&mut self) -> Vec<CapturedFrame> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

fn record(socket: &CaptureSocket, stop: &AtomicBool) -> Vec<CapturedFrame> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; FRAME_BYTES];
    let mut deadline = None;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let idle = !take_waiting(socket, &mut buffer, &mut frames);
        if stopping {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN);
            if idle || Instant::now() > deadline {
                return frames;
            }
        }
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&WAIT));
    }
}

/// Reads all frames that are waiting; true if there were any.
fn take_waiting(socket: &CaptureSocket, buffer: &mut [u8], frames: &mut Vec<CapturedFrame>) -> bool {
    let before = frames.len();
    // An error is the device going away: what was seen until then is the result.
    while let Ok(Some(info)) = socket.receive(buffer) {
        frames.push(CapturedFrame {
            bytes: buffer[..info.length.min(buffer.len())].to_vec(),
            time: info.time,
            outgoing: info.outgoing,
            checksum_partial: info.checksum_partial,
        });
    }
    frames.len() > before
}
