//! Carries out what a connection's machine wants, and answers what it asks.

use std::net::SocketAddr;
use std::sync::Arc;

use weir_core::ids::Nanos;
use weir_core::relay::{Ask, Command, Event, Side, SourcePort, Span, Verdict};
use weir_sys::sockopt;
use weir_sys::uring::{Key, Ring};

use super::conn::{Connection, Task, failure_of};
use super::handle::Hooks;
use super::stats::{Counter, Stats};
use super::timers::Timers;

/// What every connection of a worker uses.
pub(super) struct Pump {
    pub ring: Ring,
    pub timers: Timers,
    pub stats: Arc<Stats>,
    hooks: Arc<Hooks>,
    /// The time of this batch.
    pub now: Nanos,
    /// Buffers were given back since this was last cleared.
    pub released: bool,
    /// Octets sent in this batch.
    bytes: [u64; 2],
}

impl Pump {
    pub fn new(ring: Ring, stats: Arc<Stats>, hooks: Arc<Hooks>) -> Self {
        Self { ring, timers: Timers::default(), stats, hooks, now: Nanos(0), released: false, bytes: [0; 2] }
    }

    /// Tells the machine, then does what it wants until it waits. True: the connection is over.
    pub fn drive(&mut self, key: Key, conn: &mut Connection, event: Option<Event>) -> bool {
        if let Some(event) = event {
            self.tell(conn, event);
        }
        self.answer(conn);
        while let Some(command) = conn.machine.poll() {
            if let Some(event) = self.carry_out(key, conn, command) {
                self.tell(conn, event);
                self.answer(conn);
            }
        }
        self.settle(conn);
        conn.machine.is_done()
    }

    /// A leg exists, from here to there.
    pub fn opened(&self, from: SocketAddr, to: SocketAddr) {
        (self.hooks.opened)(from, to);
    }

    /// The connection has left the table.
    pub fn forget(&mut self, conn: &Connection) {
        self.stats.add(Counter::Closed, 1);
        (self.hooks.closed)(conn.client, conn.server);
        if conn.source != conn.client {
            (self.hooks.closed)(conn.source, conn.server);
        }
    }

    /// Counts of this batch, once per batch.
    pub fn publish(&mut self) {
        let [down, up] = std::mem::take(&mut self.bytes);
        self.stats.add(Counter::BytesDown, down);
        self.stats.add(Counter::BytesUp, up);
    }

    fn tell(&mut self, conn: &mut Connection, event: Event) {
        if let Event::Sent { to, len } = event {
            self.bytes[to as usize] += u64::from(len);
        }
        conn.machine.handle(self.now, event);
    }

    fn answer(&mut self, conn: &mut Connection) {
        while let Some(ask) = conn.machine.poll_ask() {
            let verdict = match ask {
                Ask::Inspect { len, budget } => self.inspect(conn, len, budget),
                Ask::Unidentified(why) => Some(conn.judge.unidentified(why)),
            };
            if let Some(verdict) = verdict {
                conn.machine.handle_verdict(self.now, verdict);
            }
        }
    }

    fn inspect(&self, conn: &mut Connection, len: u32, budget: u32) -> Option<Verdict> {
        let buffer = conn.buffer_from(Side::Client)?;
        // The receive under way, if any, is behind the held octets.
        let held = self.ring.bytes(buffer, 0, len)?;
        conn.judge.inspect(held, budget)
    }

    /// What could not be begun is an event at once.
    fn carry_out(&mut self, key: Key, conn: &mut Connection, command: Command) -> Option<Event> {
        match command {
            Command::Connect(port) => return self.connect(key, conn, port),
            Command::Recv { from, span } => return self.recv(key, conn, from, span),
            Command::Send { to, span } => return self.send(key, conn, to, span),
            Command::Watch(side) => {
                let task = Task::Watch(side);
                let begun = conn.socket(side).is_some_and(|id| self.ring.watch(id, task.token(key)));
                return if begun { None } else { task.not_begun() };
            }
            Command::Shutdown(to) => {
                if let Some(socket) = conn.socket(to).and_then(|id| self.ring.socket(id)) {
                    // ENOTCONN: reset meanwhile, which the next operation on it tells.
                    let _ = sockopt::shutdown_write(socket);
                }
            }
            Command::Reset(side) => {
                if let Some(id) = conn.socket(side) {
                    if let Some(socket) = self.ring.socket(id) {
                        // If it cannot be set the end gets FIN.
                        let _ = sockopt::set_reset_on_close(socket);
                    }
                    self.ring.cancel(id);
                }
            }
            Command::Cancel(side) => {
                if let Some(id) = conn.socket(side) {
                    self.ring.cancel(id);
                }
            }
            Command::Close(side) => {
                if let Some(id) = conn.sockets[side as usize].take() {
                    self.ring.close(id);
                }
            }
            Command::ArmTimer(at) => {
                conn.timer = Some(at);
                self.timers.arm(at, key);
            }
        }
        None
    }

    fn connect(&mut self, key: Key, conn: &mut Connection, port: SourcePort) -> Option<Event> {
        let mut source = conn.client;
        if port == SourcePort::Any {
            self.stats.add(Counter::PortChanged, 1);
            source.set_port(0);
        }
        let bound = sockopt::transparent_stream(source).and_then(|socket| {
            let source = sockopt::local_address(&socket)?;
            Ok((socket, source))
        });
        let (socket, source) = match bound {
            Ok(bound) => bound,
            Err(error) => return Some(Event::ConnectFailed(failure_of(&error))),
        };
        if source != conn.client {
            conn.source = source;
            self.opened(source, conn.server);
        }
        let id = self.ring.add(socket);
        conn.sockets[Side::Server as usize] = Some(id);
        let task = Task::Connect;
        if self.ring.connect(id, conn.server, task.token(key)) { None } else { task.not_begun() }
    }

    fn recv(&mut self, key: Key, conn: &Connection, from: Side, span: Span) -> Option<Event> {
        let task = Task::Recv(from);
        let begun = conn
            .socket(from)
            .zip(conn.buffer_from(from))
            .is_some_and(|(id, buffer)| self.ring.recv(id, buffer, span.at, span.len, task.token(key)));
        if begun { None } else { task.not_begun() }
    }

    fn send(&mut self, key: Key, conn: &Connection, to: Side, span: Span) -> Option<Event> {
        let task = Task::Send(to);
        let begun = conn
            .socket(to)
            .zip(conn.buffer_from(to.other()))
            .is_some_and(|(id, buffer)| self.ring.send(id, buffer, span.at, span.len, task.token(key)));
        if begun { None } else { task.not_begun() }
    }

    /// What the new state means for counters and buffers.
    fn settle(&mut self, conn: &mut Connection) {
        if let Some(ending) = conn.machine.ending()
            && !std::mem::replace(&mut conn.ending_counted, true)
        {
            self.stats.ended(ending);
        }
        if conn.machine.needs_no_buffers()
            && let Some(buffers) = conn.buffers.take()
        {
            buffers.into_iter().for_each(|buffer| self.ring.give_back(buffer));
            self.released = true;
        }
    }
}
