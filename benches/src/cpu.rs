//! CPU time of threads and processes, as the scheduler counts it.

use std::collections::BTreeMap;
use std::fs;

use crate::Failure;

/// Threads of the kernel (and processes) by the beginning of their name: id and name.
///
/// # Errors
/// /proc cannot be read.
pub fn threads_named(prefix: &str) -> Result<BTreeMap<u32, String>, Failure> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse() else { continue };
        // It may have ended by now.
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if name.starts_with(prefix) {
            found.insert(id, name.trim_end().to_owned());
        }
    }
    Ok(found)
}

/// CPU time in ns of kernel threads and, with all their threads, of processes.
///
/// # Errors
/// One of them is not there.
pub fn time_of(threads: &[u32], processes: &[u32]) -> Result<u64, Failure> {
    let mut sum = 0;
    for thread in threads {
        sum += time_of_task(&format!("/proc/{thread}"))?;
    }
    for process in processes {
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            sum += time_of_task(&task?.path().display().to_string())?;
        }
    }
    Ok(sum)
}

/// The first number of schedstat (proc_pid_schedstat(5)): time on a CPU.
fn time_of_task(task: &str) -> Result<u64, Failure> {
    let path = format!("{task}/schedstat");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    Ok(first.parse().map_err(|error| format!("{path} says {text:?}: {error}"))?)
}
