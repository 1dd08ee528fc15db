//! Clients that never pause while something is done to the gateway: every byte that they ask for must come, on connections that
//! have been open all along and on new ones, whatever road these take.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use weir_control::demo::stage::Family;

use crate::config::ALLOWED;
use crate::weir::{PATIENCE, until};
use crate::world::{HTTP, World, fetch};

/// Bytes of one answer: more than a congestion window.
const BYTES: u64 = 50_000;
/// Between two rounds of a client.
const PAUSE: Duration = Duration::from_millis(5);

/// Connects from this address, in the calling thread's namespace.
pub fn connect_from(source: IpAddr, target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&target.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket.into())
}

/// Four clients: of either family, the usual one and the one whose connections a rule gives to the relay.
#[derive(Debug)]
pub struct Traffic {
    clients: Vec<Client>,
    end: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Client {
    address: IpAddr,
    rounds: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<String>>>,
    thread: JoinHandle<()>,
}

impl Traffic {
    pub fn start(world: &World<'_>) -> Self {
        let end = Arc::<AtomicBool>::default();
        let of = |family: Family| {
            let addresses = family.addresses();
            [addresses.client, addresses.other_client]
                .map(|address| Client::start(world, family, address, &end))
        };
        let clients = Family::BOTH.into_iter().flat_map(of).collect();
        Self { clients, end }
    }

    /// Returns when each client has had a whole answer on its open connection and one on a new one, asked for from now on.
    #[track_caller]
    pub fn goes_on(&self) {
        let before: Vec<u64> = self.clients.iter().map(Client::rounds).collect();
        until("all clients get their answers", || {
            self.clients.iter().zip(&before).all(|(client, before)| client.rounds() > before + 1)
        });
    }

    /// Ends it.
    #[track_caller]
    pub fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.rounds();
            client.thread.join().expect("the client does not panic");
            assert_eq!(*client.failure.lock().unwrap(), None, "{}", client.address);
        }
    }
}

impl Client {
    fn start(world: &World<'_>, family: Family, address: IpAddr, end: &Arc<AtomicBool>) -> Self {
        let (rounds, failure) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Option<String>>>::default());
        let work = {
            let (rounds, failure, end) = (rounds.clone(), failure.clone(), end.clone());
            move || {
                if let Err(error) = ask_on(address, family.origin(HTTP), &rounds, &end) {
                    *failure.lock().unwrap() = Some(error.to_string());
                }
            }
        };
        let thread = world.lab.client.spawn(work).expect("a thread");
        Self { address, rounds, failure, thread }
    }

    #[track_caller]
    fn rounds(&self) -> u64 {
        if let Some(failure) = &*self.failure.lock().unwrap() {
            panic!("{} after {} rounds: {failure}", self.address, self.rounds.load(Ordering::Relaxed));
        }
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Asks on one connection that stays and on a new one, in turns.
fn ask_on(source: IpAddr, target: SocketAddr, rounds: &AtomicU64, end: &AtomicBool) -> io::Result<()> {
    let whole = |stream: &mut TcpStream, what: &str| {
        let local = stream.local_addr()?;
        let failed = |error: String| io::Error::other(format!("{what}, {local}: {error}"));
        let answer = fetch(stream, ALLOWED, BYTES).map_err(|error| failed(error.to_string()))?;
        if answer.is_intact() && answer.length == BYTES { Ok(()) } else { Err(failed(format!("{answer:?}"))) }
    };
    let connect = || connect_from(source, target, PATIENCE);
    let mut old = connect()?;
    while !end.load(Ordering::Relaxed) {
        whole(&mut old, "the open connection")?;
        let mut new = connect().map_err(|error| io::Error::other(format!("a new connection: {error}")))?;
        whole(&mut new, "a new connection")?;
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
