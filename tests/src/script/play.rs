//! Plays a script on a bench.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use weir_core::ids::Nanos;
use weir_core::pipeline::PuntTo;

use crate::bench::{Bench, CLIENT_MAC, Came, LAN, LAN_MAC, Moved, SERVER_MAC, WAN, WAN_MAC};
use crate::packet::{Family, SYN, Seen, Seg, URG};

use super::icmp::{Icmp, SeenIcmp};
use super::legs::{Legs, pool_server};
use super::number::{Number, Scale};
use super::options::{self, Options};
use super::syntax::{Line, Packet, Script, Side, What, Wire};
use super::{Fault, fault, show};

/// Longer than anything is remembered.
const FOR_EVER: Nanos = Nanos::from_secs(3 * 3600);

/// A script under way.
#[derive(Debug)]
struct Player {
    bench: Bench,
    legs: Legs,
    names: HashMap<String, u32>,
    /// The streams of client and server.
    streams: [Vec<u8>; 2],
    /// What has come since the last event and no line has expected yet: where, from whom, what.
    came: Vec<(Wire, Side, Seen)>,
    errors: Vec<(Wire, SeenIcmp)>,
    moved: Vec<String>,
    /// The line of the last event.
    event: usize,
}

/// Plays a script on one family, to its end and until nothing is left of its connections.
pub(super) fn play(script: &Script, family: Family) -> Result<(), Fault> {
    let mut setup = script.settings.setup_for(family);
    for number in 1..=3 {
        setup.fib.neighbours.insert((WAN, pool_server(family, number)), SERVER_MAC);
    }
    let legs = Legs::new(family, setup.spec.handshake);
    let mut bench = Bench::in_grace(family, setup);
    bench.now = bench.now.saturating_add(script.settings.begins());
    let (names, streams) = (HashMap::new(), [Vec::new(), Vec::new()]);
    let mut player = Player {
        bench,
        legs,
        names,
        streams,
        came: Vec::new(),
        errors: Vec::new(),
        moved: Vec::new(),
        event: 1,
    };
    for line in &script.lines {
        player.step(line)?;
    }
    player.settle()?;
    player.end()
}

impl Player {
    fn step(&mut self, line: &Line) -> Result<(), Fault> {
        match &line.what {
            What::In(wire, packet) => {
                self.settle()?;
                self.event = line.at;
                let seg = self.segment(*wire, packet).or_else(|what| fault(line.at, what))?;
                let port = if *wire == Wire::Lan || packet.by_lan { LAN } else { WAN };
                self.event(|bench| bench.give_any(port, &seg.frame()))
            }
            What::Wait(span) => {
                self.settle()?;
                self.event = line.at;
                self.event(|bench| bench.wait_any(*span))
            }
            What::Out(wire, packet) => self.expect(line, *wire, packet),
            What::IcmpIn(wire, icmp) => {
                self.settle()?;
                self.event = line.at;
                let frame = self.icmp_frame(*wire, icmp).or_else(|what| fault(line.at, what))?;
                let port = if *wire == Wire::Lan || icmp.by_lan { LAN } else { WAN };
                self.event(|bench| bench.give_any(port, &frame))
            }
            What::IcmpOut(wire, icmp) => self.expect_icmp(line, *wire, icmp),
            What::Counter(name, times) => {
                for _ in 0..*times {
                    let Some(at) = self.moved.iter().position(|moved| moved == name) else {
                        return fault(line.at, format!("`{}`: moved were {:?}", line.text, self.moved));
                    };
                    self.moved.remove(at);
                }
                Ok(())
            }
            What::Flows(fast, kernel) => {
                let counts = self.bench.pipe.flow_counts();
                if counts == (*fast, *kernel) { Ok(()) } else { fault(line.at, format!("flows {counts:?}")) }
            }
            What::Held(frames) => {
                let held = self.bench.pipe.frames_held();
                if held == *frames { Ok(()) } else { fault(line.at, format!("{held} frames are held")) }
            }
            What::Set(key, value) => {
                self.legs.set(key, *value);
                Ok(())
            }
            What::Says(side, octets) => {
                self.streams[*side as usize].clone_from(octets);
                Ok(())
            }
        }
    }

    /// Does something to the bench and keeps what came of it. A panic of the bench is a fault of this line.
    fn event(&mut self, act: impl FnOnce(&mut Bench) -> (Came, Vec<Moved>)) -> Result<(), Fault> {
        let bench = &mut self.bench;
        let (came, moved) = match catch_unwind(AssertUnwindSafe(|| act(bench))) {
            Ok(what) => what,
            Err(panic) => {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                return fault(self.event, format!("panic: {}", said.unwrap_or_default()));
            }
        };
        self.moved = moved.into_iter().map(name_of).collect();
        for (port, frame) in came.tx {
            if let Some(error) = SeenIcmp::read(&frame) {
                let wire = if port == LAN { Wire::Lan } else { self.legs.wire_of(error.to) };
                self.errors.push((wire, error));
                continue;
            }
            let seen = Seen::read(&frame);
            let (wire, side, macs) = if port == LAN {
                (Wire::Lan, Side::Server, (CLIENT_MAC, LAN_MAC))
            } else {
                (self.legs.leg_of(&seen), Side::Client, (SERVER_MAC, WAN_MAC))
            };
            if seen.macs != macs {
                return fault(self.event, format!("Ethernet addresses {:02x?}", seen.macs));
            }
            self.came.push((wire, side, seen));
        }
        for (to, frame) in came.punt {
            if let Some(error) = SeenIcmp::read(&frame) {
                self.errors.push((Wire::Kernel, error));
                continue;
            }
            let seen = Seen::read(&frame);
            let wire = if to == PuntTo::Relay { Wire::Relay } else { Wire::Kernel };
            let side = if seen.src.0 == self.bench.client.0 { Side::Client } else { Side::Server };
            self.came.push((wire, side, seen));
        }
        Ok(())
    }

    /// All that the last event brought has been expected.
    fn settle(&mut self) -> Result<(), Fault> {
        let packets = std::mem::take(&mut self.came).into_iter().map(|(wire, side, seen)| {
            format!("{} < {}", name_of_wire(wire), show::show(&seen, self.legs.get(wire, side), side))
        });
        let errors = std::mem::take(&mut self.errors).into_iter();
        let errors = errors.map(|(wire, error)| format!("{} < icmp {error:?}", name_of_wire(wire)));
        let all: Vec<String> = packets.chain(errors).chain(std::mem::take(&mut self.moved)).collect();
        if all.is_empty() {
            return Ok(());
        }
        fault(self.event, format!("nobody expects what came of it:\n    {}", all.join("\n    ")))
    }

    /// The error that a line sends: about what the other end of its wire's leg sent.
    fn icmp_frame(&mut self, wire: Wire, error: &Icmp) -> Result<Vec<u8>, String> {
        let side = if wire == Wire::Lan { Side::Server } else { Side::Client };
        let leg = self.legs.get(wire, side);
        let length = self.streams[side as usize].len();
        let seq = Scale { names: &mut self.names, zero: leg.isn(side), length }.value(&error.seq)?;
        Ok(error.frame(leg.end(side), leg.end(side.other()), seq, wire == Wire::Lan))
    }

    fn expect_icmp(&mut self, line: &Line, wire: Wire, error: &Icmp) -> Result<(), Fault> {
        let Some(at) = self.errors.iter().position(|(on, _)| *on == wire) else {
            return fault(line.at, format!("`{}`: nothing came; counters: {:?}", line.text, self.moved));
        };
        let (_, seen) = self.errors.remove(at);
        // An error that leaves by a wire is about what the far end of that wire sent.
        let side = if matches!(wire, Wire::Lan | Wire::Kernel) { Side::Client } else { Side::Server };
        let length = self.streams[side as usize].len();
        let leg = self.legs.get(wire, side);
        let ends = (leg.end(side), leg.end(side.other()));
        let seq = Scale { names: &mut self.names, zero: leg.isn(side), length }.takes(&error.seq, seen.seq);
        if seq && (seen.src, seen.dst) == ends && seen.kind == error.kind && seen.sound {
            return Ok(());
        }
        fault(line.at, format!("expected  {}\n    came      {seen:?}", line.text))
    }

    /// The segment that a line sends.
    fn segment(&mut self, wire: Wire, packet: &Packet) -> Result<Seg, String> {
        let side = Legs::sender(wire, true, packet);
        let payload = self.octets(side, packet)?;
        let (mine, others) = (self.streams[side as usize].len(), self.streams[side.other() as usize].len());
        let leg = self.legs.get(wire, side);
        let names = &mut self.names;
        let seq = Scale { names, zero: leg.isn(side), length: mine }.value(&packet.seq)?;
        let towards = Scale { names, zero: leg.isn(side.other()), length: others };
        let ack = packet.ack.as_ref().map_or(Ok(0), |ack| towards.value(ack))?;
        let options = match &packet.options {
            Options::Any => Vec::new(),
            Options::These(these) => {
                let edge = |number: &Number| towards.value(number);
                let stamp = |number: &Number| match number {
                    Number::Is(n) => Ok(*n as u32),
                    other => towards.value(other),
                };
                options::octets(these, stamp, edge)?
            }
        };
        let (src, dst) = (leg.end(side), leg.end(side.other()));
        let mut seg = Seg::new(src, dst, packet.flags, seq, ack).payload(payload).options(&options);
        seg.urgent = packet.urgent;
        if packet.flags & URG == 0 && packet.urgent != 0 {
            return Err("`urg N` wants the flag U".into());
        }
        seg.window = packet.window.unwrap_or(seg.window);
        seg.ttl = packet.ttl.unwrap_or(seg.ttl);
        Ok(if packet.damaged { seg.damaged() } else { seg })
    }

    /// The octets of a line's packet: its own, or those of the stream at its place.
    fn octets(&self, side: Side, packet: &Packet) -> Result<Vec<u8>, String> {
        let stream = &self.streams[side as usize];
        let place = |number: &Number| match number {
            Number::Is(n) => Some(*n),
            Number::End(n) => Some(stream.len() as i64 + 1 + n),
            Number::Named(..) | Number::Any => None,
        };
        let span = match &packet.end {
            Some(end) => {
                let wrong = || "`from:to` wants numbers or `end`".to_owned();
                Some((place(&packet.seq).ok_or_else(wrong)?, place(end).ok_or_else(wrong)?))
            }
            None => None,
        };
        let mut octets = match (&packet.payload, span) {
            (Some(octets), None) => octets.clone(),
            (Some(octets), Some((from, to))) if to - from == octets.len() as i64 => octets.clone(),
            (Some(octets), Some(_)) => return Err(format!("the payload has {} octets", octets.len())),
            (None, None) => Vec::new(),
            (None, Some((from, to))) => {
                let part = usize::try_from(from - 1).ok().zip(usize::try_from(to - 1).ok());
                let part = part.and_then(|(from, to)| stream.get(from..to));
                part.ok_or(format!("the stream has octets 1 to {}", stream.len()))?.to_vec()
            }
        };
        if let Some(at) = packet.changed {
            *octets.get_mut(at).ok_or("`changed N` is behind the payload")? ^= 1;
        }
        Ok(octets)
    }

    /// A packet that must have come: the first of its wire that no line has taken.
    fn expect(&mut self, line: &Line, wire: Wire, packet: &Packet) -> Result<(), Fault> {
        let Some(at) = self.came.iter().position(|(on, ..)| *on == wire) else {
            return fault(line.at, format!("`{}`: nothing came; counters: {:?}", line.text, self.moved));
        };
        let (_, from, seen) = self.came.remove(at);
        if seen.flags == SYN {
            self.legs.learn_source(wire, &seen);
        }
        let side = packet.sender.unwrap_or(from);
        let fits = self.fits(wire, side, packet, &seen).or_else(|what| fault(line.at, what))?;
        if fits {
            return Ok(());
        }
        let came = show::show(&seen, self.legs.get(wire, side), side);
        fault(line.at, format!("expected  {}\n    came      {} < {came}", line.text, name_of_wire(wire)))
    }

    fn fits(&mut self, wire: Wire, side: Side, packet: &Packet, seen: &Seen) -> Result<bool, String> {
        let octets = self.octets(side, packet)?;
        let (mine, others) = (self.streams[side as usize].len(), self.streams[side.other() as usize].len());
        let leg = self.legs.get(wire, side);
        if (seen.src, seen.dst) != (leg.end(side), leg.end(side.other())) {
            return Err(format!("it went from {:?} to {:?}", seen.src, seen.dst));
        }
        let names = &mut self.names;
        let seq = Scale { names, zero: leg.isn(side), length: mine }.takes(&packet.seq, seen.seq);
        let mut towards = Scale { names, zero: leg.isn(side.other()), length: others };
        let ack = packet.ack.as_ref().is_none_or(|ack| towards.takes(ack, seen.ack));
        let options = match (&packet.options, options::seen(&seen.options)) {
            (Options::Any, _) => true,
            (Options::These(_), None) => false,
            (Options::These(these), Some(read)) => {
                // Stamps are absolute; both comparisons may learn names, one after the other.
                let towards = std::cell::RefCell::new(&mut towards);
                let stamp = |number: &Number, value: u32| match number {
                    Number::Is(n) => *n as u32 == value,
                    other => towards.borrow_mut().takes(other, value),
                };
                options::fit(these, &read, stamp, |number, value| towards.borrow_mut().takes(number, value))
            }
        };
        Ok(seq
            && ack
            && options
            && seen.flags == packet.flags
            && (seen.payload == octets || packet.any_payload && !seen.payload.is_empty())
            && seen.urgent == packet.urgent
            && seen.sound != packet.damaged
            && packet.window.is_none_or(|window| window == seen.window)
            && packet.ttl.is_none_or(|ttl| ttl == seen.ttl))
    }

    /// After the last timer nothing is left: no connection, no frame that is not free.
    fn end(mut self) -> Result<(), Fault> {
        self.event(|bench| bench.wait_any(FOR_EVER))?;
        let (pipe, client) = (&self.bench.pipe, self.bench.client.0);
        let (flows, frames) = (pipe.flow_counts().0, pipe.frames_held());
        let (legs, ports, source) = (pipe.leg_count(), pipe.ports_in_use(), pipe.flows_of(client));
        if (flows, frames, legs, ports, source) == (0, 0, 0, 0, 0) {
            return Ok(());
        }
        let left =
            format!("{flows} flows, {frames} frames, {legs} legs, {ports} ports, {source} of the source");
        fault(self.event, format!("{left} are left after the last timer"))
    }
}

/// A counter as a script spells it.
fn name_of(moved: Moved) -> String {
    match moved {
        Moved::Drop(reason) => format!("drop {}", reason.name()),
        Moved::Punt(reason) => format!("punt {}", reason.name()),
        total => format!("{total:?}").to_lowercase(),
    }
}

fn name_of_wire(wire: Wire) -> String {
    match wire {
        Wire::Pool(number) => format!("pool{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
