//! Who writes the sysctls that weir needs: heard at once, since a program like `sysctl` is gone a moment later.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_sys::writes::Writes;

use super::culprit::Culprit;
use super::sysctl::Key;

/// How long the listening thread sleeps at most before it looks whether anybody wants to know.
const SLEEP: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What is listened to, and what was heard, by a thread that ends when this is dropped.
#[derive(Debug)]
pub struct SysctlWriters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    writes: Mutex<Writes>,
    /// Who wrote last to the switches of one name, be it that of all devices or of one.
    heard: Mutex<BTreeMap<String, Culprit>>,
}

impl SysctlWriters {
    /// Nothing is listened to yet.
    ///
    /// # Errors
    /// This process may not know (see [`Writes::new`]), or gets no thread.
    pub fn start() -> io::Result<Self> {
        let writes = Writes::new()?;
        let waiting = writes.descriptor()?;
        let shared = Arc::new(Shared { writes: Mutex::new(writes), heard: Mutex::default() });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("weir-writers".to_owned()).spawn(move || listen(&waiting, &weak))?;
        Ok(Self(shared))
    }

    /// Listens to what is written to these from now on, in the calling thread's network namespace.
    pub fn watch(&self, keys: &[Key]) {
        let paths: Vec<PathBuf> = keys.iter().map(Key::path).collect();
        if let Ok(mut writes) = self.0.writes.lock() {
            writes.watch(&paths);
        }
    }

    /// Who wrote last to the switch that `key` is, of this device or of all.
    pub fn of(&self, key: &Key) -> Option<Culprit> {
        self.0.heard.lock().ok()?.get(&key.switch()).cloned()
    }

    /// Forgets who wrote to it.
    pub fn forget(&self, key: &Key) {
        if let Ok(mut heard) = self.0.heard.lock() {
            heard.remove(&key.switch());
        }
    }

    /// Forgets all of them: everything is as it should be, whoever wrote.
    pub fn forget_all(&self) {
        if let Ok(mut heard) = self.0.heard.lock() {
            heard.clear();
        }
    }
}

fn listen(waiting: &OwnedFd, shared: &Weak<Shared>) {
    loop {
        // Whatever it says, what there is is read.
        let _ = poll(&mut [PollFd::new(waiting, PollFlags::IN)], Some(&SLEEP));
        let Some(shared) = shared.upgrade() else { return };
        let Ok(taken) = shared.writes.lock().map(|writes| writes.take()) else { return };
        for write in taken.into_iter().filter(|write| write.pid != std::process::id()) {
            let by = Culprit::of(write.pid, None);
            if let (Some(key), Ok(mut heard)) = (Key::of_path(&write.path), shared.heard.lock()) {
                heard.insert(key.switch(), by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn names_of_a_switch_are_one_for_all_devices_and_not_for_both_families() {
        let v4 = Key::new("net/ipv4/ip_forward").switch();
        assert_eq!(v4, Key::of_device(4, "eth0.10", "forwarding").switch());
        assert_ne!(v4, Key::of_device(6, "all", "forwarding").switch());
        assert_ne!(v4, Key::of_device(4, "all", "rp_filter").switch());
    }

    #[test]
    fn writer_is_named_until_that_is_forgotten() {
        let namespace = weir_sys::netns::Namespace::new().unwrap();
        namespace
            .run(|| {
                let key = Key::of_device(6, "all", "forwarding");
                let writers = SysctlWriters::start().unwrap();
                writers.watch(std::slice::from_ref(&key));
                let script = format!("echo 0 > {}; read line", key.path().display());
                let mut command = std::process::Command::new("sh");
                command.args(["-c", &script]).stdin(std::process::Stdio::piped());
                let mut child = command.spawn().unwrap();
                let deadline = Instant::now() + Duration::from_secs(20);
                while writers.of(&key).is_none() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let by = writers.of(&Key::of_device(6, "lo", "forwarding")).expect("heard");
                assert_eq!((by.pid, by.name.as_deref()), (child.id(), Some("sh")));
                drop(child.stdin.take());
                child.wait().unwrap();
                writers.forget(&key);
                assert_eq!(writers.of(&key), None);
            })
            .unwrap();
    }
}
