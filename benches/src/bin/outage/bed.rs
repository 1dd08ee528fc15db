//! The lab with an origin and weir in it, and what is done to weir.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weir_control::admin::{self, Request};
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::{Lab, LabOptions, NamespaceChild};
use weir_sys::process::Frozen;

use super::{Failing, Failure};

pub const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(20);
const ADMIN: &str = "/run/weir/admin.sock";
const CONFIG: &str = "/run/weir/outage.toml";

/// The lab, with origins that answer a line with a line.
#[derive(Debug)]
pub struct Bed {
    pub lab: Lab,
}

impl Bed {
    pub fn new() -> Result<Self, Failure> {
        let lab = Lab::new(&LabOptions { queues: 2, forwarding: Some(true), ..LabOptions::default() })?;
        for family in Family::BOTH {
            let listener = lab.server.run(|| TcpListener::bind(family.origin(PORT)))?;
            // Ends with the process: nobody else can reach it.
            std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        }
        Ok(Self { lab })
    }

    /// A connection that has been allowed.
    pub fn connect(&self, family: Family) -> Result<TcpStream, Failure> {
        // Twice: until the neighbours are known, the kernel forwards.
        for _ in 0..50 {
            let from = SocketAddr::new(family.addresses().client, 0);
            let mut stream = client::connect(&self.lab.client, from, family.origin(PORT))?;
            talk(&mut stream)?;
            if self.is_fast(&stream)? {
                return Ok(stream);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("no connection is on the fast road".into())
    }

    /// Waits until a connection has gone through the relay.
    pub fn relayed(&self, family: Family) -> Result<(), Failure> {
        for _ in 0..50 {
            let from = SocketAddr::new(family.addresses().client, 0);
            talk(&mut client::connect(&self.lab.client, from, family.origin(PORT))?)?;
            let status = self.ask(Request::Status)?;
            let counts = status["relay"].as_array().into_iter().flatten();
            if counts.filter(|count| count["name"] == "accepted").any(|count| count["count"] != 0) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("no connection is on the relay".into())
    }

    fn ask(&self, request: Request) -> Result<serde_json::Value, Failure> {
        self.lab.gateway.run(|| admin::client::ask(ADMIN.as_ref(), request)).map_err(|e| e.to_string().into())
    }

    fn is_fast(&self, stream: &TcpStream) -> Result<bool, Failure> {
        let local = stream.local_addr()?.to_string();
        let flows = self.ask(Request::Flows)?;
        let flows = flows.as_array().cloned().unwrap_or_default();
        Ok(flows
            .iter()
            .any(|flow| flow["client"] == local && flow["road"] == "fast" && flow["verdict"] == "allow"))
    }
}

fn serve(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).is_ok_and(|got| got > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
}

fn talk(stream: &mut TcpStream) -> Result<(), Failure> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: www.example\r\n\r\n")?;
    let mut answer = [0; 256];
    match stream.read(&mut answer)? {
        0 => Err("the origin hung up".into()),
        _ => Ok(()),
    }
}

/// `weir run` in the gateway.
#[derive(Debug)]
pub struct Weir<'bed> {
    bed: &'bed Bed,
    child: NamespaceChild,
    frozen: Option<Frozen>,
}

impl<'bed> Weir<'bed> {
    pub fn start(bed: &'bed Bed, flows: u32) -> Result<Self, Failure> {
        Self::start_with(bed, flows, "through")
    }

    pub fn start_with(bed: &'bed Bed, flows: u32, handshake: &str) -> Result<Self, Failure> {
        let text = WEIR.replace("FLOWS", &flows.to_string()).replace("HANDSHAKE", handshake);
        bed.lab.gateway.run(|| std::fs::write(CONFIG, text))?;
        Ok(Self { bed, child: spawn(bed, &[])?, frozen: None })
    }

    /// Returns when another serves in its place.
    fn replace(&mut self) -> Result<(), Failure> {
        let mut before = std::mem::replace(&mut self.child, spawn(self.bed, &["--replace"])?);
        before.inner().wait()?;
        Ok(())
    }

    pub fn expect_fast(&self, stream: &TcpStream) -> Result<(), Failure> {
        if self.bed.is_fast(stream)? { Ok(()) } else { Err("the connection is not on the fast road".into()) }
    }

    pub fn status(&self, bed: &Bed) -> Result<serde_json::Value, Failure> {
        bed.ask(Request::Status)
    }

    pub fn fail(&mut self, failing: Failing) -> Result<(), Failure> {
        match failing {
            Failing::Killed => self.kill(),
            Failing::Hung => self.stop(),
            Failing::WorkerHung => self.freeze_worker(),
            Failing::Continued => self.resume(),
            Failing::Replaced => self.replace(),
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Failure> {
        Ok(kill_process(Pid::from_child(self.child.inner()), signal)?)
    }

    /// Returns as soon as the signal is sent.
    fn kill(&mut self) -> Result<(), Failure> {
        self.signal(Signal::KILL)
    }

    pub fn stop(&mut self) -> Result<(), Failure> {
        self.signal(Signal::STOP)
    }

    fn resume(&mut self) -> Result<(), Failure> {
        self.signal(Signal::CONT)
    }

    /// One worker stands still; all other threads go on.
    fn freeze_worker(&mut self) -> Result<(), Failure> {
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.child.inner().id()))? {
            let path = entry?.path();
            if std::fs::read_to_string(path.join("comm"))?.trim() == "weir-worker-0" {
                let thread = path.file_name().and_then(|name| name.to_str()).and_then(|id| id.parse().ok());
                self.frozen = Some(Frozen::thread(thread.ok_or("a thread without a number")?)?);
                return Ok(());
            }
        }
        Err("weir has no thread weir-worker-0".into())
    }

    pub fn thaw(&mut self) {
        self.frozen = None;
    }
}

/// Returns when it answers.
fn spawn(bed: &Bed, more: &[&str]) -> Result<NamespaceChild, Failure> {
    let mut command = Command::new(binary()?);
    command.args(["run", "-c", CONFIG]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = bed.lab.gateway.spawn_command(command)?;
    let (pid, deadline) = (child.inner().id(), Instant::now() + PATIENCE);
    while bed.ask(Request::Status).map_or(true, |status| status["pid"] != pid) {
        if let Some(status) = child.inner().try_wait()? {
            return Err(format!("weir ended: {status}").into());
        }
        if Instant::now() > deadline {
            return Err("weir is not ready".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// The binary beside this one.
fn binary() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name("weir");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not there: build it first", path.display()).into())
    }
}

/// Threads that want all there is of the machine.
#[derive(Debug)]
pub struct Load {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(each: usize) -> Self {
        let end = Arc::<AtomicBool>::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let busy = |_| {
            let end = end.clone();
            std::thread::spawn(move || {
                let mut memory = vec![0_u64; 1 << 20];
                while !end.load(Ordering::Relaxed) {
                    memory.iter_mut().for_each(|word| *word = word.wrapping_mul(3).wrapping_add(1));
                }
                std::hint::black_box(memory);
            })
        };
        let threads = (0..cores * each).map(busy).collect();
        Self { end, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

const WEIR: &str = r#"
[gateway]
fail = "open"

[[port]]
name   = "lan"
device = "lan0"

[[port]]
name   = "wan"
device = "wan0"

[workers]
flows = FLOWS

[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = [80]
handshake = "HANDSHAKE"
rules = [{ host = ["denied.example"], action = "reset" }]
"#;
