//! What a worker counts, where others can read it.
//!
//! Only the worker writes; it publishes every so many breaths. All orderings are Relaxed: each number stands for itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;
use weir_core::drop::{Counters, DropReason, PuntReason};
use weir_core::ids::MAX_PORTS;
use weir_core::pipeline::Totals;

use crate::driver::RingFrames;
use crate::heartbeat::Sign;

/// Fields of [`Totals`].
const TOTALS: usize = 27;
/// Fields of [`Gauges`].
const GAUGES: usize = 12;
/// The place of [`Gauges::pressed`].
const PRESSED: usize = 7;

/// One worker's numbers, shared.
#[derive(Debug)]
pub struct WorkerStats {
    /// When it breathed last: what the heartbeat tells.
    pub breathed: Sign,
    dropped: [AtomicU64; DropReason::COUNT],
    punted: [AtomicU64; PuntReason::COUNT],
    ports: [PortStats; MAX_PORTS],
    totals: [AtomicU64; TOTALS],
    gauges: [AtomicU64; GAUGES],
}

#[derive(Debug, Default)]
struct PortStats {
    rx: AtomicU64,
    tx: AtomicU64,
}

/// Numbers of the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gauges {
    pub flows_fast: u64,
    pub flows_kernel: u64,
    pub frames_pool: u64,
    pub frames_fill: u64,
    pub frames_transmit: u64,
    pub frames_held: u64,
    pub handed_over: u64,
    /// Frames that went from port to port by descriptor, and those of them that nobody copied.
    pub crossed: u64,
    pub crossed_zero_copy: u64,
    /// Workers with as many half-open connections as they may have.
    pub pressed: u64,
    /// Connections that the program carries, and those that it would carry if there were no worker.
    pub flows_express: u64,
    pub flows_standby: u64,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            breathed: Sign::default(),
            dropped: std::array::from_fn(|_| AtomicU64::new(0)),
            punted: std::array::from_fn(|_| AtomicU64::new(0)),
            ports: std::array::from_fn(|_| PortStats::default()),
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl WorkerStats {
    /// Called by the worker.
    pub fn publish(
        &self,
        counters: &Counters,
        totals: &Totals,
        ports: &[(u64, u64); MAX_PORTS],
        gauges: &Gauges,
    ) {
        store(&self.dropped, &counters.dropped);
        store(&self.punted, &counters.punted);
        for (port, (rx, tx)) in self.ports.iter().zip(ports) {
            port.rx.store(*rx, Relaxed);
            port.tx.store(*tx, Relaxed);
        }
        store(&self.totals, &totals_array(totals));
        store(&self.gauges, &gauges_array(gauges));
    }

    /// Whether the worker had too many half-open connections when it published last.
    pub fn is_pressed(&self) -> bool {
        self.gauges[PRESSED].load(Relaxed) != 0
    }

    /// Adds this worker's numbers to `sum`.
    pub fn add_to(&self, sum: &mut Summary) {
        let load = |list: &[AtomicU64], into: &mut [u64]| {
            for (value, total) in list.iter().zip(into) {
                *total += value.load(Relaxed);
            }
        };
        load(&self.dropped, &mut sum.counters.dropped);
        load(&self.punted, &mut sum.counters.punted);
        for (port, (rx, tx)) in self.ports.iter().zip(&mut sum.ports) {
            *rx += port.rx.load(Relaxed);
            *tx += port.tx.load(Relaxed);
        }
        load(&self.totals, &mut sum.totals);
        load(&self.gauges, &mut sum.gauges);
    }
}

fn store(list: &[AtomicU64], values: &[u64]) {
    for (place, value) in list.iter().zip(values) {
        place.store(*value, Relaxed);
    }
}

const fn totals_array(t: &Totals) -> [u64; TOTALS] {
    [
        t.opened,
        t.allowed,
        t.reset,
        t.dropped,
        t.unidentified,
        t.relayed,
        t.midstream,
        t.expired,
        t.bypassed,
        t.sent,
        t.retried,
        t.failed,
        t.cookies_sent,
        t.cookies_accepted,
        t.cookies_failed,
        t.limited,
        t.reevaluated,
        t.host_asked,
        t.host_unasked,
        t.host_mismatch,
        t.host_unknown,
        t.express_entered,
        t.express_full,
        t.hello_retry,
        t.hello_changed,
        t.hello_refused,
        t.recycled,
    ]
}

const fn gauges_array(g: &Gauges) -> [u64; GAUGES] {
    [
        g.flows_fast,
        g.flows_kernel,
        g.frames_pool,
        g.frames_fill,
        g.frames_transmit,
        g.frames_held,
        g.handed_over,
        g.pressed,
        g.flows_express,
        g.crossed,
        g.crossed_zero_copy,
        g.flows_standby,
    ]
}

impl Gauges {
    /// Of the moment: what is in hand, in rings and held.
    pub fn new(flows: (usize, usize), pool: usize, rings: RingFrames, held: usize) -> Self {
        Self {
            flows_fast: flows.0 as u64,
            flows_kernel: flows.1 as u64,
            frames_pool: pool as u64,
            frames_fill: rings.fill as u64,
            frames_transmit: rings.transmit as u64,
            frames_held: held as u64,
            ..Self::default()
        }
    }
}

/// The numbers of all workers together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub counters: Counters,
    pub ports: [(u64, u64); MAX_PORTS],
    totals: [u64; TOTALS],
    gauges: [u64; GAUGES],
}

impl Summary {
    pub fn totals(&self) -> Totals {
        let t = &self.totals;
        Totals {
            opened: t[0],
            allowed: t[1],
            reset: t[2],
            dropped: t[3],
            unidentified: t[4],
            relayed: t[5],
            midstream: t[6],
            expired: t[7],
            bypassed: t[8],
            sent: t[9],
            retried: t[10],
            failed: t[11],
            cookies_sent: t[12],
            cookies_accepted: t[13],
            cookies_failed: t[14],
            limited: t[15],
            reevaluated: t[16],
            host_asked: t[17],
            host_unasked: t[18],
            host_mismatch: t[19],
            host_unknown: t[20],
            express_entered: t[21],
            express_full: t[22],
            hello_retry: t[23],
            hello_changed: t[24],
            hello_refused: t[25],
            recycled: t[26],
        }
    }

    pub fn gauges(&self) -> Gauges {
        let [
            fast,
            kernel,
            pool,
            fill,
            transmit,
            held,
            handed_over,
            pressed,
            express,
            crossed,
            uncopied,
            standby,
        ] = self.gauges;
        Gauges {
            flows_fast: fast,
            flows_kernel: kernel,
            frames_pool: pool,
            frames_fill: fill,
            frames_transmit: transmit,
            frames_held: held,
            handed_over,
            crossed,
            crossed_zero_copy: uncopied,
            pressed,
            flows_express: express,
            flows_standby: standby,
        }
    }
}
