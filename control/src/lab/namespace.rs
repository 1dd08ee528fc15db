//! One network namespace, held by this process, and what runs inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weir_sys::{mounts, netns, process};

use super::LabError;

type SpawnRequest = (Command, Sender<io::Result<Child>>);

/// A network namespace that exists as long as this value, its threads and its children do.
///
/// A keeper thread made it and stays in it: children are started by that thread and get SIGKILL when it ends,
/// which is when this value is dropped or the process dies.
#[derive(Debug)]
pub struct Namespace {
    name: &'static str,
    net: OwnedFd,
    mounts: Option<OwnedFd>,
    keeper: Option<(Sender<SpawnRequest>, JoinHandle<()>)>,
}

/// Descriptors by which other threads join a namespace.
type Handles = (OwnedFd, Option<OwnedFd>);

impl Namespace {
    /// Makes an empty network namespace; `name` is for messages and thread names.
    ///
    /// # Errors
    /// [`LabError::System`], `EPERM` without CAP_SYS_ADMIN.
    pub fn new(name: &'static str) -> Result<Self, LabError> {
        Self::make(name, false)
    }

    /// Makes a network namespace that also has mounts of its own: an empty `/run`, and a `/sys` and a
    /// `/sys/fs/bpf` that show and hold only what belongs to it.
    ///
    /// # Errors
    /// [`LabError::System`], `EPERM` without CAP_SYS_ADMIN.
    pub fn with_private_mounts(name: &'static str) -> Result<Self, LabError> {
        Self::make(name, true)
    }

    fn make(name: &'static str, private_mounts: bool) -> Result<Self, LabError> {
        let (ready, made) = channel();
        let (requests, queue) = channel();
        let keeper = Builder::new()
            .name(format!("lab-{name}"))
            .spawn(move || keep(private_mounts, &ready, &queue))
            .map_err(system("start a thread"))?;
        let gone = || Err((format!("make the {name} namespace"), io::Error::other("its thread ended")));
        match made.recv().unwrap_or_else(|_| gone()) {
            Ok((net, mounts)) => Ok(Self { name, net, mounts, keeper: Some((requests, keeper)) }),
            Err((what, source)) => Err(LabError::System { what, source }),
        }
    }

    /// The same namespaces once more: for work in them, after the first value of them has gone, too. It starts no children.
    ///
    /// # Errors
    /// [`LabError::System`] when there are no more descriptors.
    pub(super) fn same(&self) -> Result<Self, LabError> {
        let again = |fd: &OwnedFd| fd.try_clone().map_err(system("duplicate a descriptor"));
        let mounts = self.mounts.as_ref().map(again).transpose()?;
        Ok(Self { name: self.name, net: again(&self.net)?, mounts, keeper: None })
    }

    /// The name given at creation.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A descriptor of the network namespace, e.g. to move a device into it.
    pub fn net_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// A descriptor of the mount namespace, where it has one of its own.
    pub fn mounts_fd(&self) -> Option<BorrowedFd<'_>> {
        self.mounts.as_ref().map(AsFd::as_fd)
    }

    /// Runs `work` in a thread of this namespace and returns its result. Sockets made there stay in the
    /// namespace, wherever they are used later; so do the threads that `work` starts.
    ///
    /// # Panics
    /// With the panic of `work`, or when the kernel refuses to join a namespace that this process made.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = Builder::new().name(format!("in-{}", self.name)).spawn_scoped(scope, || {
                self.enter();
                work()
            });
            match thread.expect("a thread can be started").join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread in this namespace. The namespace lives at least as long as the thread.
    ///
    /// # Errors
    /// [`LabError::System`] when no thread can be started or the namespace not joined.
    pub fn spawn<T, F>(&self, work: F) -> Result<JoinHandle<T>, LabError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let thread = Builder::new().name(format!("in-{}", self.name));
        self.run(|| thread.spawn(work)).map_err(system("start a thread"))
    }

    /// Starts a child process in this namespace. It gets SIGKILL when the returned value, this namespace or
    /// the whole process ends.
    ///
    /// # Errors
    /// [`LabError::System`] as of `Command::spawn`.
    pub fn spawn_command(&self, mut command: Command) -> Result<NamespaceChild, LabError> {
        process::die_with_parent(&mut command);
        let what = format!("start {} in the {} namespace", command.get_program().display(), self.name);
        let (reply, started) = channel();
        let gone = || io::Error::other("the namespace's thread ended");
        let child = match &self.keeper {
            Some((requests, _)) if requests.send((command, reply)).is_ok() => {
                started.recv().unwrap_or_else(|_| Err(gone()))
            }
            _ => Err(gone()),
        };
        child.map(NamespaceChild).map_err(|source| LabError::System { what, source })
    }

    /// Writes a sysctl of this namespace, named as under `/proc/sys`, e.g. `net/ipv4/conf/all/forwarding`.
    ///
    /// # Errors
    /// [`LabError::System`] with the path.
    pub fn write_sysctl(&self, name: &str, value: &str) -> Result<(), LabError> {
        let path = format!("/proc/sys/{name}");
        self.run(|| std::fs::write(&path, value))
            .map_err(|source| LabError::System { what: format!("write {value} to {path}"), source })
    }

    /// Moves the calling thread in. A thread that failed must not go on: it is still in the host's.
    fn enter(&self) {
        move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("a network namespace of this process can be joined");
        if let Some(fd) = &self.mounts {
            mounts::enter(fd.as_fd()).expect("a mount namespace of this process can be joined");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some((requests, keeper)) = self.keeper.take() {
            drop(requests);
            let _ = keeper.join();
        }
    }
}

/// A child process in a namespace; killed when dropped.
#[derive(Debug)]
pub struct NamespaceChild(Child);

impl NamespaceChild {
    /// The child itself: its pipes, its id.
    pub fn inner(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// As of `Child::wait`.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for NamespaceChild {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The keeper thread: makes the namespaces, then starts children in them until nobody can ask any more.
fn keep(
    private_mounts: bool,
    ready: &Sender<Result<Handles, (String, io::Error)>>,
    queue: &Receiver<SpawnRequest>,
) {
    let made = if private_mounts { leave_host_with_mounts() } else { leave_host() };
    let failed = made.is_err();
    if ready.send(made).is_err() || failed {
        return;
    }
    while let Ok((mut command, reply)) = queue.recv() {
        let _ = reply.send(command.spawn());
    }
}

fn leave_host() -> Result<Handles, (String, io::Error)> {
    netns::enter_new().map_err(step("make a network namespace"))?;
    Ok((own_namespace("net")?, None))
}

fn leave_host_with_mounts() -> Result<Handles, (String, io::Error)> {
    netns::enter_new_with_mounts().map_err(step("make a network and a mount namespace"))?;
    for (kind, target) in [("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")] {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("weir-lab", target, kind, flags, None).map_err(step(&format!("mount {kind} on {target}")))?;
    }
    std::fs::create_dir("/run/weir").map_err(step("create /run/weir"))?;
    Ok((own_namespace("net")?, Some(own_namespace("mnt")?)))
}

fn own_namespace(kind: &str) -> Result<OwnedFd, (String, io::Error)> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).map(OwnedFd::from).map_err(step(&format!("open {path}")))
}

fn step<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> (String, io::Error) {
    let what = what.to_owned();
    move |error| (what, error.into())
}

/// Makes a [`LabError::System`] out of an error of the step `what`.
pub(super) fn system<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> LabError {
    let what = what.to_owned();
    move |error| LabError::System { what, source: error.into() }
}
