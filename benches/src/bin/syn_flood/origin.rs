//! The server behind the gateway: one page, any number of times.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use weir_control::lab::{IPV4, IPV6, Lab};
use weir_sys::affinity;

use weir_benches::Failure;
use weir_benches::bed::LOAD_CPU;

/// What it says, and the connection ends.
pub const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nweir\n";

/// Longest that a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it looks whether it should stop.
const STOP_LATENCY: Duration = Duration::from_millis(200);

/// Listens on port 80 of both families until it is dropped.
#[derive(Debug)]
pub struct Origin {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Origin {
    pub fn start(lab: &Lab) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for family in [IPV4, IPV6] {
            let address = SocketAddr::new(family.servers[0], 80);
            let listener = lab.server.run(|| TcpListener::bind(address))?;
            SockRef::from(&listener).set_read_timeout(Some(STOP_LATENCY))?;
            let stop = stop.clone();
            threads.push(lab.server.spawn(move || serve(&listener, &stop))?);
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let _ = affinity::pin_to_cpu(LOAD_CPU);
    while !stop.load(Ordering::Relaxed) {
        // None: nobody came within the time.
        let Ok((stream, _)) = listener.accept() else { continue };
        // A client that never asks must not keep the others waiting.
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut asked = Vec::new();
    let mut buffer = [0; 1024];
    while !asked.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        asked.extend_from_slice(&buffer[..count]);
    }
    stream.write_all(PAGE)
}
