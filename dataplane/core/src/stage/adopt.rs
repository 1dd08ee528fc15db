//! Connections of the express lane from one process to the next: the note that is left beside each, and taking them over.

use std::borrow::Cow;

use crate::express::{Adopted, ExpressOp, Names, Note, Passed, Place};
use crate::fib::Way;
use crate::flow::key::{FlowKey, owner};
use crate::flow::legs::Leg;
use crate::flow::names::NameRef;
use crate::flow::record::{Flow, Origin, Side, Stage, Verdict};
use crate::frame::Frame;
use crate::ids::{InterceptId, Nanos, PortId};
use crate::pipeline::{Output, Pipeline};
use crate::policy::{Action, Cause, Policy};
use crate::tcp::options::MAX_SHIFT;
use crate::tcp::track;
use crate::tcp::translate::Translation;
use crate::verify::HostCheck;

use super::timers;

impl<F: Frame> Pipeline<F> {
    /// What the next process has to know of a connection besides what the program does, and where its rule stands, if one decided.
    pub fn note(&self, key: &FlowKey) -> Option<(Note<'_>, Option<&str>)> {
        let flow = self.flows.get(self.flows.find(key)?)?;
        let note = Note {
            created: flow.created,
            verdict: flow.verdict?,
            protocol: flow.protocol,
            verified: match flow.check {
                HostCheck::Known(verified) => Some(verified),
                _ => None,
            },
            hello_retry: flow.second.retry,
            ech: flow.ech,
            signed: flow.signed,
            partial: flow.partial || flow.origin == Origin::Unknown,
            host: self.names.get(flow.name).map(Cow::Borrowed),
            alpn: Cow::Borrowed(self.alpns.get_bytes(flow.alpn).unwrap_or_default()),
            passed: Passed {
                packets_to_server: flow.packets(Side::Client),
                packets_to_client: flow.packets(Side::Server),
                bytes_to_server: flow.bytes(Side::Client),
                bytes_to_client: flow.bytes(Side::Server),
                seen: flow.seen,
                ..Passed::default()
            },
        };
        let rule = flow.rule().and_then(|rule| self.policy.origin(flow.epoch, flow.intercept, rule));
        Some((note, rule))
    }

    /// Something is known of a connection that was not when the program got it.
    pub(crate) fn note_anew(&self, slot: u32, out: &mut Output<F>) {
        if let Some(flow) = self.flows.get(slot).filter(|flow| flow.place.is_in_map()) {
            out.express.push(ExpressOp::Note(self.names_of(flow)));
        }
    }

    /// Takes over a connection that the program carries already, let in by a process before. `false`: no room, or its addresses are
    /// another's. Its packets pass as they did.
    pub fn adopt(&mut self, now: Nanos, adopted: &Adopted) -> bool {
        self.now = now;
        let Names { client, server } = adopted.names;
        let is_taken = |pipeline: &Self, tuple| {
            let key = FlowKey::of(tuple);
            pipeline.flows.find(&key).is_some() || pipeline.legs.find(&key).is_some()
        };
        if is_taken(self, &client) || is_taken(self, &server) {
            return false;
        }
        let way = self.fib.gateway(client.src.addr.ip(), &FlowKey::of(&client), Way::NONE);
        let Some((port, _)) = way else { return false };
        let Some(slot) = self.flows.insert(self.adopted_flow(port, adopted)) else { return false };
        if let Some(note) = &adopted.note {
            self.keep_names(slot, note);
        }
        if self.policy.limits.source.any() {
            self.sources.count(now, &client.src.addr);
            if let Some(flow) = self.flows.get_mut(slot) {
                flow.counted = true;
            }
        }
        if let Some(up) = adopted.up {
            self.adopt_leg(slot, up);
        }
        self.in_express += u64::from(!adopted.stands_by);
        self.in_standby += u64::from(adopted.stands_by);
        let is_over = self.flows.get(slot).is_some_and(track::is_over);
        let end = if is_over { now } else { adopted.seen.saturating_add(timers::IDLE).max(now) };
        self.flows.arm(slot, end);
        true
    }

    fn adopted_flow(&self, port: PortId, adopted: &Adopted) -> Flow {
        let client = adopted.names.client;
        let intercept = self.policy.intercept(port, client.dst.addr.ip(), client.dst.port);
        let intercept = intercept.unwrap_or(InterceptId(u8::MAX));
        let mut flow = Flow::new(&client, port, intercept, self.policy.epoch, self.now);
        let place = if adopted.stands_by { Place::Standby } else { Place::Express };
        (flow.stage, flow.place, flow.origin, flow.partial) = (Stage::Splice, place, Origin::Unknown, true);
        flow.verdict = Some(Verdict { action: Action::Allow, cause: Cause::Otherwise });
        (flow.answered, flow.seen) = (true, adopted.seen);
        flow.ways = self.hasher.hash_any(&self.ways_of(&flow, &adopted.names)) as u32;
        track::lose(&mut flow);
        for (end, fin) in [(&mut flow.client_rest, adopted.fins.0), (&mut flow.server_rest, adopted.fins.1)] {
            // Nobody else will say whether it was acknowledged.
            (end.fin, end.fin_acked) = (fin, fin);
            // What they have agreed is not known either: as much as can be.
            end.shift = MAX_SHIFT;
        }
        if let Some(note) = &adopted.note {
            (flow.epoch, flow.intercept) = (Policy::BEFORE, InterceptId(0));
            (flow.origin, flow.partial, flow.verdict) = (Origin::Adopted, note.partial, Some(note.verdict));
            (flow.created, flow.protocol, flow.ech, flow.signed) =
                (note.created.min(self.now), note.protocol, note.ech, note.signed);
            flow.check = note.verified.map_or(HostCheck::None, HostCheck::Known);
            flow.second.retry = note.hello_retry;
            flow.add_passed(&note.passed);
            flow.seen = adopted.seen;
        }
        flow
    }

    fn keep_names(&mut self, slot: u32, note: &Note<'_>) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        if let Some(host) = &note.host {
            flow.name = self.names.intern(host);
            flow.partial |= flow.name == NameRef::NONE;
        }
        if !note.alpn.is_empty() {
            flow.alpn = self.alpns.intern_bytes(&note.alpn);
            flow.partial |= flow.alpn == NameRef::NONE;
        }
    }

    fn adopt_leg(&mut self, slot: u32, up: Translation) {
        let is_apart = FlowKey::of(&up.client) != FlowKey::of(&up.server);
        let at = owner(self.hasher.hash(&FlowKey::of(&up.server)), self.workers);
        let leg = Leg {
            flow: slot,
            tuple: up.server,
            is_apart,
            target: None,
            is_retry: false,
            owns_port: self.ports.reserve(&up.server.dst, up.server.src.port),
            receiver: (is_apart && at != self.worker).then_some(at),
            isn: up.start.add(up.prefix.wrapping_add(1).wrapping_neg()),
            proxy: None,
            header: 0,
            mss: 0,
            up: Some(up),
            header_acked: true,
            since: self.now,
        };
        let id = self.legs.insert(leg).unwrap_or(Flow::NO_LEG);
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.leg = id;
        }
    }
}
