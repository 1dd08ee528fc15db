//! Devices of the calling thread's namespace in the places of the lab's own: real NICs, joined by cables or switches.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use weir_sys::ethtool;

use super::namespace::{Namespace, system};
use super::{CLIENT_DEVICE, LAN_DEVICE, LabError, SERVER_DEVICE, WAN_DEVICE, links};

/// Four devices, each named as where it is now. Those of the client and the LAN must reach each other, and those of the server and
/// the WAN. Their addresses are lost; the devices come back with their MTU when the lab goes.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Of the client.
    pub client: String,
    /// Of the gateway, towards the client.
    pub lan: String,
    /// Of the gateway, towards the servers.
    pub wan: String,
    /// Of the servers.
    pub server: String,
}

impl Devices {
    pub(super) fn pairs(&self) -> [(&str, &'static str); 4] {
        [
            (&self.client, CLIENT_DEVICE),
            (&self.lan, LAN_DEVICE),
            (&self.wan, WAN_DEVICE),
            (&self.server, SERVER_DEVICE),
        ]
    }
}

/// A device that is in the lab for now. Dropping it sends it home, under its own name.
#[derive(Debug)]
pub(super) struct Borrowed {
    name: String,
    here: &'static str,
    home: OwnedFd,
    namespace: Namespace,
    mtu: u32,
}

impl Borrowed {
    /// Moves the device `name` of the calling thread's namespace to `namespace`, where it is called `here`.
    pub(super) fn take(name: &str, here: &'static str, namespace: &Namespace) -> Result<Self, LabError> {
        let path = "/proc/thread-self/ns/net";
        let home = File::open(path).map(OwnedFd::from).map_err(system(&format!("open {path}")))?;
        let mtu = ethtool::mtu_of(name).map_err(system(&format!("read the MTU of {name}")))?;
        links::move_to(name, here, namespace.net_fd())?;
        Ok(Self { name: name.to_owned(), here, home, namespace: namespace.same()?, mtu })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // A device whose driver was unbound meanwhile is not there any more.
        let _ = self.namespace.run(|| {
            let _ = links::set_mtu(self.here, self.mtu);
            links::move_to(self.here, &self.name, self.home.as_fd())
        });
    }
}
