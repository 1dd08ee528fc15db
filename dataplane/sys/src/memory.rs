//! What kind of pages memory is made of.

use std::mem::MaybeUninit;

/// A huge page on every machine that AF_XDP is of use on.
const HUGE_PAGE: usize = 2 << 20;

/// Memory that nothing is in yet is to be of huge pages, where there are any (transparent_hugepage, `madvise` or `always`): who reads
/// a word here and a word there then finds each by far fewer steps. What does not fill a huge page stays as it is; so does all of
/// it where the kernel has none.
pub fn prefer_huge_pages<T>(memory: &[MaybeUninit<T>]) {
    let range = memory.as_ptr_range();
    let (from, to) =
        (range.start.addr().next_multiple_of(HUGE_PAGE), range.end.addr() / HUGE_PAGE * HUGE_PAGE);
    if from >= to {
        return;
    }
    let start = range.start.with_addr(from).cast_mut().cast();
    // SAFETY: the range lies within `memory`, which is borrowed, and starts at a page; the advice changes no octet of it.
    let _refused = unsafe { libc::madvise(start, to - from, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the mapping that `address` lies in is advised to have huge pages (proc_pid_smaps(5)).
    fn is_advised(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_there = false;
        for line in maps.lines() {
            let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds =
                bounds.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
            if let Some((Ok(from), Ok(to))) = bounds {
                is_there = (from..to).contains(&address);
            } else if is_there && line.starts_with("VmFlags:") {
                return line.split(' ').any(|flag| flag == "hg");
            }
        }
        false
    }

    #[test]
    fn large_memory_is_advised_and_holds_what_is_put_there() {
        let mut large: Vec<u64> = Vec::with_capacity(8 * HUGE_PAGE / size_of::<u64>());
        prefer_huge_pages(large.spare_capacity_mut());
        let has_huge_pages = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(is_advised(large.as_ptr().addr() + 4 * HUGE_PAGE), has_huge_pages);
        large.resize(large.capacity(), 7);
        assert!(large.iter().all(|word| *word == 7));
        let mut small: Vec<u64> = Vec::with_capacity(100);
        prefer_huge_pages(small.spare_capacity_mut());
    }
}
