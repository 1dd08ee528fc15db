//! Devices, addresses and routes of the lab, over rtnetlink. Each function works on the namespace that the
//! calling thread is in; `Lab` calls them through `Namespace::run`.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::LabError;
use super::namespace::system;

/// How long a device may take to become usable.
const USABLE_LIMIT: Duration = Duration::from_secs(30);

/// An address with the length of its link's prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub ip: IpAddr,
    pub prefix_length: u8,
}

/// Name and link-layer address of one end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceEnd {
    pub name: &'static str,
    pub mac: [u8; 6],
}

/// Makes a veth pair: `here` in the calling thread's namespace, `there` in the one that `peer` names, each
/// with `queues` receive and as many transmit queues.
pub(super) fn create_veth(
    here: &DeviceEnd,
    there: &DeviceEnd,
    peer: BorrowedFd<'_>,
    queues: u32,
) -> Result<(), LabError> {
    with_netlink(async |handle| {
        let peer = end(LinkMessageBuilder::<LinkUnspec>::new(), there, queues)
            .append_extra_attribute(LinkAttribute::NetNsFd(peer.as_raw_fd()))
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        let request = handle.link().add(end(pair, here, queues).build()).execute().await;
        request.map_err(refused(&format!("create the veth pair {}, {}", here.name, there.name)))
    })
}

fn end<T>(builder: LinkMessageBuilder<T>, end: &DeviceEnd, queues: u32) -> LinkMessageBuilder<T> {
    builder
        .name(end.name)
        .address(end.mac.to_vec())
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumTxQueues(queues))
}

/// Moves a device to another namespace, under another name. It is down there, and has no addresses.
pub(super) fn move_to(device: &str, name: &str, namespace: BorrowedFd<'_>) -> Result<(), LabError> {
    with_netlink(async |handle| {
        let index = index_of(&handle, device).await?;
        let down = LinkUnspec::new_with_index(index).down().build();
        handle.link().set(down).execute().await.map_err(refused(&format!("take {device} down")))?;
        let message = LinkUnspec::new_with_index(index)
            .name(name.to_owned())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        handle.link().set(message).execute().await.map_err(refused(&format!("move {device} to a namespace")))
    })
}

/// Sets the MTU of a device.
pub(super) fn set_mtu(device: &str, mtu: u32) -> Result<(), LabError> {
    with_netlink(async |handle| {
        let index = index_of(&handle, device).await?;
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        let request = handle.link().set(message).execute().await;
        request.map_err(refused(&format!("set the MTU of {device} to {mtu}")))
    })
}

/// Gives a device its addresses and brings it up.
pub(super) fn configure(device: &str, addresses: &[Address]) -> Result<(), LabError> {
    with_netlink(async |handle| {
        let index = index_of(&handle, device).await?;
        for Address { ip, prefix_length } in addresses {
            let request = handle.address().add(index, *ip, *prefix_length).execute().await;
            request.map_err(refused(&format!("add {ip}/{prefix_length} to {device}")))?;
        }
        up(&handle, device, index).await
    })
}

/// A default route: the gateway, and the source address of connections that are bound to none.
pub(super) type DefaultRoute = (IpAddr, IpAddr);

/// Adds default routes. For IPv6 the source must be usable already, see [`wait_until_usable`].
pub(super) fn add_default_routes(routes: &[DefaultRoute]) -> Result<(), LabError> {
    with_netlink(async |handle| {
        for (gateway, source) in routes {
            let route = match (gateway, source) {
                (IpAddr::V4(gateway), IpAddr::V4(source)) => {
                    RouteMessageBuilder::<Ipv4Addr>::new().gateway(*gateway).pref_source(*source).build()
                }
                (IpAddr::V6(gateway), IpAddr::V6(source)) => {
                    RouteMessageBuilder::<Ipv6Addr>::new().gateway(*gateway).pref_source(*source).build()
                }
                _ => continue,
            };
            let request = handle.route().add(route).execute().await;
            request.map_err(refused(&format!("add the default route via {gateway}")))?;
        }
        Ok(())
    })
}

/// Waits until `device` is running and has a link-local address, and none of its addresses is tentative or without its route.
///
/// The kernel tells of a new carrier up to a second later (linkwatch); IPv6 takes up its work only then, and makes the local route of
/// an address a moment after the address.
pub(super) fn wait_until_usable(device: &str) -> Result<(), LabError> {
    let deadline = Instant::now() + USABLE_LIMIT;
    while !with_netlink(async |handle| is_usable(&handle, device).await)? {
        if Instant::now() > deadline {
            let late = io::Error::from(io::ErrorKind::TimedOut);
            return Err(system(&format!("bring {device} up within {USABLE_LIMIT:?}"))(late));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

async fn is_usable(handle: &Handle, device: &str) -> Result<bool, LabError> {
    let what = format!("look at {device}");
    let link = handle.link().get().match_name(device).execute().try_next().await.map_err(refused(&what))?;
    let Some(link) = link.filter(|link| link.header.flags.contains(LinkFlags::Running)) else {
        return Ok(false);
    };
    let (mut link_local, routes) = (false, local_routes(handle).await?);
    let mut addresses = handle.address().get().set_link_index_filter(link.header.index).execute();
    while let Some(address) = addresses.try_next().await.map_err(refused(&what))? {
        if address.header.flags.contains(AddressHeaderFlags::Tentative) {
            return Ok(false);
        }
        let is_routed = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => routes.contains(address),
            _ => true,
        };
        if !address.attributes.iter().all(is_routed) {
            return Ok(false);
        }
        link_local |=
            address.header.family == AddressFamily::Inet6 && address.header.scope == AddressScope::Link;
    }
    Ok(link_local)
}

/// IPv6 addresses that packets are delivered here for.
async fn local_routes(handle: &Handle) -> Result<HashSet<Ipv6Addr>, LabError> {
    let mut found = HashSet::new();
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await.map_err(refused("list the routes"))? {
        let destinations = route.attributes.iter().filter_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
            _ => None,
        });
        if route.header.kind == RouteType::Local {
            found.extend(destinations);
        }
    }
    Ok(found)
}

/// Brings a device up.
pub(super) fn set_up(device: &str) -> Result<(), LabError> {
    with_netlink(async |handle| {
        let index = index_of(&handle, device).await?;
        up(&handle, device, index).await
    })
}

async fn up(handle: &Handle, device: &str, index: u32) -> Result<(), LabError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.map_err(refused(&format!("bring {device} up")))
}

async fn index_of(handle: &Handle, device: &str) -> Result<u32, LabError> {
    let request = handle.link().get().match_name(device).execute().try_next().await;
    match request.map_err(refused(&format!("look {device} up")))? {
        Some(link) => Ok(link.header.index),
        None => Err(LabError::NoDevice { device: device.into(), namespace: "current" }),
    }
}

/// Runs `work` with a netlink connection of the calling thread's namespace.
pub(super) fn with_netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T, LabError>) -> Result<T, LabError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(system("start the netlink runtime"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(system("open a netlink socket"))?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// Makes a [`LabError::Netlink`] out of an error of the step `what`.
pub(super) fn refused(what: &str) -> impl FnOnce(rtnetlink::Error) -> LabError {
    let what = what.to_owned();
    move |source| LabError::Netlink { what, source }
}
