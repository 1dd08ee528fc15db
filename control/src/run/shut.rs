//! What a port that is lost means for a box that fails closed: nobody looks at what comes by it.

use super::convert;
use super::parts::Parts;
use crate::exit::Failure;
use crate::host::{Fail, Host, HostEvent};

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

    /// On a box that fails closed: shuts out what comes by ports that are lost, and lets it in when they are back.
    pub(super) async fn shut_lost_ports(&mut self, host: &Host) {
        let is_closed = self.spec.fail == Fail::Closed && convert::has_fast_road(&self.config);
        let lost: Vec<String> = match self.state.lost.lock() {
            Ok(lost) if is_closed => lost.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let vlans: Vec<String> = lost.iter().flat_map(|device| self.vlans_on(device)).collect();
        let lost: Vec<String> = lost.into_iter().chain(vlans).collect();
        if lost == self.spec.lost {
            return;
        }
        // Should it fail, it is missing, and the next round of repairs tries again.
        self.spec.lost = lost;
        if let Err(error) = host.apply_chosen(&self.spec, &mut |_| Ok(true)).await {
            tracing::error!(%error, "connections that come by a lost port are not dropped");
        }
    }
}
