//! How one step of an apply is taken back: to what was there right before it, which may be weir's own of an earlier
//! configuration.

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;

use super::journal::Journal;
use super::netlink::done;
use super::nft::{self, TABLE};
use super::plan::Action;
use super::rule::{LocalRoute, MarkRule};
use super::sysctl::Key;
use super::{Host, HostError};

/// The way back from a step that was done.
#[derive(Debug)]
pub(super) enum Undo {
    /// The address was added to this device.
    Address(String),
    Sysctl {
        /// The key that was written, and its value before.
        main: (Key, String),
        /// What the kernel changed along with it, and the values before.
        values: Vec<(Key, String)>,
        /// The journal as it was before.
        journal: Journal,
    },
    Route(LocalRoute),
    Rule(MarkRule),
    /// The table before, as nft printed it.
    Table(Option<String>),
    DeletedRule(Box<RuleMessage>),
    DeletedRoute(Box<RouteMessage>),
}

impl Host {
    /// Undoes in reverse; returns what could not be undone.
    pub(super) async fn roll_back(&self, steps: Vec<Undo>) -> Vec<HostError> {
        let mut left = Vec::new();
        for undo in steps.into_iter().rev() {
            if let Err(error) = self.undo(undo).await {
                left.push(error);
            }
        }
        left
    }

    async fn undo(&self, undo: Undo) -> Result<(), HostError> {
        let handle = self.netlink.handle();
        let refused = |command: String| {
            move |error: std::io::Error| HostError::Command {
                command,
                reason: format!("taking it back: {error}"),
            }
        };
        match undo {
            Undo::Address(device) => {
                let command = Action::AddAddress { device: device.clone() }.title();
                self.address(&device, false).await?.map_err(refused(command))
            }
            Undo::Sysctl { main, values, journal } => {
                // The main key first: writing it changes the others.
                for (key, value) in std::iter::once(main).chain(values) {
                    if key.read()?.is_some_and(|now| now != value) {
                        key.write(&value).map_err(refused(key.command(&value)))?;
                    }
                }
                journal.store(&self.paths.journal)
            }
            Undo::Route(route) => {
                let lo = self.index_of("lo").await?;
                route.delete(handle, lo).await.map_err(refused(route.command("add")))
            }
            Undo::Rule(rule) => rule.delete(handle).await.map_err(refused(rule.command("add"))),
            Undo::Table(before) => {
                let before = before.unwrap_or_default();
                let pid = nft::run_script(&format!("delete table {TABLE}\n{before}"), &[])?;
                self.note_own(pid);
                Ok(())
            }
            Undo::DeletedRule(message) => {
                let mut request = handle.rule().add();
                *request.message_mut() = *message;
                done(request.execute().await).map_err(refused("ip rule del".to_owned()))
            }
            Undo::DeletedRoute(mut message) => {
                // What the kernel tells of a route, and does not take.
                let told = |a: &RouteAttribute| {
                    matches!(a, RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_))
                };
                message.attributes.retain(|attribute| !told(attribute));
                done(handle.route().add(*message).execute().await).map_err(refused("ip route del".to_owned()))
            }
        }
    }
}
