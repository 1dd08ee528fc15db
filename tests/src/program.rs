//! The XDP program's express lane, played: what [`weir_core::express`] lets it have is rewritten and sent on as the lane does it, and
//! the rest is the worker's. The translation is the worker's own; that the program's is the same is tested beside the program.

use std::collections::HashMap;

use weir_core::express::{Carried, ExpressOp, Names, Passed, WayOut};
use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame, HeapFrame};
use weir_core::ids::{Nanos, PortId};
use weir_core::parse::Meta;
use weir_core::pipeline::{Output, Pipeline};
use weir_core::tcp::translate::Translation;
use weir_core::wire::edit;

use crate::packet::{ACK, FIN, RST, SYN, URG};

/// The lane's map.
#[derive(Debug, Default)]
pub struct Program {
    flows: HashMap<Tuple, Entry>,
    /// Packets that it has carried, of all connections.
    pub carried: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    is_to_client: bool,
    up: Option<Translation>,
    way: WayOut,
    packets: u64,
    bytes: u64,
    seen: Nanos,
}

impl Program {
    /// Sends a plain segment of one of its connections on: by which port. `None`: it is the worker's.
    pub fn carry(&mut self, frame: &mut HeapFrame, meta: &Meta, now: Nanos) -> Option<PortId> {
        let entry = self.flows.get_mut(&meta.tuple)?;
        let flags = meta.flags.0;
        if flags & (FIN | RST | SYN | URG) != 0 || flags & ACK == 0 || meta.ttl <= 1 {
            return None;
        }
        if let Some(up) = &mut entry.up {
            if entry.is_to_client {
                up.to_client(frame, meta, now).ok()?;
            } else {
                up.to_server(frame, meta, now).ok()?;
            }
        }
        edit::decrement_ttl(frame.data_mut(), meta.v6);
        entry.packets += 1;
        entry.bytes += u64::from(meta.payload_len());
        entry.seen = now;
        self.carried += 1;
        Some(entry.way.0)
    }

    /// Does what the pipeline asks for.
    pub fn carry_out<F: Frame>(&mut self, pipe: &mut Pipeline<F>, out: &mut Output<F>, now: Nanos) {
        while !out.express.is_empty() {
            for op in std::mem::take(&mut out.express) {
                match op {
                    ExpressOp::Enter(carried) => {
                        self.enter(&carried, now);
                        pipe.handle_entered(&carried.names.key(), true);
                    }
                    ExpressOp::Leave(names) => {
                        let passed = self.passed(&names).unwrap_or_default();
                        self.flows.remove(&names.client);
                        self.flows.remove(&names.server.reversed());
                        pipe.handle_passed(&names.key(), &passed);
                    }
                    ExpressOp::Ask(names) => {
                        pipe.handle_seen(&names.key(), self.passed(&names).as_ref(), out);
                    }
                }
            }
        }
    }

    fn enter(&mut self, carried: &Carried, now: Nanos) {
        let Carried { names, to_server, to_client, up } = *carried;
        let entry = |is_to_client, way| Entry { is_to_client, up, way, packets: 0, bytes: 0, seen: now };
        self.flows.insert(names.client, entry(false, to_server));
        self.flows.insert(names.server.reversed(), entry(true, to_client));
    }

    /// What it has carried of a connection.
    pub fn passed(&self, names: &Names) -> Option<Passed> {
        let (up, down) = (self.flows.get(&names.client)?, self.flows.get(&names.server.reversed())?);
        Some(Passed {
            packets_to_server: up.packets,
            packets_to_client: down.packets,
            bytes_to_server: up.bytes,
            bytes_to_client: down.bytes,
            seen: up.seen.max(down.seen),
        })
    }

    /// Connections that it has.
    pub fn len(&self) -> usize {
        self.flows.len() / 2
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}
