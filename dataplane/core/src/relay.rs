//! The relay as a pure machine: one intercepted connection, its two TCP legs and the bytes between them.
//!
//! The relay of weir-dataplane owns sockets, buffers and the clock; this machine owns every decision about them:
//! when to connect and when to try another server, what to receive and send next, when a half-close travels on, when to give up. It is driven by
//! completions and answers with commands, so any run can be replayed from a seed.
//!
//! Order of calls for each completion: [`Relay::handle`], then [`Relay::poll_ask`] until `None` (each answer through
//! [`Relay::handle_verdict`], or as the [`Ask`] says), then [`Relay::poll`] until `None`. What `poll` yields is derived from the state, not
//! from a queue: a command is given once and counts as under way until its completion is handled.
//!
//! What it promises: no client byte is sent before the verdict; FIN follows the last byte of its direction
//! (RFC 9293 section 3.6, half-closed connections live on); RST travels on as RST and does not wait for buffered
//! bytes; a slow receiver stops the sender by way of its window; a leg is closed only when nothing of it is under way.
//!
//! What it departs from: a byte acknowledged to one end by the kernel may not have reached the other (the relay's two
//! TCP connections are separate). Invariant 1 of the fast road does not hold here; this is why `relay` is a choice.

mod commands;
mod completions;
mod dispatch;
pub mod doors;
mod event;
mod judge;
mod pipe;
mod second;
#[cfg(test)]
mod tests;
mod upstream;

pub use dispatch::Dispatch;
pub use event::{Ask, Command, Ending, Event, Failure, Limits, LocalEnd, Side, Start, Unread, Verdict};
pub use judge::{Judge, Judgement, find_intercept};
pub use pipe::{Pipe, Span};
pub use upstream::Towards;

use std::sync::Arc;

use crate::ids::Nanos;
use crate::pace::Throttle;
use upstream::{Connect, Upstream};

/// Whether client bytes may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Held {
        budget: u32,
        until: Nanos,
    },
    /// The verdict waits for a resolver.
    Asked {
        budget: u32,
        until: Nanos,
    },
    Open,
}

/// What the connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Dropped: the server is gone, the client hears nothing until then.
    Quiet(Nanos),
    Over(Ending),
}

/// One leg's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leg {
    #[default]
    Absent,
    Open,
    /// What is under way on it has been told to stop.
    Stopping,
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Relay {
    limits: Arc<Limits>,
    gate: Gate,
    phase: Phase,
    upstream: Upstream,
    /// A pool's server that may be tried when the first does not take the connection.
    spare: bool,
    /// A pool's server did not take the connection, and nobody was told yet.
    blamed: Option<Towards>,
    client: Leg,
    server: Leg,
    /// Client to server.
    up: Pipe,
    /// Server to client.
    down: Pipe,
    /// A watch for RST is under way, by side.
    watched: [bool; 2],
    /// The kernel cannot watch.
    blind: bool,
    /// Dropped, and the receive from the client was told to stop.
    hushed: bool,
    opened: Nanos,
    /// When the leg to the server was first wanted, or wanted elsewhere.
    called: Nanos,
    active: Nanos,
    armed: Option<Nanos>,
    /// Of this call: commands are derived from the state as of then.
    now: Nanos,
    /// Its bandwidth, where a rule bounds it.
    throttle: Option<Box<Throttle>>,
    /// From when on octets may go to the server, and to the client, that must wait.
    resumes: [Option<Nanos>; 2],
    /// How many client bytes [`Ask::Inspect`] has shown.
    shown: u32,
    unread: Option<Unread>,
    asked_unread: bool,
    /// As long as a second ClientHello is to be expected.
    second: Option<Box<second::Second>>,
}

impl Relay {
    /// A connection that was just accepted from the client.
    ///
    /// All connections share one set of limits: it is not counted in the memory of each.
    pub fn new(now: Nanos, limits: impl Into<Arc<Limits>>, start: Start) -> Self {
        let limits = limits.into();
        let gate = match start {
            Start::Held { bytes, time, .. } => {
                Gate::Held { budget: bytes.clamp(1, limits.buffer.max(1)), until: now.saturating_add(time) }
            }
            Start::Settled(_) => Gate::Open,
        };
        let upstream = match start {
            Start::Held { ahead: true, .. } => Upstream::Wanted(Connect::AHEAD),
            Start::Held { .. } | Start::Settled(_) => Upstream::Waiting,
        };
        let mut relay = Self {
            gate,
            phase: Phase::Running,
            upstream,
            spare: false,
            blamed: None,
            client: Leg::Open,
            server: Leg::Absent,
            up: Pipe::new(limits.buffer),
            down: Pipe::new(limits.buffer),
            watched: [false; 2],
            blind: false,
            hushed: false,
            opened: now,
            called: now,
            active: now,
            armed: None,
            now,
            throttle: None,
            resumes: [None; 2],
            shown: 0,
            unread: None,
            asked_unread: false,
            second: None,
            limits,
        };
        if let Start::Settled(verdict) = start {
            relay.settle(now, verdict);
        }
        relay
    }

    /// A completion or a timer. One that answers no command (a late one) changes nothing.
    pub fn handle(&mut self, now: Nanos, event: Event) {
        self.now = now;
        match event {
            Event::Connected => self.connected(now),
            Event::ConnectFailed(failure) => self.connect_failed(now, failure),
            Event::Received { from, len } => self.received(now, from, len),
            Event::Eof(from) => self.end_of_stream(now, from),
            Event::NoRoom(from) => self.pipe_from(from).starved(),
            Event::HoldFull(from) => self.pipe_from(from).full(),
            Event::RecvFailed(from, failure) => {
                if self.pipe_from(from).recv_failed() {
                    self.failed(from, failure);
                }
            }
            Event::Sent { to, len } => {
                if self.pipe_to(to).sent(len) {
                    self.active = now;
                    if let Some(throttle) = &mut self.throttle {
                        throttle.gone(to == Side::Client, len);
                    }
                }
            }
            Event::SendFailed(to, failure) => {
                if self.pipe_to(to).send_failed() {
                    self.failed(to, failure);
                }
            }
            Event::Hangup(side) => self.hung_up(side),
            Event::Unwatched(side) => self.unwatched(side),
            Event::Timer => self.timer(now),
        }
    }

    /// The answer to [`Relay::poll_ask`]; ignored when there already was one.
    pub fn handle_verdict(&mut self, now: Nanos, verdict: Verdict) {
        self.now = now;
        if self.phase != Phase::Running {
            return;
        }
        match (self.gate, verdict) {
            (Gate::Held { budget, until }, Verdict::Wait) => self.gate = Gate::Asked { budget, until },
            (Gate::Open, _) | (_, Verdict::Wait) => {}
            (Gate::Held { .. } | Gate::Asked { .. }, _) => {
                self.gate = Gate::Open;
                self.settle(now, verdict);
            }
        }
    }

    /// Another policy refuses a connection that had a verdict: it ends as if that had been its own.
    pub fn handle_refusal(&mut self, now: Nanos, verdict: Verdict) {
        self.now = now;
        if self.phase == Phase::Running && self.gate == Gate::Open {
            match verdict {
                Verdict::Reset | Verdict::Drop => self.settle(now, verdict),
                Verdict::Pass | Verdict::Wait | Verdict::Send { .. } => {}
            }
        }
    }

    /// There is no room to hold what the client sends, and it is not to wait for some.
    pub fn handle_no_hold(&mut self, now: Nanos, refusal: Verdict) {
        if self.is_held() { self.handle_verdict(now, refusal) } else { self.handle_second(now, refusal) }
    }

    /// There may be room for what comes from a side by now.
    pub fn handle_room(&mut self, from: Side) {
        self.pipe_from(from).room();
    }

    /// From now on octets pass within this bandwidth.
    pub fn handle_throttle(&mut self, throttle: Throttle) {
        self.throttle = Some(Box::new(throttle));
    }

    /// The relay is being stopped: both ends get a RST.
    pub fn handle_stop(&mut self) {
        if !matches!(self.phase, Phase::Over(_)) {
            self.phase = Phase::Over(Ending::Stopped);
        }
    }

    /// What the verdict waits for, if it can be sought now.
    pub fn poll_ask(&mut self) -> Option<Ask> {
        if self.phase != Phase::Running {
            return None;
        }
        if self.gate == Gate::Open {
            return self.poll_ask_second();
        }
        if self.asked_unread {
            return None;
        }
        let budget = match self.gate {
            Gate::Open => return None,
            Gate::Held { budget, .. } => budget,
            Gate::Asked { .. } => {
                self.asked_unread = self.unread.is_some();
                return self.asked_unread.then_some(Ask::Unverified);
            }
        };
        let held = self.up.level();
        if held > self.shown {
            self.shown = held;
            return Some(Ask::Inspect { len: held, budget });
        }
        let unread = if self.up.is_ended() {
            Unread::ClientClosed
        } else if held >= budget {
            Unread::HoldFull
        } else {
            self.unread?
        };
        self.asked_unread = true;
        Some(Ask::Unidentified(unread))
    }

    /// The next thing to do. `None`: wait for a completion or the timer.
    pub fn poll(&mut self) -> Option<Command> {
        if let Some(server) = self.blamed.take() {
            return Some(Command::Blame(server));
        }
        let command = match self.phase {
            Phase::Running => self.poll_running(),
            Phase::Quiet(_) => self.poll_quiet(),
            Phase::Over(ending) => self.poll_over(ending),
        };
        command.or_else(|| self.poll_timer())
    }

    /// Both legs are closed: the connection's slot and buffers can be used again.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Over(_)) && self.client == Leg::Closed && self.is_gone(Side::Server)
    }

    /// Nothing will be received or sent any more: the buffers can be given back before the legs close.
    pub fn needs_no_buffers(&self) -> bool {
        self.phase != Phase::Running && !self.is_moving(Side::Client) && !self.is_moving(Side::Server)
    }

    /// Why it ended, once it has.
    pub fn ending(&self) -> Option<Ending> {
        match self.phase {
            Phase::Over(ending) => Some(ending),
            Phase::Quiet(_) => Some(Ending::Dropped),
            Phase::Running => None,
        }
    }

    /// No verdict yet.
    pub fn is_held(&self) -> bool {
        self.gate != Gate::Open
    }

    /// What comes from this side is held until it is judged, within the bound of the intercept.
    pub fn holds(&self, from: Side) -> bool {
        from == Side::Client && (self.is_held() || self.is_second_held())
    }

    /// What comes from this side may have to be shown.
    pub fn reads(&self, from: Side) -> bool {
        self.holds(from) || self.is_second_read(from)
    }

    pub fn is_connected(&self) -> bool {
        self.upstream == Upstream::Connected
    }

    /// Octets taken from the client and given to the server, and the other way round.
    pub fn traffic(&self) -> (u64, u64) {
        (self.up.total_sent(), self.down.total_sent())
    }

    /// Octets received and not yet sent, both directions.
    pub fn buffered(&self) -> u32 {
        self.up.level() + self.down.level()
    }

    pub fn opened(&self) -> Nanos {
        self.opened
    }

    /// When a byte last moved.
    pub fn active(&self) -> Nanos {
        self.active
    }
}

/// Sides.
impl Relay {
    fn pipe_from(&mut self, side: Side) -> &mut Pipe {
        match side {
            Side::Client => &mut self.up,
            Side::Server => &mut self.down,
        }
    }

    fn pipe_to(&mut self, side: Side) -> &mut Pipe {
        self.pipe_from(side.other())
    }

    fn leg(&mut self, side: Side) -> &mut Leg {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn watch(&mut self, side: Side) -> &mut bool {
        let [client, server] = &mut self.watched;
        match side {
            Side::Client => client,
            Side::Server => server,
        }
    }

    fn is_gone(&self, side: Side) -> bool {
        match side {
            Side::Client => self.client == Leg::Closed,
            Side::Server => matches!(self.server, Leg::Closed | Leg::Absent),
        }
    }

    /// Something of the leg is under way.
    fn is_busy(&self, side: Side) -> bool {
        let [client_watched, server_watched] = self.watched;
        self.is_moving(side)
            || match side {
                Side::Client => client_watched,
                Side::Server => server_watched || self.upstream.is_under_way(),
            }
    }

    /// Bytes of the leg are under way.
    fn is_moving(&self, side: Side) -> bool {
        match side {
            Side::Client => self.up.is_receiving() || self.down.is_sending(),
            Side::Server => self.down.is_receiving() || self.up.is_sending(),
        }
    }
}
