//! Who removed what is weir's: as far as the kernel tells, and /proc still knows.
//!
//! rtnetlink's notifications carry the port id of the netlink socket whose request they are about; for most programs that
//! is the process id that it has in its own PID namespace (af_netlink.c, netlink_autobind), and /proc/net/netlink knows the rest.
//! nft's carry process id and name; who wrote a sysctl fanotify tells (see [`super::writers`]). Nobody tells who detached a BPF link.
//! A program like `ip` is gone within a millisecond: what started it is looked up at once.

use std::fmt;
use std::fs;

use serde::Serialize;

use super::plan::Kind;

/// A process that removed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Culprit {
    /// 0: one that this PID namespace has no number for.
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
    /// A process that /proc does not show.
    const UNSEEN: Self = Self { pid: 0, name: None, parent: None };

    /// The process behind a netlink port id. None for the kernel itself. Once the socket is closed nothing tells a process of another
    /// PID namespace from one of this that has the same number.
    pub fn of_port(port: u32) -> Option<Self> {
        if port == 0 {
            return None;
        }
        // It may end at any moment: its name is read before it is looked whether it is the one.
        let (likely, may_be) = (Self::of(port, None), may_have_asked(port));
        let Some(inode) = netlink_inode(port) else {
            return Some(if may_be { likely } else { Self::UNSEEN });
        };
        if holds(port, inode) {
            return Some(likely);
        }
        // A second socket of a process has a number that says nothing.
        if let Some(owner) = owner_of_socket(inode) {
            return Some(Self::of(owner, None));
        }
        let has_closed = netlink_inode(port) != Some(inode);
        Some(if has_closed && may_be { likely } else { Self::UNSEEN })
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
            None if self.pid == 0 => write!(f, "a process of another PID namespace")?,
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
    stat_of(pid, 1)
}

/// A number of /proc/PID/stat, counted from the state on, which is 0.
fn stat_of(pid: u32, place: usize) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // They follow the name, which is in parentheses and may hold any.
    stat.rsplit_once(") ")?.1.split(' ').nth(place)?.parse().ok()
}

/// Whether a process can have a socket whose port id is the number that it has here: none of the kernel's own, and none that has
/// another number in a PID namespace of its own. One that has ended can.
fn may_have_asked(pid: u32) -> bool {
    // linux/sched.h.
    const PF_KTHREAD: u32 = 0x0020_0000;
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let is_elsewhere =
        namespace("self").zip(namespace(&pid.to_string())).is_some_and(|(own, its)| own != its);
    !is_elsewhere && stat_of(pid, 6).is_none_or(|flags| flags & PF_KTHREAD == 0)
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
    let names = fs::read_dir("/proc").ok()?.flatten().map(|process| process.file_name());
    let mut processes = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    processes.find(|pid| holds(*pid, inode))
}

/// Whether a process has a socket.
fn holds(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target| target.as_os_str() == wanted.as_str())
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

    #[test]
    fn process_whose_number_is_the_port_of_anothers_socket_is_not_taken_for_that_one() {
        use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
        let mut bystander = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind(&SocketAddr::new(bystander.id(), 0)).unwrap();
        let culprit = Culprit::of_port(bystander.id()).unwrap();
        bystander.kill().and_then(|()| bystander.wait()).unwrap();
        assert_eq!(culprit.pid, std::process::id());
    }

    #[test]
    fn process_that_has_another_number_in_its_own_namespace_is_not_named_for_the_one_that_it_has_here() {
        let mut outer =
            std::process::Command::new("unshare").args(["--pid", "--fork", "sleep", "30"]).spawn().unwrap();
        let inner = loop {
            assert_eq!(outer.try_wait().unwrap(), None, "unshare has failed");
            let names = fs::read_dir("/proc").unwrap().flatten().map(|process| process.file_name());
            let mut pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
            if let Some(inner) = pids.find(|pid| parent_of(*pid) == Some(outer.id())) {
                break inner;
            }
        };
        let culprit = Culprit::of_port(inner).unwrap();
        std::process::Command::new("sh").args(["-c", &format!("kill -9 {inner}")]).status().unwrap();
        outer.wait().unwrap();
        assert_eq!(culprit, Culprit::UNSEEN);
        assert_eq!(culprit.to_string(), "a process of another PID namespace");
    }
}
