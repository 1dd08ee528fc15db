//! Inside the guest: does the job that lies in the shared folder, task by task.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_sys::ethtool;

use crate::Outcome;
use crate::job::{Answer, Demo, Job, Task, answer_file, job_file};

/// Where the host's folder is.
const SHARE: &str = "/share";
/// How long a demo may take. Emulated machines are slow.
const DEMO_LIMIT: Duration = Duration::from_secs(400);
/// How long a script may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(400);
/// How long anything else may take: who asked for it has a limit of their own.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
/// How long the NICs may take to come back after a task.
const NICS_LIMIT: Duration = Duration::from_secs(20);
/// The gateway's, and those of client and server.
const NICS: [&str; 4] = ["lan", "wan", "client", "server"];
/// Octets of standard error that are answered.
const LAST_BYTES: usize = 6000;

/// Does the job, and returns when all of it is answered.
///
/// # Errors
/// There is no job, or the folder cannot be written.
pub fn main() -> Outcome<()> {
    let share = Path::new(SHARE);
    let job: Job = serde_json::from_reader(File::open(job_file(share))?)?;
    for (number, task) in job.tasks.iter().enumerate() {
        wait_for_nics();
        let started = Instant::now();
        let mut answer = match task {
            Task::Demo(demo) => play(demo),
            Task::Script { text, .. } => finish(Command::new("bash").arg("-c").arg(text), SCRIPT_LIMIT, true),
            Task::Command { command } => finish(&mut program(command), COMMAND_LIMIT, false),
        }
        .unwrap_or_else(|error| Answer { errors: error.to_string(), ..Answer::default() });
        answer.seconds = started.elapsed().as_secs_f64();
        println!("nic: {} in {:.0} s: {}", task.name(), answer.seconds, answer.brief());
        let (part, whole) = (share.join("answer.part"), answer_file(share, number));
        fs::write(&part, serde_json::to_vec(&answer)?)?;
        fs::rename(part, whole)?;
    }
    Ok(())
}

/// Those of a namespace come back some time after it is gone. Who needs them says what is missing.
fn wait_for_nics() {
    let deadline = Instant::now() + NICS_LIMIT;
    let all = || NICS.iter().all(|name| Path::new("/sys/class/net").join(name).exists());
    while !all() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn program(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("true", String::as_str));
    command.args(words.iter().skip(1));
    command
}

fn play(demo: &Demo) -> Outcome<Answer> {
    for device in ["lan", "wan"] {
        set_queues(device, demo.queues)?;
    }
    let mut command = Command::new("weir");
    command.args(["demo", "--json", "--mode", &demo.mode, "--workers", &demo.queues.to_string()]);
    command.args(["--mtu", &demo.mtu.to_string(), "--body", "1"]);
    for device in NICS {
        command.args([format!("--{device}").as_str(), device]);
    }
    finish(&mut command, DEMO_LIMIT, true)
}

/// Gives a device so many queues, where their number can be chosen.
fn set_queues(device: &str, queues: u32) -> Outcome<()> {
    let are = || ethtool::channels_of(device).map_or(1, |channels| channels.receiving().max(1));
    if are() == queues {
        return Ok(());
    }
    let output = Command::new("ethtool").args(["-L", device, "combined", &queues.to_string()]).output()?;
    match are() == queues {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("{device} has {} queues and cannot have {queues}: {why}", are()).into())
        }
    }
}

/// Runs a command to its end. Standard output is its report if that is JSON, and is shown otherwise.
fn finish(command: &mut Command, limit: Duration, json: bool) -> Outcome<Answer> {
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    if json {
        command.stdout(Stdio::piped());
    }
    let mut child = command.spawn()?;
    let output = child.stdout.take().map(read);
    let errors = child.stderr.take().map(show);
    let status = wait(&mut child, limit)?;
    let text = |reader: Option<JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    let (output, errors) = (text(output), text(errors));
    let start = errors.len().saturating_sub(LAST_BYTES);
    let start = (start..=errors.len()).find(|at| errors.is_char_boundary(*at)).unwrap_or(0);
    Ok(Answer {
        exit: status,
        report: serde_json::from_str(&output).ok(),
        errors: errors.get(start..).unwrap_or_default().to_owned(),
        seconds: 0.0,
    })
}

fn wait(child: &mut Child, limit: Duration) -> Outcome<Option<i32>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Keeps the lines, and shows each as it comes.
fn show(pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut all = String::new();
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            eprintln!("{line}");
            all = all + &line + "\n";
        }
        all
    })
}
