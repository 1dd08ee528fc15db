//! Makes a host what a [`HostSpec`] asks for: the due steps of its plan, in order, and back again when one fails.
//!
//! The order (addresses and sysctls, routes, rules, the nft table) means that no packet is marked before there is a route for
//! marked packets. What an earlier configuration left goes last, when no packet is marked for it any more; removal goes the
//! other way round. Applying twice changes nothing the second time.

use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::AddressScope;

use super::error::errno;
use super::journal::{Entry, Journal};
use super::link::{self, find};
use super::plan::{Action, DUMMY_ADDRESS, Plan};
use super::sysctl::Key;
use super::undo::Undo;
use super::{Fail, Host, HostError, HostSpec, Kind, Step, clean};

/// What `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// The commands that it came to; empty when everything was there.
    pub commands: Vec<String>,
    pub warnings: Vec<String>,
    /// The same as steps.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

impl Host {
    /// Installs what is missing and replaces what is stale. On an error nothing is left of what this call did, and what it
    /// replaced or removed is back.
    ///
    /// # Errors
    /// The spec is invalid, a device is missing, somebody else's table or route is in the way, or the kernel refused
    /// a step; the text names the step as a command and the kernel's reason.
    pub async fn apply(&self, spec: &HostSpec) -> Result<Applied, HostError> {
        let links = link::links(&self.netlink).await?;
        for device in spec.devices() {
            find(&links, device)?;
        }
        self.apply_chosen(spec, &mut |_| Ok(true)).await
    }

    /// The part of [`Self::apply`] that must come before the XDP program does.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn stop_merging(&self, spec: &HostSpec) -> Result<(), HostError> {
        self.apply_chosen(spec, &mut |step| Ok(step.action.is_merging_offload())).await.map(drop)
    }

    /// As [`Self::apply`], of the due steps for which `chosen` says so, and without what belongs to a device that is missing.
    /// It is asked before each, in their order; an error of its ends the work as a refusal of the kernel's does.
    ///
    /// # Errors
    /// As [`Self::apply`], and those of `chosen`.
    pub async fn apply_chosen(
        &self,
        spec: &HostSpec,
        chosen: &mut dyn FnMut(&Step) -> Result<bool, HostError>,
    ) -> Result<Applied, HostError> {
        let plan = self.plan(spec).await?;
        if let Some(step) = plan.blocker() {
            return Err(foreign(step));
        }
        let Plan { steps, warnings, .. } = plan;
        let mut applied = Applied { warnings, ..Applied::default() };
        let mut done: Vec<Undo> = Vec::new();
        for step in steps.into_iter().filter(|step| step.is_due() && !step.waits) {
            let result = match chosen(&step) {
                Ok(true) => self.execute(&step.action).await,
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            match result {
                Ok(undo) => done.extend(undo),
                Err(error) => {
                    let left = self.roll_back(done).await;
                    return Err(with_leftovers(error, &left));
                }
            }
            applied.commands.extend(step.action.commands());
            applied.steps.push(step);
        }
        Ok(applied)
    }

    /// What repairs do: each due step for which `chosen` says so by itself, in their order, with the error of each that failed. One that
    /// fails, or that something of somebody else's blocks, keeps no other from being done; but on a box that fails open the table waits
    /// for rules and routes: what it marks would be lost.
    ///
    /// # Errors
    /// The kernel does not say what there is.
    pub async fn apply_each(
        &self,
        spec: &HostSpec,
        chosen: &mut dyn FnMut(&Step) -> bool,
    ) -> Result<Vec<(Step, Option<HostError>)>, HostError> {
        let plan = self.plan(spec).await?;
        let (mut done, mut has_way) = (Vec::new(), true);
        for step in plan.steps.into_iter().filter(|step| step.blocks || step.is_due() && !step.waits) {
            let kind = step.action.kind();
            if kind == Kind::Table && spec.fail == Fail::Open && !has_way {
                continue;
            }
            let is_way = matches!(kind, Kind::Rule | Kind::Route);
            if !chosen(&step) {
                has_way &= !is_way;
                continue;
            }
            let error = match step.blocks {
                true => Some(foreign(&step)),
                false => self.execute(&step.action).await.err(),
            };
            has_way &= !(is_way && error.is_some());
            done.push((step, error));
        }
        Ok(done)
    }

    /// Does one step; how to take it back. None when there was nothing to do.
    async fn execute(&self, action: &Action) -> Result<Option<Undo>, HostError> {
        let handle = self.netlink.handle();
        let failed = |reason: String| HostError::Command { command: action.title(), reason };
        let refused = |error: std::io::Error| failed(with_hint(action, &error));
        Ok(match action {
            Action::AddAddress { device } => {
                self.address(device, true).await?.map_err(refused)?;
                Some(Undo::Address(device.clone()))
            }
            Action::SetSysctl { key, value } => Some(self.set_sysctl(key, value).await?),
            Action::AddRoute(route) => {
                route.add(handle, self.index_of("lo").await?).await.map_err(refused)?;
                Some(Undo::Route(*route))
            }
            Action::AddRule(rule) => {
                rule.add(handle).await.map_err(refused)?;
                Some(Undo::Rule(*rule))
            }
            Action::LoadTable(ruleset) => {
                let before = super::nft::read()?;
                self.note_own(ruleset.load().map_err(failed)?);
                Some(Undo::Table(before.map(|table| table.text)))
            }
            Action::DeleteRule(rule) => {
                clean::delete_rule(&self.netlink, rule).await?.map(|was| Undo::DeletedRule(Box::new(was)))
            }
            Action::DeleteRoute(route) => {
                clean::delete_route(&self.netlink, route).await?.map(|was| Undo::DeletedRoute(Box::new(was)))
            }
        })
    }

    /// The old value is on disk before the new one is in force. On an error it is as it was.
    async fn set_sysctl(&self, key: &Key, value: &str) -> Result<Undo, HostError> {
        let failed = |reason: String| HostError::Command { command: key.command(value), reason };
        let Some(old) = key.read()? else {
            return Err(failed("there is no such sysctl".to_owned()));
        };
        let before = Journal::load(&self.paths.journal)?;
        let also = key.side_effects()?;
        let undo = Undo::Sysctl {
            values: also.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            main: (key.clone(), old.clone()),
            journal: before.clone(),
        };
        let mut journal = before;
        journal.remember(Entry::new(key.clone(), old, value.to_owned(), also));
        match self.write_sysctl(key, value, &mut journal) {
            Ok(()) => Ok(undo),
            Err(error) => Err(with_leftovers(error, &self.roll_back(vec![undo]).await)),
        }
    }

    fn write_sysctl(&self, key: &Key, value: &str, journal: &mut Journal) -> Result<(), HostError> {
        journal.store(&self.paths.journal)?;
        key.write(value)
            .map_err(|error| HostError::Command { command: key.command(value), reason: error.to_string() })?;
        if journal.note_side_effects(key)? {
            journal.store(&self.paths.journal)?;
        }
        Ok(())
    }

    pub(super) async fn index_of(&self, device: &str) -> Result<u32, HostError> {
        Ok(self.link_info(device).await?.ifindex)
    }

    /// Adds or removes the address that weir's TUN devices have.
    pub(super) async fn address(&self, device: &str, add: bool) -> Result<std::io::Result<()>, HostError> {
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
fn with_hint(action: &Action, error: &std::io::Error) -> String {
    let down = error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error());
    match action {
        Action::AddRoute(_) if down => format!("{error}: the device lo is down; run `ip link set lo up`"),
        _ => error.to_string(),
    }
}

fn foreign(step: &Step) -> HostError {
    HostError::Foreign(step.note.clone().unwrap_or_else(|| step.action.title()))
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
