//! A pipeline on a bench: packets go in one by one, and after each the test says exactly which counters moved.
//!
//! Two ports, `lan` and `wan`, with a resolved host behind each; a fixed number of frames, of which none may ever be
//! missing; a clock that moves only when told to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weir_core::drop::{DropReason, PuntReason};
use weir_core::fib::{Fib, Link, Route};
use weir_core::flow::table::Capacity;
use weir_core::frame::{Frame, HeapFrame};
use weir_core::hold::Packet;
use weir_core::ids::{Nanos, PoolId, PortId, PortSet};
use weir_core::parse::{self, Parsed};
use weir_core::pipeline::{Config, KernelOp, Output, Pipeline, PuntTo, Punted};
use weir_core::policy::{
    Action, Handshake, InterceptSpec, Limits, NameSet, Policy, PolicyBuilder, PoolSpec, RuleSpec,
};

use weir_core::verify::{Question, Verified};

use crate::packet::{ACK, Family, SYN, Seen, Seg};

pub const LAN: PortId = PortId(0);
pub const WAN: PortId = PortId(1);
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// Octets of a frame, as a UMEM chunk has.
pub const FRAME: usize = 4096;
/// Frames of a bench, unless the test says otherwise.
pub const FRAMES: usize = 512;
/// When the clock starts.
pub const START: Nanos = Nanos::from_secs(1000);

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moved {
    Drop(DropReason),
    Punt(PuntReason),
    Opened,
    Allowed,
    Reset,
    Dropped,
    Unidentified,
    Relayed,
    Midstream,
    Expired,
    Sent,
    Retried,
    Failed,
    CookieSent,
    CookieAccepted,
    CookieFailed,
    Limited,
    HostAsked,
    HostMismatch,
    HostUnknown,
    HelloRetry,
    HelloChanged,
    HelloRefused,
    Recycled,
}

/// What a bench is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Config,
    pub frames: usize,
    pub spec: InterceptSpec,
    pub pools: Vec<PoolSpec>,
    pub limits: Limits,
    pub fib: Fib,
}

impl Setup {
    /// Everything to port 80 and 443 from `lan` is intercepted; `denied.example` is reset and `dropped.example` is
    /// dropped.
    pub fn new() -> Self {
        let rule = |action, host: &str| {
            let mut rule = RuleSpec::new(action);
            let names = NameSet::parse([host]).expect("a name");
            rule.host = Some(Arc::new(names));
            rule
        };
        let spec = InterceptSpec::new("web")
            .from_port(LAN)
            .to_any()
            .tcp([80, 443])
            .rule(rule(Action::Reset, "denied.example"))
            .rule(rule(Action::Drop, "dropped.example"));
        let config = Config {
            flows: Capacity { fast: 64, kernel: 16 },
            holds: 8,
            hold_bytes: 16 * 1024,
            hold_frames: 256,
            names: 16,
            fragments: 8,
            partial_checksums: PortSet::NONE,
            worker: 0,
            workers: 1,
            seed: 7,
            secret: [7; 32],
            is_replay: false,
        };
        Self { config, frames: FRAMES, spec, pools: Vec::new(), limits: Limits::default(), fib: fib(1500) }
    }

    /// The same, but weir answers SYNs.
    pub fn answer() -> Self {
        let mut setup = Self::new();
        setup.spec.handshake = Handshake::Answer;
        setup
    }

    /// `sent.example` goes to a pool of both families' servers [`pool_server`] 0 and 1, but those of `without`.
    #[must_use]
    pub fn sending(mut self, pool: impl FnOnce(PoolSpec) -> PoolSpec) -> Self {
        let mut rule = RuleSpec::new(Action::Send(PoolId(0)));
        rule.host = Some(Arc::new(NameSet::parse(["sent.example"]).expect("a name")));
        self.spec.rules.push(rule);
        let mut spec = PoolSpec::new("pool");
        for family in crate::packet::BOTH {
            spec = (0..2).fold(spec, |spec, n| spec.server(pool_server(family, n).into()));
        }
        self.pools.push(pool(spec));
        self
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

pub fn client_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 1, 0, 2).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2).into(),
    }
}

pub fn server_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 10).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 10).into(),
    }
}

/// The gateway's own addresses on a port.
pub fn gateway_of(port: PortId) -> (Ipv4Addr, Ipv6Addr) {
    if port == LAN {
        (Ipv4Addr::new(10, 1, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1))
    } else {
        (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1))
    }
}

/// A server of the bench's pool.
pub fn pool_server(family: Family, n: u8) -> (IpAddr, u16) {
    let addr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 20 + n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20 + u16::from(n)).into(),
    };
    (addr, 8443)
}

/// All hosts on their port's link.
pub fn fib(mtu: u16) -> Fib {
    let mut fib = Fib::default();
    for (net, port) in [("10.1.0.0/16", LAN), ("192.0.2.0/24", WAN)] {
        fib.v4.insert(net.parse().expect("a prefix"), Route::OnLink(port));
    }
    for (net, port) in [("2001:db8:1::/64", LAN), ("2001:db8:2::/64", WAN)] {
        fib.v6.insert(net.parse().expect("a prefix"), Route::OnLink(port));
    }
    for family in crate::packet::BOTH {
        fib.neighbours.insert((LAN, client_of(family)), CLIENT_MAC);
        fib.neighbours.insert((WAN, server_of(family)), SERVER_MAC);
        for n in 0..2 {
            fib.neighbours.insert((WAN, pool_server(family, n).0), SERVER_MAC);
        }
    }
    for (port, mac) in [(LAN, LAN_MAC), (WAN, WAN_MAC)] {
        let (v4, v6) = gateway_of(port);
        fib.links[usize::from(port.0)] = Some(Link { mac, mtu, up: true, v4: Some(v4), v6: Some(v6) });
    }
    fib
}

/// The policy of one intercept.
pub fn policy(epoch: u32, specs: impl IntoIterator<Item = InterceptSpec>) -> Policy {
    specs.into_iter().fold(PolicyBuilder::new(epoch), PolicyBuilder::intercept).build().expect("a policy")
}

/// What came out after one packet or one moment.
#[derive(Debug, Default)]
pub struct Came {
    pub kernel: Vec<KernelOp>,
    pub punt: Vec<(PuntTo, Vec<u8>)>,
    pub tx: Vec<(PortId, Vec<u8>)>,
    pub questions: Vec<Question>,
}

impl Came {
    /// Segments sent to the server's wire.
    pub fn to_server(&self) -> Vec<Seen> {
        self.on(WAN)
    }
    /// Segments sent to the client's wire.
    pub fn to_client(&self) -> Vec<Seen> {
        self.on(LAN)
    }
    fn on(&self, port: PortId) -> Vec<Seen> {
        self.tx.iter().filter(|(p, _)| *p == port).map(|(_, bytes)| Seen::read(bytes)).collect()
    }
    /// Nothing left by any road.
    pub fn is_nothing(&self) -> bool {
        self.punt.is_empty() && self.tx.is_empty()
    }
    /// The only segment that left, which went to the server.
    pub fn one_to_server(&self) -> Seen {
        assert_eq!((self.punt.len(), self.tx.len()), (0, 1), "one segment: {self:?}");
        self.to_server().pop().expect("to the server")
    }
    /// The only segment that left, which went to the client.
    pub fn one_to_client(&self) -> Seen {
        assert_eq!((self.punt.len(), self.tx.len()), (0, 1), "one segment: {self:?}");
        self.to_client().pop().expect("to the client")
    }
}

/// The pipeline and what surrounds it.
#[derive(Debug)]
pub struct Bench {
    pub pipe: Pipeline<HeapFrame>,
    /// What it began with.
    pub policy: Arc<Policy>,
    pub now: Nanos,
    pub family: Family,
    pub client: (IpAddr, u16),
    pub server: (IpAddr, u16),
    /// Initial sequence numbers.
    pub c: u32,
    pub s: u32,
    pub out: Output<HeapFrame>,
    frames: usize,
}

impl Bench {
    pub fn new(family: Family) -> Self {
        Self::of(family, Setup::new())
    }

    /// A bench whose grace time for connections from before is over.
    pub fn of(family: Family, setup: Setup) -> Self {
        let grace = setup.spec.midstream.grace;
        let mut bench = Self::in_grace(family, setup);
        bench.now = START.saturating_add(grace);
        bench
    }

    pub fn in_grace(family: Family, setup: Setup) -> Self {
        let builder = PolicyBuilder::new(1).limits(setup.limits).intercept(setup.spec);
        let builder = setup.pools.into_iter().fold(builder, PolicyBuilder::pool);
        let policy = Arc::new(builder.build().expect("a policy"));
        let pipe = Pipeline::new(&setup.config, policy.clone(), Arc::new(setup.fib), START);
        let mut out = Output::default();
        out.free.extend((0..setup.frames).map(|_| HeapFrame::new(FRAME)));
        Self {
            pipe,
            policy,
            now: START,
            family,
            client: (client_of(family), 40_000),
            server: (server_of(family), 443),
            c: 1000,
            s: 900_000,
            out,
            frames: setup.frames,
        }
    }

    /// A segment of the client, `offset` octets into its stream; it acknowledges the server's SYN.
    pub fn c(&self, offset: u32) -> Seg {
        let seq = self.c.wrapping_add(1).wrapping_add(offset);
        Seg::new(self.client, self.server, ACK, seq, self.s.wrapping_add(1))
    }
    /// A segment of the server that acknowledges `acked` octets of the client's stream.
    pub fn s(&self, offset: u32, acked: u32) -> Seg {
        let seq = self.s.wrapping_add(1).wrapping_add(offset);
        Seg::new(self.server, self.client, ACK, seq, self.c.wrapping_add(1).wrapping_add(acked))
    }
    pub fn syn(&self) -> Seg {
        Seg::new(self.client, self.server, SYN, self.c, 0).options(&[2, 4, 5, 0xb4, 1, 3, 3, 7])
    }
    pub fn syn_ack(&self) -> Seg {
        Seg::new(self.server, self.client, SYN | ACK, self.s, self.c.wrapping_add(1))
            .options(&[2, 4, 5, 0xb4, 1, 3, 3, 7])
    }

    /// A segment arrives from the client's side.
    pub fn lan(&mut self, seg: &Seg, moved: &[Moved]) -> Came {
        self.give(LAN, &seg.frame(), moved)
    }
    /// A segment arrives from the server's side.
    pub fn wan(&mut self, seg: &Seg, moved: &[Moved]) -> Came {
        self.give(WAN, &seg.frame(), moved)
    }

    /// SYN, SYN-ACK and ACK.
    pub fn handshake(&mut self) {
        assert_eq!(self.lan(&self.syn(), &[Moved::Opened]).tx.len(), 1);
        assert_eq!(self.wan(&self.syn_ack(), &[]).tx.len(), 1);
        assert_eq!(self.lan(&self.c(0), &[]).tx.len(), 1);
    }

    /// The handshake and an allowed first request, not acknowledged; returns its length.
    pub fn allowed(&mut self) -> u32 {
        self.allowed_to_ask(&crate::hello::client_hello("fine.example", 0))
    }

    /// The same, of a request that is no ClientHello: no second one can follow.
    pub fn allowed_http(&mut self) -> u32 {
        self.allowed_to_ask(&crate::hello::http_request("fine.example"))
    }

    fn allowed_to_ask(&mut self, request: &[u8]) -> u32 {
        self.handshake();
        let came = self.lan(&self.c(0).payload(request), &[Moved::Allowed]);
        assert_eq!(came.one_to_server().payload, request);
        request.len() as u32
    }

    /// A frame arrives. Exactly these counters move, each once for each time it is named.
    pub fn give(&mut self, port: PortId, bytes: &[u8], moved: &[Moved]) -> Came {
        let before = self.counters();
        self.receive(port, bytes);
        self.finish(&before, moved)
    }

    /// A frame arrives; what came, and the counters that moved.
    pub fn give_any(&mut self, port: PortId, bytes: &[u8]) -> (Came, Vec<Moved>) {
        let before = self.counters();
        self.receive(port, bytes);
        let came = self.collect();
        (came, self.moved_since(&before))
    }

    fn receive(&mut self, port: PortId, bytes: &[u8]) {
        let Some(mut frame) = self.out.free.pop() else { panic!("no frame to receive in") };
        assert!(bytes.len() <= FRAME, "the frame is too small for the packet");
        frame.set_len(bytes.len());
        frame.data_mut().copy_from_slice(bytes);
        match parse::parse(frame.data()) {
            Ok(Parsed::Tcp(meta)) => {
                self.pipe.handle(self.now, Packet { frame, port, meta }, &mut self.out);
            }
            Ok(Parsed::Fragment(meta)) => {
                self.pipe.handle_fragment(self.now, frame, port, meta, &mut self.out);
            }
            Ok(Parsed::Icmp(meta)) => {
                self.pipe.handle_icmp(self.now, frame, port, meta, &mut self.out);
            }
            Ok(Parsed::NotTcp) => self.pipe.handle_other(frame, &mut self.out),
            Err(reason) => {
                self.pipe.counters.drop(reason);
                self.out.free.push(frame);
            }
        }
    }

    /// A resolver's answer arrives.
    pub fn answer(&mut self, question: &Question, verified: Verified, life: Nanos, moved: &[Moved]) -> Came {
        let before = self.counters();
        self.pipe.handle_verified(self.now, &question.answer(verified, life), &mut self.out);
        self.finish(&before, moved)
    }

    /// Time passes; the timers are served.
    pub fn wait(&mut self, span: Nanos, moved: &[Moved]) -> Came {
        let before = self.counters();
        self.now = self.now.saturating_add(span);
        self.pipe.poll_timers(self.now, &mut self.out);
        self.finish(&before, moved)
    }

    /// Time passes; the timers are served as often as a worker serves them, as far as that makes a difference. What came,
    /// and the counters that moved.
    pub fn wait_any(&mut self, span: Nanos) -> (Came, Vec<Moved>) {
        let (before, end) = (self.counters(), self.now.saturating_add(span));
        let mut came = Came::default();
        while self.now < end {
            let left = Nanos(end.0 - self.now.0);
            let step =
                if span < Nanos::from_secs(100) { Nanos::from_millis(10) } else { Nanos::from_secs(1) };
            self.now = self.now.saturating_add(step.min(left));
            self.pipe.poll_timers(self.now, &mut self.out);
            let Came { kernel, punt, tx, questions } = self.collect();
            came.kernel.extend(kernel);
            came.punt.extend(punt);
            came.tx.extend(tx);
            came.questions.extend(questions);
        }
        (came, self.moved_since(&before))
    }

    /// Counters that are not zero.
    pub fn counters(&self) -> BTreeMap<Moved, u64> {
        let pipe = &self.pipe;
        let (c, t) = (&pipe.counters, &pipe.totals);
        let drops = DropReason::ALL.iter().map(|r| (Moved::Drop(*r), c.dropped[*r as usize]));
        let punts = PuntReason::ALL.iter().map(|r| (Moved::Punt(*r), c.punted[*r as usize]));
        let totals = [
            (Moved::Opened, t.opened),
            (Moved::Allowed, t.allowed),
            (Moved::Reset, t.reset),
            (Moved::Dropped, t.dropped),
            (Moved::Unidentified, t.unidentified),
            (Moved::Relayed, t.relayed),
            (Moved::Midstream, t.midstream),
            (Moved::Expired, t.expired),
            (Moved::Sent, t.sent),
            (Moved::Retried, t.retried),
            (Moved::Failed, t.failed),
            (Moved::CookieSent, t.cookies_sent),
            (Moved::CookieAccepted, t.cookies_accepted),
            (Moved::CookieFailed, t.cookies_failed),
            (Moved::Limited, t.limited),
            (Moved::HostAsked, t.host_asked),
            (Moved::HostMismatch, t.host_mismatch),
            (Moved::HostUnknown, t.host_unknown),
            (Moved::HelloRetry, t.hello_retry),
            (Moved::HelloChanged, t.hello_changed),
            (Moved::HelloRefused, t.hello_refused),
            (Moved::Recycled, t.recycled),
        ];
        drops.chain(punts).chain(totals).filter(|(_, n)| *n > 0).collect()
    }

    /// What moved since `before`.
    pub fn moved_since(&self, before: &BTreeMap<Moved, u64>) -> Vec<Moved> {
        let mut moved = Vec::new();
        for (counter, n) in self.counters() {
            let times = n - before.get(&counter).copied().unwrap_or(0);
            moved.extend((0..times).map(|_| counter));
        }
        moved
    }

    fn finish(&mut self, before: &BTreeMap<Moved, u64>, moved: &[Moved]) -> Came {
        let came = self.collect();
        let mut wanted = moved.to_vec();
        wanted.sort_unstable();
        assert_eq!(
            self.moved_since(before),
            wanted,
            "counters moved (left) and declared (right); out: {came:?}"
        );
        came
    }

    /// Carries out what the pipeline asked for, as a worker does, and counts the frames.
    pub fn collect(&mut self) -> Came {
        let mut again = std::mem::take(&mut self.out.again);
        for packet in again.drain(..) {
            self.pipe.handle(self.now, packet, &mut self.out);
        }
        let mut came = Came {
            kernel: std::mem::take(&mut self.out.kernel),
            questions: std::mem::take(&mut self.out.questions),
            ..Came::default()
        };
        for Punted { to, frame, .. } in std::mem::take(&mut self.out.punt) {
            came.punt.push((to, frame.data().to_vec()));
            self.out.free.push(frame);
        }
        for (port, frame) in std::mem::take(&mut self.out.tx) {
            came.tx.push((port, frame.data().to_vec()));
            self.out.free.push(frame);
        }
        assert_eq!(self.out.free.len() + self.pipe.frames_held(), self.frames, "every frame has one owner");
        came
    }

    /// Frames of the bench.
    pub const fn frames(&self) -> usize {
        self.frames
    }

    /// No frame is held.
    pub fn assert_idle(&self) {
        assert_eq!(self.pipe.frames_held(), 0, "an idle box has all frames free");
    }
}
