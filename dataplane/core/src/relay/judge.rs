//! From a connection's addresses and first bytes to a decision: the same inspection and the same rules as on the
//! fast road, for connections that reach the relay without having been inspected.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::flow::key::{FlowKey, Tuple};
use crate::flow::second::HelloRetry;
use crate::ids::{InterceptId, Nanos, PoolId, PortId, ServerId};
use crate::inspect::{ALPN_NAMES, Alpn, Found, Inspector, Name, Outcome};
use crate::pace::Throttle;
use crate::policy::{Action, Cause, Decision, Facts, Handshake, Intercept, Policy, Protocol, VerifyHost};
use crate::proxy::ProxyHeader;
use crate::reevaluate::{self, Again, Evidence, Live};
use crate::verify::{self, Answers, HostCheck, Need, Question, Verified};

use crate::wire::addr::Endpoint;

use super::second::Reading;
use super::{Dispatch, Start, Towards, Unread, Verdict};

/// The intercept that a connection belongs to.
///
/// `from` is the port that the route back to the client leaves by, when it is known: the relay cannot see the port
/// a SYN came in by. Without it, or when no intercept matches there, the first intercept of any port is taken.
pub fn find_intercept(policy: &Policy, from: Option<PortId>, server: SocketAddr) -> Option<InterceptId> {
    let (ip, port) = (server.ip().to_canonical(), server.port());
    from.and_then(|from| policy.intercept(from, ip, port))
        .or_else(|| policy.intercept_from_anywhere(ip, port))
}

/// What was decided about a connection, and from what. Kept as long as the connection lives: names take the room that they need.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub decision: Decision,
    pub protocol: Option<Protocol>,
    pub host: Option<Box<str>>,
    /// The client offers Encrypted ClientHello.
    pub ech: bool,
    /// Names that the client offers, if it offers any.
    pub(super) alpn: Option<Box<Alpn>>,
    /// Why there was nothing to read, if that is so.
    pub unread: Option<Unread>,
}

impl Judgement {
    /// By what was found in the first bytes, or why there was nothing to read.
    pub(super) fn of(decision: Decision, found: Option<&Found>, unread: Option<Unread>) -> Self {
        let alpn = found.map(|f| f.alpn).filter(|alpn| *alpn != Alpn::EMPTY);
        Self {
            decision,
            protocol: found.map(|f| f.protocol),
            host: found.and_then(|f| f.host.as_ref()).map(|name| name.as_str().into()),
            ech: found.is_some_and(|f| f.ech),
            alpn: alpn.map(Box::new),
            unread,
        }
    }

    /// Names that the client offers.
    pub fn alpn(&self) -> &Alpn {
        const NONE: &Alpn = &Alpn::EMPTY;
        self.alpn.as_deref().unwrap_or(NONE)
    }
}

/// The reader and the rules of one connection. Keeps the policy of the moment of accept: a verdict is
/// never made of two configurations.
#[derive(Clone, Debug)]
pub struct Judge {
    pub(super) policy: Arc<Policy>,
    intercept: Option<InterceptId>,
    /// The port that leads back to the client.
    from: Option<PortId>,
    client: SocketAddr,
    pub(super) server: SocketAddr,
    inspector: Inspector,
    pub(super) judgement: Option<Judgement>,
    /// What the addresses decide alone, while the name is sought to be verified.
    decided: Option<Decision>,
    /// How far the check of the name is (`verify_host`).
    pub(super) check: HostCheck,
    /// A resolver is to be asked, and was not yet.
    asks: bool,
    /// Where the verdict `send` gives it.
    dispatch: Option<Dispatch>,
    /// What is read for the sake of a second hello, as long as one may come.
    pub(super) reading: Option<Box<Reading>>,
    pub(super) retry: HelloRetry,
}

impl Judge {
    /// `from` as in [`find_intercept`].
    pub fn new(policy: Arc<Policy>, from: Option<PortId>, client: SocketAddr, server: SocketAddr) -> Self {
        let intercept = find_intercept(&policy, from, server);
        Self {
            policy,
            intercept,
            from,
            client,
            server,
            inspector: Inspector::default(),
            judgement: None,
            decided: None,
            check: HostCheck::None,
            asks: false,
            dispatch: None,
            reading: None,
            retry: HelloRetry::None,
        }
    }

    /// What is known at accept. A connection of no intercept (the configuration changed since its SYN) passes, as
    /// the kernel would have forwarded it.
    pub fn start(&mut self) -> Start {
        let Some(intercept) = self.intercept() else {
            return Start::Settled(Verdict::Pass);
        };
        let (bytes, time) = (intercept.hold_bytes, intercept.hold_time);
        let held = Start::Held { bytes, time, ahead: !intercept.sends() };
        let Some(decision) = self.decided_at_syn(intercept).or_else(|| self.decided_by_addresses(intercept))
        else {
            return held;
        };
        if intercept.verify_host != VerifyHost::Off && is_let_on(decision) {
            self.decided = Some(decision);
            return held;
        }
        Start::Settled(self.settle(Judgement::of(decision, None, None)))
    }

    /// The relay rule that brought the connection here. With `handshake = "relay"` everything comes here, and a
    /// relay rule is one rule among the others.
    fn decided_at_syn(&self, intercept: &Intercept) -> Option<Decision> {
        if intercept.handshake == Handshake::Relay {
            return None;
        }
        let Facts { client, server, server_port, .. } = self.addresses();
        let rule = intercept.relay_at_syn(client, server, server_port)?;
        Some(Decision { action: Action::Relay, cause: Cause::Rule(rule) })
    }

    /// The first rule that takes these addresses, unless one before it needs the client's bytes: nothing that the
    /// client could send changes it, so there is nothing to wait for.
    fn decided_by_addresses(&self, intercept: &Intercept) -> Option<Decision> {
        let decision = intercept.decide_by_addresses(&self.addresses())?;
        matches!(decision.cause, Cause::Rule(_)).then_some(decision)
    }

    fn addresses(&self) -> Facts<'static> {
        let (client, server) = (self.client.ip().to_canonical(), self.server.ip().to_canonical());
        Facts::of_addresses(client, server, self.server.port())
    }

    /// Shows the client's bytes so far. `None`: more are needed.
    pub fn inspect(&mut self, prefix: &[u8], budget: u32) -> Option<Verdict> {
        match self.inspector.inspect(prefix, budget as usize) {
            Outcome::More => None,
            Outcome::Done(found) => Some(self.decide(Some(&found), None)),
        }
    }

    /// There is nothing (more) to read.
    pub fn unidentified(&mut self, why: Unread) -> Verdict {
        self.decide(None, Some(why))
    }

    /// The decision, once there is one; while the connection waits for a resolver, that of the rules.
    pub fn judgement(&self) -> Option<&Judgement> {
        self.judgement.as_ref()
    }

    pub fn intercept(&self) -> Option<&Intercept> {
        self.policy.get(self.intercept?)
    }

    pub const fn client(&self) -> SocketAddr {
        self.client
    }

    /// Where the client wanted to go.
    pub const fn destination(&self) -> SocketAddr {
        self.server
    }

    /// Where a leg to the server goes. `None`: the verdict named no such server.
    pub fn address(&self, to: Towards) -> Option<SocketAddr> {
        match to {
            Towards::Destination => Some(self.server),
            _ => self.dispatch?.address(&self.policy, to),
        }
    }

    /// The pool's server that a leg goes to, if it goes to one.
    pub fn pooled(&self, to: Towards) -> Option<(PoolId, ServerId)> {
        self.dispatch?.server(to)
    }

    /// Writes the PROXY header that goes before the client's first octet, and gives its length; 0: none goes. `None`: it
    /// does not fit. The same one as on the fast road: with the name and the first of the ALPN names that the client gave.
    pub fn header(&self, into: &mut [u8]) -> Option<usize> {
        let Some(version) = self.dispatch.and_then(|dispatch| dispatch.proxy(&self.policy)) else {
            return Some(0);
        };
        let judgement = self.judgement.as_ref();
        let header = ProxyHeader {
            version,
            client: self.client.into(),
            destination: self.server.into(),
            host: judgement.and_then(|j| j.host.as_deref()),
            alpn: judgement.and_then(|j| j.alpn().names().next()),
        };
        header.write(into)
    }

    /// Where the rule that decided stands: `file:line`.
    pub fn origin(&self) -> Option<&str> {
        let Cause::Rule(id) = self.judgement()?.decision.cause else { return None };
        Some(self.intercept()?.rules().get(usize::from(id.0))?.origin.as_str())
    }

    /// The bandwidth that the rule which decided gives the connection, if it says so.
    pub fn throttle(&self) -> Option<Throttle> {
        let Cause::Rule(id) = self.judgement()?.decision.cause else { return None };
        Some(self.intercept()?.rule(id)?.pace()?.throttle())
    }

    /// What is known of the name without asking for it.
    pub fn known(&self, answers: &Answers, now: Nanos) -> Option<Verified> {
        let name = self.judgement.as_ref()?.host.as_deref()?;
        answers.known(self.check, name, &Endpoint::from(self.server).addr, now)
    }

    /// The port that leads back to the client, where it is known.
    pub const fn port(&self) -> Option<PortId> {
        self.from
    }

    /// What is known of the first bytes.
    pub fn evidence(&self) -> Evidence {
        match &self.judgement {
            Some(Judgement { protocol: Some(_), .. }) => Evidence::Found,
            Some(Judgement { unread: Some(_), .. }) => Evidence::Nothing,
            // Decided at the SYN, by addresses, or never.
            Some(_) | None => Evidence::Unknown,
        }
    }

    /// The number of the configuration that decides, or has decided.
    pub fn epoch(&self) -> u32 {
        self.policy.epoch
    }

    /// The epoch since which pools and servers have the numbers of [`Self::pooled`].
    pub fn numbered(&self) -> u32 {
        self.policy.numbered()
    }

    /// Judges a connection that goes to `server` again, by another policy. The verdict stands where it is what becomes of
    /// the connection; `verified` is what is known of its name. One that is not `connected` yet may need another server of the policy that it was picked from.
    pub fn judge_again(
        &mut self,
        policy: &Arc<Policy>,
        server: SocketAddr,
        connected: bool,
        verified: Option<Verified>,
    ) -> Again {
        let mut room = [&[][..]; ALPN_NAMES];
        let found = self.judgement.as_ref();
        let live = Live {
            port: self.from,
            on_relay: true,
            client: self.client,
            destination: self.server,
            server,
            signed: false,
            evidence: self.evidence(),
            protocol: found.and_then(|j| j.protocol),
            host: found.and_then(|j| j.host.as_deref()),
            ech: found.is_some_and(|j| j.ech),
            alpn: found.map_or(&[][..], |j| j.alpn().list(&mut room)),
            verified,
            hello_retry: self.retry == HelloRetry::Changed,
        };
        let again = reevaluate::judge(policy, &live);
        if let Some(decision) = again.decision
            && (again.outcome == reevaluate::Outcome::Ended
                || again.outcome == reevaluate::Outcome::Kept && connected)
        {
            let found = self.judgement.take().unwrap_or(Judgement::of(decision, None, None));
            self.judgement = again.intercept.map(|_| Judgement { decision, ..found });
            self.intercept = again.intercept;
            self.dispatch = None;
            self.keep(policy);
        }
        again
    }

    fn decide(&mut self, found: Option<&Found>, unread: Option<Unread>) -> Verdict {
        let (decision, waits) = self.rule_on(found, false);
        let judgement = Judgement::of(decision, found, unread);
        if waits {
            self.judgement = Some(judgement);
            return Verdict::Wait;
        }
        self.settle(judgement)
    }

    /// What the rules say of a hello, and whether that waits for a resolver. Of the first one it is noted whether a second may
    /// follow that could be decided otherwise.
    pub(super) fn rule_on(&mut self, found: Option<&Found>, is_second: bool) -> (Decision, bool) {
        let mut room = [&[][..]; ALPN_NAMES];
        let host = found.and_then(|f| f.host);
        let facts = Facts {
            protocol: found.map(|f| f.protocol),
            host: host.as_ref().map(Name::as_str),
            ech: found.is_some_and(|f| f.ech),
            alpn: found.map_or(&[][..], |f| f.alpn.list(&mut room)),
            hello_retry: is_second,
            ..self.addresses()
        };
        let Some(intercept) = self.intercept() else {
            return (Decision { action: Action::Allow, cause: Cause::Otherwise }, false);
        };
        let mut decision = self.decided.unwrap_or_else(|| intercept.decide(&facts));
        let need = match &host {
            Some(name) if is_let_on(decision) => {
                verify::need(intercept.verify_host, name.as_str(), intercept.is_hidden(&facts), facts.server)
            }
            _ => Need::Nothing,
        };
        let end = found.and_then(|f| f.end).filter(|_| intercept.depends_on_content(&facts));
        if !is_second {
            self.reading = end.map(|end| Box::new(Reading::after(end)));
        }
        self.check = need.check();
        self.asks = matches!(need, Need::Ask { .. });
        if let Need::Known(verified) = need {
            decision = self.ruled(verified, decision);
        }
        (decision, self.check == HostCheck::Waiting)
    }

    pub(super) fn ruled(&self, verified: Verified, decision: Decision) -> Decision {
        match self.intercept() {
            Some(i) => verify::rule(i.verify_host, verified, i.unidentified, decision),
            None => decision,
        }
    }

    /// What a resolver is to be asked, once: when the verdict is [`Verdict::Wait`], or may have to be logged.
    pub fn take_question(&mut self, answers: &Answers) -> Option<Question> {
        if !std::mem::take(&mut self.asks) {
            return None;
        }
        let name = Name::new(self.judgement.as_ref()?.host.as_ref()?.as_bytes())?;
        let tuple = Tuple { src: self.client.into(), dst: self.server.into() };
        Some(Question {
            key: FlowKey::of(&tuple),
            client: tuple.src,
            destination: tuple.dst,
            name,
            tag: answers.tag(name.as_str(), &tuple.dst.addr),
            waits: self.check == HostCheck::Waiting,
        })
    }

    /// The resolver's answer, or that there was none. A verdict comes of it where the connection waits for one.
    pub fn verified(&mut self, verified: Verified) -> Option<Verdict> {
        if let Some(server) = self.reading.as_ref().and_then(|reading| reading.waits) {
            return self.second_verified(verified, server);
        }
        let before = std::mem::replace(&mut self.check, HostCheck::Known(verified));
        match (before, self.judgement.take()) {
            (HostCheck::Waiting, Some(judgement)) => {
                let decision = self.ruled(verified, judgement.decision);
                Some(self.settle(Judgement { decision, ..judgement }))
            }
            (_, judgement) => {
                self.judgement = judgement;
                if before != HostCheck::Asked {
                    self.check = before;
                }
                None
            }
        }
    }

    /// How far the check of the name is.
    pub const fn check(&self) -> HostCheck {
        self.check
    }

    /// What the machine is told.
    fn settle(&mut self, judgement: Judgement) -> Verdict {
        let action = judgement.decision.action;
        self.judgement = Some(judgement);
        self.keep(&self.policy.clone());
        match action {
            Action::Allow | Action::Relay => Verdict::Pass,
            Action::Reset => Verdict::Reset,
            Action::Drop => Verdict::Drop,
            Action::Send(pool) => {
                let tuple = Tuple { src: self.client.into(), dst: self.server.into() };
                self.dispatch = Dispatch::pick(&self.policy, pool, &tuple);
                // Without a server there is nobody to give it to.
                self.dispatch.map_or(Verdict::Reset, |dispatch| dispatch.verdict(&self.policy))
            }
        }
    }
}

/// Whether a decision lets a connection on.
const fn is_let_on(decision: Decision) -> bool {
    !matches!(decision.action, Action::Reset | Action::Drop)
}
