//! Whether there is the memory that a configuration asks for, before anything is installed.
//!
//! An allocation that fails in the middle of a start would end the process without a word, and one that the kernel promises and
//! cannot keep ends it later. So the figure is made first, and compared with what is to be had.

use std::fmt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use weir_dataplane::gateway::{Needs, Spec};
use weir_sys::steering::{Express, ExpressMemory};

use crate::exit::Failure;

/// Octets of an entry of the kernel map besides key and value (`struct htab_elem`, with its place in the LRU lists).
const MAP_ENTRY: usize = 112;
/// What the process takes besides: its code, stacks, rings, the relay's first buffers.
const BASE: usize = 64 << 20;

/// Something that bounds memory, and what of it is left.
struct Bound {
    octets: usize,
    name: &'static str,
}

/// Octets, for people.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n < 1 << 30 => write!(f, "{} MiB", n.div_ceil(1 << 20)),
            n => write!(f, "{:.1} GiB", n as f64 / f64::from(1 << 30)),
        }
    }
}

/// Refuses what does not fit.
///
/// # Errors
/// What is needed, for what, what there is, and what to lower.
pub fn check(spec: &Spec, express_flows: u32) -> Result<(), Failure> {
    // Packets that fit no frame are refused when the sockets are opened, after what is wrong with the device itself.
    let Ok(needs) = Needs::of(spec) else { return Ok(()) };
    let lane = if express_flows > 0 { Express::memory(express_flows) } else { ExpressMemory::default() };
    let [index, flows] = [lane.index, lane.flows].map(|octets| usize::try_from(octets).unwrap_or(usize::MAX));
    let map = spec.kernel_flows.saturating_mul(MAP_ENTRY).saturating_add(index);
    let held = needs.tables.held.saturating_add(needs.frames).saturating_add(map).saturating_add(BASE);
    let asked = held.saturating_add(needs.tables.reserved);
    // What the kernel takes for connections of the lane is no address space of ours, but memory all the same.
    let with_lane = held.saturating_add(flows);
    if express_flows > 0 {
        tracing::info!(
            connections = express_flows,
            at_once = %Size(index),
            when_full = %Size(index.saturating_add(flows)),
            "express lane: memory of the kernel's"
        );
    }
    let available = [machine(), group()].into_iter().flatten().min_by_key(|bound| bound.octets);
    let space = address_space();
    let short = available.filter(|bound| bound.octets < with_lane).map(|bound| (with_lane, bound));
    let Some((need, bound)) = short.or(space.filter(|b| b.octets < asked).map(|bound| (asked, bound))) else {
        return probe(asked, spec);
    };
    Err(refusal(need, &bound.name.replace("SIZE", &Size(bound.octets).to_string()), spec, &needs))
}

/// Asks for address space of that size, and gives it back: where the kernel promises no more than it has
/// (vm.overcommit_memory = 2), this is refused.
fn probe(octets: usize, spec: &Spec) -> Result<(), Failure> {
    let mut all = Vec::<u8>::new();
    match all.try_reserve_exact(octets) {
        Ok(()) => Ok(()),
        Err(_) => Err(refusal(octets, "the kernel does not promise as much", spec, &Needs::default())),
    }
}

fn refusal(need: usize, why: &str, spec: &Spec, needs: &Needs) -> Failure {
    Failure::refused(format!(
        "this configuration needs {} of memory ({} for connections, {} for frames), and {why}: lower `flows` in [workers] (it is {}) or \
         `held` in [limits], or list fewer `queues` in each [[port]]",
        Size(need),
        Size(needs.tables.held.saturating_add(needs.tables.reserved)),
        Size(needs.frames),
        spec.flows
    ))
}

/// What new processes can have without swapping (proc_meminfo(5), MemAvailable), and swap.
fn machine() -> Option<Bound> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let of = |key: &str| -> Option<usize> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()
    };
    let octets = (of("MemAvailable:")? + of("SwapFree:").unwrap_or(0)).saturating_mul(1024);
    Some(Bound { octets, name: "the machine has SIZE left" })
}

/// Where control groups bound memory, and how a version of them says it.
struct Groups {
    root: &'static str,
    /// In front of the group's path in /proc/self/cgroup, after the number of the hierarchy.
    before_path: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// In memory.stat: the page cache, which goes when there is need.
    cache: [&'static str; 2],
    name: &'static str,
}

/// cgroup v2, and v1 where that has the memory.
const GROUPS: [Groups; 2] = [
    Groups {
        root: "/sys/fs/cgroup",
        before_path: "::/",
        limit: "memory.max",
        usage: "memory.current",
        cache: ["inactive_file", "active_file"],
        name: "its control group leaves SIZE (memory.max; MemoryMax= of the service)",
    },
    Groups {
        root: "/sys/fs/cgroup/memory",
        before_path: ":memory:/",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        cache: ["total_inactive_file", "total_active_file"],
        name: "its control group leaves SIZE (memory.limit_in_bytes; MemoryLimit= of the service)",
    },
];

/// What the process's control group leaves.
fn group() -> Option<Bound> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let of = |groups: &Groups| {
        let octets = groups.left(Path::new(groups.root), &text)?;
        Some(Bound { octets, name: groups.name })
    };
    GROUPS.iter().filter_map(of).min_by_key(|bound| bound.octets)
}

impl Groups {
    /// What the group leaves that `text` (/proc/self/cgroup) names, and those above it; none where nothing is bounded.
    fn left(&self, root: &Path, text: &str) -> Option<usize> {
        let path = |line: &'_ str| {
            let rest = line.trim_start_matches(|digit: char| digit.is_ascii_digit());
            rest.strip_prefix(self.before_path).map(str::to_owned)
        };
        let mut folder = root.join(text.lines().find_map(path)?);
        let mut least: Option<usize> = None;
        while folder.starts_with(root) {
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
            if let (Some(limit), Some(usage)) = (number(self.limit), number(self.usage)) {
                let stat = read("memory.stat").unwrap_or_default();
                let of = |line: &str| {
                    let (name, octets) = line.split_once(' ')?;
                    self.cache.contains(&name).then(|| octets.parse::<usize>().ok()).flatten()
                };
                let cache: usize = stat.lines().filter_map(of).sum();
                let left = limit.saturating_sub(usage.saturating_sub(cache));
                least = Some(least.map_or(left, |least| least.min(left)));
            }
            if !folder.pop() {
                break;
            }
        }
        least
    }
}

/// What RLIMIT_AS leaves.
fn address_space() -> Option<Bound> {
    let limit = usize::try_from(getrlimit(Resource::As).current?).ok()?;
    let pages: usize = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').next()?.parse().ok()?;
    let used = pages.saturating_mul(rustix::param::page_size());
    Some(Bound {
        octets: limit.saturating_sub(used),
        name: "its limit of address space leaves SIZE (ulimit -v)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        for (octets, text) in [(1, "1 MiB"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(Size(octets).to_string(), text);
        }
    }

    #[test]
    fn group_leaves_what_the_tightest_above_it_does_and_its_page_cache_counts_as_free() {
        let root = std::env::temp_dir().join(format!("weir-groups-{}", std::process::id()));
        let [v2, v1] = &GROUPS;
        for (groups, text) in [(v2, "1:name=systemd:/\n0::/a/b\n"), (v1, "4:memory:/a/b\n0::/\n")] {
            let write = |folder: &str, limit: &str, usage: &str, cache: &str| {
                let folder = root.join(folder);
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(groups.limit), limit).unwrap();
                std::fs::write(folder.join(groups.usage), usage).unwrap();
                let stat = format!("anon 5\n{} {cache}\n{} 1\n", groups.cache[0], groups.cache[1]);
                std::fs::write(folder.join("memory.stat"), stat).unwrap();
            };
            write("a/b", "max\n", "700\n", "0");
            assert_eq!(groups.left(&root, text), None, "nothing is bounded");
            write("a", "1000\n", "900\n", "99");
            assert_eq!(groups.left(&root, text), Some(200));
            write("a/b", "600\n", "700\n", "0");
            assert_eq!(groups.left(&root, text), Some(0));
            assert_eq!(groups.left(&root, "9:cpu:/\n"), None, "another hierarchy");
            std::fs::remove_dir_all(&root).unwrap();
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(machine().unwrap().octets > 1 << 20);
    }
}
