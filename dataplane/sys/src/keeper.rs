//! A second, small process that says at once that this one has died.
//!
//! A process that is killed gives its memory back before its descriptors, and with a million connections that takes longer than
//! traffic may stop: as long, packets are redirected to sockets that nobody reads. So a thread of this process holds a robust lock in
//! memory shared with the keeper. The kernel lets go of the lock when that thread ends, which is the first thing that happens;
//! the keeper, which waits for it, takes the sign of life out of the maps, and packets pass by. Then it ends.
//!
//! Without a keeper the same happens when the sign of life is too old, or the program leaves the devices, whichever is first.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::affinity;

/// Bytes of the shared memory: a page, of which the lock takes a little.
const PAGE: usize = 4096;

/// The word after the program's name that makes it a keeper; then descriptors and slots follow.
pub const COMMAND: &str = "keep";

/// A sign of life in a map: the array map, and its slot.
#[derive(Debug)]
pub struct SignPlace {
    pub map: OwnedFd,
    pub slot: u32,
}

/// The running keeper. Dropped, it ends without having done anything.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    /// Closed, the thread lets go of the lock.
    release: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

/// The shared page, mapped as long as this lives.
struct Page(*mut libc::pthread_mutex_t);

// SAFETY: the page is mapped as long as this lives, and a mutex is made for being used by several threads.
unsafe impl Send for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `map` mapped that much there, and nobody has the address but this.
        unsafe { libc::munmap(self.0.cast(), PAGE) };
    }
}

impl Page {
    fn map(file: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping of a file that has that length; nothing else refers to it.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(place.cast())) }
    }

    /// Makes the lock, and takes it for the calling thread.
    fn lock_anew(&self) -> io::Result<()> {
        // SAFETY: an attribute is plain memory until it is initialized, by the first call.
        let mut attributes: libc::pthread_mutexattr_t = unsafe { std::mem::zeroed() };
        // SAFETY: the attribute lives for these calls; the page is mapped, aligned and larger than a mutex, and no other
        // process has it yet.
        unsafe {
            done(libc::pthread_mutexattr_init(&raw mut attributes))?;
            done(libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED))?;
            done(libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST))?;
            done(libc::pthread_mutex_init(self.0, &raw const attributes))?;
            done(libc::pthread_mutex_lock(self.0))
        }
    }

    fn unlock(&self) {
        // SAFETY: called by the thread that locked it.
        unsafe { libc::pthread_mutex_unlock(self.0) };
    }

    /// Waits for the lock; whether its owner died.
    fn wait(&self) -> io::Result<bool> {
        // SAFETY: the parent initialized the mutex before it started this process.
        match unsafe { libc::pthread_mutex_lock(self.0) } {
            0 => Ok(false),
            libc::EOWNERDEAD => Ok(true),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl Keeper {
    /// Starts it: this very program with [`COMMAND`] as its first argument, whose `main` must call [`serve`] with the others.
    ///
    /// # Errors
    /// No memory, no thread, no process.
    pub fn start(places: &[SignPlace]) -> io::Result<Self> {
        let file = memfd_create("weir-keeper", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, PAGE as u64)?;
        let page = Page::map(&file)?;
        let (release, released) = channel::<()>();
        let (tell, ready) = channel();
        let body = move || {
            let page = page;
            // The first of all threads to die, on a busy machine too.
            let _ = affinity::run_promptly();
            let locked = page.lock_anew();
            let is_locked = locked.is_ok();
            let _ = tell.send(locked);
            if is_locked {
                let _ = released.recv();
                page.unlock();
            }
        };
        let holder = std::thread::Builder::new().name("weir-keeper".into()).spawn(body)?;
        ready.recv().map_err(io::Error::other)??;
        let child = spawn(&file, places)?;
        Ok(Self { child, release: Some(release), holder: Some(holder) })
    }

    /// Whether it is there still.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            drop(holder.join());
        }
        let _ = self.child.wait();
    }
}

fn spawn(file: &OwnedFd, places: &[SignPlace]) -> io::Result<Child> {
    // Duplicates without close-on-exec live only for this call, on a thread that starts no other process meanwhile.
    let inherit = |fd: &OwnedFd| rustix::io::dup(fd.as_fd());
    let shared = inherit(file)?;
    let maps: Vec<OwnedFd> = places.iter().map(|place| inherit(&place.map)).collect::<Result<_, _>>()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("weir").arg(COMMAND).arg(shared.as_raw_fd().to_string());
    for (map, place) in maps.iter().zip(places) {
        command.arg(format!("{}:{}", map.as_raw_fd(), place.slot));
    }
    // A group of its own: an interrupt at the terminal is not for it.
    command
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env_clear();
    command.spawn()
}

/// What the keeper does, in its own process: waits for the parent's end, and acts if that was a death. `arguments`: those after
/// [`COMMAND`].
///
/// # Errors
/// The arguments are not those of [`Keeper::start`]; the lock is none; a map cannot be written.
pub fn serve(arguments: impl Iterator<Item = String>) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "weir starts this by itself");
    let mut arguments = arguments;
    let file = inherited(&arguments.next().ok_or_else(bad)?).ok_or_else(bad)?;
    let mut places = Vec::new();
    for argument in arguments {
        let (map, slot) = argument.split_once(':').ok_or_else(bad)?;
        places.push((inherited(map).ok_or_else(bad)?, slot.parse::<u32>().map_err(|_| bad())?));
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // A service manager that stops weir tells all its processes. This one ends with weir.
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = affinity::run_promptly();
    // Mapped to the end of this process, which may own the lock by then.
    let page = ManuallyDrop::new(Page::map(&file)?);
    if page.wait()? {
        for (map, slot) in &places {
            take_out(map, *slot)?;
        }
    }
    Ok(())
}

/// Writes that there never was a sign of life.
fn take_out(map: &OwnedFd, slot: u32) -> io::Result<()> {
    let never = 0_u64;
    let (key, value) = (std::ptr::from_ref(&slot).cast(), std::ptr::from_ref(&never).cast());
    // SAFETY: the map is an array of u64 by u32 (its parent says so), and both live for the call.
    let code = unsafe { libbpf_sys::bpf_map_update_elem(map.as_raw_fd(), key, value, 0) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that the parent left open for this process.
fn inherited(number: &str) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let fd: RawFd = number.parse().ok().filter(|fd| *fd > 2)?;
    // SAFETY: fcntl takes no memory here.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and in this new process nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_a_holder_that_has_ended_is_not_mapped_any_more() {
        let file = memfd_create("weir-test-page", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE as u64).unwrap();
        let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("weir-test-page").count();
        let page = Page::map(&file).unwrap();
        assert_eq!(mapped(), 1);
        let ended = std::thread::spawn(move || {
            let page = page;
            page.lock_anew().unwrap();
            page.unlock();
        });
        ended.join().unwrap();
        assert_eq!(mapped(), 0);
    }
}
