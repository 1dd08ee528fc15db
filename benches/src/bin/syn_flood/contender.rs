//! Who answers the SYNs in the gateway.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use weir_control::lab::NamespaceChild;

use weir_benches::Failure;
use weir_benches::bed::{GATEWAY_CPU, shell};
use weir_benches::config::Config;

use super::bed::Bed;

/// How long weir may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A way to answer SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// nft's synproxy.
    Synproxy,
    /// weir, `handshake = "answer"`, `syn_cookies = "always"`.
    AnswerAlways,
    /// weir, `handshake = "answer"`, `syn_cookies = "auto"`.
    AnswerAuto,
    /// weir, `handshake = "through"`: the server answers.
    Through,
    /// Nobody: the kernel forwards, the server answers.
    Forwarding,
}

/// A contender that runs. Dropping it ends it; what it set in the kernel goes with the lab.
#[derive(Debug)]
pub struct Running(Option<Process>);

#[derive(Debug)]
struct Process {
    id: u32,
    /// Ends with this.
    _child: NamespaceChild,
    config: PathBuf,
}

impl Running {
    /// Its process, if it is one.
    pub fn process(&self) -> Option<u32> {
        self.0.as_ref().map(|process| process.id)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

impl Contender {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Synproxy => "synproxy",
            Self::AnswerAlways => "answer-always",
            Self::AnswerAuto => "answer-auto",
            Self::Through => "through",
            Self::Forwarding => "forwarding",
        }
    }

    pub fn start(self, bed: &Bed, weir: &Path) -> Result<Running, Failure> {
        let handshake = match self {
            Self::Forwarding => return Ok(Running(None)),
            Self::Synproxy => {
                shell(&bed.lab.gateway, SYNPROXY)?;
                return Ok(Running(None));
            }
            Self::AnswerAlways => "handshake = \"answer\"\nsyn_cookies = \"always\"",
            Self::AnswerAuto => "handshake = \"answer\"\nsyn_cookies = \"auto\"",
            Self::Through => "handshake = \"through\"",
        };
        let config = std::env::temp_dir().join(format!("weir-syn-flood-{}.toml", std::process::id()));
        let workers = format!("cores = [{GATEWAY_CPU}]");
        let text = Config { workers: &workers, tcp: &[80], intercept: handshake, ..Config::default() };
        std::fs::write(&config, text.to_string())?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &GATEWAY_CPU.to_string()]).arg(weir).args(["run", "-c"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = bed.lab.gateway.spawn_command(command)?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = child.inner().try_wait()? {
                return Err(format!("weir ended: {status}").into());
            }
            let ask = format!("{} status -c {} >/dev/null 2>&1", weir.display(), config.display());
            if shell(&bed.lab.gateway, &ask).is_ok() {
                let id = child.inner().id();
                return Ok(Running(Some(Process { id, _child: child, config })));
            }
            if Instant::now() > deadline {
                return Err(format!("weir is not ready after {START_LIMIT:?}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// As the wiki of nftables has it ("Synproxy"), for a box in the middle: a SYN that comes in is not tracked, and what is not
/// tracked or belongs to no connection is answered instead of forwarded. The options are those of weir's `answer`.
const SYNPROXY: &str = "nft -f - <<'END'
table inet flood {
    chain prerouting {
        type filter hook prerouting priority raw
        iifname lan0 tcp dport 80 tcp flags & (fin|syn|rst|ack) == syn notrack
    }
    chain forward {
        type filter hook forward priority filter
        iifname lan0 tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
        ct state invalid drop
    }
}
END
sysctl -q -w net.netfilter.nf_conntrack_tcp_loose=0 net.ipv4.tcp_syncookies=1 net.ipv4.tcp_timestamps=1";
