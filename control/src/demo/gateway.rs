//! The weir under demonstration: a child process in the gateway namespace, and what it tells about itself
//! through its own command line.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::DemoError;
use crate::admin::listing;
use crate::lab::{Lab, NamespaceChild};

/// How long weir may take until its admin socket answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a command of weir's may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a flow may take to show up in `weir flows`: counters are published every so many packets.
const FLOW_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines of weir's output that are kept.
const LOG_LINES: usize = 200;

/// One entry of `weir flows --json`, as far as the demo reads it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Flow {
    /// The client's address and port.
    pub client: String,
    /// `fast`, `relay` or `kernel`.
    pub road: String,
    /// The lane of the fast road.
    #[serde(default)]
    pub lane: Option<String>,
    /// What was decided.
    #[serde(default)]
    pub verdict: Option<String>,
    /// By which rule, as file and line.
    #[serde(default)]
    pub rule: Option<String>,
    /// Why this road.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The binary, its configuration, and the running process if there is one.
#[derive(Debug)]
pub struct Gateway<'lab> {
    lab: &'lab Lab,
    binary: PathBuf,
    config: PathBuf,
    log: Log,
    running: Option<Running>,
    /// Passes on what weir writes, line by line.
    verbose: bool,
}

#[derive(Debug)]
struct Running {
    child: NamespaceChild,
    readers: Vec<JoinHandle<()>>,
}

/// What a command of weir's printed, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl<'lab> Gateway<'lab> {
    /// Prepares to run `binary` with the file `config` in the gateway of `lab`.
    pub fn new(lab: &'lab Lab, binary: &Path, config: &Path, verbose: bool) -> Self {
        Self {
            lab,
            binary: binary.into(),
            config: config.into(),
            log: Log::default(),
            running: None,
            verbose,
        }
    }

    /// Starts `weir run` and returns when it answers.
    ///
    /// # Errors
    /// [`DemoError::Gateway`] with what weir wrote, when it ends or stays silent for 60 s.
    pub fn start(&mut self) -> Result<(), DemoError> {
        let mut command = self.command("run");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.lab.gateway.spawn_command(command)?;
        let mut readers = Vec::new();
        let inner = child.inner();
        readers.extend(inner.stdout.take().map(|pipe| self.log.follow(pipe, self.verbose)));
        readers.extend(inner.stderr.take().map(|pipe| self.log.follow(pipe, self.verbose)));
        self.running = Some(Running { child, readers });
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.ended()? {
                self.collect_output();
                return Err(self.failure(&format!("weir run ended with {status}")));
            }
            if self.ask("status").is_ok_and(|finished| finished.status.success()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failure(&format!("weir run does not answer after {START_LIMIT:?}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends SIGKILL to weir and returns when it is dead.
    ///
    /// # Errors
    /// [`DemoError::Gateway`] when it was not running any more.
    pub fn kill(&mut self) -> Result<(), DemoError> {
        if let Some(status) = self.ended()? {
            self.collect_output();
            return Err(self.failure(&format!("weir run had ended by itself with {status}")));
        }
        let Some(mut running) = self.running.take() else {
            return Err(self.failure("weir run was never started"));
        };
        running.child.kill().map_err(|error| self.failure(&format!("cannot kill weir: {error}")))?;
        running.readers.into_iter().for_each(|reader| _ = reader.join());
        Ok(())
    }

    /// Runs `weir clean` to its end.
    ///
    /// # Errors
    /// [`DemoError::Gateway`] when it cannot be started or does not end.
    pub fn clean(&self) -> Result<Finished, DemoError> {
        let mut command = Command::new(&self.binary);
        command.arg("clean");
        self.finish(command)
    }

    /// The flow of the connection that `client` opened, as soon as `weir flows` shows it.
    ///
    /// # Errors
    /// A sentence for the report, when it does not show within 20 s.
    pub fn flow_of(&self, client: SocketAddr) -> Result<Flow, String> {
        let deadline = Instant::now() + FLOW_LIMIT;
        loop {
            let flows = self.flows()?;
            let same = |flow: &&Flow| flow.client.parse() == Ok(client);
            // A port may have served an earlier connection: the newest entry is the last.
            match flows.iter().rfind(same) {
                Some(flow) => return Ok(flow.clone()),
                None if Instant::now() > deadline => {
                    return Err(format!("weir flows does not list {client}"));
                }
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    fn flows(&self) -> Result<Vec<Flow>, String> {
        let finished = self.ask("flows").map_err(|error| error.to_string())?;
        if !finished.status.success() {
            return Err(format!("weir flows ended with {}: {}", finished.status, finished.errors.trim()));
        }
        let failed = |error| format!("weir flows --json: {error}");
        let answer: serde_json::Value = serde_json::from_str(&finished.output).map_err(failed)?;
        listing::parts(&answer).0.iter().map(Flow::deserialize).collect::<Result<_, _>>().map_err(failed)
    }

    /// What `weir status` tells.
    ///
    /// # Errors
    /// A sentence for the report, when weir does not answer.
    pub fn status(&self) -> Result<serde_json::Value, String> {
        let finished = self.ask("status").map_err(|error| error.to_string())?;
        serde_json::from_str(&finished.output).map_err(|error| format!("weir status --json: {error}"))
    }

    /// The last lines that weir wrote.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    fn ask(&self, what: &str) -> Result<Finished, DemoError> {
        let mut command = self.command(what);
        command.arg("--json");
        self.finish(command)
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(what).arg("-c").arg(&self.config).stdin(Stdio::null());
        // Whoever supervises the demo must not be told of this weir.
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    fn finish(&self, mut command: Command) -> Result<Finished, DemoError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.lab.gateway.spawn_command(command)?;
        let inner = child.inner();
        let (output, errors) = (inner.stdout.take().map(read_all), inner.stderr.take().map(read_all));
        let deadline = Instant::now() + COMMAND_LIMIT;
        let status = loop {
            match inner.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return Err(self.failure(&format!("a command of weir's took over {COMMAND_LIMIT:?}"))),
            }
        };
        let text = |reader: Option<JoinHandle<String>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        Ok(Finished { status, output: text(output), errors: text(errors) })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, DemoError> {
        let Some(running) = &mut self.running else { return Ok(None) };
        let ended = running.child.inner().try_wait();
        ended.map_err(|error| self.failure(&format!("cannot look after weir: {error}")))
    }

    /// Waits for the rest of what an ended weir wrote.
    fn collect_output(&mut self) {
        if let Some(running) = self.running.take() {
            running.readers.into_iter().for_each(|reader| _ = reader.join());
        }
    }

    fn failure(&self, what: &str) -> DemoError {
        let lines = self.log.lines();
        let last = lines.iter().rev().take(20).rev().map(|line| format!("\n    {line}")).collect::<String>();
        DemoError::Gateway { what: what.into(), log: last }
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The last lines of a child's output.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow(&self, pipe: impl Read + Send + 'static, verbose: bool) -> JoinHandle<()> {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if verbose {
                    eprintln!("weir: {line}");
                }
                let mut lines = log.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LOG_LINES {
                    lines.remove(0);
                }
                lines.push(line);
            }
        })
    }
}

/// Writes the configuration into the gateway's own `/run`, which vanishes with the lab.
///
/// # Errors
/// [`DemoError::Config`] with the path.
pub fn install_config(lab: &Lab, text: &str) -> Result<PathBuf, DemoError> {
    let path = PathBuf::from("/run/weir/demo.toml");
    lab.gateway
        .run(|| fs::write(&path, text))
        .map_err(|error| DemoError::Config(format!("cannot write {}: {error}", path.display())))?;
    Ok(path)
}
