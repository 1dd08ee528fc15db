//! Who removed what is weir's: as far as the kernel tells, and /proc still knows.
//!
//! rtnetlink's notifications carry the port id of the netlink socket whose request they are about; for most programs that
//! is the process id, and /proc/net/netlink knows the rest. nft's carry process id and name; who wrote a sysctl fanotify tells (see
//! [`super::writers`]). Nobody tells who detached a BPF link. A program like `ip` is gone within a millisecond: what started it is
//! looked up at once.

use std::fmt;
use std::fs;

use serde::Serialize;

use super::plan::Kind;

/// A process that removed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Culprit {
    pub pid: u32,
    /// None when it had ended before anybody could look.
    pub name: Option<String>,
    /// The process that started it, where that is no shell's terminal or init: often the one to talk to.
    pub parent: Option<(u32, String)>,
}

/// Something of weir's was removed, by this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub kind: Kind,
    pub by: Culprit,
}

impl Culprit {
    /// The process behind a netlink port id. None for the kernel itself.
    pub fn of_port(port: u32) -> Option<Self> {
        if port == 0 {
            return None;
        }
        if name_of(port).is_some() {
            return Some(Self::of(port, None));
        }
        // A second socket of a process has a number that says nothing.
        let pid = netlink_inode(port).and_then(owner_of_socket).unwrap_or(port);
        Some(Self::of(pid, None))
    }

    /// A process; `name` as the kernel told it, for one that may have ended.
    pub fn of(pid: u32, name: Option<String>) -> Self {
        let name = name.or_else(|| name_of(pid));
        // That of a script, not that of its interpreter.
        let name = if name.as_deref().is_some_and(is_interpreter) { command_of(pid).or(name) } else { name };
        let parent = parent_of(pid).filter(|parent| *parent > 1);
        let parent = parent.and_then(|parent| Some((parent, command_of(parent)?)));
        Self { pid, name, parent }
    }

    /// How much is known: names are worth more than numbers.
    pub fn certainty(&self) -> u8 {
        u8::from(self.name.is_some()) + u8::from(self.parent.is_some())
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (process {})", self.pid)?,
            None => write!(f, "process {}, which has ended", self.pid)?,
        }
        match &self.parent {
            Some((pid, name)) => write!(f, ", started by {name} (process {pid})"),
            None => Ok(()),
        }
    }
}

fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// The name by which people know a process: that of a script, not that of its interpreter.
fn command_of(pid: u32) -> Option<String> {
    let octets = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = octets.split(|octet| *octet == 0).map(String::from_utf8_lossy).filter(|w| !w.is_empty());
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let program = words.next().map(|word| base(&word));
    let script = words.next().filter(|word| !word.starts_with('-')).map(|word| base(&word));
    match (program, script) {
        (Some(program), Some(script)) if is_interpreter(&program) => Some(script),
        (Some(program), _) => Some(program),
        (None, _) => name_of(pid),
    }
}

fn is_interpreter(program: &str) -> bool {
    ["sh", "bash", "dash", "ash", "busybox", "perl", "ruby"].contains(&program)
        || program.starts_with("python")
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // State and parent follow the name, which is in parentheses and may hold any.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The inode of the rtnetlink socket with a port id, in the calling thread's network namespace.
fn netlink_inode(port: u32) -> Option<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; Eth 0 is rtnetlink.
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_it = columns.get(1) == Some(&"0") && columns.get(2)?.parse() == Ok(port);
        if is_it { columns.last()?.parse().ok() } else { None }
    })
}

fn owner_of_socket(inode: u64) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            if fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
                return Some(pid);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_lives_is_named_with_the_one_that_started_it() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        // The parent runs on before exec has given the child its name (fs/exec.c, begin_new_exec).
        let comm = format!("/proc/{}/comm", child.id());
        while !fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n") {
            std::thread::yield_now();
        }
        let culprit = Culprit::of(child.id(), None);
        let ended = child.kill().and_then(|()| child.wait());
        ended.unwrap();
        let parent = culprit.parent.clone().unwrap();
        assert_eq!((culprit.name.as_deref(), parent.0), (Some("sleep"), std::process::id()));
        assert_eq!(
            culprit.to_string(),
            format!("sleep (process {}), started by {} (process {})", child.id(), parent.1, parent.0)
        );
    }

    #[test]
    fn process_that_has_ended_is_told_by_its_number_or_by_the_name_that_the_kernel_gave() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let pid = child.id();
        assert_eq!(Culprit::of(pid, None).to_string(), format!("process {pid}, which has ended"));
        assert_eq!(Culprit::of(pid, Some("nft".into())).to_string(), format!("nft (process {pid})"));
    }

    #[test]
    fn second_netlink_socket_of_a_process_is_traced_to_it() {
        use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
            socket.bind(&SocketAddr::new(0, 0)).unwrap();
            socket
        };
        let (first, second) = (open(), open());
        for socket in [first, second] {
            let mut address = SocketAddr::new(0, 0);
            socket.get_address(&mut address).unwrap();
            let culprit = Culprit::of_port(address.port_number()).unwrap();
            assert_eq!(culprit.pid, std::process::id(), "port {}", address.port_number());
        }
        assert_eq!(Culprit::of_port(0), None, "the kernel itself");
    }
}
