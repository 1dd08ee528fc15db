//! Memory and descriptors: huge pages, locked memory, open files, the BPF file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use crate::config::{Fail, Queues};
use crate::host::{LinkInfo, preflight};
use crate::run::convert::{self, SPARE_FILES, buffer_grain};
use weir_dataplane::gateway::{FRAME_SIZES, FRAMES_PER_QUEUE, largest_packet};
use weir_sys::ethtool;
use weir_sys::process::MOST_FILES;

const HUGE_PAGE: u64 = 2 << 20;
/// The pool of such pages, under sysfs.
const POOL: &str = "kernel/mm/hugepages/hugepages-2048kB";
const PINS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    open_files(ground, found);
    if ground.fast {
        let bytes = memory(ground);
        hugepages(ground, found, bytes);
        memlock(ground, found, bytes);
        bpffs(ground, found);
    }
}

/// Octets of the memory area.
fn memory(ground: &Ground<'_>) -> u64 {
    let sockets: usize = ground.config.ports.iter().map(|port| queues(port).len()).sum();
    let [small, large] = FRAME_SIZES;
    let fits = |link: &LinkInfo| link.mtu as usize <= largest_packet(small, buffer_grain(&link.name));
    let frame = if ground.ports().all(|(_, link)| fits(link)) { small } else { large };
    (sockets * FRAMES_PER_QUEUE * frame) as u64
}

/// The queues that the configuration takes of a device as it is now.
pub fn queues(port: &crate::config::Port) -> BTreeSet<u32> {
    match &port.queues {
        Queues::All => (0..ethtool::channels_of(&port.device).map_or(1, |c| c.receiving()).max(1)).collect(),
        Queues::List(list) => list.iter().map(|queue| u32::from(*queue)).collect(),
    }
}

fn hugepages(ground: &Ground<'_>, found: &mut Findings, bytes: u64) {
    let needed = bytes.div_ceil(HUGE_PAGE);
    let free = pool_number(&ground.sys, "free_hugepages").unwrap_or(0);
    if let Some(pid) = ground.running.as_ref().and_then(|status| status["pid"].as_u64()) {
        let status = fs::read_to_string(ground.proc.join(format!("{pid}/status"))).unwrap_or_default();
        let in_use = number(&status, "HugetlbPages:").unwrap_or(0);
        let plain = "the frames of the running weir lie in plain pages";
        return found.push(match in_use {
            0 if free >= needed => {
                let what =
                    format!("{plain}; {free} huge pages are free now, which it takes when it starts again");
                Finding::note("hugepages", "vm.nr_hugepages", what, SLOWER).by_hand(NoCommand::Nothing)
            }
            0 => hugepages_note(ground, needed - free, plain.to_owned()),
            kib => Finding::good("hugepages", "memory", format!("{kib} KiB of frames lie in huge pages")),
        });
    }
    found.push(if free >= needed {
        Finding::good("hugepages", "memory", format!("{free} huge pages are free, {needed} are needed"))
    } else {
        let what = format!("{free} huge pages of 2 MiB are free, {needed} are needed");
        hugepages_note(ground, needed - free, what)
    });
}

/// A number of the pool of pages of 2 MiB, whatever the kernel's usual size is (Documentation/admin-guide/mm/hugetlbpage.rst).
fn pool_number(sys: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(sys.join(POOL).join(name)).ok()?.trim().parse().ok()
}

/// Why huge pages are worth having.
const SLOWER: &str =
    "in plain pages each frame costs entries of the TLB: slower at high packet rates, and otherwise no loss";

/// `more`: pages that are to be added to the pool.
fn hugepages_note(ground: &Ground<'_>, more: u64, what: String) -> Finding {
    let finding = Finding::note("hugepages", "vm.nr_hugepages", what, SLOWER);
    let Some(are) = pool_number(&ground.sys, "nr_hugepages") else {
        // Built without CONFIG_HUGETLBFS, or on a machine whose pages have other sizes.
        return finding.by_hand(NoCommand::Kernel);
    };
    let wanted = are + more;
    let info = fs::read_to_string(ground.proc.join("meminfo")).unwrap_or_default();
    let is_usual = number(&info, "Hugepagesize:") == Some(HUGE_PAGE / 1024);
    finding.mend(match is_usual {
        true => format!("sysctl -w vm.nr_hugepages={wanted}"),
        // The sysctl counts pages of another size.
        false => format!("echo {wanted} > /sys/{POOL}/nr_hugepages"),
    })
}

/// The number behind a name, as in /proc/meminfo.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn may(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The command that raises a limit of the shell that it is typed into, and with that of a weir that is started there; none where
/// nobody in here may raise one (`may`), root neither.
///
/// Only who has CAP_SYS_RESOURCE raises hard limits (setrlimit(2)), and a process that lacks it is who is told of one.
fn raised(option: &str, amount: &str, may: bool) -> Option<String> {
    may.then(|| format!("sudo prlimit --pid $$ --{option}={amount}:{amount}"))
}

/// Whether root in here, such as sudo gives, may raise limits: in many containers it may not.
fn root_may_raise() -> bool {
    capability_is_in_bounding_set(CapabilitySet::SYS_RESOURCE).unwrap_or(false)
}

fn memlock(ground: &Ground<'_>, found: &mut Findings, bytes: u64) {
    let (id, subject) = ("memlock", "RLIMIT_MEMLOCK");
    if ground.running.is_some() {
        return found.push(Finding::good(id, subject, "the running weir has the memory of its frames"));
    }
    if !preflight::permissions().is_empty() {
        return found.skip(id, subject, "this user's limit is not that of the one that weir runs as");
    }
    let hard = getrlimit(Resource::Memlock).maximum;
    let free = may(CapabilitySet::IPC_LOCK) || may(CapabilitySet::SYS_RESOURCE);
    found.push(match hard {
        Some(hard) if hard < bytes && !free => lock_limit(hard, bytes, root_may_raise()),
        Some(hard) if hard < bytes => {
            Finding::good(id, subject, format!("is {hard}, and this process may exceed it"))
        }
        _ => Finding::good(id, subject, format!("the frames need {bytes} octets, and get them")),
    });
}

/// The hard limit is too small, and this process may not exceed it. weir raises its own as far as that one, and no further.
fn lock_limit(hard: u64, bytes: u64, root_may: bool) -> Finding {
    Finding::bad(
        "memlock",
        "RLIMIT_MEMLOCK",
        format!("{hard} octets may be locked, and the frames need {bytes}"),
        "the kernel refuses the memory of the AF_XDP sockets to a process with neither CAP_IPC_LOCK nor CAP_SYS_RESOURCE: weir does \
         not start. Start it from the shell whose limit is raised, or, under systemd, with LimitMEMLOCK=infinity in the service",
    )
    .mend_or(raised("memlock", "unlimited", root_may), NoCommand::Starter)
}

/// The relay needs two descriptors for each connection.
fn open_files(ground: &Ground<'_>, found: &mut Findings) {
    let running = ground.running.as_ref().and_then(|status| status["pid"].as_u64());
    let limit = match running {
        Some(pid) => limit_of(&ground.proc.join(format!("{pid}/limits"))),
        None if may(CapabilitySet::SYS_RESOURCE) => None,
        None => getrlimit(Resource::Nofile).maximum,
    };
    let flows = ground.config.workers.flows;
    // More is not asked for: the kernel lets no process have more, where `fs.nr_open` is as it usually is.
    let wanted = (2 * u64::from(flows) + SPARE_FILES).min(MOST_FILES);
    found.push(match limit {
        Some(limit) if limit < wanted => {
            let finding = file_limit(limit, flows, running.is_some());
            finding.mend_or(raised("nofile", &wanted.to_string(), root_may_raise()), NoCommand::Starter)
        }
        _ => {
            let room = convert::relay_connections(flows, Some(wanted));
            Finding::good(
                "open-files",
                "RLIMIT_NOFILE",
                format!("enough for {room} connections of the relay"),
            )
        }
    });
}

/// `runs`: it is the limit of a weir that runs, which asked for its room when it started.
fn file_limit(limit: u64, flows: u32, runs: bool) -> Finding {
    let room = convert::relay_connections(flows, Some(limit));
    let then = if runs { "start weir again from" } else { "start weir from" };
    Finding::note(
        "open-files",
        "RLIMIT_NOFILE",
        format!(
            "{limit} files may be open: the relay takes {room} connections of the {flows} that `flows` says"
        ),
        format!(
            "more are reset when they come by the relay; the fast road is not bound by it: {then} the shell whose limit is raised, \
             or, under systemd, with LimitNOFILE= in the service"
        ),
    )
}

fn limit_of(limits: &Path) -> Option<u64> {
    let text = fs::read_to_string(limits).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

fn bpffs(ground: &Ground<'_>, found: &mut Findings) {
    let mounted = rustix::fs::statfs(PINS).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC);
    let what = "no BPF file system is mounted there";
    let command = format!("mount -t bpf bpf {PINS}");
    found.push(match (mounted, ground.config.gateway.fail) {
        (true, _) => Finding::good("bpffs", PINS, "a BPF file system is mounted"),
        (false, Fail::Closed) => Finding::bad(
            "bpffs",
            PINS,
            what,
            "with fail = \"closed\" the steering program stays on its ports by a pin there: weir does not start",
        )
        .mend(command),
        (false, Fail::Open) => {
            Finding::note("bpffs", PINS, what, "only fail = \"closed\" needs it").mend(command)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn limits_are_raised_from_outside_or_where_weir_is_started_from() {
        for (root_may, mend, by_hand) in [
            (true, Some("sudo prlimit --pid $$ --memlock=unlimited:unlimited"), None),
            (false, None, Some(NoCommand::Starter)),
        ] {
            let finding = lock_limit(8 << 20, 64 << 20, root_may);
            assert_eq!((finding.severity, finding.by_hand), (Severity::Bad, by_hand));
            assert_eq!(finding.mend.as_deref(), mend);
            assert!(finding.is_whole() && finding.why.contains("LimitMEMLOCK=infinity"), "{finding:?}");
        }
        assert_eq!(
            raised("nofile", "2048", true).as_deref(),
            Some("sudo prlimit --pid $$ --nofile=2048:2048")
        );
        for (runs, words) in [(true, "start weir again from"), (false, ": start weir from")] {
            assert!(file_limit(1100, 512, runs).why.contains(words));
        }
    }

    /// The command raises the limit of the shell that it is typed into: as far as its hard limit anybody may.
    #[test]
    fn command_that_raises_a_limit_does_so_for_what_the_shell_starts_afterwards() {
        let command = raised("nofile", "300", true).unwrap().replace("sudo ", "");
        let script = format!("ulimit -Sn 200; {command} && sh -c 'ulimit -Sn'");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "300\n", "{output:?}");
    }
}
