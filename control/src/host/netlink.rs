//! One rtnetlink connection of the calling thread's network namespace, with errors as errno texts.

use std::io;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::HostError;
use super::error::errno;
use super::spec::Family;

/// Requests and dumps. Notifications have a connection of their own (see `watch`), so that a burst of them cannot push the
/// answer of a dump out of the socket's buffer.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    /// Asks the kernel to look at what a dump is limited to, which it does on request alone.
    strict: Handle,
    connections: [JoinHandle<()>; 2],
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }
}

/// Which routes a dump is limited to.
#[derive(Clone, Copy, Debug)]
pub enum Routes {
    Table(u32),
    /// rtnetlink's protocol number.
    Protocol(u8),
}

impl Netlink {
    /// Must be called on a tokio runtime.
    pub fn open() -> Result<Self, HostError> {
        let failed = |source| HostError::Netlink { what: "a netlink socket", source };
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        let (limited, strict, _) = rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        Ok(Self { handle, strict, connections: [tokio::spawn(connection), tokio::spawn(limited)] })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub async fn links(&self) -> Result<Vec<LinkMessage>, HostError> {
        self.handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("links", e))
    }

    pub async fn addresses(&self) -> Result<Vec<AddressMessage>, HostError> {
        self.handle.address().get().execute().try_collect().await.map_err(|e| failed("addresses", e))
    }

    /// Neighbours of both families.
    pub async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, HostError> {
        self.handle.neighbours().get().execute().try_collect().await.map_err(|e| failed("neighbours", e))
    }

    /// Routes of all tables.
    pub async fn routes(&self, family: Family) -> Result<Vec<RouteMessage>, HostError> {
        absent_is_empty(self.handle.route().get(all_routes(family)).execute().try_collect().await, "routes")
    }

    /// Some of them, which the kernel picks: cheap beside a table of all the world's prefixes.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn routes_of(&self, family: Family, routes: Routes) -> Result<Vec<RouteMessage>, HostError> {
        let mut message = all_routes(family);
        match routes {
            Routes::Table(table) => message.attributes.push(RouteAttribute::Table(table)),
            Routes::Protocol(protocol) => message.header.protocol = protocol.into(),
        }
        absent_is_empty(self.strict.route().get(message).execute().try_collect().await, "routes")
    }

    pub async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, HostError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        absent_is_empty(self.handle.rule().get(version).execute().try_collect().await, "rules")
    }
}

fn all_routes(family: Family) -> RouteMessage {
    let mut message = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = Default::default();
    message.header.scope = Default::default();
    message.header.kind = Default::default();
    message
}

pub(crate) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// A kernel without IPv6 has no IPv6 routes, and a table without routes does not exist.
fn absent_is_empty<T>(
    dump: Result<Vec<T>, rtnetlink::Error>,
    what: &'static str,
) -> Result<Vec<T>, HostError> {
    match dump {
        Ok(all) => Ok(all),
        Err(e) => {
            let source = errno(e);
            use rustix::io::Errno;
            let absent = [Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::NOENT];
            match absent.iter().any(|a| source.raw_os_error() == Some(a.raw_os_error())) {
                true => Ok(Vec::new()),
                false => Err(HostError::Netlink { what, source }),
            }
        }
    }
}

fn failed(what: &'static str, error: rtnetlink::Error) -> HostError {
    HostError::Netlink { what, source: errno(error) }
}

/// What a request that changes something came to.
pub(crate) fn done(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    result.map_err(errno)
}
