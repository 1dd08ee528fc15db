//! Memory and descriptors: huge pages, locked memory, open files, the BPF file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::finding::{Finding, Findings};
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
        memlock(found, bytes);
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
    if let Some(pid) = ground.running.as_ref().and_then(|status| status["pid"].as_u64()) {
        let status = fs::read_to_string(ground.proc.join(format!("{pid}/status"))).unwrap_or_default();
        let in_use = number(&status, "HugetlbPages:").unwrap_or(0);
        return found.push(match in_use {
            0 => {
                hugepages_note(ground, needed, "the frames of the running weir lie in plain pages".to_owned())
            }
            kib => Finding::good("hugepages", "memory", format!("{kib} KiB of frames lie in huge pages")),
        });
    }
    let free = pool_number(&ground.sys, "free_hugepages").unwrap_or(0);
    found.push(if free >= needed {
        Finding::good("hugepages", "memory", format!("{free} huge pages are free, {needed} are needed"))
    } else {
        hugepages_note(ground, needed, format!("{free} huge pages of 2 MiB are free, {needed} are needed"))
    });
}

/// A number of the pool of pages of 2 MiB, whatever the kernel's usual size is (Documentation/admin-guide/mm/hugetlbpage.rst).
fn pool_number(sys: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(sys.join(POOL).join(name)).ok()?.trim().parse().ok()
}

fn hugepages_note(ground: &Ground<'_>, needed: u64, what: String) -> Finding {
    let wanted = pool_number(&ground.sys, "nr_hugepages").unwrap_or(0) + needed;
    let info = fs::read_to_string(ground.proc.join("meminfo")).unwrap_or_default();
    let is_usual = number(&info, "Hugepagesize:") == Some(HUGE_PAGE / 1024);
    Finding::note(
        "hugepages",
        "vm.nr_hugepages",
        what,
        "in plain pages each frame costs entries of the TLB: slower at high packet rates, and otherwise no loss",
    )
    .mend(match is_usual {
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

fn memlock(found: &mut Findings, bytes: u64) {
    if !preflight::permissions().is_empty() {
        return found.skip(
            "memlock",
            "RLIMIT_MEMLOCK",
            "this user's limit is not that of the one that weir runs as",
        );
    }
    let hard = getrlimit(Resource::Memlock).maximum;
    let free = may(CapabilitySet::IPC_LOCK) || may(CapabilitySet::SYS_RESOURCE);
    found.push(match hard {
        Some(hard) if hard < bytes && !free => Finding::bad(
            "memlock",
            "RLIMIT_MEMLOCK",
            format!("{hard} octets may be locked, and the frames need {bytes}"),
            "the kernel refuses the memory of the AF_XDP sockets: under systemd, LimitMEMLOCK=infinity in the service",
        )
        .mend("ulimit -l unlimited"),
        Some(hard) if hard < bytes => {
            Finding::good("memlock", "RLIMIT_MEMLOCK", format!("is {hard}, and this process may exceed it"))
        }
        _ => Finding::good("memlock", "RLIMIT_MEMLOCK", format!("the frames need {bytes} octets, and get them")),
    });
}

/// The relay needs two descriptors for each connection.
fn open_files(ground: &Ground<'_>, found: &mut Findings) {
    let limit = match ground.running.as_ref().and_then(|status| status["pid"].as_u64()) {
        Some(pid) => limit_of(&ground.proc.join(format!("{pid}/limits"))),
        None if may(CapabilitySet::SYS_RESOURCE) => None,
        None => getrlimit(Resource::Nofile).maximum,
    };
    let flows = u64::from(ground.config.workers.flows);
    // More is not asked for: the kernel lets no process have more, where `fs.nr_open` is as it usually is.
    let wanted = (2 * flows + SPARE_FILES).min(MOST_FILES);
    found.push(match limit {
        Some(limit) if limit < wanted => {
            let room = convert::relay_connections(ground.config.workers.flows, Some(limit));
            Finding::note(
                "open-files",
                "RLIMIT_NOFILE",
                format!("{limit} files may be open: the relay takes {room} connections of the {flows} that `flows` says"),
                "more are reset when they come by the relay; the fast road is not bound by it: under systemd, LimitNOFILE= in \
                 the service",
            )
            .mend(format!("ulimit -n {wanted}"))
        }
        _ => {
            let room = convert::relay_connections(ground.config.workers.flows, Some(wanted));
            Finding::good("open-files", "RLIMIT_NOFILE", format!("enough for {room} connections of the relay"))
        }
    });
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
