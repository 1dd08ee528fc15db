//! What steering is told of intercepts, servers and the box's own addresses, while configurations change.
//!
//! Steering and the workers do not change in the same moment, so steering is always the wider of the two. Before new rules are
//! published it is given what the old ones and the new ones intercept, together: what the workers do not intercept (any more,
//! or yet) they hand to the kernel, which forwards it, and a connection that was open before its destination was intercepted is
//! left to the kernel as one from before. Nothing is dropped, and nothing that either configuration intercepts passes by. The
//! other order would let connections that workers translate pass untranslated. What only the old rules intercept is taken
//! away when no connection of theirs is left that the kernel could not carry alone.

use std::sync::{Arc, PoisonError};

use ipnet::IpNet;
use weir_core::policy::Policy;
use weir_sys::steering::{InterceptTable, PoolServer, Steering, VlanPlace};

use super::convert;
use crate::admin::state::State;
use crate::config::Config;
use crate::exit::Failure;
use crate::host::picture::OwnAddresses;

/// The bit of what is not intercepted any more. An intercept of that number may share it: steering asks only whether any bit is
/// left.
const RETIRED: u32 = 63;

/// What steering is told.
#[derive(Debug)]
pub struct Steer {
    own: Arc<OwnAddresses>,
    /// The servers of the pools in force.
    servers: Vec<PoolServer>,
    retired: Option<Retired>,
}

/// What earlier configurations intercepted, and their servers.
#[derive(Clone, Debug, Default)]
struct Retired {
    to: Vec<IpNet>,
    tcp: Vec<(u16, u16)>,
    from: Vec<u32>,
    servers: Vec<PoolServer>,
    /// One of them translated: the kernel cannot go on with its connections.
    translates: bool,
}

impl Retired {
    /// With what `table` intercepts on the fast road.
    fn and(mut self, table: &InterceptTable, servers: &[PoolServer]) -> Self {
        let fast = |bits: u64| bits & !table.relay_mask != 0;
        self.to.extend(table.prefixes.iter().filter(|(_, bits)| fast(*bits)).map(|(net, _)| *net));
        let ports = table.tcp_ports.iter().filter(|(.., bits)| fast(*bits));
        self.tcp.extend(ports.map(|(first, last, _)| (*first, *last)));
        self.from.extend(table.from.iter().filter(|(_, bits)| fast(*bits)).map(|(port, _)| *port));
        for server in servers {
            if !self.servers.contains(server) {
                self.servers.push(server.clone());
            }
        }
        self.translates |= fast(table.translated);
        self.to.sort_unstable();
        self.to.dedup();
        self.tcp.sort_unstable();
        self.tcp.dedup();
        self.from.sort_unstable();
        self.from.dedup();
        self
    }

    fn add_to(&self, table: &mut InterceptTable) {
        if !self.to.is_empty() {
            // A connection that a worker translates must go on to come to it, whatever is the relay's now.
            table.relay_mask = 0;
            table.translated |= u64::from(self.translates) << RETIRED;
            table.add(RETIRED, self.to.clone(), self.tcp.clone(), self.from.clone(), false);
        }
    }
}

impl Steer {
    /// As the start has told it.
    pub fn new(own: Arc<OwnAddresses>, config: &Config) -> Self {
        Self { own, servers: convert::pool_servers(config), retired: None }
    }

    /// What is the box's own.
    pub fn own(&self) -> &OwnAddresses {
        &self.own
    }

    /// Other addresses are the box's own.
    ///
    /// # Errors
    /// Steering cannot be told: it would intercept what is the gateway's own.
    pub fn set_own(&mut self, state: &State, policy: &Policy, own: Arc<OwnAddresses>) -> Result<(), Failure> {
        self.own = own;
        with_steering(state, |steering| self.tell(steering, policy))
    }

    /// The ports have these VLANs.
    ///
    /// # Errors
    /// Steering cannot be told.
    pub fn set_vlans(&self, state: &State, policy: &Policy, places: Vec<VlanPlace>) -> Result<(), Failure> {
        with_steering(state, |steering| {
            // A VLAN that is gone gives its number away: nothing may come under it while that is somebody else's.
            steering.set_vlans(&places).map_err(Failure::refused)?;
            self.tell(steering, policy)
        })
    }

    /// Gives steering what `policy` intercepts beside what `now` does, and the servers of both.
    ///
    /// # Errors
    /// Steering cannot be told; it knows what it did before.
    pub fn widen(
        &mut self,
        state: &State,
        (now, policy): (&Policy, &Policy),
        servers: Vec<PoolServer>,
    ) -> Result<(), Failure> {
        let before = (self.retired.clone(), self.servers.clone());
        let table = convert::intercept_table(now, &[]);
        let differs = table != convert::intercept_table(policy, &[]) || self.servers != servers;
        if differs {
            let retired = self.retired.take().unwrap_or_default();
            self.retired = Some(retired.and(&table, &self.servers));
        }
        self.servers = servers;
        let told = with_steering(state, |steering| {
            self.tell_servers(steering)?;
            if differs { self.tell(steering, policy) } else { Ok(()) }
        });
        told.inspect_err(|_| {
            (self.retired, self.servers) = before;
            self.restore(state, now);
        })
    }

    /// The new rules are not published after all.
    pub fn take_back(&mut self, state: &State, now: &Policy, config: &Config) {
        self.servers = convert::pool_servers(config);
        self.restore(state, now);
    }

    fn restore(&self, state: &State, now: &Policy) {
        let told = with_steering(state, |steering| {
            self.tell(steering, now)?;
            self.tell_servers(steering)
        });
        if let Err(error) = told {
            tracing::error!(%error, "steering still has what a configuration that is not in force intercepts");
        }
    }

    /// Whether steering has more than the rules in force.
    pub const fn has_retired(&self) -> bool {
        self.retired.is_some()
    }

    /// No connection needs what earlier rules intercepted any more.
    pub fn narrow(&mut self, state: &State, policy: &Policy) {
        if let Some(retired) = self.retired.take() {
            let told = with_steering(state, |steering| {
                self.tell(steering, policy)?;
                self.tell_servers(steering)
            });
            if let Err(error) = told {
                tracing::error!(%error, "steering keeps what is not intercepted any more; it is tried again");
                self.retired = Some(retired);
            }
        }
    }

    fn tell(&self, steering: &mut Steering, policy: &Policy) -> Result<(), Failure> {
        let mut table = convert::intercept_table(policy, &tell_own(steering, &self.own)?);
        if let Some(retired) = &self.retired {
            retired.add_to(&mut table);
        }
        steering.set_intercepts(&table).map_err(Failure::refused)
    }

    fn tell_servers(&self, steering: &mut Steering) -> Result<(), Failure> {
        let retired = self.retired.iter().flat_map(|retired| &retired.servers);
        let all: Vec<PoolServer> = self.servers.iter().chain(retired).cloned().collect();
        steering.set_pool_servers(&all).map_err(Failure::refused)
    }
}

/// Nothing is done on a box without a fast road.
fn with_steering(
    state: &State,
    work: impl FnOnce(&mut Steering) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut steering = state.steering.lock().unwrap_or_else(PoisonError::into_inner);
    steering.as_mut().map_or(Ok(()), work)
}

/// What is the box's own is never intercepted: single addresses by a map of their own; prefixes, and the addresses that the
/// map has no room for, as holes in the table, which are returned.
pub fn tell_own(steering: &mut Steering, own: &OwnAddresses) -> Result<Vec<IpNet>, Failure> {
    let mut exempt = steering.set_own_addresses(&own.addresses).map_err(Failure::refused)?;
    exempt.extend(&own.prefixes);
    Ok(exempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_alternate_take_no_more_room_each_time() {
        let mut table = InterceptTable::default();
        table.add(0, ["192.0.2.0/24".parse().unwrap()], [(80, 80), (443, 443)], [0, 1], false);
        let servers: Vec<PoolServer> = ["10.0.0.1:80", "10.0.0.2:80"]
            .map(|addr| PoolServer { addr: addr.parse().unwrap(), gateway_ports: None })
            .into();
        let mut retired = Retired::default();
        for _ in 0..3 {
            retired = retired.and(&table, &servers).and(&table, &servers[1..]);
        }
        assert_eq!((retired.to.len(), retired.tcp.len()), (1, 2));
        assert_eq!((retired.from.len(), retired.servers.len()), (2, 2));
    }
}
