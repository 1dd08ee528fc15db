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
use weir_benches::config::Config;
use weir_benches::contender::REQUESTS_TO_ENTER;
use weir_control::admin::{self, Request};
use weir_control::demo::client;
use weir_control::demo::stage::Family;
use weir_control::lab::{CLIENT_DEVICE, Lab, LabOptions, NamespaceChild, SERVER_DEVICE, WAN_DEVICE};
use weir_sys::process::Frozen;

use super::{Failing, Failure, Handshake, Options, WATCHED};

pub const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(20);
const ADMIN: &str = "/run/weir/admin.sock";
/// From the removal of a device until it is made again.
const GONE: Duration = Duration::from_millis(300);
const CONFIG: &str = "/run/weir/outage.toml";

const POOL: &str = r#"[[pool]]
name = "pool"
servers = ["192.0.2.11:80", "[2001:db8:2::11]:80"]"#;

/// The lane that stands by, and until it does.
const STANDBY: &str = "standby";
const STANDS_BY: Duration = Duration::from_millis(1200);

const OPTIONS: LabOptions = LabOptions { queues: 2, forwarding: Some(true), mtu: None };

/// The lab, with origins that answer a line with a line.
#[derive(Debug)]
pub struct Bed {
    pub lab: Lab,
    /// What becomes of connections that are decided: `lane` or `lane_reason` of `weir flows`.
    lane: &'static str,
}

impl Bed {
    pub fn new(options: &Options) -> Result<Self, Failure> {
        let lab = Lab::new(&OPTIONS)?;
        // What the express lane asks of the other ends of veth devices.
        for (namespace, device) in [(&lab.client, CLIENT_DEVICE), (&lab.server, SERVER_DEVICE)] {
            let mut command = Command::new("ethtool");
            command.args(["-K", device, "gro", "on", "tx", "off"]).stdout(Stdio::null());
            namespace.run(|| command.status())?;
        }
        for family in Family::BOTH {
            // That of the pool, too.
            for server in &family.addresses().servers[..2] {
                let listener = lab.server.run(|| TcpListener::bind((*server, PORT)))?;
                // Ends with the process: nobody else can reach it.
                std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
            }
        }
        let lane = match options.express.as_str() {
            "never" => "worker",
            STANDBY => STANDBY,
            _ => "express",
        };
        Ok(Self { lab, lane })
    }

    /// A connection on which one request was answered.
    pub fn open(&self, family: Family) -> Result<TcpStream, Failure> {
        let from = SocketAddr::new(family.addresses().client, 0);
        let mut stream = client::connect(&self.lab.client, from, family.origin(PORT))?;
        talk(&mut stream)?;
        Ok(stream)
    }

    /// A connection that has been allowed, on the fast road, and in the express lane, or stood by for, if there is one.
    pub fn connect(&self, family: Family) -> Result<TcpStream, Failure> {
        // Until the neighbours are known, the kernel forwards.
        for _ in 0..50 {
            let mut stream = self.open(family)?;
            for _ in 0..REQUESTS_TO_ENTER {
                talk(&mut stream)?;
            }
            if self.lane == STANDBY {
                std::thread::sleep(STANDS_BY);
            }
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
            drop(self.open(family)?);
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
        Ok(flows.iter().any(|flow| {
            flow["client"] == local
                && flow["road"] == "fast"
                && [&flow["lane"], &flow["lane_reason"]].iter().any(|lane| **lane == self.lane)
                && matches!(flow["verdict"].as_str(), Some("allow" | "send"))
        }))
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
    handshake: Handshake,
    /// The one whose place was taken, which lives as long as its connections.
    leaving: Option<NamespaceChild>,
    frozen: Option<Frozen>,
}

impl<'bed> Weir<'bed> {
    pub fn start(bed: &'bed Bed, options: &Options, handshake: Handshake) -> Result<Self, Failure> {
        let (name, verdict) = match handshake {
            Handshake::Send => ("answer", r#"action = "send", pool = "pool""#),
            other => (other.name(), r#"action = "allow""#),
        };
        let text = Config {
            gateway: if options.closed { "fail = \"closed\"" } else { "fail = \"open\"" },
            workers: &format!("flows = {}\nexpress = \"{}\"", options.flows, options.express),
            more: POOL,
            tcp: &[PORT],
            intercept: &format!("handshake = \"{name}\""),
            rules: &format!("{{ host = [\"www.example\"], {verdict} }}"),
        };
        bed.lab.gateway.run(|| std::fs::write(CONFIG, text.to_string()))?;
        Ok(Self { bed, child: spawn(bed, &[])?, handshake, leaving: None, frozen: None })
    }

    /// What has to have happened before it can fail so.
    pub fn prepare(&mut self, failing: Failing) -> Result<(), Failure> {
        match failing {
            Failing::Continued => self.stop()?,
            Failing::NoMemory => self.end()?,
            _ => return Ok(()),
        }
        std::thread::sleep(WATCHED);
        Ok(())
    }

    /// Kills it, and waits until it has gone.
    fn end(&mut self) -> Result<(), Failure> {
        self.signal(Signal::KILL)?;
        self.child.inner().wait()?;
        Ok(())
    }

    /// As a supervisor does it. Returns when it answers.
    fn restart(&mut self) -> Result<(), Failure> {
        self.end()?;
        self.child = spawn(self.bed, &[])?;
        Ok(())
    }

    /// A start that finds too little memory. Returns when it was refused.
    fn refuse(&mut self) -> Result<(), Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 262144; exec \"$0\" run -c \"$1\""]).arg(binary()?).arg(CONFIG);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = self.bed.lab.gateway.spawn_command(command)?;
        match self.child.inner().wait()?.code() {
            Some(3) => Ok(()),
            other => Err(format!("a start without memory ended with {other:?}").into()),
        }
    }

    /// A device goes, and is there again as it was when this returns.
    fn lose_device(&mut self) -> Result<(), Failure> {
        let mut command = Command::new("ip");
        command.args(["link", "del", WAN_DEVICE]);
        if !self.bed.lab.gateway.run(|| command.status())?.success() {
            return Err("the device cannot be removed".into());
        }
        std::thread::sleep(GONE);
        Ok(self.bed.lab.make_servers_link(&OPTIONS)?)
    }

    /// Returns when another serves in its place, alone unless there are connections of the relay.
    fn replace(&mut self) -> Result<(), Failure> {
        let mut before = std::mem::replace(&mut self.child, spawn(self.bed, &["--replace"])?);
        if self.handshake != Handshake::Relay {
            before.inner().wait()?;
        }
        self.leaving = Some(before);
        Ok(())
    }

    pub fn status(&self, bed: &Bed) -> Result<serde_json::Value, Failure> {
        bed.ask(Request::Status)
    }

    pub fn fail(&mut self, failing: Failing) -> Result<(), Failure> {
        match failing {
            Failing::Killed => self.kill(),
            Failing::Restarted => self.restart(),
            Failing::NoMemory => self.refuse(),
            Failing::Device => self.lose_device(),
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
