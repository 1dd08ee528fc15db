//! One virtual machine, from its start to its end.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::image::{kernel, library_path};
use crate::job::{Answer, Job, answer_file, job_file};
use crate::pairing::{Pairing, Wire};

/// CPUs of a guest: as many as a worker per queue needs.
const CPUS: &str = "2";
const MEMORY: &str = "1536";
/// Link-layer addresses by which the guest tells its NICs apart: client, LAN, WAN, server.
const MACS: [&str; 4] = ["02:77:00:00:00:01", "02:77:00:00:00:02", "02:77:00:00:00:03", "02:77:00:00:00:04"];

/// What a guest is started with.
#[derive(Debug)]
pub struct Machine<'a> {
    pub cache: &'a Path,
    pub image: &'a Path,
    /// Of this machine alone: log, job, answers.
    pub folder: &'a Path,
    /// When it is ended, whatever it does.
    pub limit: Duration,
}

impl Machine<'_> {
    /// Boots, has the job done, and returns the answers that there are when the machine is off. `tell` gets each line of its console.
    ///
    /// # Errors
    /// QEMU cannot be started, or the guest answers nothing at all.
    pub fn run(
        &self,
        pairing: &Pairing,
        job: &Job,
        files: &[PathBuf],
        tell: &mut dyn FnMut(&str),
    ) -> Outcome<Vec<Answer>> {
        let share = self.folder.join("share");
        drop(fs::remove_dir_all(self.folder));
        fs::create_dir_all(&share)?;
        fs::write(job_file(&share), serde_json::to_vec_pretty(job)?)?;
        for file in files {
            fs::copy(file, share.join(file.file_name().ok_or("a file has a name")?))?;
        }
        let mut child = self.command(pairing, &share)?.spawn().map_err(|error| format!("QEMU: {error}"))?;
        let console = child.stdout.take().ok_or("QEMU has no console")?;
        let ended = self.follow(&mut child, console, tell);
        // It may run yet if its console could not be read.
        drop(child.kill());
        child.wait()?;
        let in_time = ended?;
        let answers: Vec<Answer> = (0..job.tasks.len()).map_while(|task| read(&share, task)).collect();
        match (answers.len() == job.tasks.len(), in_time) {
            (true, _) => Ok(answers),
            (false, false) => {
                Err(format!("{}: not done after {:?}; {}", pairing.name, self.limit, self.see()).into())
            }
            (false, true) => {
                Err(format!("{}: the guest ended before its job was done; {}", pairing.name, self.see())
                    .into())
            }
        }
    }

    fn see(&self) -> String {
        format!("see {}", self.folder.join("console.log").display())
    }

    /// Passes the console on until its end. `false`: until the time was over.
    fn follow(
        &self,
        child: &mut Child,
        console: impl std::io::Read + Send,
        tell: &mut dyn FnMut(&str),
    ) -> Outcome<bool> {
        use std::io::Write as _;
        let deadline = Instant::now() + self.limit;
        let mut log = File::create(self.folder.join("console.log"))?;
        std::thread::scope(|scope| {
            let (lines, received) = std::sync::mpsc::channel();
            scope.spawn(move || {
                let console = BufReader::new(console).split(b'\n').map_while(Result::ok);
                for line in console {
                    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if lines.send(line).is_err() {
                        break;
                    }
                }
            });
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match received.recv_timeout(left) {
                    Ok(line) => {
                        writeln!(log, "{line}")?;
                        tell(&line);
                    }
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(true),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                        child.kill()?;
                        return Ok(false);
                    }
                }
            }
        })
    }

    fn command(&self, pairing: &Pairing, share: &Path) -> Outcome<Command> {
        let root = self.cache.join("root");
        let own = root.join("usr/bin/qemu-system-x86_64");
        let qemu = if own.exists() { own } else { "qemu-system-x86_64".into() };
        let mut command = match pairing.wire {
            Wire::Hubs => Command::new(qemu),
            Wire::Taps { .. } => behind_bridges(&qemu),
        };
        command.env("LD_LIBRARY_PATH", library_path(&root)).arg("-L").arg(root.join("usr/share/qemu"));
        for folder in ["usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(root.join(folder));
        }
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", CPUS, "-m", MEMORY, "-display", "none", "-nodefaults", "-no-reboot"]);
        command.args(["-serial", "stdio"]);
        command.arg("-kernel").arg(kernel(self.cache)?).arg("-initrd").arg(self.image);
        command.args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"]);
        let share = share.display();
        command.args(["-virtfs", &format!("local,path={share},mount_tag=share,security_model=none")]);
        for (number, mac) in MACS.iter().enumerate() {
            let gateway = number == 1 || number == 2;
            let device = if gateway { pairing.device } else { "virtio-net-pci" };
            let netdev = match pairing.wire {
                Wire::Hubs => format!("hubport,id=port{number},hubid={}", number / 2),
                Wire::Taps { queues, merging } => tap(number, if gateway { queues } else { 1 }, merging),
            };
            command.args(["-netdev", &netdev]);
            // Each behind a port of its own: igb takes more places on a bus than one.
            command
                .args(["-device", &format!("pcie-root-port,id=slot{number},chassis={number},slot={number}")]);
            let place = format!("bus=slot{number},netdev=port{number},mac={mac},romfile=");
            command.args(["-device", &format!("{device},{place}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(command)
    }
}

/// A TAP device of the namespace that [`behind_bridges`] makes.
fn tap(number: usize, queues: u32, merging: bool) -> String {
    let queues = if queues > 1 { format!(",queues={queues}") } else { String::new() };
    let merging = if merging { "on" } else { "off" };
    format!("tap,id=port{number},ifname=tap{number},script=no,downscript=no,vnet_hdr={merging}{queues}")
}

/// QEMU in a network namespace of its own, which is gone when it is: TAP devices of many queues on two bridges. Hubs have one
/// queue for each NIC.
fn behind_bridges(qemu: &Path) -> Command {
    const SCRIPT: &str = r#"set -e
sysctl -qw net.ipv6.conf.default.disable_ipv6=1
for hub in 0 1; do
    ip link add hub$hub mtu 9000 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip link set hub$hub up
done
for port in 0 1 2 3; do
    case $port in [12]) queues=multi_queue ;; *) queues= ;; esac
    ip tuntap add tap$port mode tap $queues
    ip link set tap$port mtu 9000 master hub$((port / 2)) up
done
exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "bash", "-c", SCRIPT]).arg(qemu);
    command
}

fn read(share: &Path, task: usize) -> Option<Answer> {
    serde_json::from_slice(&fs::read(answer_file(share, task)).ok()?).ok()
}
