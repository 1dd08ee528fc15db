//! Who carries the connections in the gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use weir_benches::Failure;
use weir_benches::bed::{GATEWAY_CPU, shell};
use weir_control::lab::{IPV4, IPV6, Lab, NamespaceChild};

use super::origin::PORT;

/// How long a contender may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A way to carry connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// weir, `handshake = "relay"`: each connection's first octets are inspected.
    Weir,
    /// HAProxy, mode tcp: nothing is inspected.
    Haproxy,
    /// nginx's stream module with ssl_preread.
    Nginx,
    /// The kernel forwards: nobody is in between.
    Forwarding,
}

/// A contender that runs. Dropping it ends it; what it set in the kernel goes with the lab.
#[derive(Debug)]
pub struct Running {
    child: Option<NamespaceChild>,
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
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Forwarding => "forwarding",
        }
    }

    /// Starts it on the gateway's CPU, and waits until both families are served.
    pub fn start(self, lab: &Lab, weir: &Path, nginx: &Path) -> Result<Running, Failure> {
        let file =
            |suffix| std::env::temp_dir().join(format!("weir-bench-relay-{}.{suffix}", std::process::id()));
        let config = file("conf");
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &GATEWAY_CPU.to_string()]);
        let mut running = Running { child: None, files: vec![config.clone(), file("pid")] };
        match self {
            Self::Forwarding => return Ok(running),
            Self::Weir => {
                std::fs::write(&config, WEIR)?;
                command.arg(weir).args(["run", "-c"]).arg(&config);
            }
            Self::Haproxy => {
                shell(&lab.gateway, &(ROUTES.to_owned() + TPROXY))?;
                std::fs::write(&config, HAPROXY)?;
                command.args(["haproxy", "-db", "-f"]).arg(&config);
            }
            Self::Nginx => {
                shell(&lab.gateway, &(ROUTES.to_owned() + REDIRECT))?;
                let modules = nginx.parent().unwrap_or(Path::new("."));
                let text = NGINX
                    .replace("SERVERS", &nginx_servers())
                    .replace("PID", &file("pid").display().to_string())
                    .replace("MODULE", &modules.join("ngx_stream_module.so").display().to_string());
                std::fs::write(&config, text)?;
                command.arg(nginx).args(["-e", "stderr", "-c"]).arg(&config);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = Instant::now();
        running.child = Some(lab.gateway.spawn_command(command)?);
        while !self.serves(lab)? {
            if let Some(status) =
                running.child.as_mut().and_then(|child| child.inner().try_wait().transpose())
            {
                return Err(format!("{} ended: {}", self.name(), status?).into());
            }
            if started.elapsed() > START_LIMIT {
                return Err(format!("{} does not serve after {START_LIMIT:?}", self.name()).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(running)
    }

    /// Whether it listens on both families, and its rules are there.
    fn serves(self, lab: &Lab) -> Result<bool, Failure> {
        let listening = shell(&lab.gateway, "ss --listening --tcp --numeric --no-header; nft list tables")?;
        let port = if self == Self::Weir { ":12377" } else { ":5000" };
        Ok(listening.matches(port).count() >= 2
            && listening.contains("table")
            && [IPV4.servers[0], IPV6.servers[0]].iter().all(|server| {
                let target = SocketAddr::new(*server, PORT);
                lab.client
                    .run(|| std::net::TcpStream::connect_timeout(&target, Duration::from_secs(1)))
                    .is_ok()
            }))
    }
}

const WEIR: &str = r#"
[[port]]
name   = "lan"
device = "lan0"

[[port]]
name   = "wan"
device = "wan0"

[workers]
cores = [1]

[[intercept]]
name = "web"
from = "lan"
to   = ["0.0.0.0/0", "::/0"]
tcp  = [80]
handshake = "relay"
rules = [{ host = ["denied.example"], action = "reset" }]
"#;

const ROUTES: &str = "for family in -4 -6; do
    ip $family rule add fwmark 1 lookup 100
    ip $family route add local default dev lo table 100
done
";

const TPROXY: &str = "nft -f - <<'END'
table inet bench {
    chain prerouting {
        type filter hook prerouting priority mangle
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
        iifname lan0 tcp dport 80 meta nfproto ipv4 tproxy ip to :5000 meta mark set 1 accept
        iifname lan0 tcp dport 80 meta nfproto ipv6 tproxy ip6 to :5000 meta mark set 1 accept
    }
}
END
";

/// nginx has no transparent listeners: connections are brought to it by NAT, a port for each server, where it goes from the
/// client's address, and a port of its own (with the client's port it fails where the client uses that to two servers).
const REDIRECT: &str = "nft -f - <<'END'
table inet bench {
    chain prerouting {
        type filter hook prerouting priority mangle
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
    }
    chain nat {
        type nat hook prerouting priority dstnat
        iifname lan0 tcp dport 80 redirect to : ip daddr map { 192.0.2.10 : 5000, 192.0.2.11 : 5001, 192.0.2.12 : 5002 }
        iifname lan0 tcp dport 80 redirect to : ip6 daddr map {
            2001:db8:2::10 : 5000, 2001:db8:2::11 : 5001, 2001:db8:2::12 : 5002
        }
    }
}
END
";

const HAPROXY: &str = "global
    nbthread 1
    maxconn 8500
    maxpipes 1000

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto

frontend four
    bind 0.0.0.0:5000 transparent
    default_backend four

frontend six
    bind :::5000 v6only transparent
    default_backend six

backend four
    source 0.0.0.0 usesrc client
    server any 0.0.0.0:0

backend six
    source [::] usesrc client
    server any [::]:0
";

const NGINX: &str = "load_module MODULE;
pid PID;
user root;
daemon off;
master_process off;
worker_rlimit_nofile 20000;
error_log stderr crit;
events { worker_connections 19000; }
stream {
    ssl_preread on;
    proxy_timeout 1h;
SERVERS}
";

/// nginx's servers, each with its port.
fn nginx_servers() -> String {
    let mut text = String::new();
    for (port, (v4, v6)) in (5000..).zip(IPV4.servers.iter().zip(&IPV6.servers)) {
        text += &format!(
            "    server {{ listen {port} backlog=4096; proxy_bind $remote_addr transparent; proxy_pass {v4}:80; }}
    server {{ listen [::]:{port} ipv6only=on backlog=4096; proxy_bind $remote_addr transparent; proxy_pass [{v6}]:80; }}
"
        );
    }
    text
}
