//! Makes a host what a [`HostSpec`] asks for: the due steps of its plan, in order, and back again when one fails.
//!
//! The order (addresses and sysctls, routes, rules, the nft table) means that no packet is marked before there is a route for
//! marked packets; removal goes the other way round. Applying twice changes nothing the second time.

use std::io;

use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::AddressScope;

use super::clean;
use super::error::errno;
use super::journal::{Entry, Journal};
use super::link::{self, find};
use super::plan::{Action, DUMMY_ADDRESS, Plan};
use super::sysctl::Key;
use super::{Host, HostError, HostSpec, nft};

/// What `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// The commands that it came to; empty when everything was there.
    pub commands: Vec<String>,
    pub warnings: Vec<String>,
}

impl Host {
    /// Installs what is missing and replaces what is stale. On an error nothing is left of what this call did.
    ///
    /// Errors: the spec is invalid, a device is missing, somebody else's table or route is in the way, or the kernel refused
    /// a step; the text names the step as a command and the kernel's reason.
    pub async fn apply(&self, spec: &HostSpec) -> Result<Applied, HostError> {
        let plan = self.plan(spec).await?;
        if let Some(step) = plan.blocker() {
            return Err(HostError::Foreign(step.note.clone().unwrap_or_else(|| step.action.title())));
        }
        let links = link::links(&self.netlink).await?;
        for device in spec.devices() {
            find(&links, device)?;
        }
        let Plan { steps, warnings } = plan;
        let mut applied = Applied { commands: Vec::new(), warnings };
        let mut done: Vec<Action> = Vec::new();
        for step in steps.into_iter().filter(super::Step::is_due) {
            if let Err(error) = self.execute(&step.action).await {
                let left = self.roll_back(done).await;
                return Err(with_leftovers(error, &left));
            }
            applied.commands.extend(step.action.commands());
            done.push(step.action);
        }
        Ok(applied)
    }

    async fn execute(&self, action: &Action) -> Result<(), HostError> {
        let handle = self.netlink.handle();
        let failed = |reason: String| HostError::Command { command: action.title(), reason };
        let result = match action {
            Action::AddAddress { device } => self.address(device, true).await?,
            Action::SetSysctl { key, value } => self.set_sysctl(key, value)?,
            Action::AddRoute(route) => route.add(handle, self.index_of("lo").await?).await,
            Action::AddRule(rule) => rule.add(handle).await,
            Action::LoadTable(ruleset) => return ruleset.load().map_err(failed),
            Action::DeleteRule(rule) => return clean::delete_rule(&self.netlink, rule).await,
            Action::DeleteRoute(route) => return clean::delete_route(&self.netlink, route).await,
        };
        result.map_err(|e| failed(with_hint(action, &e)))
    }

    /// Undoes in reverse; returns what could not be undone.
    async fn roll_back(&self, done: Vec<Action>) -> Vec<HostError> {
        let handle = self.netlink.handle();
        let mut left = Vec::new();
        for action in done.into_iter().rev() {
            let undone = match &action {
                Action::AddAddress { device } => self.address(device, false).await,
                Action::SetSysctl { key, .. } => Journal::load(&self.paths.journal)
                    .and_then(|mut journal| journal.take_back(key, &self.paths.journal))
                    .map(Ok),
                Action::AddRoute(route) => match self.index_of("lo").await {
                    Ok(lo) => Ok(route.delete(handle, lo).await),
                    Err(e) => Err(e),
                },
                Action::AddRule(rule) => Ok(rule.delete(handle).await),
                Action::LoadTable(_) => nft::delete().map(Ok),
                // Of an earlier configuration, and nobody's wish any more.
                Action::DeleteRule(_) | Action::DeleteRoute(_) => Ok(Ok(())),
            };
            match undone {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    left.push(HostError::Command {
                        command: action.title(),
                        reason: format!("taking it back: {e}"),
                    });
                }
                Err(e) => left.push(e),
            }
        }
        left
    }

    /// The old value is on disk before the new one is in force.
    fn set_sysctl(&self, key: &Key, value: &str) -> Result<io::Result<()>, HostError> {
        let Some(old) = key.read()? else {
            return Ok(Err(io::Error::from(io::ErrorKind::NotFound)));
        };
        let mut journal = Journal::load(&self.paths.journal)?;
        let also = key.side_effects()?.into_iter().collect();
        journal.remember(Entry { key: key.clone(), old, new: value.to_owned(), also });
        journal.store(&self.paths.journal)?;
        Ok(key.write(value))
    }

    async fn index_of(&self, device: &str) -> Result<u32, HostError> {
        Ok(self.link_info(device).await?.ifindex)
    }

    async fn address(&self, device: &str, add: bool) -> Result<io::Result<()>, HostError> {
        let index = self.index_of(device).await?;
        let handle = self.netlink.handle().address();
        let mut message = AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(DUMMY_ADDRESS, 32)
            .build();
        message.header.scope = AddressScope::Link;
        let result = if add {
            let mut request = handle.add(index, DUMMY_ADDRESS.into(), 32);
            request.message_mut().header.scope = AddressScope::Link;
            request.execute().await
        } else {
            handle.del(message).execute().await
        };
        Ok(result.map_err(errno))
    }
}

/// What the errno alone does not tell.
fn with_hint(action: &Action, error: &io::Error) -> String {
    let down = error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error());
    match action {
        Action::AddRoute(_) if down => format!("{error}: the device lo is down; run `ip link set lo up`"),
        _ => error.to_string(),
    }
}

fn with_leftovers(error: HostError, left: &[HostError]) -> HostError {
    if left.is_empty() {
        return error;
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    HostError::Kernel(format!(
        "{error}; and could not take back everything: {}; run `weir clean`",
        left.join("; ")
    ))
}
