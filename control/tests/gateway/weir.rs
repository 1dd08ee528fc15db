//! The binary in the gateway: started, asked, signalled, ended.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weir_control::admin::{self, Request};
use weir_control::host::lock::is_stopped;
use weir_control::lab::{Lab, NamespaceChild};
use weir_sys::process::Frozen;

/// How long weir may take to start, to answer and to end on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// The admin socket when the configuration names none; `/run` is the lab's own.
const ADMIN: &str = "/run/weir/admin.sock";

/// A command of weir's that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub output: String,
    pub errors: String,
}

impl Finished {
    /// The exit code; panics when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

/// `weir run` in the gateway of a lab. What it wrote is shown when a test fails.
#[derive(Debug)]
pub struct Weir<'lab> {
    lab: &'lab Lab,
    config: PathBuf,
    log: Arc<Mutex<String>>,
    running: Option<(NamespaceChild, JoinHandle<()>)>,
}

impl<'lab> Weir<'lab> {
    /// Writes `config` into the gateway's own `/run`; nothing runs yet.
    pub fn new(lab: &'lab Lab, config: &str) -> Self {
        let weir = Self { lab, config: "/run/weir/test.toml".into(), log: Arc::default(), running: None };
        weir.write_config(config);
        weir
    }

    /// Puts another configuration in place of the first, for the next start.
    pub fn write_config(&self, config: &str) {
        self.lab.gateway.run(|| std::fs::write(&self.config, config)).expect("the lab has a /run");
    }

    /// Starts `weir run` and returns at once.
    pub fn spawn(&mut self) {
        self.spawn_as(&mut self.command("run"));
    }

    /// Starts a command that is or becomes `weir run`.
    pub fn spawn_as(&mut self, command: &mut Command) {
        let mut own = Command::new(command.get_program());
        own.args(command.get_args()).env_remove("NOTIFY_SOCKET").env_remove("WEIR_LOG");
        own.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.lab.gateway.spawn_command(own).expect("weir can be started");
        let stderr = child.inner().stderr.take().expect("a pipe");
        let log = Arc::clone(&self.log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *log.lock().unwrap() += &(line + "\n");
            }
        });
        self.running = Some((child, reader));
    }

    /// Starts `weir run` and returns when it answers.
    pub fn start(&mut self) {
        self.spawn();
        until("weir run answers", || {
            if let Some(status) = self.ended() {
                panic!("weir run ended with {status}");
            }
            self.ask(Request::Status).is_some()
        });
    }

    /// The command line `weir WHAT -c FILE`.
    pub fn command(&self, what: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg(what).arg("-c").arg(&self.config);
        command
    }

    /// `weir status`.
    pub fn status(&self) -> Value {
        self.ask(Request::Status).expect("weir answers")
    }

    /// `weir status`, if anybody answers.
    pub fn status_if_any(&self) -> Option<Value> {
        self.ask(Request::Status)
    }

    /// What it has written to standard error.
    pub fn logged(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The process that was started last.
    pub fn pid(&mut self) -> u32 {
        let (child, _) = self.running.as_mut().expect("weir runs");
        child.inner().id()
    }

    /// A counter of the status: `count("punts", "no-neighbour")`.
    pub fn count(&self, family: &str, name: &str) -> u64 {
        let status = self.status();
        let counts = status[family].as_array().unwrap_or_else(|| panic!("no {family} in the status"));
        let count = counts.iter().find(|count| count["name"] == name);
        count.and_then(|count| count["count"].as_u64()).unwrap_or_else(|| panic!("{family} have no {name}"))
    }

    /// A counter of the status comes to this. Workers tell what they have counted when they have nothing to do, and so after what
    /// clients and servers have seen of it.
    #[track_caller]
    pub fn assert_count(&self, family: &str, name: &str, expected: u64) {
        self.comes_to(family, name, expected);
        assert_eq!(self.count(family, name), expected, "{family} {name}");
    }

    /// Returns when a counter of the status is at least this.
    #[track_caller]
    pub fn comes_to(&self, family: &str, name: &str, least: u64) {
        until(&format!("{least} {family} {name} are counted"), || self.count(family, name) >= least);
    }

    /// `weir flows`.
    pub fn flows(&self) -> Vec<Value> {
        let flows = self.ask(Request::Flows).expect("weir answers");
        flows.as_array().expect("a list").clone()
    }

    /// The flow of `client`, if it is listed.
    pub fn find_flow(&self, client: SocketAddr) -> Option<Value> {
        self.flows().into_iter().rfind(|flow| flow["client"] == client.to_string())
    }

    /// The flow of `client`, as soon as it is listed.
    pub fn flow(&self, client: SocketAddr) -> Value {
        let mut found = None;
        until(&format!("weir flows lists {client}"), || {
            found = self.find_flow(client);
            found.is_some()
        });
        found.unwrap_or_default()
    }

    fn ask(&self, request: Request) -> Option<Value> {
        self.lab.gateway.run(|| admin::client::ask(Path::new(ADMIN), request)).ok()
    }

    /// Sends a signal. One that stops it has done so when this returns.
    pub fn signal(&mut self, signal: Signal) {
        let (child, _) = self.running.as_mut().expect("weir runs");
        let pid = Pid::from_child(child.inner());
        kill_process(pid, signal).expect("weir is still there");
        if signal == Signal::STOP {
            until("weir is stopped", || is_stopped(pid.as_raw_nonzero().get()));
        }
    }

    /// The thread of that name stands still, and all others go on, until what is returned is dropped.
    pub fn freeze(&mut self, name: &str) -> Frozen {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("weir is still there");
        let is_named = |thread: &PathBuf| {
            std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let thread = threads.flatten().map(|thread| thread.path()).find(is_named);
        let thread = thread.unwrap_or_else(|| panic!("weir has no thread {name}"));
        let id = thread.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("a number");
        Frozen::thread(id).expect("it can be traced")
    }

    /// Sends SIGKILL and returns when it is dead.
    pub fn kill(&mut self) {
        let (mut child, reader) = self.running.take().expect("weir runs");
        child.kill().expect("weir can be killed");
        reader.join().expect("the log is read");
    }

    /// Whether it runs, or was started and nobody has looked after it since.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Its status when it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let (child, _) = self.running.as_mut()?;
        child.inner().try_wait().expect("weir can be waited for")
    }

    /// Waits for its end; what it wrote to standard error since the last end is in the result.
    pub fn wait(&mut self) -> Finished {
        let mut status = None;
        until("weir run ends", || {
            status = self.ended();
            status.is_some()
        });
        let (_, reader) = self.running.take().expect("weir ran");
        reader.join().expect("the log is read");
        let errors = std::mem::take(&mut *self.log.lock().unwrap());
        Finished { status: status.expect("ended"), output: String::new(), errors }
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> Finished {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Runs a command of weir's to its end, in the gateway.
    pub fn finish(&self, mut command: Command) -> Finished {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.lab.gateway.spawn_command(command).expect("weir can be started");
        let read = |pipe: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                pipe.expect("a pipe").read_to_string(&mut text).expect("text");
                text
            })
        };
        let output = read(child.inner().stdout.take().map(|pipe| Box::new(pipe) as _));
        let errors = read(child.inner().stderr.take().map(|pipe| Box::new(pipe) as _));
        let mut status = None;
        until("a command of weir's ends", || {
            status = child.inner().try_wait().expect("a child");
            status.is_some()
        });
        let (output, errors) = (output.join().expect("read"), errors.join().expect("read"));
        Finished { status: status.expect("ended"), output, errors }
    }

    /// What was counted, for whoever looks at a failed test.
    fn tell_counters(&self) {
        let status = self.running.as_ref().and_then(|_| self.ask(Request::Status)).unwrap_or_default();
        for family in ["flows", "drops", "punts", "steering"] {
            let counts = status[family].as_array().into_iter().flatten();
            let moved = counts.filter(|count| count["count"] != 0);
            moved.for_each(|count| eprintln!("{family}: {} {}", count["name"], count["count"]));
        }
    }

    /// `weir clean`.
    pub fn clean(&self) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("clean");
        self.finish(command)
    }
}

impl Drop for Weir<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_counters();
            if let Some((mut child, reader)) = self.running.take() {
                let _ = child.kill();
                let _ = reader.join();
            }
            eprintln!("weir wrote:\n{}", self.log.lock().unwrap_or_else(|log| log.into_inner()));
        }
    }
}

/// Looks until nothing is wrong any more; what is wrong after [`PATIENCE`].
pub fn what_stays_wrong(mut look: impl FnMut() -> String) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let wrong = look();
        if wrong.is_empty() || Instant::now() > deadline {
            return wrong;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Looks until `reached` is true. Panics when it does not get so in [`PATIENCE`].
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}
