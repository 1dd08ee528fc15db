//! Bandwidth: when octets may pass so that no more than a rate does.
//!
//! A token bucket in one number, as [`crate::sources`] has it: the time until which everything is paid for (the theoretical
//! arrival time of the generic cell rate algorithm, ITU-T I.371). Whoever has octets reserves: he is told how many and from
//! when, and that time is his. So connections that share a rate take turns in the order in which they asked, and nobody is
//! woken in vain. The relay's machine asks for its connections ([`crate::relay`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::ids::Nanos;

/// After a pause as much may pass at once as the rate grants in this time.
const BURST: Nanos = Nanos::from_millis(100);
/// One turn is what the rate grants in this time.
const TURN: u64 = 10_000_000;
/// A turn in octets: never less than about a segment, and little when many wait.
const LEAST: u64 = 2048;
const MOST: u64 = 64 * 1024;
const SECOND: u64 = 1_000_000_000;

/// Octets per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl Rate {
    fn price(self, octets: u64) -> Nanos {
        Nanos(octets.saturating_mul(SECOND) / self.0.max(1))
    }

    fn turn(self) -> u64 {
        (self.0 / (SECOND / TURN)).clamp(LEAST, MOST)
    }
}

/// A rate that one connection has, or many share. Any thread may reserve: the number is its own whole state, hence Relaxed.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    /// Until when everything is paid for, on the clock of whoever reserves.
    paid: AtomicU64,
}

impl Pace {
    pub const fn new(rate: Rate) -> Self {
        Self { rate, paid: AtomicU64::new(0) }
    }

    /// How many of `wanted` octets are one turn now.
    pub fn turn(&self, now: Nanos, wanted: u32) -> u32 {
        let waits = Nanos(self.paid.load(Relaxed)).saturating_sub(now) > BURST;
        let most = if waits { LEAST } else { self.rate.turn() };
        u32::try_from(most).map_or(wanted, |most| wanted.min(most))
    }

    /// Reserves so many octets: from when on they may pass.
    pub fn reserve(&self, now: Nanos, octets: u32) -> Nanos {
        let earliest = now.saturating_sub(BURST);
        let from = |paid: u64| Nanos(paid).max(earliest);
        let price = self.rate.price(u64::from(octets));
        let update = |paid| Some(from(paid).saturating_add(price).0);
        let before = self.paid.fetch_update(Relaxed, Relaxed, update).unwrap_or_else(|paid| paid);
        from(before)
    }
}

/// What a rule says of bandwidth; of each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of all its connections together.
    pub rule: Option<Rate>,
    /// Of each of its connections.
    pub connection: Option<Rate>,
}

/// The same as connections use it: those of a rule share it.
#[derive(Debug)]
pub struct RulePace {
    /// To the server, to the client.
    shared: Option<[Arc<Pace>; 2]>,
    connection: Option<Rate>,
}

impl RulePace {
    /// None where the rule says nothing.
    pub fn new(rates: Rates) -> Option<Arc<Self>> {
        let shared = rates.rule.map(|rate| [Arc::new(Pace::new(rate)), Arc::new(Pace::new(rate))]);
        let any = shared.is_some() || rates.connection.is_some();
        any.then(|| Arc::new(Self { shared, connection: rates.connection }))
    }

    /// For one more connection.
    pub fn throttle(&self) -> Throttle {
        let own = || self.connection.map(Pace::new);
        let [up, down] = match &self.shared {
            Some([up, down]) => [Some(up.clone()), Some(down.clone())],
            None => [None, None],
        };
        Throttle([Way::new(up, own()), Way::new(down, own())])
    }
}

/// The bandwidth of one connection, in both directions: to the server, to the client.
#[derive(Debug)]
pub struct Throttle([Way; 2]);

#[derive(Debug)]
struct Way {
    shared: Option<Arc<Pace>>,
    own: Option<Pace>,
    /// Octets reserved and not yet gone, and from when they may go.
    reserved: Option<(u32, Nanos)>,
}

impl Way {
    const fn new(shared: Option<Arc<Pace>>, own: Option<Pace>) -> Self {
        Self { shared, own, reserved: None }
    }

    fn paces(&self) -> impl Iterator<Item = &Pace> {
        self.shared.as_deref().into_iter().chain(&self.own)
    }

    fn reserve(&self, now: Nanos, wanted: u32) -> (u32, Nanos) {
        let octets = self.paces().fold(wanted, |octets, pace| pace.turn(now, octets));
        (octets, self.paces().map(|pace| pace.reserve(now, octets)).max().unwrap_or(now))
    }
}

impl Throttle {
    /// How many of `wanted` octets (more than 0) may go now to the server, or to the client.
    ///
    /// # Errors
    /// From when on some may.
    pub fn allow(&mut self, to_client: bool, now: Nanos, wanted: u32) -> Result<u32, Nanos> {
        let way = self.way(to_client);
        let (octets, from) = match way.reserved {
            Some(reserved) => reserved,
            None => way.reserve(now, wanted),
        };
        way.reserved = Some((octets, from));
        if from > now { Err(from) } else { Ok(octets.min(wanted)) }
    }

    /// So many have gone.
    pub fn gone(&mut self, to_client: bool, octets: u32) {
        let way = self.way(to_client);
        way.reserved = way.reserved.map(|(left, from)| (left.saturating_sub(octets), from));
        way.reserved = way.reserved.filter(|(left, _)| *left > 0);
    }

    fn way(&mut self, to_client: bool) -> &mut Way {
        let [up, down] = &mut self.0;
        if to_client { down } else { up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Connections of one rule that always have octets, for ten seconds: how many each sends, to the server.
    fn compete(rates: Rates, connections: usize) -> Vec<u64> {
        let pace = RulePace::new(rates).unwrap();
        let mut throttles: Vec<Throttle> = (0..connections).map(|_| pace.throttle()).collect();
        let mut sent = vec![0; connections];
        for ms in 1_000..11_000 {
            for (throttle, sent) in throttles.iter_mut().zip(&mut sent) {
                while let Ok(octets) = throttle.allow(false, Nanos(ms * MS), 64 * 1024) {
                    assert!(octets > 0);
                    throttle.gone(false, octets);
                    *sent += u64::from(octets);
                }
            }
        }
        sent
    }

    #[test]
    fn one_connection_gets_its_rate_and_a_short_burst() {
        for rate in [2_000, 125_000, 12_500_000, 1_250_000_000] {
            let rates = Rates { connection: Some(Rate(rate)), ..Rates::default() };
            let sent: u64 = compete(rates, 1).iter().sum();
            let (least, most) = (rate * 10, rate * 10 + rate / 10 + 2 * MOST);
            assert!((least..=most).contains(&sent), "{sent} octets in ten seconds at {rate} a second");
        }
    }

    #[test]
    fn connections_of_a_rule_share_its_rate_evenly() {
        let rates = Rates { rule: Some(Rate(1_250_000)), ..Rates::default() };
        for connections in [2, 10, 100] {
            let sent = compete(rates, connections);
            let sum: u64 = sent.iter().sum();
            assert!((12_500_000..=12_900_000).contains(&sum), "{connections}: {sum}");
            let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            assert!(*most < 2 * least + MOST, "{connections}: {least} to {most}");
        }
    }

    #[test]
    fn lower_of_two_rates_holds() {
        let rates = Rates { rule: Some(Rate(1_000_000)), connection: Some(Rate(100_000)) };
        let sent = compete(rates, 2);
        assert!(sent.iter().all(|sent| (1_000_000..1_080_000).contains(sent)), "{sent:?}");
    }

    #[test]
    fn directions_have_a_rate_each() {
        let rates = Rates { rule: Some(Rate(1000)), ..Rates::default() };
        let mut throttle = RulePace::new(rates).unwrap().throttle();
        let now = Nanos::from_secs(1);
        let octets = throttle.allow(false, now, 5000).unwrap();
        throttle.gone(false, octets);
        assert!(throttle.allow(false, now, 5000).is_err());
        assert!(throttle.allow(true, now, 5000).is_ok());
    }

    #[test]
    fn what_was_reserved_stays_so_until_it_has_gone() {
        let mut throttle =
            RulePace::new(Rates { rule: Some(Rate(1000)), ..Rates::default() }).unwrap().throttle();
        let now = Nanos::from_secs(1);
        assert_eq!(throttle.allow(false, now, 1000), Ok(1000));
        throttle.gone(false, 400);
        assert_eq!(throttle.allow(false, now, 1000), Ok(600), "a short send");
        throttle.gone(false, 600);
        let from = throttle.allow(false, now, 1000).unwrap_err();
        assert_eq!(from, Nanos::from_millis(1900));
        assert_eq!(throttle.allow(false, Nanos::from_millis(1500), 1000), Err(from));
        assert_eq!(throttle.allow(false, from, 1000), Ok(1000));
    }

    #[test]
    fn rule_that_says_nothing_has_no_pace() {
        assert!(RulePace::new(Rates::default()).is_none());
    }
}
