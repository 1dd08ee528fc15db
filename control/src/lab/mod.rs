//! A gateway between a client and a server, in three network namespaces of this process's own.
//!
//! ```text
//!   client namespace            gateway namespace                server namespace
//!   client0 ---------------- lan0            wan0 ---------------- server0
//!   10.77.1.2, 10.77.1.9     10.77.1.1       192.0.2.1      192.0.2.10, .11, .12
//!   fd77:1::2, fd77:1::9     fd77:1::1       2001:db8:2::1  2001:db8:2::10, ::11, ::12
//! ```
//!
//! For `weir demo` and for the namespace tests. Nothing of the host is touched: namespaces are held by
//! descriptors and threads of this process, so that they, their devices, rules and children vanish with it,
//! whether it returns, panics, is interrupted or is killed. Gateway and server have their own mounts besides: an empty
//! `/run`, a `/sys` and a BPF file system.
//!
//! ```no_run
//! use weir_control::lab::{Lab, LabOptions};
//! let lab = Lab::new(&LabOptions { queues: 2, forwarding: Some(true), ..LabOptions::default() })?;
//! let listener = lab.server.run(|| std::net::TcpListener::bind("192.0.2.10:80"))?;
//! let capture = lab.capture(&lab.gateway, "wan0")?;
//! let stream = lab.client.run(|| std::net::TcpStream::connect("192.0.2.10:80"))?;
//! assert!(capture.stop().iter().any(|frame| frame.outgoing));
//! # Ok::<(), weir_control::lab::LabError>(())
//! ```

mod capture;
mod frame;
mod given;
mod links;
mod namespace;
mod state;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use capture::{Capture, CapturedFrame};
pub use frame::{Checksums, TcpFrame};
pub use given::Devices;
pub use namespace::{Namespace, NamespaceChild};
pub use state::{current_state, differences, host_state};
pub use wire::{Badness, Carried, Wire};

use given::Borrowed;
use links::{Address, DeviceEnd};

/// Device in the client namespace.
pub const CLIENT_DEVICE: &str = "client0";
/// Device in the gateway namespace towards the clients.
pub const LAN_DEVICE: &str = "lan0";
/// Device in the gateway namespace towards the servers.
pub const WAN_DEVICE: &str = "wan0";
/// Device in the server namespace.
pub const SERVER_DEVICE: &str = "server0";

/// The addresses of one IP version in the lab.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The usual client.
    pub client: IpAddr,
    /// A second address of the client, for rules by source.
    pub other_client: IpAddr,
    /// The gateway as the clients see it.
    pub lan_gateway: IpAddr,
    /// The gateway as the servers see it.
    pub wan_gateway: IpAddr,
    /// The servers, all in one namespace on one device.
    pub servers: [IpAddr; 3],
    /// Length of both links' prefixes.
    pub prefix_length: u8,
}

/// IPv4 in the lab.
pub const IPV4: Addresses = Addresses {
    client: IpAddr::V4(Ipv4Addr::new(10, 77, 1, 2)),
    other_client: IpAddr::V4(Ipv4Addr::new(10, 77, 1, 9)),
    lan_gateway: IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1)),
    wan_gateway: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    servers: [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 12)),
    ],
    prefix_length: 24,
};

/// IPv6 in the lab.
pub const IPV6: Addresses = Addresses {
    client: IpAddr::V6(Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2)),
    other_client: IpAddr::V6(Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 9)),
    lan_gateway: IpAddr::V6(Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1)),
    wan_gateway: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)),
    servers: [
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x11)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x12)),
    ],
    prefix_length: 64,
};

/// Why a lab could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A namespace, mount, thread or socket was refused.
    #[error("lab: cannot {what}: {source}{}", hint(.source))]
    System {
        /// What was tried, as a phrase that follows "cannot".
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("lab: cannot {what}: {source}")]
    Netlink {
        /// What was tried, as a phrase that follows "cannot".
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// There is no such device in the namespace.
    #[error("lab: no device {device} in the {namespace} namespace")]
    NoDevice {
        /// The device that was asked for.
        device: String,
        /// Where it was looked for.
        namespace: &'static str,
    },
}

/// Says that a test, or a row of it, shows nothing on this machine, and why: where it is seen also of a test that passes.
pub fn skipped(why: &str) {
    use io::Write as _;
    let thread = std::thread::current();
    let line = format!("SKIPPED: {}: {why}\n", thread.name().unwrap_or("a test"));
    // Not by a macro: what those write the test harness keeps to itself.
    drop(io::stderr().write_all(line.as_bytes()));
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run as root: namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        _ => "",
    }
}

impl From<io::Error> for LabError {
    fn from(source: io::Error) -> Self {
        Self::System { what: "use a socket of the lab".into(), source }
    }
}

/// What can be chosen about a lab.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    /// Receive and transmit queues of each of the four devices.
    pub queues: u32,
    /// Forwarding in the gateway for both families; `None` leaves it as the kernel made it.
    pub forwarding: Option<bool>,
    /// Of all devices, instead of the one that they have.
    pub mtu: Option<u32>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { queues: 1, forwarding: None, mtu: None }
    }
}

/// Three namespaces, joined and addressed as the module's picture shows. Dropping it ends its children.
#[derive(Debug)]
pub struct Lab {
    /// Devices of the host that are in the lab. They go home before the namespaces go.
    borrowed: Vec<Borrowed>,
    /// Where the clients are.
    pub client: Namespace,
    /// Where weir runs.
    pub gateway: Namespace,
    /// Where the origins are.
    pub server: Namespace,
    /// What carries the frames of both links, where they are bad ones.
    wires: Option<Wires>,
}

/// What joins the namespaces.
#[derive(Clone, Copy, Debug)]
enum Links<'a> {
    Own,
    Given(&'a Devices),
    Bad([Badness; 2]),
}

/// Bad links: a namespace between the others, where a wire carries the frames of each.
#[derive(Debug)]
struct Wires {
    lan: Wire,
    wan: Wire,
    /// Outlives its wires.
    _namespace: Namespace,
}

impl Lab {
    /// Builds the namespaces, devices, addresses and default routes; all are usable when it returns.
    ///
    /// # Errors
    /// [`LabError`] says which step was refused; nothing remains of what was built before it.
    pub fn new(options: &LabOptions) -> Result<Self, LabError> {
        Self::build(options, Links::Own)
    }

    /// As [`Self::new`], with devices that there are, in the calling thread's namespace, instead of veth pairs. They have the queues that
    /// they have.
    ///
    /// # Errors
    /// As of [`Self::new`]; and when there is no such device, or it cannot be moved.
    pub fn over(options: &LabOptions, devices: &Devices) -> Result<Self, LabError> {
        Self::build(options, Links::Given(devices))
    }

    /// As [`Self::new`], with links that are as bad as said: that of the clients, that of the servers. All devices at
    /// their ends send frames of the MTU at most, with whole checksums.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn with_bad_links(options: &LabOptions, lan: Badness, wan: Badness) -> Result<Self, LabError> {
        Self::build(options, Links::Bad([lan, wan]))
    }

    /// Ends both wires of [`Self::with_bad_links`]: what that of the clients and that of the servers has carried. The
    /// links carry nothing from here on.
    pub fn stop_wires(&mut self) -> Option<[Carried; 2]> {
        self.wires.take().map(|wires| [wires.lan.stop(), wires.wan.stop()])
    }

    fn build(options: &LabOptions, links: Links<'_>) -> Result<Self, LabError> {
        let mut lab = Self {
            borrowed: Vec::new(),
            client: Namespace::new("client")?,
            gateway: Namespace::with_private_mounts("gateway")?,
            server: Namespace::with_private_mounts("server")?,
            wires: None,
        };
        for namespace in [&lab.client, &lab.gateway, &lab.server] {
            // Duplicate address detection would keep new IPv6 addresses unusable for a second or two.
            namespace.write_sysctl("net/ipv6/conf/all/accept_dad", "0")?;
            namespace.write_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            namespace.run(|| links::set_up("lo"))?;
        }
        if let Some(on) = options.forwarding {
            lab.set_forwarding(on)?;
        }
        lab.make_links(options, links)?;
        lab.wait_for_links()?;
        Ok(lab)
    }

    fn make_links(&mut self, options: &LabOptions, links: Links<'_>) -> Result<(), LabError> {
        match links {
            Links::Own => {
                self.join(&LAN_LINK, &self.client, options)?;
                self.join(&WAN_LINK, &self.server, options)
            }
            Links::Given(devices) => {
                for (device, here) in devices.pairs() {
                    let namespace = match here {
                        CLIENT_DEVICE => &self.client,
                        SERVER_DEVICE => &self.server,
                        _ => &self.gateway,
                    };
                    self.borrowed.push(Borrowed::take(device, here, namespace)?);
                }
                self.configure(&LAN_LINK, &self.client, options)?;
                self.configure(&WAN_LINK, &self.server, options)
            }
            Links::Bad([lan, wan]) => {
                let between = Namespace::new("wire")?;
                // It carries, and says nothing itself.
                between.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
                let lan = self.join_over(&between, &LAN_LINK, &self.client, options, lan)?;
                let wan = self.join_over(&between, &WAN_LINK, &self.server, options, wan)?;
                self.wires = Some(Wires { lan, wan, _namespace: between });
                Ok(())
            }
        }
    }

    /// Waits until all devices are usable, and adds the default routes of both ends.
    fn wait_for_links(&self) -> Result<(), LabError> {
        self.wait_for_gateway()?;
        self.client.run(|| {
            links::wait_until_usable(CLIENT_DEVICE)?;
            links::add_default_routes(&[IPV4, IPV6].map(|family| (family.lan_gateway, family.client)))
        })?;
        self.wait_for_servers()
    }

    fn wait_for_servers(&self) -> Result<(), LabError> {
        self.server.run(|| {
            links::wait_until_usable(SERVER_DEVICE)?;
            links::add_default_routes(&[IPV4, IPV6].map(|family| (family.wan_gateway, family.servers[0])))
        })
    }

    /// Waits until the gateway's devices are usable again: that of a NIC whose XDP program went away may come up anew.
    ///
    /// # Errors
    /// [`LabError::System`] when they are not within 10 s.
    pub fn wait_for_gateway(&self) -> Result<(), LabError> {
        self.gateway.run(|| [LAN_DEVICE, WAN_DEVICE].into_iter().try_for_each(links::wait_until_usable))
    }

    /// A lab for a test, or `None` where namespaces are refused: then the reason is printed and the test
    /// should return, since it cannot show anything.
    ///
    /// # Panics
    /// Where namespaces are refused and `CI=true`, since there a skipped test counts as failed; and when
    /// something else than a missing privilege is in the way.
    pub fn for_test(options: &LabOptions) -> Option<Self> {
        Self::or_skipped(Self::new(options))
    }

    /// As [`Self::for_test`], of [`Self::with_bad_links`].
    ///
    /// # Panics
    /// As of [`Self::for_test`].
    pub fn with_bad_links_for_test(options: &LabOptions, lan: Badness, wan: Badness) -> Option<Self> {
        Self::or_skipped(Self::with_bad_links(options, lan, wan))
    }

    fn or_skipped(lab: Result<Self, LabError>) -> Option<Self> {
        match lab {
            Ok(lab) => Some(lab),
            Err(LabError::System { what, source }) if source.kind() == io::ErrorKind::PermissionDenied => {
                let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!ci, "this test needs root: cannot {what}: {source}");
                skipped(&format!("this test needs root: cannot {what}: {source}"));
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Switches forwarding of both families in the gateway.
    ///
    /// # Errors
    /// [`LabError::System`] when the kernel refuses, e.g. without IPv6.
    pub fn set_forwarding(&self, on: bool) -> Result<(), LabError> {
        let value = if on { "1" } else { "0" };
        self.gateway.write_sysctl("net/ipv4/conf/all/forwarding", value)?;
        self.gateway.write_sysctl("net/ipv6/conf/all/forwarding", value)
    }

    /// Begins to record every frame that `device` sends and receives in `namespace`, one of this lab's.
    ///
    /// # Errors
    /// [`LabError::NoDevice`], or [`LabError::System`] when packet sockets are refused.
    pub fn capture(&self, namespace: &Namespace, device: &str) -> Result<Capture, LabError> {
        Capture::start(namespace, device)
    }

    /// Makes one veth pair between the gateway and a namespace beside it, with addresses.
    fn join(&self, link: &Link, neighbour: &Namespace, options: &LabOptions) -> Result<(), LabError> {
        let (inner, outer) = (link.inner(), link.outer());
        self.gateway.run(|| links::create_veth(&inner, &outer, neighbour.net_fd(), options.queues))?;
        self.configure(link, neighbour, options)
    }

    /// Makes the link between gateway and servers of [`Self::new`] again, after it was removed; it is usable when this returns.
    ///
    /// # Errors
    /// [`LabError::System`] when it is there still.
    pub fn make_servers_link(&self, options: &LabOptions) -> Result<(), LabError> {
        self.join(&WAN_LINK, &self.server, options)?;
        self.wait_for_gateway()?;
        self.wait_for_servers()
    }

    /// Makes a link of two veth pairs with a wire between them.
    fn join_over(
        &self,
        between: &Namespace,
        link: &Link,
        neighbour: &Namespace,
        options: &LabOptions,
        badness: Badness,
    ) -> Result<Wire, LabError> {
        for (namespace, end, (name, mac)) in
            [(neighbour, link.outer(), link.wire_ends[0]), (&self.gateway, link.inner(), link.wire_ends[1])]
        {
            let far = DeviceEnd { name, mac };
            namespace.run(|| links::create_veth(&end, &far, between.net_fd(), options.queues))?;
            let plain = namespace.run(|| weir_sys::ethtool::set_tx_checksums(end.name, false));
            plain.map_err(namespace::system(&format!("switch the offloads of {} off", end.name)))?;
            between.run(|| links::set_up(name))?;
        }
        self.configure(link, neighbour, options)?;
        Wire::join(between, link.wire_ends.map(|(name, _)| name), badness)
    }

    /// Gives both ends of a link their MTU and their addresses.
    fn configure(&self, link: &Link, neighbour: &Namespace, options: &LabOptions) -> Result<(), LabError> {
        if let Some(mtu) = options.mtu {
            neighbour.run(|| links::set_mtu(link.outer_device, mtu))?;
            self.gateway.run(|| links::set_mtu(link.gateway_device, mtu))?;
        }
        let gateway_addresses: Vec<Address> = link.gateway.iter().map(|ip| address(*ip)).collect();
        let outer_addresses: Vec<Address> = (link.outer)().into_iter().map(address).collect();
        neighbour.run(|| links::configure(link.outer_device, &outer_addresses))?;
        self.gateway.run(|| links::configure(link.gateway_device, &gateway_addresses))
    }
}

/// One of the two links of the lab.
struct Link {
    gateway_device: &'static str,
    gateway_mac: [u8; 6],
    outer_device: &'static str,
    outer_mac: [u8; 6],
    gateway: [IpAddr; 2],
    outer: fn() -> Vec<IpAddr>,
    /// Devices of a wire between, towards the neighbour and towards the gateway.
    wire_ends: [(&'static str, [u8; 6]); 2],
}

impl Link {
    const fn inner(&self) -> DeviceEnd {
        DeviceEnd { name: self.gateway_device, mac: self.gateway_mac }
    }
    const fn outer(&self) -> DeviceEnd {
        DeviceEnd { name: self.outer_device, mac: self.outer_mac }
    }
}

const LAN_LINK: Link = Link {
    gateway_device: LAN_DEVICE,
    gateway_mac: [0x02, 0x77, 0, 0, 0, 2],
    outer_device: CLIENT_DEVICE,
    outer_mac: [0x02, 0x77, 0, 0, 0, 1],
    gateway: [IPV4.lan_gateway, IPV6.lan_gateway],
    outer: || vec![IPV4.client, IPV4.other_client, IPV6.client, IPV6.other_client],
    wire_ends: [("client1", [0x02, 0x77, 0, 0, 0, 5]), ("lan1", [0x02, 0x77, 0, 0, 0, 6])],
};

const WAN_LINK: Link = Link {
    gateway_device: WAN_DEVICE,
    gateway_mac: [0x02, 0x77, 0, 0, 0, 3],
    outer_device: SERVER_DEVICE,
    outer_mac: [0x02, 0x77, 0, 0, 0, 4],
    gateway: [IPV4.wan_gateway, IPV6.wan_gateway],
    outer: || IPV4.servers.into_iter().chain(IPV6.servers).collect(),
    wire_ends: [("server1", [0x02, 0x77, 0, 0, 0, 7]), ("wan1", [0x02, 0x77, 0, 0, 0, 8])],
};

fn address(ip: IpAddr) -> Address {
    let family = if ip.is_ipv4() { IPV4 } else { IPV6 };
    Address { ip, prefix_length: family.prefix_length }
}

#[cfg(test)]
mod tests;
