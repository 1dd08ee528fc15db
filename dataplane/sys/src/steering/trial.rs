//! The program run by the kernel on one frame, without a wire (BPF_PROG_TEST_RUN).
//!
//! `weir explain` asks a copy of the program so, and tests hold it against its tables of packets and against weir-core.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use aya::TestRun as _;
use aya::programs::TestRunOptions;
use zerocopy::{Immutable, IntoBytes};

use super::{PROGRAM, Steering, SteeringError, xdp};

/// What a frame may grow by.
const TAILROOM: usize = 64;

/// What became of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// `enum xdp_action` of linux/bpf.h.
    pub action: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// `struct xdp_md` of linux/bpf.h, as far as the kernel lets a caller say.
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Steering {
    /// Runs the program on a frame that came in by the first queue of a device of this namespace. Counters move, and flows
    /// are seen, as if it had.
    ///
    /// # Errors
    /// [`SteeringError::Load`]: the kernel does not run it: there is no such device, or no right to.
    pub fn run_on(&mut self, ifindex: u32, frame: &[u8]) -> Result<Trial, SteeringError> {
        self.run_times(ifindex, frame, 1)
    }

    /// The same so many times without a pause, on what the time before has left of the frame; what became of it the last time.
    ///
    /// # Errors
    /// As [`Steering::run_on`].
    pub fn run_times(&mut self, ifindex: u32, frame: &[u8], times: u32) -> Result<Trial, SteeringError> {
        let context = XdpMd {
            data_end: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            ingress_ifindex: ifindex,
            ..XdpMd::default()
        };
        let mut out = vec![0; frame.len() + TAILROOM];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.as_bytes()),
            repeat: times,
            ..TestRunOptions::new()
        };
        let result = xdp(&mut self.ebpf, PROGRAM)?.test_run(options).map_err(|error| {
            SteeringError::Load { reason: format!("it cannot be run on a packet: {error}") }
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial { action: result.return_value, frame: out })
    }
}

/// A program that user space alone runs, on octets of its own: cheap to clone, no lock, for any thread.
#[derive(Clone, Debug)]
pub(super) struct Routine(Arc<OwnedFd>);

impl Routine {
    /// Of a program that is loaded.
    pub fn new(program: OwnedFd) -> Self {
        Self(Arc::new(program))
    }

    /// Has the kernel run it on `input`, of no fewer octets than an Ethernet header; what it returns.
    pub fn run(&self, input: &[u8]) -> io::Result<u32> {
        // Up to the last field: what is behind it the library wants to be 0, and it is nothing.
        let size = std::mem::offset_of!(libbpf_sys::bpf_test_run_opts, cpu) + size_of::<u32>();
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size as libbpf_sys::size_t,
            data_in: input.as_ptr().cast(),
            data_size_in: input.len() as u32,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: the options are initialized and say their size; the call reads `input`, of the length that they say, and writes to nothing
        // but the options.
        let code = unsafe { libbpf_sys::bpf_prog_test_run_opts(self.0.as_raw_fd(), &mut options) };
        match code {
            0.. => Ok(options.retval),
            -1 => Err(io::Error::last_os_error()),
            // It has not come to the kernel.
            _ => Err(io::Error::from_raw_os_error(-code)),
        }
    }
}
