//! The express lane's glue: what the pipeline asks for ([`weir_core::express`]) becomes entries of the XDP program's maps
//! ([`weir_sys::steering::Express`]), and what the program has noted goes back.
//!
//! [`Ways`] knows the devices and next hops by the numbers that the program calls them by; control keeps it up to date. Each worker has
//! a [`Feeder`].

mod former;
mod note;
mod strays;
mod takeover;
mod ways;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use weir_core::express::{Adopted, Carried, ExpressOp, Names, Passed, WayOut};
use weir_core::flow::key::{FlowKey, Tuple};
use weir_core::frame::Frame;
use weir_core::ids::{Nanos, PortId};
use weir_core::pipeline::{Elsewhere, Output, Pipeline};
use weir_core::stage::timers;
use weir_core::tcp::seq::Seq;
use weir_core::tcp::translate::{TimestampMode, Translation};
use weir_sys::clock;
use weir_sys::steering::{
    Ends, ExpressBatch, ExpressEntry, ExpressFlow, ExpressNote, Seen, Splice, SteeringError, Sweep,
};

pub use former::Former;
pub use strays::Strays;
pub use takeover::share_out;
pub use ways::Ways;

/// Connections that enter with one system call.
const BATCH: usize = 64;

/// One worker's hand on the lane.
#[derive(Debug)]
pub struct Feeder {
    ways: Arc<Ways>,
    /// The worker's number.
    worker: u8,
    batch: ExpressBatch,
    entering: Vec<(FlowKey, ExpressFlow)>,
    flows: Vec<ExpressFlow>,
    notes: Vec<(Ends, ExpressNote)>,
    /// What is asked for meanwhile.
    later: Vec<ExpressOp>,
    /// Ends that the program could not be told of.
    untold: u64,
    /// Numbers of ways that were asked for before.
    numbers: HashMap<WayOut, (u8, u16)>,
    /// The period of the ways that they are of.
    period: Arc<AtomicU32>,
}

impl Feeder {
    /// Of this worker.
    pub fn new(ways: Arc<Ways>, worker: u8) -> Self {
        let period = ways.enrol();
        Self {
            ways,
            worker,
            batch: ExpressBatch::new(BATCH),
            entering: Vec::with_capacity(BATCH),
            flows: Vec::with_capacity(BATCH),
            notes: Vec::with_capacity(BATCH),
            later: Vec::with_capacity(BATCH),
            untold: 0,
            numbers: HashMap::new(),
            period,
        }
    }

    /// The devices have changed: their numbers are asked for again.
    pub fn forget_ways(&mut self) {
        self.numbers.clear();
    }

    /// What the program has carried of a connection, if it carries it.
    pub fn passed(&self, names: &Names) -> Option<Passed> {
        let seen = self.ways.express().seen(ends(&names.client), ends(&names.server)).ok()?;
        seen.iter().any(Option::is_some).then(|| passed(&seen))
    }

    /// Says that the worker had nothing in hand at `at` of what had come in until then: what has been let in changes over.
    pub fn tell_idle(&self, at: Nanos) {
        if let Err(error) = self.ways.express().tell_idle(self.worker, at.0) {
            tracing::debug!(%error, "express lane: connections change over late");
        }
    }

    /// Carries out what has to be so before what the pipeline sends: a FIN may be answered before it has left here, and then the answer is
    /// the worker's. Those that are to enter first have to wait.
    pub fn carry_out_first<F: Frame>(&mut self, pipeline: &mut Pipeline<F>, out: &mut Output<F>) {
        if !out.express.iter().any(|op| matches!(op, ExpressOp::Ending { .. })) {
            return;
        }
        let mut ops = std::mem::replace(&mut out.express, std::mem::take(&mut self.later));
        ops.retain(|op| match op {
            ExpressOp::Ending { names, fins, says } => !self.end(names, (*fins, *says), pipeline, out),
            _ => true,
        });
        self.put_back(ops, out);
    }

    /// Carries out what the pipeline asked for.
    pub fn carry_out<F: Frame>(&mut self, pipeline: &mut Pipeline<F>, out: &mut Output<F>) {
        if self.ways.learn_period(&self.period) {
            self.forget_ways();
        }
        if out.express.is_empty() {
            return;
        }
        let mut ops = std::mem::replace(&mut out.express, std::mem::take(&mut self.later));
        for op in ops.drain(..) {
            self.carry_out_one(&op, pipeline, out);
        }
        self.flush(pipeline);
        self.put_back(ops, out);
        if self.untold > 0 {
            let count = std::mem::take(&mut self.untold);
            tracing::warn!(count, "express lane: connections that are ending are not known to be");
        }
    }

    /// What is left of the operations comes before what was asked for meanwhile.
    fn put_back<F: Frame>(&mut self, mut ops: Vec<ExpressOp>, out: &mut Output<F>) {
        ops.append(&mut out.express);
        self.later = std::mem::replace(&mut out.express, ops);
    }

    fn carry_out_one<F: Frame>(&mut self, op: &ExpressOp, pipeline: &mut Pipeline<F>, out: &mut Output<F>) {
        if !matches!(op, ExpressOp::Enter(_)) {
            self.flush(pipeline);
        }
        match op {
            ExpressOp::Enter(carried) => self.enter(carried, pipeline),
            ExpressOp::Leave(names) => self.leave(names, pipeline),
            ExpressOp::Ending { names, fins, says } => {
                self.end(names, (*fins, *says), pipeline, out);
            }
            ExpressOp::Note(names) => {
                self.notes.extend(noted(pipeline, &names.key(), ends(&names.client)));
                self.write_notes();
            }
            ExpressOp::Ask(names) => {
                let seen = self.passed(names);
                pipeline.handle_seen(&names.key(), seen.as_ref(), out);
            }
        }
    }

    fn enter<F: Frame>(&mut self, carried: &Carried, pipeline: &mut Pipeline<F>) {
        let key = carried.names.key();
        let (server, client) = (self.number(carried.to_server), self.number(carried.to_client));
        let (Some((server_link, server_hop)), Some((client_link, client_hop))) = (server, client) else {
            return pipeline.handle_no_way(&key);
        };
        let flow = ExpressFlow {
            client: ends(&carried.names.client),
            server: ends(&carried.names.server),
            client_link,
            server_link,
            server_hop,
            client_hop,
            stands_by: carried.stands_by,
            from: Some(self.worker),
            splice: carried.up.as_ref().map_or_else(Splice::default, splice),
        };
        self.entering.push((key, flow));
        if self.entering.len() == BATCH {
            self.flush(pipeline);
        }
    }

    fn number(&mut self, way: WayOut) -> Option<(u8, u16)> {
        if let Some(numbers) = self.numbers.get(&way) {
            return Some(*numbers);
        }
        let numbers = self.ways.number(way)?;
        self.numbers.insert(way, numbers);
        Some(numbers)
    }

    /// Lets the program have those that wait to enter. What it has no room for stays where it is.
    fn flush<F: Frame>(&mut self, pipeline: &mut Pipeline<F>) {
        if self.entering.is_empty() {
            return;
        }
        self.flows.clear();
        self.flows.extend(self.entering.iter().map(|(_, flow)| *flow));
        let entered = match self.ways.express().insert(&mut self.batch, &self.flows) {
            Ok(entered) => entered,
            Err(error) => {
                tracing::debug!(%error, "express lane");
                0
            }
        };
        for (key, flow) in self.entering.iter().take(entered) {
            self.notes.extend(noted(pipeline, key, flow.client));
        }
        self.write_notes();
        for (at, (key, flow)) in self.entering.drain(..).enumerate() {
            let is_wanted = pipeline.handle_entered(&key, at < entered);
            if !is_wanted
                && at < entered
                && let Err(error) = self.ways.express().take(flow.client, flow.server)
            {
                tracing::debug!(%error, "express lane: a connection that is over");
            }
        }
    }

    /// What is known of the connections, for the process after this one. One without a note goes on as well.
    fn write_notes(&mut self) {
        if let Err(error) = self.ways.express().note(&mut self.batch, self.notes.drain(..)) {
            tracing::debug!(%error, "express lane: no room for a note");
        }
    }

    /// Has the program stand by for a connection of which these ends have finished, and these say so; whether it has it.
    fn end<F: Frame>(
        &mut self,
        names: &Names,
        (fins, says): ((bool, bool), (bool, bool)),
        pipeline: &mut Pipeline<F>,
        out: &mut Output<F>,
    ) -> bool {
        let Some(seen) = self.passed(names) else { return false };
        let (client, server) = (ends(&names.client), ends(&names.server));
        self.untold += u64::from(self.ways.express().set_ending(client, server, fins, says).is_err());
        pipeline.handle_ending(&names.key(), &seen, out);
        true
    }

    fn leave<F: Frame>(&self, names: &Names, pipeline: &mut Pipeline<F>) {
        match self.ways.express().take(ends(&names.client), ends(&names.server)) {
            Ok(seen) => pipeline.handle_passed(&names.key(), &passed(&seen)),
            Err(error) => tracing::warn!(%error, "express lane: a connection that is over stays in the map"),
        }
    }
}

fn noted<F: Frame>(pipeline: &Pipeline<F>, key: &FlowKey, client: Ends) -> Option<(Ends, ExpressNote)> {
    pipeline.note(key).map(|(note, rule)| (client, note::encode(&note, rule)))
}

/// What a process before this one has left in the lane.
#[derive(Debug, Default)]
pub struct Legacy {
    pub flows: Vec<Adopted>,
    /// Where the rules stand that decided them, for [`Policy::remembering`](weir_core::policy::Policy::remembering).
    pub rules: Vec<String>,
}

/// What the programs of other weirs' lanes still carry, and pass by the workers.
pub fn carried_elsewhere(ways: Arc<Ways>) -> Elsewhere {
    Elsewhere::new(move |opens| ways.former().held(ends(opens)).map(tuple))
}

/// Says what the workers had no room for.
pub fn tell_of_strays(ways: Option<&Ways>) {
    let connections = ways.map_or(0, |ways| ways.strays().count());
    if connections > 0 {
        tracing::warn!(
            connections,
            "express lane: for these there is no room, or no way to the client: they go on there without being listed"
        );
    }
}

/// Connections that the program carries since a process before this one let them in. Those that are over, or of which there is only
/// half, are removed. The next hops' numbers keep their meaning, also those that lanes of other layouts name; the ways must have been
/// told of the routes.
///
/// # Errors
/// A map cannot be read.
pub fn adopt(ways: &Ways) -> io::Result<Legacy> {
    recall_former(ways)?;
    if ways.express().is_adopted() { adopt_flows(ways) } else { Ok(Legacy::default()) }
}

fn recall_former(ways: &Ways) -> io::Result<()> {
    for lane in ways.former().lanes() {
        let mut known = ways.known();
        lane.flows(|flow| {
            let client = if flow.is_to_client { (flow.goes.1, flow.goes.0) } else { flow.came };
            known.recall(flow.hop, flow.goes.1.ip(), &FlowKey::of(&tuple(client)));
        })?;
    }
    ways.former().look();
    Ok(())
}

fn adopt_flows(ways: &Ways) -> io::Result<Legacy> {
    let mut found: HashMap<Ends, [Option<ExpressEntry>; 2]> = HashMap::new();
    let mut sweep = Sweep::default();
    loop {
        let more = ways.express().sweep(&mut sweep)?;
        for entry in sweep.entries() {
            // Both directions of a connection name what the client sends.
            let client = if entry.is_to_client { (entry.goes.1, entry.goes.0) } else { entry.came };
            found.entry(client).or_default()[usize::from(entry.is_to_client)] = Some(entry);
        }
        if !more {
            break;
        }
    }
    let now = Nanos(clock::monotonic_ns());
    let mut adopted = Vec::new();
    let mut notes = note::Reader::default();
    let mut known = ways.known();
    for (client, entries) in found {
        let over = |entry: &ExpressEntry| entry.seen.is_void || entry.seen.rst;
        // What its ends send again of the last segments still comes.
        let lingers = |up: &ExpressEntry, down: &ExpressEntry| {
            Nanos(up.seen.last_seen.max(down.seen.last_seen)).saturating_add(timers::LINGER) > now
        };
        let is_over = |up: &ExpressEntry, down: &ExpressEntry| {
            over(up) || over(down) || up.seen.fin && down.seen.fin && !lingers(up, down)
        };
        match entries {
            [Some(up), Some(down)] if !is_over(&up, &down) => {
                let key = FlowKey::of(&tuple(client));
                known.recall(up.hop, up.goes.1.ip(), &key);
                known.recall(down.hop, client.0.ip(), &key);
                if [&up, &down].iter().any(|way| way.is_stray || way.changes) {
                    ways.express().set_stray(client, up.goes, false)?;
                }
                let noted = ways.express().noted(client)?;
                let note = noted.and_then(|noted| notes.decode(&noted));
                adopted.push(Adopted { note, ..adopted_from(client, &up, &down) });
            }
            entries => {
                for entry in entries.into_iter().flatten() {
                    ways.express().remove_direction(entry.came.0, entry.came.1)?;
                }
            }
        }
    }
    Ok(Legacy { flows: adopted, rules: notes.into_rules() })
}

fn adopted_from(client: Ends, up: &ExpressEntry, down: &ExpressEntry) -> Adopted {
    let names = Names { client: tuple(client), server: tuple(up.goes) };
    let clock = down.change.clock;
    let translation = Translation {
        client: names.client,
        server: names.server,
        delta: down.change.delta,
        start: Seq(down.change.floor),
        prefix: down.change.behind,
        base: Seq(up.change.floor),
        timestamps: if clock == 0 {
            TimestampMode::None
        } else {
            TimestampMode::Both { offset: clock, first: 0 }
        },
        sack: !up.change.removes_sack,
        server_scale: 0,
        shift_to_client: down.change.shift,
        shift_to_server: up.change.shift,
        ecn: !up.change.clears_ecn,
        acked: true,
    };
    // What was last seen of one that stood by, a worker knew.
    let seen = if up.stands_by { clock::monotonic_ns() } else { 0 };
    Adopted {
        names,
        up: up.is_translated.then_some(translation),
        stands_by: up.stands_by,
        seen: Nanos(seen.max(up.seen.last_seen).max(down.seen.last_seen)),
        fins: (up.seen.fin || up.seen.says, down.seen.fin || down.seen.says),
        note: None,
    }
}

fn tuple((src, dst): Ends) -> Tuple {
    Tuple { src: src.into(), dst: dst.into() }
}

/// Opens a device for the lane, and says between which it carries.
///
/// # Errors
/// As [`Express::set_link`].
pub fn open_link(
    ways: &Ways,
    port: PortId,
    ifindex: u32,
    mac: [u8; 6],
    partial_checksums: bool,
) -> Result<(), SteeringError> {
    let link = ways.express().set_link(ifindex, mac, partial_checksums)?;
    ways.set_link(port, Some(link));
    Ok(())
}

fn ends(tuple: &Tuple) -> Ends {
    (tuple.src.socket_addr(), tuple.dst.socket_addr())
}

fn passed(seen: &[Option<Seen>; 2]) -> Passed {
    let [up, down] = seen.map(Option::unwrap_or_default);
    Passed {
        packets_to_server: up.packets,
        packets_to_client: down.packets,
        bytes_to_server: up.bytes,
        bytes_to_client: down.bytes,
        seen: Nanos(up.last_seen.max(down.last_seen)),
        fins: (up.fin, down.fin),
        rst: up.rst || down.rst,
    }
}

fn splice(up: &Translation) -> Splice {
    Splice {
        delta: up.delta,
        start: up.start.0,
        prefix: u16::try_from(up.prefix).unwrap_or(u16::MAX),
        base: up.base.0,
        clock: match up.timestamps {
            TimestampMode::Both { offset, .. } => offset,
            _ => 0,
        },
        sack: up.sack,
        shift_to_client: up.shift_to_client,
        shift_to_server: up.shift_to_server,
        ecn: up.ecn,
    }
}

#[cfg(test)]
mod tests {
    use weir_sys::steering::Change;

    use super::*;

    /// Its acknowledgment may have passed when there was no worker, and nobody says it again.
    #[test]
    fn end_that_nobody_had_acknowledged_has_finished_for_the_next_process() {
        for (client, server) in [("10.1.0.2:4000", "192.0.2.1:80"), ("[fd00::2]:4000", "[2001:db8::1]:80")] {
            let client: Ends = (client.parse().unwrap(), server.parse().unwrap());
            let change = Change {
                delta: 0,
                clock: 0,
                floor: 0,
                behind: 0,
                shift: 0,
                removes_sack: false,
                clears_ecn: false,
            };
            let entry = |is_to_client, came, seen| ExpressEntry {
                is_to_client,
                is_translated: false,
                came,
                goes: came,
                link: 0,
                hop: 0,
                stands_by: true,
                is_stray: false,
                changes: false,
                seen,
                change,
            };
            for (says, fin) in [(true, false), (false, true), (true, true)] {
                let up = entry(false, client, Seen { says, fin, ..Seen::default() });
                let down = entry(true, (client.1, client.0), Seen::default());
                assert_eq!(adopted_from(client, &up, &down).fins, (true, false));
            }
        }
    }
}
