//! Puts a policy together and refuses what the dataplane could not carry out.

use std::sync::Arc;

use thiserror::Error;

use super::{
    Action, Handshake, Intercept, InterceptSpec, Limits, MAX_SERVERS, NameSet, Policy, Pool, PoolSpec,
};
use crate::ids::{MAX_INTERCEPTS, PoolId};

/// The most rules of one intercept: they are tried one after the other. Long lists of names go into one rule.
pub const MAX_RULES: usize = 4096;
/// The most pools of a configuration.
pub const MAX_POOLS: usize = 1024;

/// Why there is no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    #[error("{0} intercepts; at most {MAX_INTERCEPTS} are allowed")]
    Intercepts(usize),
    #[error("intercept `{0}` has {1} rules; at most {MAX_RULES} are allowed")]
    Rules(String, usize),
    #[error("{0} pools; at most {MAX_POOLS} are allowed")]
    Pools(usize),
    #[error("pool `{0}` has {1} servers; at most {MAX_SERVERS} are allowed")]
    Servers(String, usize),
    #[error("{origin}: a rule of intercept `{intercept}` sends to a pool that does not exist")]
    NoSuchPool { intercept: String, origin: String },
    #[error(
        "{origin}: `relay` is decided at the SYN, so a rule of intercept `{intercept}` that says it may match only on \
         `from`, `to` and `tcp`, unless the intercept's handshake is `relay`"
    )]
    RelayByContent { intercept: String, origin: String },
}

/// Collects limits, intercepts and pools; their order is the order of their ids.
#[derive(Clone, Debug)]
pub struct PolicyBuilder {
    epoch: u32,
    limits: Limits,
    intercepts: Vec<InterceptSpec>,
    pools: Vec<PoolSpec>,
    ech_public_names: Arc<NameSet>,
}

impl PolicyBuilder {
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            limits: Limits::default(),
            intercepts: Vec::new(),
            pools: Vec::new(),
            ech_public_names: Arc::default(),
        }
    }

    /// Outer names of Encrypted ClientHellos that hide another.
    pub fn ech_public_names(mut self, names: Arc<NameSet>) -> Self {
        self.ech_public_names = names;
        self
    }

    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub fn intercept(mut self, spec: InterceptSpec) -> Self {
        self.intercepts.push(spec);
        self
    }

    pub fn pool(mut self, pool: PoolSpec) -> Self {
        self.pools.push(pool);
        self
    }

    pub fn build(self) -> Result<Policy, BuildError> {
        if self.intercepts.len() > MAX_INTERCEPTS {
            return Err(BuildError::Intercepts(self.intercepts.len()));
        }
        if self.pools.len() > MAX_POOLS {
            return Err(BuildError::Pools(self.pools.len()));
        }
        if let Some(pool) = self.pools.iter().find(|pool| pool.servers.len() > MAX_SERVERS) {
            return Err(BuildError::Servers(pool.name.clone(), pool.servers.len()));
        }
        for spec in &self.intercepts {
            check(spec, self.pools.len())?;
        }
        let names = self.ech_public_names;
        let intercepts =
            self.intercepts.into_iter().map(|spec| Intercept::new(spec, names.clone())).collect();
        let pools = self.pools.into_iter().map(Pool::new).collect();
        Ok(Policy::new(self.epoch, self.limits, intercepts, pools))
    }
}

fn check(spec: &InterceptSpec, pools: usize) -> Result<(), BuildError> {
    if spec.rules.len() > MAX_RULES {
        return Err(BuildError::Rules(spec.name.clone(), spec.rules.len()));
    }
    for rule in &spec.rules {
        let (intercept, origin) = (spec.name.clone(), rule.origin.clone());
        match rule.action {
            Action::Send(PoolId(id)) if usize::from(id) >= pools => {
                return Err(BuildError::NoSuchPool { intercept, origin });
            }
            Action::Relay if spec.handshake != Handshake::Relay && rule.by_content() => {
                return Err(BuildError::RelayByContent { intercept, origin });
            }
            _ => {}
        }
    }
    Ok(())
}
