//! A crowd of open connections that say nothing, for what a gateway costs that has to remember them. Both ends are made up
//! ([`crate::made`]) in packet sockets: no process may have so many real ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use weir_control::lab::{CLIENT_DEVICE, Lab, SERVER_DEVICE};
use weir_sys::affinity;
use weir_sys::packet::PacketSocket;

use crate::Failure;
use crate::bed::{LOAD_CPU, shell};
use crate::contender::SIDES;
use crate::made::{self, Heard, Link};

/// Connections that are opened at a time: a veth's ring has room for 256 frames.
const AT_ONCE: usize = 64;
/// How often those are tried again that did not come to be.
const TRIES: usize = 5;
/// Without a frame for so long, those that are missing are lost.
const PATIENCE: Duration = Duration::from_millis(50);
const RECEIVE_BUFFER: usize = 8 << 20;
/// To made up clients and servers, in the lab's gateway.
pub const ROUTES: &str = "ip route add 198.18.0.0/16 via 10.77.1.2; ip route add 198.19.0.0/16 via 192.0.2.10
    ip route add 2001:2:0:0::/64 via fd77:1::2; ip route add 2001:2:0:1::/64 via 2001:db8:2::10";

/// Both ends of a crowd. Dropping it leaves the connections open, with nobody behind them.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    servers: Option<JoinHandle<Result<(), Failure>>>,
}

impl Crowd {
    /// Opens that many connections through the gateway, with a request on each that is acknowledged. Returns how many came to be.
    ///
    /// # Errors
    /// Packet sockets are refused.
    pub fn open(lab: &Lab, count: u32) -> Result<(Self, usize), Failure> {
        shell(&lab.gateway, ROUTES)?;
        let [client, server] = SIDES.map(|side| Link { own: side.peer, gateway: side.mac });
        let stop = Arc::<AtomicBool>::default();
        let stops = stop.clone();
        let socket = lab.server.run(|| PacketSocket::open(SERVER_DEVICE))?;
        socket.set_receive_buffer(RECEIVE_BUFFER)?;
        let servers = std::thread::spawn(move || serve(&socket, server, &stops));
        let crowd = Self { stop, servers: Some(servers) };
        let socket = lab.client.run(|| PacketSocket::open(CLIENT_DEVICE))?;
        socket.set_receive_buffer(RECEIVE_BUFFER)?;
        let opened = std::thread::spawn(move || open(&socket, client, count));
        Ok((crowd, opened.join().map_err(|_| "the clients panicked")??))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(servers) = self.servers.take() {
            let _ = servers.join();
        }
    }
}

fn serve(socket: &PacketSocket, link: Link, stop: &AtomicBool) -> Result<(), Failure> {
    affinity::pin_to_cpu(LOAD_CPU)?;
    let mut buffer = [0; 2048];
    while !stop.load(Relaxed) {
        if let Some(len) = socket.recv(&mut buffer, PATIENCE)?
            && let Some(answer) = made::answer(&buffer[..len], link)
        {
            socket.send(&answer)?;
        }
    }
    Ok(())
}

fn open(socket: &PacketSocket, link: Link, count: u32) -> Result<usize, Failure> {
    affinity::pin_to_cpu(LOAD_CPU)?;
    let mut is_done = vec![false; count as usize];
    for _ in 0..TRIES {
        let missing: Vec<u32> = (0..count).filter(|n| !is_done[*n as usize]).collect();
        for some in missing.chunks(AT_ONCE) {
            open_some(socket, link, some, &mut is_done)?;
        }
    }
    Ok(is_done.into_iter().filter(|done| *done).count())
}

/// Opens these, and waits until each is done or nothing comes any more.
fn open_some(socket: &PacketSocket, link: Link, some: &[u32], is_done: &mut [bool]) -> Result<(), Failure> {
    for n in some {
        socket.send(&made::syn(*n, link).ok_or("a SYN does not fit its frame")?)?;
    }
    let mut buffer = [0; 2048];
    let mut left = some.len();
    while left > 0
        && let Some(len) = socket.recv(&mut buffer, PATIENCE)?
    {
        match made::hear(&buffer[..len], link) {
            Some(Heard::Open { request, .. }) => socket.send(&request)?,
            Some(Heard::Done(n)) => {
                if let Some(done) = is_done.get_mut(n as usize).filter(|done| !**done) {
                    *done = true;
                    left -= 1;
                }
            }
            None => {}
        }
    }
    Ok(())
}
