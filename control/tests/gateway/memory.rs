//! Memory that ends at start: by a control group of either version, a box is as it fails.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use weir_control::lab::{Lab, skipped};

use crate::closed::assert_forwarded;
use crate::config::{ALLOWED, DENIED, Settings};
use crate::starts::{assert_clean_opens, assert_held_back, is_forwarded};
use crate::weir::Finished;
use crate::world::{World, prepare};

/// A control group with little memory, for weir; it goes when this is dropped.
struct Group<'lab> {
    lab: &'lab Lab,
    folder: String,
}

/// Makes a group of `$0` octets, in a mount of its hierarchy that only the gateway has, and says where it is: of version 2 where that has
/// the memory, and else of version 1, beside this process.
const MAKE_GROUP: &str = r#"
    mkdir -p /run/groups
    mount -t cgroup2 groups /run/groups
    if grep -qw memory /run/groups/cgroup.controllers; then
        limit=memory.max own=
        echo +memory >/run/groups/cgroup.subtree_control || exit
    else
        umount /run/groups
        limit=memory.limit_in_bytes own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
        mount -t cgroup -o memory groups /run/groups || exit
    fi
    folder=/run/groups${own%/}/weir-test-$$
    mkdir "$folder" && { echo "$0" >"$folder/$limit" && echo "$folder" || { rmdir "$folder"; exit 1; } }
"#;

/// As the machine has it, so that weir finds it.
const SHOW_GROUPS: &str = "
    if mount -t cgroup2 groups /sys/fs/cgroup && grep -q memory /sys/fs/cgroup/cgroup.controllers; then exit; fi
    umount /sys/fs/cgroup 2>/dev/null
    mount -t tmpfs groups /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && mount -t cgroup -o memory groups /sys/fs/cgroup/memory";

impl<'lab> Group<'lab> {
    /// None, and said so, where this machine has no groups that bound memory.
    fn make(world: &World<'lab>, octets: u64) -> Option<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", MAKE_GROUP, &octets.to_string()]).stdin(Stdio::null());
        let made = world.lab.gateway.run(|| command.output()).expect("sh");
        let folder = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        if folder.is_empty() || !made.status.success() {
            skipped(&format!(
                "no control group with memory: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            ));
            return None;
        }
        Some(Self { lab: world.lab, folder })
    }

    /// Starts weir in it, and waits for its end.
    fn run(&self, world: &mut World<'_>) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"", &self.folder]);
        command.arg(env!("CARGO_BIN_EXE_weir")).args(world.weir.command("run").get_args());
        world.weir.spawn_as(&mut command);
        world.weir.wait()
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("sh");
        // The last of its processes may not be reaped yet.
        let line = "for i in $(seq 100); do rmdir \"$0\" 2>/dev/null && exit; sleep 0.02; done";
        command.args(["-c", line, &self.folder]).stdin(Stdio::null());
        drop(self.lab.gateway.run(|| command.status()));
    }
}

#[test]
fn kernel_that_has_no_memory_for_the_maps_is_told_and_the_box_is_as_it_fails() {
    for fail in ["open", "closed"] {
        prepare(&Settings { fail, flows: 1 << 20, ..Settings::default() }, |world| {
            // weir does not see the group: what it can ask says that there is memory.
            let Some(group) = Group::make(world, 64 << 20) else { return };
            let ended = group.run(world);
            assert_eq!(ended.code(), 3, "{ended:?}");
            let sentence = ended.errors.lines().last().expect("a sentence");
            for word in ["no memory for the map", "`flows`", "MemoryMax"] {
                assert!(sentence.contains(word), "no {word:?} in {sentence}");
            }
            if fail == "closed" {
                assert_held_back(world, &ended);
            } else {
                world.assert_as_before();
                assert_forwarded(world, DENIED);
            }
            assert_clean_opens(world);
        });
    }
}

#[test]
fn start_that_the_kernel_kills_for_want_of_memory_leaves_the_box_as_it_fails() {
    for fail in ["open", "closed"] {
        prepare(&Settings { fail, ..Settings::default() }, |world| {
            let Some(group) = Group::make(world, 24 << 20) else { return };
            let ended = group.run(world);
            assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
            for host in [ALLOWED, DENIED] {
                if fail == "open" {
                    assert_forwarded(world, host);
                } else {
                    assert!(!is_forwarded(world, host), "{host}: {ended:?}");
                }
            }
            assert_clean_opens(world);
        });
    }
}

#[test]
fn group_without_the_memory_that_is_needed_is_named_before_anything_is_done() {
    prepare(&Settings { flows: 1 << 20, ..Settings::default() }, |world| {
        let Some(group) = Group::make(world, 64 << 20) else { return };
        world.sh(&world.lab.gateway, SHOW_GROUPS);
        let ended = group.run(world);
        assert_eq!(ended.code(), 3, "{ended:?}");
        let sentence = ended.errors.lines().last().expect("a sentence");
        for word in ["control group leaves", "MiB", "lower `flows` in [workers] (it is 1048576)"] {
            assert!(sentence.contains(word), "no {word:?} in {sentence}");
        }
        world.assert_as_before();
        assert_forwarded(world, DENIED);
    });
}
