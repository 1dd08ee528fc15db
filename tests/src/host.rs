//! A host of the simulation: a smoltcp stack with one connection, on a link without addresses.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::renumber::Renumber;

thread_local! {
    /// The clock of timestamps, in milliseconds: smoltcp asks a function without arguments.
    static CLOCK: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// What a host's TCP is like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Octets of its buffers; above 64 KiB it scales its window.
    pub buffer: usize,
    pub timestamps: bool,
    /// What is added to its sequence numbers.
    pub shift: u32,
    /// It holds a small segment back as long as anything is not acknowledged (RFC 9293 section 3.7.4).
    pub nagle: bool,
}

impl Default for Kind {
    fn default() -> Self {
        Self { buffer: 32 * 1024, timestamps: false, shift: 0, nagle: true }
    }
}

/// A host's link: packets without Ethernet headers.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) rx: VecDeque<Vec<u8>>,
    pub(crate) tx: VecDeque<Vec<u8>>,
}

pub(crate) struct Rx(Vec<u8>);
pub(crate) struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// One end: what it sends, and what it has received.
pub(crate) struct Host {
    pub(crate) link: Link,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) handle: SocketHandle,
    sends: Vec<u8>,
    sent: usize,
    pub(crate) received: Vec<u8>,
    /// Closes when it has received so many octets, and sent everything.
    closes_after: usize,
    closed: bool,
    /// Sends nothing before it has received something.
    pub(crate) waits: bool,
    /// Sends no more than the first so many octets before it has received so many.
    pub(crate) pause: Option<(usize, usize)>,
    numbers: Renumber,
}

impl Host {
    pub(crate) fn new(
        addresses: &[std::net::IpAddr],
        kind: Kind,
        seed: u64,
        sends: Vec<u8>,
        closes_after: usize,
    ) -> Self {
        let address = addresses[0];
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in addresses {
                list.push(IpCidr::new(IpAddress::from(*address), 8)).expect("room for an address");
            }
        });
        let buffer = || SocketBuffer::new(vec![0; kind.buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(kind.nagle);
        if kind.timestamps {
            socket.set_tsval_generator(Some(|| CLOCK.get()));
        }
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        // Every address is a neighbour on a link without addresses; the prefix covers all of both families here.
        let any =
            if address.is_ipv4() { IpAddress::v4(0, 0, 0, 1) } else { IpAddress::v6(0, 0, 0, 0, 0, 0, 0, 2) };
        match any {
            IpAddress::Ipv4(a) => drop(interface.routes_mut().add_default_ipv4_route(a)),
            IpAddress::Ipv6(a) => drop(interface.routes_mut().add_default_ipv6_route(a)),
        }
        Self {
            link,
            interface,
            sockets,
            handle,
            sends,
            sent: 0,
            received: Vec::new(),
            closes_after,
            closed: false,
            waits: false,
            pause: None,
            numbers: Renumber(kind.shift),
        }
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    /// The next packet that it sends.
    pub(crate) fn sent(&mut self) -> Option<Vec<u8>> {
        let mut packet = self.link.tx.pop_front()?;
        self.numbers.sent(&mut packet);
        Some(packet)
    }

    /// A packet for it arrives.
    pub(crate) fn receive(&mut self, mut packet: Vec<u8>) {
        self.numbers.received(&mut packet);
        self.link.rx.push_back(packet);
    }

    pub(crate) fn poll(&mut self, now: u64) {
        CLOCK.set((now / 1000) as u32);
        let now = Instant::from_micros(now as i64);
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.work();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
    }

    fn work(&mut self) {
        let (sent, closes_after, received) = (self.sent, self.closes_after, self.received.len());
        let until = match self.pause {
            Some((until, wanted)) if received < wanted => until.max(sent),
            _ => self.sends.len(),
        };
        let left = self.sends[sent..until].to_vec();
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        let mut got = Vec::new();
        while socket.can_recv() {
            let _ = socket.recv(|bytes| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        if socket.can_send() && !left.is_empty() && !(self.waits && received + got.len() == 0) {
            self.sent += socket.send_slice(&left).unwrap_or(0);
        }
        if !self.closed
            && self.sent == self.sends.len()
            && received + got.len() >= closes_after
            && socket.may_send()
        {
            socket.close();
            self.closed = true;
        }
        self.received.extend(got);
    }

    pub(crate) fn poll_at(&mut self, now: u64) -> u64 {
        let at = self.interface.poll_at(Instant::from_micros(now as i64), &self.sockets);
        at.map_or(u64::MAX, |at| (at.total_micros() as u64).max(now + 1))
    }
}
