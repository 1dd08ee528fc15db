//! The program run by the kernel on one frame, without a wire (BPF_PROG_TEST_RUN).
//!
//! `weir explain` asks a copy of the program so, and tests hold it against its tables of packets and against weir-core.

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
            ..TestRunOptions::new()
        };
        let result = xdp(&mut self.ebpf, PROGRAM)?.test_run(options).map_err(|error| {
            SteeringError::Load { reason: format!("it cannot be run on a packet: {error}") }
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial { action: result.return_value, frame: out })
    }
}
