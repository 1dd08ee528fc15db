//! What is left of a journal that something happened to.

use super::*;

fn head() -> Head {
    Head { boot_id: "0-1".into(), netns: 7 }
}

fn entry(name: &str) -> Entry {
    let also = [(Key::new("net/ipv4/conf/lan/forwarding"), "0".to_owned())].into();
    Entry::new(Key::new(format!("net/ipv4/conf/lan/{name}")), "0".into(), "1".into(), also)
}

fn text(journal: &Journal) -> String {
    let folder = std::env::temp_dir().join(format!("weir-journal-{}", std::process::id()));
    let path = folder.join(std::thread::current().name().unwrap_or("test").replace(':', "_"));
    journal.store(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    Journal::default().store(&path).unwrap();
    assert!(!path.exists());
    let _ = fs::remove_dir(folder);
    text
}

fn two() -> Journal {
    Journal { head: head(), entries: vec![entry("rp_filter"), entry("accept_local")], damaged: Vec::new() }
}

#[test]
fn journal_stored_and_read_is_the_same() {
    assert_eq!(Journal::parse(&text(&two()), head()), two());
}

#[test]
fn journal_of_another_boot_or_namespace_is_empty() {
    for other in [Head { boot_id: "2".into(), ..head() }, Head { netns: 8, ..head() }] {
        let read = Journal::parse(&text(&two()), other);
        assert!(read.entries.is_empty() && read.damaged.is_empty());
    }
}

#[test]
fn journal_cut_anywhere_gives_its_whole_lines_and_tells_of_the_rest() {
    let whole = text(&two());
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at).collect();
    for length in 0..whole.len() {
        let read = Journal::parse(&whole[..length], head());
        let lines = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(read.entries, two().entries[..lines.saturating_sub(1)], "cut after {length}");
        let torn = length != 0 && !ends.contains(&length) && !whole[..length].ends_with('\n');
        assert_eq!(read.damaged.len(), usize::from(torn), "cut after {length}");
    }
}

#[test]
fn journal_with_nonsense_in_it_gives_what_is_left() {
    let whole = text(&two());
    let damaged = whole.replacen("{\"key\"", "\u{fffd}\0nonsense", 1);
    let read = Journal::parse(&damaged, head());
    assert_eq!((read.entries, read.damaged.len()), (two().entries[1..].to_vec(), 1));
    let headless = whole.split_once('\n').unwrap().1;
    assert_eq!(Journal::parse(headless, head()), two());
}

#[test]
fn key_changed_again_keeps_its_first_old_value_and_learns_of_new_devices() {
    let mut journal = two();
    let mut again = entry("rp_filter");
    (again.old, again.new) = ("1".into(), "2".into());
    again.also =
        vec![SideEffect { key: Key::new("net/ipv4/conf/new/forwarding"), old: "1".into(), new: None }];
    journal.remember(again);
    assert_eq!(journal.entries.len(), 2);
    let known = &journal.entries[0];
    assert_eq!((known.old.as_str(), known.new.as_str(), known.also.len()), ("0", "2", 2));
}

#[test]
fn what_was_changed_last_is_restored_first_and_devices_after_those_above_them() {
    let names = ["lan", "bond", "vlan", "other"];
    let keys = names.map(|device| Key::of_offload(device, "rx-lro"));
    let own = |key: &Key| Entry { key: key.clone(), old: "on".into(), new: "off".into(), also: Vec::new() };
    let order = |above: [usize; 4]| {
        let mut journal = Journal { entries: keys.iter().map(own).collect(), ..Journal::default() };
        let above = |key: &Key| above[keys.iter().position(|known| known == key).unwrap()];
        let mut order = Vec::new();
        while let Some(at) = journal.next(&Key::is_merging, &above) {
            order.push(journal.entries.remove(at).key.device().unwrap().to_owned());
        }
        order
    };
    assert_eq!(order([0; 4]), ["other", "vlan", "bond", "lan"]);
    assert_eq!(order([2, 1, 0, 0]), ["other", "vlan", "bond", "lan"]);
    assert_eq!(order([0, 2, 1, 3]), ["lan", "vlan", "bond", "other"]);
}

#[test]
fn offloads_that_go_off_with_forwarding_are_restored_by_themselves_and_after_it() {
    let lro = Key::of_offload("lan", "rx-lro");
    let mut entry = entry("rp_filter");
    entry.also.push(SideEffect { key: lro.clone(), old: "on".into(), new: None });
    let mut journal = Journal::default();
    journal.remember(entry.clone());
    // Once more, as when the kernel has switched it off by now.
    entry.also.pop();
    journal.remember(entry.clone());
    let own = Entry { key: lro, old: "on".into(), new: "off".into(), also: Vec::new() };
    assert_eq!(journal.entries, [own, entry]);
    assert!(journal.has(Key::is_merging));
}
