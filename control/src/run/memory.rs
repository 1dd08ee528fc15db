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

/// What the process's control group leaves (cgroup v2).
fn group() -> Option<Bound> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder = Path::new("/sys/fs/cgroup").join(path);
    let mut least: Option<usize> = None;
    while folder.starts_with("/sys/fs/cgroup") {
        let read = |name: &str| -> Option<usize> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        if let (Some(max), Some(now)) = (read("memory.max"), read("memory.current")) {
            let left = max.saturating_sub(now);
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        if !folder.pop() {
            break;
        }
    }
    least.map(|octets| Bound {
        octets,
        name: "its control group leaves SIZE (memory.max; MemoryMax= of the service)",
    })
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
    fn this_machine_has_memory() {
        assert!(machine().unwrap().octets > 1 << 20);
    }
}
