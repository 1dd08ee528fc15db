//! What a box that fails closed does with what nobody looks at: while weir starts, and when a port is lost.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::convert;
use super::parts::Parts;
use super::signals::Signals;
use crate::config::{self, Config};
use crate::exit::Failure;
use crate::host::{Closed, Fail, Host, HostEvent, LinkInfo, Lock, sub_interface};

/// What the log says when a box that fails closed is left so.
const CLOSED: &str =
    "fail = \"closed\": what is to be intercepted is dropped until weir runs, or `weir clean` opens the box";

/// Before anything else of a start, and when what has started ends by itself: whatever ends it, be it the kernel for want of
/// memory, nothing is forwarded that is to be intercepted. Whether it is so now, which is asked only where the box fails closed.
pub async fn begin(config: &Config, host: &Host) -> Closed {
    if config.gateway.fail != config::Fail::Closed {
        return Closed::No;
    }
    let links = host.all_links().await;
    let done = links.as_ref().map_err(ToString::to_string).and_then(|links| shut(config, host, links));
    let Err(error) = done else { return Closed::Yes };
    let closed = links.map_or(Closed::Unknown, |links| Closed::of(&links));
    match closed {
        Closed::Yes => tracing::warn!(%error, "the box stays closed by what an earlier weir has left alone"),
        Closed::No => {
            tracing::error!("fail = \"closed\", but what is to be intercepted is forwarded: {error}");
        }
        Closed::Unknown => tracing::error!(
            "fail = \"closed\", but what is to be intercepted is forwarded, unless an earlier weir has left the box closed, which \
             cannot be seen here: {error}"
        ),
    }
    closed
}

fn shut(config: &Config, host: &Host, links: &[LinkInfo]) -> Result<(), String> {
    let vlans = sub_interface::of_ports(&convert::ports(config), links);
    host.shut(&convert::host_spec(config, &vlans), links).map_err(|error| error.to_string())
}

/// This process cannot even begin. Where another weir runs, it goes on as it was.
pub async fn refuse(config: &Config, host: &Host, failure: Failure, signals: &mut Signals) -> Failure {
    let Ok(_lock) = Lock::acquire() else { return failure };
    let closed = begin(config, host).await;
    if signals.has_come().await {
        let removed = host.clean().await;
        drop(removed.inspect_err(|error| tracing::error!(%error, "what an earlier weir left stays")));
    } else if closed == Closed::Yes {
        tell();
    }
    failure
}

/// Says that the box is closed.
pub fn tell() {
    tracing::warn!("{CLOSED}");
}

impl Parts {
    /// A change of the host: carried to those who need it, and what it means for a box that fails closed.
    ///
    /// # Errors
    /// As of [`Self::follow`].
    pub async fn take_in(&mut self, host: &Host, event: HostEvent) -> Result<(), Failure> {
        let are_vlans = matches!(event, HostEvent::Vlans(_));
        let followed = self.follow(host, event);
        if are_vlans {
            self.follow_vlans(host).await;
        }
        self.shut_lost_ports(host).await;
        followed
    }

    /// On a box that fails closed: shuts out what comes by ports that are lost, or whose program somebody keeps off, and by other devices
    /// of their names; and lets it in when they are back.
    pub(super) async fn shut_lost_ports(&mut self, host: &Host) {
        let is_closed = self.steering_fails_closed();
        let mut lost: BTreeSet<String> = match self.state.lost.lock() {
            Ok(lost) if is_closed => lost.keys().cloned().collect(),
            _ => BTreeSet::new(),
        };
        if is_closed {
            lost.extend(self.repair.bare().map(str::to_owned));
        }
        let vlans: Vec<String> = lost.iter().flat_map(|device| self.vlans_on(device)).collect();
        let lost: Vec<String> = lost.into_iter().chain(vlans).collect();
        let indexes = self.indexes();
        if lost == self.spec.lost && indexes == self.spec.indexes {
            return;
        }
        // Should it fail, it is missing, and the next round of repairs tries again.
        (self.spec.lost, self.spec.indexes) = (lost, indexes);
        if let Err(error) = host.apply_chosen(&self.spec, &mut |_| Ok(true)).await {
            tracing::error!(%error, "connections that come by a lost port are not dropped");
        }
    }

    /// Whether the box fails closed, and has a steering program that it is closed by.
    fn steering_fails_closed(&self) -> bool {
        self.spec.fail == Fail::Closed && convert::has_fast_road(&self.config)
    }

    /// The indexes of the devices that steering is on, and of their VLANs, where the box fails closed; as they were while another process
    /// has the fast road.
    pub(super) fn indexes(&self) -> BTreeSet<u32> {
        if !self.steering_fails_closed() {
            return BTreeSet::new();
        }
        let steering = self.state.steering.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(steering) = steering.as_ref() else { return self.spec.indexes.clone() };
        let vlans = self.vlans.iter().map(|(_, sub)| sub.link.ifindex);
        steering.attached().map(|(_, index)| index).chain(vlans).collect()
    }
}
