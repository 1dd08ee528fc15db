//! Who carries the connections in the gateway: the kernel, proxies, and weir's roads.
//!
//! All carry IPv4 and IPv6, ports 80 and 443, and keep the client's address. weir inspects the first octets of each connection (a rule
//! by host is in its way) on every road; HAProxy in tcp mode with `option splice-auto` looks at nothing, or with rules by TLS name; nginx's stream module with
//! ssl_preread looks for a TLS name. nginx has no transparent listener: a NAT rule brings it the connections. The kernel's own forwarding,
//! with nobody in between, shows what clients, servers and links can do. Two more do less than any gateway can, as ceilings: an
//! XDP program that only redirects, and weir's AF_XDP driver without its pipeline.

pub mod bypass;
mod redirect;
mod texts;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aya::Ebpf;
use clap::ValueEnum;
use weir_control::admin::{self, Request};
use weir_control::lab::{IPV4, IPV6, LAN_DEVICE, Lab, NamespaceChild, WAN_DEVICE};

use crate::Failure;
use crate::bed::{GATEWAY_CPU, shell};
use crate::ends::client;

/// Port of the servers without TLS.
pub const HTTP: u16 = 80;
/// Port of the servers with TLS.
pub const TLS: u16 = 443;

/// How long a contender may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Requests on a connection until it must be in the express lane: it enters after 16 packets.
pub const REQUESTS_TO_ENTER: usize = 12;
const ADMIN: &str = "/run/weir/admin.sock";

/// A device of the gateway, its link-layer address, and that of its only neighbour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub device: &'static str,
    pub mac: [u8; 6],
    pub peer: [u8; 6],
}

/// As the lab has them.
pub(crate) const SIDES: [Side; 2] = [
    Side { device: LAN_DEVICE, mac: [0x02, 0x77, 0, 0, 0, 2], peer: [0x02, 0x77, 0, 0, 0, 1] },
    Side { device: WAN_DEVICE, mac: [0x02, 0x77, 0, 0, 0, 3], peer: [0x02, 0x77, 0, 0, 0, 4] },
];

/// A way to carry connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// nginx's stream module with ssl_preread.
    Nginx,
    /// HAProxy, mode tcp: nothing is inspected.
    Haproxy,
    /// The same with rules by name: it waits for a ClientHello or a request.
    HaproxyInspects,
    /// weir, `handshake = "relay"`.
    Relay,
    /// The kernel forwards: nobody is in between.
    Forwarding,
    /// weir, `handshake = "through"`, with the express lane.
    Through,
    /// The same without the express lane.
    ThroughWorker,
    /// weir, `handshake = "answer"`, with the express lane.
    Answer,
    /// The same without the express lane.
    AnswerWorker,
    /// A ceiling: an XDP program that only redirects.
    Redirect,
    /// A ceiling: weir's AF_XDP driver without the pipeline.
    Bypass,
}

/// The binaries that are measured.
#[derive(Clone, Debug)]
pub struct Programs {
    pub weir: PathBuf,
    /// nginx's program, its stream module beside it.
    pub nginx: PathBuf,
}

impl Programs {
    /// weir's binary is the one beside this one, where it is not given.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn find(weir: Option<&Path>, nginx: &Path) -> Result<Self, Failure> {
        let weir = match weir {
            Some(path) => std::path::absolute(path)?,
            None => std::env::current_exe()?.with_file_name("weir"),
        };
        if !weir.exists() {
            return Err(format!("{} is not there: build it first", weir.display()).into());
        }
        Ok(Self { weir, nginx: std::path::absolute(nginx)? })
    }
}

/// A contender that runs. Dropping it ends it; what it set in the kernel goes with the lab.
#[derive(Debug)]
pub struct Running {
    child: Option<NamespaceChild>,
    program: Option<Ebpf>,
    /// What it says goes here, to be shown if it fails.
    log: PathBuf,
    files: Vec<PathBuf>,
}

impl Running {
    /// Its processes that carry traffic.
    pub fn processes(&mut self) -> Vec<u32> {
        let Some(child) = &mut self.child else { return Vec::new() };
        let id = child.inner().id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        // weir's keeper carries nothing, and sleeps.
        std::iter::once(id).chain(children.split_whitespace().filter_map(|id| id.parse().ok())).collect()
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<(), Failure> {
        if let Some(child) = &mut self.child {
            child.kill()?;
        }
        Ok(())
    }

    /// Starts weir once more with the same configuration: after its end, or (`replace`) in the place of the one that runs, which
    /// ends when it has handed over. Returns when the new one answers.
    ///
    /// # Errors
    /// It is no weir, or does not come.
    pub fn start_again(&mut self, lab: &Lab, programs: &Programs, replace: bool) -> Result<(), Failure> {
        let config = self.files.first().ok_or("no configuration")?;
        let mut command = weir(programs, config);
        command.args(replace.then_some("--replace"));
        let said = std::fs::File::options().append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let mut before = self.child.replace(lab.gateway.spawn_command(command)?);
        let started = Instant::now();
        let mut has_gone = || match &mut before {
            Some(before) => before.inner().try_wait().is_ok_and(|status| status.is_some()),
            None => true,
        };
        while !has_gone() || ask(lab, Request::Status).is_err() {
            self.check_alive()?;
            if started.elapsed() > START_LIMIT {
                return Err(self.failed(&format!("has not come again after {START_LIMIT:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().and_then(|child| child.inner().try_wait().transpose()) {
            Some(status) => Err(self.failed(&format!("ended: {}", status?))),
            None => Ok(()),
        }
    }

    /// What happened, with all that it has said.
    fn failed(&self, what: &str) -> Failure {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("the contender {what}\n{said}").into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child = None;
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Contender {
    /// Its name in reports and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::Haproxy => "haproxy",
            Self::HaproxyInspects => "haproxy-inspects",
            Self::Nginx => "nginx",
            Self::Relay => "relay",
            Self::Through => "through",
            Self::ThroughWorker => "through-worker",
            Self::Answer => "answer",
            Self::AnswerWorker => "answer-worker",
            Self::Redirect => "redirect",
            Self::Bypass => "bypass",
        }
    }

    /// Whether it is weir's fast road, and then whether with the express lane.
    const fn express(self) -> Option<bool> {
        match self {
            Self::Through | Self::Answer => Some(true),
            Self::ThroughWorker | Self::AnswerWorker => Some(false),
            _ => None,
        }
    }

    /// `[workers]` and intercept of weir's configuration, where it is weir.
    const fn settings(self) -> Option<(&'static str, &'static str)> {
        let (express, handshake) = match self {
            Self::Forwarding
            | Self::Haproxy
            | Self::HaproxyInspects
            | Self::Nginx
            | Self::Redirect
            | Self::Bypass => return None,
            Self::Relay => ("", "handshake = \"relay\""),
            Self::Through => ("express = \"always\"", "handshake = \"through\""),
            Self::ThroughWorker => ("express = \"never\"", "handshake = \"through\""),
            Self::Answer => ("express = \"always\"", "handshake = \"answer\""),
            Self::AnswerWorker => ("express = \"never\"", "handshake = \"answer\""),
        };
        Some((express, handshake))
    }

    /// Starts it on the gateway's CPU, and waits until it carries connections of both families to all servers, on the road that it
    /// stands for. The servers must be there.
    ///
    /// # Errors
    /// It ends, or does not serve in time.
    pub fn start(self, lab: &Lab, programs: &Programs) -> Result<Running, Failure> {
        let file = |suffix| std::env::temp_dir().join(format!("weir-bench-{}.{suffix}", std::process::id()));
        let config = file("conf");
        let mut command = on_gateway_cpu();
        let log = file("log");
        let files = vec![config.clone(), file("pid"), log.clone()];
        let mut running = Running { child: None, program: None, log: log.clone(), files };
        match self {
            Self::Forwarding => return Ok(running),
            Self::Redirect => running.program = Some(lab.gateway.run(redirect::start)?),
            Self::Bypass => {
                command.arg(std::env::current_exe()?).arg("bypass");
            }
            Self::Haproxy | Self::HaproxyInspects => {
                shell(&lab.gateway, &(texts::ROUTES.to_owned() + texts::TPROXY))?;
                std::fs::write(&config, texts::haproxy(self == Self::HaproxyInspects))?;
                command.args(["haproxy", "-db", "-f"]).arg(&config);
            }
            Self::Nginx => {
                shell(&lab.gateway, &(texts::ROUTES.to_owned() + &texts::redirect()))?;
                let module = programs.nginx.with_file_name("ngx_stream_module.so");
                let text = texts::nginx(&module.display().to_string(), &file("pid").display().to_string());
                std::fs::write(&config, text)?;
                command.arg(&programs.nginx).args(["-e", "stderr", "-c"]).arg(&config);
            }
            Self::Relay | Self::Through | Self::ThroughWorker | Self::Answer | Self::AnswerWorker => {
                let (workers, intercept) = self.settings().unwrap_or_default();
                std::fs::write(&config, texts::weir(workers, intercept))?;
                command = weir(programs, &config);
            }
        }
        let said = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        if running.program.is_none() {
            running.child = Some(lab.gateway.spawn_command(command)?);
        }
        let started = Instant::now();
        while let Err(why) = self.serves(lab, &running.log) {
            running.check_alive()?;
            if started.elapsed() > START_LIMIT {
                return Err(running.failed(&format!("does not serve after {START_LIMIT:?}: {why}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }

    /// Nothing, when it is ready and all servers are reached on its road.
    fn serves(self, lab: &Lab, log: &Path) -> Result<(), Failure> {
        match self {
            Self::Forwarding | Self::Redirect => {}
            // Until then the kernel forwards.
            Self::Bypass if !std::fs::read_to_string(log)?.contains(bypass::READY) => {
                return Err("it is not ready".into());
            }
            Self::Bypass => {}
            Self::Haproxy | Self::HaproxyInspects | Self::Nginx => listens(lab, ":5000")?,
            Self::Relay => listens(lab, ":12377")?,
            _ => drop(ask(lab, Request::Status)?),
        }
        IPV4.servers.into_iter().chain(IPV6.servers).try_for_each(|server| self.reaches(lab, server))
    }

    /// Until a server's neighbour is known, the kernel forwards to it: then it is no proof that its answers come.
    fn reaches(self, lab: &Lab, server: IpAddr) -> Result<(), Failure> {
        let stream = lab.client.run(|| client::talk(server, REQUESTS_TO_ENTER))?;
        let Some(express) = self.express() else { return Ok(()) };
        let local = stream.local_addr()?.to_string();
        let flows = ask(lab, Request::Flows)?;
        let flow = flows.as_array().into_iter().flatten().find(|flow| flow["client"] == local);
        match flow {
            Some(flow) if flow["road"] == "fast" && (flow["lane"] == "express") == express => Ok(()),
            Some(flow) => Err(format!("to {server}: not on the road that it stands for: {flow}").into()),
            None => Err(format!("to {server}: weir does not know the connection").into()),
        }
    }
}

/// A command, to be completed, that runs on the gateway's CPU.
fn on_gateway_cpu() -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &GATEWAY_CPU.to_string()]);
    command
}

fn weir(programs: &Programs, config: &Path) -> Command {
    let mut command = on_gateway_cpu();
    command.arg(&programs.weir).args(["run", "-c"]).arg(config);
    command
}

fn ask(lab: &Lab, request: Request) -> Result<serde_json::Value, Failure> {
    lab.gateway.run(|| admin::client::ask(ADMIN.as_ref(), request)).map_err(|error| error.to_string().into())
}

/// Nothing, when somebody listens on both families, and nft's rules are there.
fn listens(lab: &Lab, port: &str) -> Result<(), Failure> {
    let listening = shell(&lab.gateway, "ss --listening --tcp --numeric --no-header; nft list tables")?;
    if listening.matches(port).count() >= 2 && listening.contains("table") {
        Ok(())
    } else {
        Err(format!("nobody listens on {port}").into())
    }
}
