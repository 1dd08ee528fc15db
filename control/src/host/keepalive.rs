//! Keeps the kernel's neighbour entries true while their traffic passes it by.
//!
//! The kernel confirms a neighbour when its own traffic uses it. On the fast road it sees none: entries go STALE, are never
//! asked about again, and a station that moved to another address would be sent to forever. So the watcher says "use" in the
//! kernel's ear (RTM_NEWNEIGH with NTF_USE, as if a packet had been sent): STALE becomes DELAY, then PROBE, then REACHABLE
//! or FAILED, and what comes of it arrives as a notification like any other.

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use tracing::debug;
use weir_core::ids::PortId;

use super::netlink::{Netlink, done};
use super::picture::{Neighbour, Picture};

/// Neighbours that one round asks about, routers aside: bounds the ARP and ND traffic on links with many stations.
const PER_ROUND: usize = 256;

/// Remembers where the last round stopped.
#[derive(Debug, Default)]
pub struct Keepalive {
    next: usize,
}

impl Keepalive {
    /// Whom to ask about now: routers that are stale or unknown, then stale neighbours in turn.
    pub fn due(&mut self, picture: &Picture) -> Vec<(u32, IpAddr)> {
        let mut due: Vec<(u32, IpAddr)> = Vec::new();
        let known = |port: PortId, router: IpAddr| {
            picture.neighbours.iter().find(move |n| n.port == port && n.address == router)
        };
        for &(port, router) in &picture.routers {
            match known(port, router) {
                Some(n) if needs_asking(n) => due.push((n.ifindex, router)),
                Some(_) => {}
                None => due.extend(ifindex(picture, port).map(|index| (index, router))),
            }
        }
        let stale: Vec<&Neighbour> =
            picture.neighbours.iter().filter(|n| n.state == NeighbourState::Stale).collect();
        let start = if stale.is_empty() { 0 } else { self.next % stale.len() };
        let turn = stale.iter().cycle().skip(start).take(stale.len().min(PER_ROUND));
        let turn: Vec<(u32, IpAddr)> =
            turn.map(|n| (n.ifindex, n.address)).filter(|asked| !due.contains(asked)).collect();
        self.next = start + turn.len();
        due.extend(turn);
        due
    }

    /// Asks.
    pub async fn round(&mut self, netlink: &Netlink, picture: &Picture) {
        for (ifindex, address) in self.due(picture) {
            let request = netlink.handle().neighbours().add(ifindex, address);
            // NTF_USE keeps the entry's state; CREATE (part of replace) makes one for an unknown router.
            let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
            if let Err(error) = done(request.execute().await) {
                debug!(%address, ifindex, %error, "cannot ask about a neighbour");
            }
        }
    }
}

/// An administrator's entries (PERMANENT, NOARP) must not be touched: "use" would make them ordinary.
fn needs_asking(neighbour: &Neighbour) -> bool {
    matches!(neighbour.state, NeighbourState::Stale | NeighbourState::Failed | NeighbourState::None)
}

fn ifindex(picture: &Picture, port: PortId) -> Option<u32> {
    picture.fib.links.get(usize::from(port.0))?.filter(|link| link.up)?;
    picture.ports.get(usize::from(port.0))?.as_ref().map(|link| link.ifindex)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn stale(last: u16) -> Neighbour {
        let [high, low] = last.to_be_bytes();
        Neighbour {
            port: PortId(0),
            ifindex: 7,
            address: [10, 0, high, low].into(),
            mac: Some([2, 0, 0, 0, high, low]),
            state: NeighbourState::Stale,
        }
    }

    #[test]
    fn many_stale_neighbours_take_turns_within_the_bound() {
        let picture = Picture { neighbours: (0..600).map(stale).collect(), ..Picture::default() };
        let mut keepalive = Keepalive::default();
        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            let due = keepalive.due(&picture);
            assert_eq!(due.len(), PER_ROUND);
            asked.extend(due);
        }
        assert_eq!(asked.len(), 600);
    }

    #[test]
    fn router_is_asked_once_and_a_permanent_one_never() {
        let mut picture = Picture { neighbours: vec![stale(1), stale(2)], ..Picture::default() };
        picture.routers.insert((PortId(0), [10, 0, 0, 2].into()));
        assert_eq!(
            Keepalive::default().due(&picture),
            [(7, [10, 0, 0, 2].into()), (7, [10, 0, 0, 1].into())]
        );
        for neighbour in &mut picture.neighbours {
            neighbour.state = NeighbourState::Permanent;
        }
        assert_eq!(Keepalive::default().due(&picture), []);
    }
}
