//! Carries out what a connection's machine wants, and answers what it asks.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use weir_core::flow::second::HelloRetry;
use weir_core::ids::Nanos;
use weir_core::inspect::{Next, Said};
use weir_core::policy::HeldFull;
use weir_core::proxy::MAX_PROXY_HEADER;
use weir_core::relay::{Ask, Command, Event, Failure, LocalEnd, Side, Span, Towards, Verdict};
use weir_core::verify::{Answer, Answers, HostCheck, Verified};
use weir_sys::sockopt::{self, Upkeep};
use weir_sys::uring::{Key, Ring};

use super::conn::{Connection, Ends, Leg, Task, failure_of};
use super::handle::{Hooks, RelayConfig};
use super::stats::{Counter, Stats};
use super::stock::Stocks;
use super::timers::Timers;
use crate::gateway::{FailedServer, Failures};
use crate::questions::{Asker, Questions};

/// How a thread asks about names, and what it was answered.
pub(super) struct Asking {
    pub number: usize,
    pub questions: Option<Arc<Questions>>,
    pub answers: Answers,
    /// Something was asked since control's bell was rung.
    pub rings: bool,
}

/// How much a connection was given since it had its turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub octets: u32,
}

/// What every connection of a worker uses.
pub(super) struct Pump {
    pub ring: Ring,
    pub timers: Timers,
    pub stats: Arc<Stats>,
    hooks: Arc<Hooks>,
    failures: Failures,
    upkeep: Upkeep,
    /// It is soon enough once a connection is older than a server may take to answer: most never are.
    upkeep_waits: bool,
    asking: Asking,
    /// The time of this batch.
    pub now: Nanos,
    pub(super) stocks: Stocks,
    /// Connections that have more to do than one turn may take.
    pub again: Vec<Key>,
    /// Connections that wait for room for what is to be held, and for how much, in the order in which they get it.
    pub hungry: VecDeque<(Key, usize)>,
    /// What becomes of the others.
    pub held_full: HeldFull,
    /// Octets sent in this batch.
    bytes: [u64; 2],
}

impl Pump {
    pub fn new(
        ring: Ring,
        config: &RelayConfig,
        timers: Timers,
        stats: Arc<Stats>,
        hooks: Arc<Hooks>,
        asking: Asking,
    ) -> Self {
        let (failures, upkeep) = (config.failures.clone(), config.upkeep);
        let (stocks, again, now, bytes) = (Stocks::new(), Vec::new(), Nanos(0), [0; 2]);
        let (hungry, held_full) = (VecDeque::new(), HeldFull::Wait);
        let patience = Duration::from_nanos(config.limits.connect.max(config.limits.pooled).0);
        let upkeep_waits =
            upkeep.user_timeout.is_none() && upkeep.keepalive.is_none_or(|silence| silence > patience);
        Self {
            ring,
            timers,
            stats,
            hooks,
            failures,
            upkeep,
            upkeep_waits,
            asking,
            now,
            stocks,
            again,
            hungry,
            held_full,
            bytes,
        }
    }

    /// Tells the machine, then does what it wants until it waits. True: the connection is over.
    pub fn drive(&mut self, key: Key, conn: &mut Connection, event: Option<Event>) -> bool {
        let mut turn = Turn::default();
        if let Some(event) = event {
            if event == Event::Timer {
                self.keep_up(conn);
            }
            self.tell(conn, event);
        }
        self.go_on(key, conn, &mut turn);
        self.settle(conn);
        conn.machine.is_done()
    }

    /// Likewise, of what a leg is ready for.
    pub fn ready(&mut self, key: Key, conn: &mut Connection) -> bool {
        let mut turn = Turn::default();
        conn.again = false;
        for side in [Side::Server, Side::Client] {
            if let Some(event) = self.connected(conn, side) {
                self.tell(conn, event);
                self.go_on(key, conn, &mut turn);
            }
            if let Some(event) = self.receive(key, conn, side, &mut turn) {
                self.tell(conn, event);
                self.go_on(key, conn, &mut turn);
            }
            if let Some(event) = self.send(conn, side) {
                self.tell(conn, event);
                self.go_on(key, conn, &mut turn);
            }
            if conn.leg(side).is_lost() && std::mem::take(&mut conn.leg(side).watched) {
                self.tell(conn, Event::Hangup(side));
                self.go_on(key, conn, &mut turn);
            }
        }
        self.settle(conn);
        conn.machine.is_done()
    }

    /// The timer of a connection comes once at the latest when its server should have answered.
    fn keep_up(&self, conn: &mut Connection) {
        let leg = conn.leg(Side::Server);
        if let Some(socket) = &leg.socket
            && !std::mem::replace(&mut leg.kept_up, true)
            && let Err(error) = sockopt::set_upkeep(socket, &self.upkeep)
        {
            tracing::debug!(%error, "a server's connection is not looked after by the kernel");
        }
    }

    fn go_on(&mut self, key: Key, conn: &mut Connection, turn: &mut Turn) {
        self.answer(key, conn);
        while let Some(command) = conn.machine.poll() {
            if let Some(event) = self.carry_out(key, conn, command, turn) {
                self.tell(conn, event);
                self.answer(key, conn);
            }
        }
    }

    /// A leg exists, from here to there.
    pub fn opened(&self, from: SocketAddr, to: SocketAddr) {
        (self.hooks.opened)(from, to);
    }

    /// The connection has left the table.
    pub fn forget(&mut self, key: Key, mut conn: Connection) {
        self.timers.cancel(key.index);
        for (side, stock) in [Side::Client, Side::Server].into_iter().zip(&mut conn.stocks) {
            self.stocks.discard(stock, side);
        }
        self.stats.add(Counter::Closed, 1);
        (self.hooks.closed)(conn.client(), conn.destination());
        if let Ends { source, server, told: true } = conn.ends() {
            (self.hooks.closed)(source, server);
        }
    }

    /// Counts of this batch, once per batch.
    pub fn publish(&mut self) {
        let [down, up] = std::mem::take(&mut self.bytes);
        self.stats.add(Counter::BytesDown, down);
        self.stats.add(Counter::BytesUp, up);
        if std::mem::take(&mut self.asking.rings)
            && let Some(questions) = &self.asking.questions
        {
            questions.ring();
        }
    }

    pub(super) fn tell(&mut self, conn: &mut Connection, event: Event) {
        if let Event::Sent { to, len } = event {
            self.bytes[to as usize] += u64::from(len);
        }
        conn.machine.handle(self.now, event);
    }

    fn answer(&mut self, key: Key, conn: &mut Connection) {
        while let Some(ask) = conn.machine.poll_ask() {
            let verdict = match ask {
                Ask::Inspect { len, budget } => self.inspect(conn, len, budget),
                Ask::Unidentified(why) => Some(conn.judge.unidentified(why)),
                Ask::Unverified => conn.judge.verified(Verified::Unknown),
                second => {
                    self.second(key, conn, second);
                    continue;
                }
            };
            if let Some(verdict) = verdict {
                self.first_verdict(conn, verdict);
                self.ask(key, conn);
            }
        }
    }

    /// The verdict on the first bytes. Where they are a hello that may be said again, that is watched for.
    fn first_verdict(&self, conn: &mut Connection, verdict: Verdict) {
        if let Some(octets) = conn.judge.expects_second()
            && let Some(intercept) = conn.judge.intercept()
            && matches!(verdict, Verdict::Pass | Verdict::Send { .. })
        {
            let (budget, time) = (intercept.hold_bytes, intercept.hold_time);
            conn.machine.expect_second(octets, budget, time);
        }
        self.decided(conn, verdict);
    }

    /// What the machine asks for the sake of a second hello.
    fn second(&mut self, key: Key, conn: &mut Connection, ask: Ask) {
        let server = conn.ends().server;
        let Connection { judge, stocks: [up, down], .. } = conn;
        let verdict = match ask {
            Ask::Answer { at, span } => {
                let said = self.stocks.peek(down, Side::Server, span).map(|bytes| judge.answer(at, bytes));
                self.stats.add(Counter::HelloRetry, u64::from(said == Some(Said::Retry)));
                return conn.machine.handle_answer(said.unwrap_or(Said::Other));
            }
            Ask::Behind { span } => {
                let next = self.stocks.peek(up, Side::Client, span).map(|bytes| judge.behind(bytes));
                return conn.machine.handle_behind(next.unwrap_or(Next::Nothing), span.len);
            }
            Ask::Second { span, budget } => {
                self.stocks.peek(up, Side::Client, span).and_then(|bytes| judge.second(bytes, budget, server))
            }
            Ask::SecondUnread => Some(judge.second_unread(server)),
            Ask::SecondUnverified => judge.verified(Verified::Unknown),
            Ask::Inspect { .. } | Ask::Unidentified(_) | Ask::Unverified => None,
        };
        let Some(verdict) = verdict else { return };
        conn.machine.handle_second(self.now, verdict);
        if verdict == Verdict::Wait {
            conn.check_counted = false;
            self.ask(key, conn);
        }
    }

    /// Asks control about the connection's name, where that is wanted and not known. What there is no room for is unknown.
    fn ask(&mut self, key: Key, conn: &mut Connection) {
        let Some(question) = conn.judge.take_question(&self.asking.answers) else { return };
        let known = self.asking.answers.get(question.tag, self.now);
        // Control logs each connection that differs.
        if let Some(verified) = known.filter(|known| question.waits || *known == Verified::Matches) {
            return self.verified(conn, verified);
        }
        self.stats.add(Counter::HostAsked, 1);
        let asker = Asker::Relay(self.asking.number, key);
        if self.asking.questions.as_ref().is_some_and(|questions| questions.ask(asker, question)) {
            self.asking.rings = true;
        } else {
            self.stats.add(Counter::HostUnasked, 1);
            self.verified(conn, Verified::Unknown);
        }
    }

    fn verified(&self, conn: &mut Connection, verified: Verified) {
        let is_first = conn.machine.is_held();
        match conn.judge.verified(verified) {
            Some(verdict) if is_first => self.first_verdict(conn, verdict),
            Some(verdict) => conn.machine.handle_second(self.now, verdict),
            None => {}
        }
    }

    fn decided(&self, conn: &mut Connection, verdict: Verdict) {
        if let Some(throttle) = conn.judge.throttle() {
            conn.machine.handle_throttle(throttle);
        }
        conn.machine.handle_verdict(self.now, verdict);
    }

    /// Control's answer; the connection, if it is still there, is to be driven.
    pub fn answered(&mut self, conn: Option<&mut Connection>, answer: &Answer) {
        self.asking.answers.learn(answer, self.now);
        match conn {
            Some(conn) => self.verified(conn, answer.verified),
            None if !answer.waits => self.count(answer.verified),
            None => {}
        }
    }

    /// What was answered lately.
    pub fn answers(&self) -> &Answers {
        &self.asking.answers
    }

    fn count(&self, verified: Verified) {
        match verified {
            Verified::Matches => {}
            Verified::Differs => self.stats.add(Counter::HostMismatch, 1),
            Verified::Unknown => self.stats.add(Counter::HostUnknown, 1),
        }
    }

    fn inspect(&mut self, conn: &mut Connection, len: u32, budget: u32) -> Option<Verdict> {
        let stock = &mut conn.stocks[Side::Client as usize];
        let held = self.stocks.peek(stock, Side::Client, Span { at: 0, len })?;
        conn.judge.inspect(held, budget)
    }

    /// What is done at once, or cannot be, is an event at once.
    fn carry_out(
        &mut self,
        key: Key,
        conn: &mut Connection,
        command: Command,
        turn: &mut Turn,
    ) -> Option<Event> {
        match command {
            Command::Connect { to, from } => return self.connect(key, conn, to, from),
            Command::Blame(to) => self.blame(conn, to),
            Command::Recv { from, most } => {
                conn.leg(from).receives = Some(most);
                return self.receive(key, conn, from, turn);
            }
            Command::Send { to, len } => {
                conn.leg(to).sends = Some(len);
                return self.send(conn, to);
            }
            Command::Watch(side) => {
                let leg = conn.leg(side);
                leg.watched = !leg.is_lost();
                return leg.is_lost().then_some(Event::Hangup(side));
            }
            Command::Shutdown(to) => {
                if let Some(socket) = conn.socket(to) {
                    // ENOTCONN: reset meanwhile, which the next operation on it tells.
                    let _ = sockopt::shutdown_write(socket);
                    let leg = conn.leg(to);
                    (leg.shut, leg.waits) = (true, false);
                }
            }
            Command::Reset(side) => {
                let waits = conn.leg(side).waits;
                if let Some(socket) = conn.socket(side) {
                    if waits {
                        // What was to go with FIN goes before the RST.
                        let _ = sockopt::set_nodelay(socket);
                    }
                    // If it cannot be set the end gets FIN.
                    let _ = sockopt::set_reset_on_close(socket);
                }
                self.stop(conn, side);
            }
            Command::Cancel(side) => self.stop(conn, side),
            Command::Close(side) => self.close(key, conn, side),
            Command::ArmTimer(at) => self.timers.arm(at, key.index),
        }
        None
    }

    /// What is wanted of a leg is wanted no more.
    fn stop(&mut self, conn: &mut Connection, side: Side) {
        let cancelled = Failure::Cancelled;
        let leg = conn.leg(side);
        let events = [
            std::mem::take(&mut leg.connects).then_some(Event::ConnectFailed(cancelled)),
            leg.receives.take().map(|_| Event::RecvFailed(side, cancelled)),
            leg.sends.take().map(|_| Event::SendFailed(side, cancelled)),
            std::mem::take(&mut leg.watched).then_some(Event::Unwatched(side)),
        ];
        for event in events.into_iter().flatten() {
            self.tell(conn, event);
        }
    }

    fn close(&mut self, key: Key, conn: &mut Connection, side: Side) {
        let token = Task::Leg(side, conn.attempts).token(key);
        if let Some(socket) = std::mem::take(conn.leg(side)).socket {
            self.ring.close(socket, token);
        }
    }

    fn connect(&mut self, key: Key, conn: &mut Connection, to: Towards, from: LocalEnd) -> Option<Event> {
        let Some(server) = conn.judge.address(to) else {
            return Some(Event::ConnectFailed(Failure::Other));
        };
        match to {
            Towards::Destination => {}
            Towards::Server => self.stats.add(Counter::Sent, u64::from(from != LocalEnd::ClientAnyPort)),
            Towards::Spare => self.stats.add(Counter::Retried, u64::from(from != LocalEnd::ClientAnyPort)),
        }
        if from == LocalEnd::ClientAnyPort {
            self.stats.add(Counter::PortChanged, 1);
        }
        let made = socket(conn.client(), server, from).and_then(|(socket, source)| {
            if !self.upkeep_waits {
                sockopt::set_upkeep(&socket, &self.upkeep)?;
            }
            Ok((socket, source))
        });
        let (socket, source) = match made {
            Ok(bound) => bound,
            Err(error) => return Some(Event::ConnectFailed(failure_of(&error))),
        };
        if conn.class != 0 {
            // It is the network's to honour; the connection works without.
            let _ = sockopt::set_class(&socket, server, conn.class);
        }
        self.tell_of_leg(conn, Ends { source, server, told: false }, from);
        if let Err(error) = sockopt::connect_now(&socket, server) {
            return Some(Event::ConnectFailed(failure_of(&error)));
        }
        conn.attempts = conn.attempts.wrapping_add(1);
        self.ring.watch(&socket, Task::Leg(Side::Server, conn.attempts).token(key));
        let kept_up = !self.upkeep_waits;
        *conn.leg(Side::Server) = Leg { connects: true, socket: Some(socket), kept_up, ..Leg::default() };
        None
    }

    /// Before the first segment of a leg that the connection's own two ends do not tell of.
    fn tell_of_leg(&self, conn: &mut Connection, mut ends: Ends, from: LocalEnd) {
        if let Ends { source, server, told: true } = conn.ends() {
            (self.hooks.closed)(source, server);
        }
        let own = (conn.client(), conn.destination());
        ends.told = from != LocalEnd::Gateway && (ends.source, ends.server) != own;
        if ends.told {
            self.opened(ends.source, ends.server);
        }
        conn.set_ends(ends);
    }

    /// The server has answered, or will not.
    fn connected(&self, conn: &mut Connection, side: Side) -> Option<Event> {
        let leg = conn.leg(side);
        if !leg.connects || !leg.ready.writable {
            return None;
        }
        leg.connects = false;
        if leg.ready.hung
            && let Some(Err(error)) = leg.socket.as_ref().map(sockopt::take_error)
        {
            return Some(Event::ConnectFailed(failure_of(&error)));
        }
        // Its machine is told to stop otherwise.
        Some(if conn.machine.ending().is_none() { self.greet(conn) } else { Event::Connected })
    }

    /// The server is there: where a pool says so it gets the PROXY header, before anything of the client's. The socket is
    /// new and has room for it: the kernel takes it whole, or the server has gone already.
    fn greet(&self, conn: &mut Connection) -> Event {
        let mut ends = conn.ends();
        if ends.source.port() == 0
            && let Some(Ok(source)) = conn.socket(Side::Server).map(sockopt::local_address)
        {
            ends.source = source;
            conn.set_ends(ends);
        }
        let Some(socket) = conn.socket(Side::Server) else { return Event::Connected };
        let mut header = [0; MAX_PROXY_HEADER];
        let Some(header) = conn.judge.header(&mut header).and_then(|len| header.get(..len)) else {
            return Event::ConnectFailed(Failure::Other);
        };
        if header.is_empty() {
            return Event::Connected;
        }
        let more_follows = conn.machine.buffered() > 0;
        match sockopt::send_now(socket, header, more_follows) {
            Ok(sent) if sent == header.len() => Event::Connected,
            Ok(_) => Event::ConnectFailed(Failure::NoResources),
            Err(error) => Event::ConnectFailed(failure_of(&error)),
        }
    }

    fn blame(&self, conn: &Connection, to: Towards) {
        if let Some((pool, server)) = conn.judge.pooled(to) {
            let numbered = conn.judge.numbered();
            // When control is behind, it learns of the next one.
            let _behind = self.failures.push(FailedServer { pool, server, numbered });
        }
    }

    /// What the new state means for counters and buffers.
    fn settle(&mut self, conn: &mut Connection) {
        if let HostCheck::Known(verified) = conn.judge.check()
            && !std::mem::replace(&mut conn.check_counted, true)
        {
            self.count(verified);
        }
        if conn.judge.hello_retry() == HelloRetry::Changed
            && conn.judge.check() != HostCheck::Waiting
            && !std::mem::replace(&mut conn.change_counted, true)
        {
            self.stats.add(Counter::HelloChanged, 1);
            self.stats.add(Counter::HelloRefused, u64::from(conn.machine.ending().is_some()));
        }
        if let Some(ending) = conn.machine.ending()
            && !std::mem::replace(&mut conn.ending_counted, true)
        {
            self.stats.ended(ending);
        }
        let unwanted = conn.machine.needs_no_buffers();
        for (side, stock) in [Side::Client, Side::Server].into_iter().zip(&mut conn.stocks) {
            if unwanted { self.stocks.discard(stock, side) } else { self.stocks.leave(stock, side) }
        }
    }
}

/// A socket for a leg to `server`, and where it comes from. Port 0: the kernel chooses address and port when it connects.
fn socket(client: SocketAddr, server: SocketAddr, from: LocalEnd) -> io::Result<(OwnedFd, SocketAddr)> {
    let source = match from {
        LocalEnd::Client => client,
        LocalEnd::ClientAnyPort => SocketAddr::new(client.ip(), 0),
        LocalEnd::Gateway => return sockopt::own_stream(server),
    };
    let socket = sockopt::transparent_stream(source)?;
    let source = if source.port() == 0 { sockopt::local_address(&socket)? } else { source };
    Ok((socket, source))
}
