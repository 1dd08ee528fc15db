//! What servers are known to grant: learned from their SYN-ACKs, so that weir promises a client no more than that when it
//! answers a SYN in a server's place. Of a server that is not known everything is believed: nearly all grant what they are
//! offered, and what one does not is translated.

use super::options::SynOptions;
use crate::flow::key::FlowHasher;
use crate::ids::Nanos;
use crate::wire::addr::Endpoint;

/// The options of one destination's last SYN-ACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack: bool,
    pub timestamps: bool,
    /// The window of its SYN-ACK, in octets.
    pub window: u16,
}

/// A server that did not grant something is asked again after this long.
const FRESH: Nanos = Nanos::from_secs(600);

/// Slots; a power of two. Two destinations of one slot displace each other: then the one displaced is not known.
const SLOTS: usize = 4096;

/// Grants by destination, as clients name it.
#[derive(Debug)]
pub struct Grants {
    hasher: FlowHasher,
    slots: Vec<Option<(Endpoint, Nanos, Grant)>>,
}

impl Grants {
    pub fn new(hasher: FlowHasher) -> Self {
        Self { hasher, slots: vec![None; SLOTS] }
    }

    fn at(&self, destination: &Endpoint) -> usize {
        self.hasher.hash_any(destination) as usize & (SLOTS - 1)
    }

    /// What the destination is known to grant.
    pub fn get(&self, destination: &Endpoint, now: Nanos) -> Option<Grant> {
        match self.slots.get(self.at(destination)) {
            Some(Some((of, since, grant))) if of == destination && now.saturating_sub(*since).0 < FRESH.0 => {
                Some(*grant)
            }
            _ => None,
        }
    }

    /// Notes a SYN-ACK. What was not `offered` says nothing, and is taken to be as before.
    pub fn learn(
        &mut self,
        destination: Endpoint,
        (granted, window): (&SynOptions, u16),
        offered: &SynOptions,
        now: Nanos,
    ) {
        let before = self.get(&destination, now);
        let at = self.at(&destination);
        let Some(slot) = self.slots.get_mut(at) else { return };
        let since = match slot {
            // Only what is asked anew makes it fresh.
            Some((of, since, _)) if before.is_some() && *of == destination => *since,
            _ => now,
        };
        let grant = Grant {
            mss: granted.mss,
            window_scale: match offered.window_scale {
                Some(_) => granted.window_scale,
                None => before.and_then(|b| b.window_scale),
            },
            sack: if offered.sack { granted.sack } else { before.is_none_or(|b| b.sack) },
            timestamps: match offered.timestamps {
                Some(_) => granted.timestamps.is_some(),
                None => before.is_none_or(|b| b.timestamps),
            },
            window,
        };
        *slot = Some((destination, since, grant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::options::Timestamps;
    use crate::wire::addr::Addr;

    #[test]
    fn refused_option_is_remembered_until_it_is_stale() {
        let mut grants = Grants::new(FlowHasher::new(3));
        let server = Endpoint { addr: Addr::v4([192, 0, 2, 1]), port: 443 };
        let all = SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack: true,
            timestamps: Some(Timestamps::default()),
            ..SynOptions::default()
        };
        let none = SynOptions { mss: Some(1400), ..SynOptions::default() };
        assert_eq!(grants.get(&server, Nanos(0)), None);
        grants.learn(server, (&none, 8192), &all, Nanos(0));
        let known = grants.get(&server, Nanos::from_secs(599)).unwrap();
        assert_eq!((known.timestamps, known.sack, known.window_scale), (false, false, None));
        // A connection that did not ask changes nothing of it, nor makes it last.
        grants.learn(server, (&none, 8192), &none, Nanos::from_secs(500));
        assert!(!grants.get(&server, Nanos::from_secs(599)).unwrap().timestamps);
        assert_eq!(grants.get(&server, Nanos::from_secs(600)), None);
    }
}
