//! What a [`crate::pipeline::Pipeline`] asks of its caller.

use crate::drop::PuntReason;
use crate::express::ExpressOp;
use crate::flow::key::{FlowKey, Tuple};
use crate::flow::record::Failure;
use crate::hold::Packet;
use crate::ids::{PoolId, PortId, ServerId};
use crate::verify::Question;
use crate::wire::icmp::IcmpMeta;

/// Which way into the kernel a punted frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PuntTo {
    /// To the relay's listener.
    Relay,
    /// To be forwarded.
    Forward,
}

/// A frame for the kernel. It is counted as given; who cannot give it says [`crate::drop::Counters::punt_failed`].
#[derive(Debug)]
pub struct Punted<F> {
    pub to: PuntTo,
    pub reason: PuntReason,
    pub frame: F,
}

/// A change of the kernel map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelOp {
    /// A flow that begins.
    Insert(FlowKey),
    /// It is to be there, with what it says if it is. `goes_on`: something came behind its SYN.
    Keep {
        key: FlowKey,
        goes_on: bool,
    },
    Remove(FlowKey),
    /// Ask when the map last saw the flow, and tell [`crate::pipeline::Pipeline::handle_kernel_seen`].
    Check(FlowKey),
}

/// How far the kernel map has seen a connection come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Nothing came behind its SYN.
    Began,
    /// Something did.
    Lives,
    /// A FIN of both ends was seen, or an RST and then nothing for long.
    Ended,
}

/// A change at another worker, which receives the packets of a server leg.
#[derive(Debug)]
pub enum LegOp<F> {
    /// What the destination of `leg` answers is to be handed to the worker that says this; then the frame is to be sent.
    Claim {
        worker: usize,
        leg: Tuple,
        frame: Option<(PortId, F)>,
    },
    Release {
        worker: usize,
        key: FlowKey,
    },
}

/// A server of a pool did not take a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerFailed {
    pub pool: PoolId,
    pub server: ServerId,
    /// The epoch since which they have these numbers.
    pub numbered: u32,
    pub failure: Failure,
}

/// What the caller has to do.
#[derive(Debug)]
pub struct Output<F> {
    pub kernel: Vec<KernelOp>,
    pub punt: Vec<Punted<F>>,
    pub tx: Vec<(PortId, F)>,
    /// Whole datagrams made of fragments: to be given to the worker that owns their flow.
    pub again: Vec<Packet<F>>,
    pub legs: Vec<LegOp<F>>,
    /// Packets and ICMP errors of connections that other workers own, and those workers.
    pub hand: Vec<(usize, Packet<F>)>,
    pub hand_icmp: Vec<(usize, F, PortId, IcmpMeta)>,
    pub failed: Vec<ServerFailed>,
    /// For the XDP program, after `tx`.
    pub express: Vec<ExpressOp>,
    /// For a resolver; the answers go to [`Pipeline::handle_verified`].
    pub questions: Vec<Question>,
    /// Free frames: those given back, and those that answers are built in.
    pub free: Vec<F>,
}

impl<F> Default for Output<F> {
    fn default() -> Self {
        Self {
            kernel: Vec::new(),
            punt: Vec::new(),
            tx: Vec::new(),
            again: Vec::new(),
            legs: Vec::new(),
            hand: Vec::new(),
            hand_icmp: Vec::new(),
            failed: Vec::new(),
            express: Vec::new(),
            questions: Vec::new(),
            free: Vec::new(),
        }
    }
}
