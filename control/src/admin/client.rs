//! Asks a running gateway.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{Refusal, Request};
use crate::exit::Failure;
use crate::host::sockets::stream_to;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a reload may take: lists are read, and all flows may be judged.
const RELOAD: Duration = Duration::from_secs(90);

/// How long a drain may take beyond its deadline.
const LEAVE: Duration = Duration::from_secs(30);

/// What is said when somebody took the request and did not answer it.
pub const NO_ANSWER: &str = "no answer";

/// Sends one request; returns the answer.
///
/// # Errors
/// Nobody listens on the socket, no answer in 10 s (to a reload: 90 s), or a refusal.
pub fn ask(socket: &Path, request: Request) -> Result<Value, Failure> {
    let patience = match request {
        Request::Reload { .. } => RELOAD,
        Request::Leave { deadline_ms } => Duration::from_millis(deadline_ms).saturating_add(LEAVE),
        _ => PATIENCE,
    };
    ask_within(socket, request, patience)
}

/// As [`ask`], for whoever has something to say too when there is no answer.
///
/// # Errors
/// As of [`ask`], with no answer in `patience`.
pub fn ask_within(socket: &Path, request: Request, patience: Duration) -> Result<Value, Failure> {
    let path = socket.display();
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::refused(format!("{path}: {what}: {error}"));
    let mut stream = match stream_to(socket) {
        Ok(stream) => stream,
        // So many have asked before, and it takes none of them.
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(failed(NO_ANSWER, &error)),
        Err(error) => {
            return Err(Failure::refused(format!(
                "{path}: no weir answers there: {error}; is `weir run` running with this socket?"
            )));
        }
    };
    stream.set_read_timeout(Some(patience)).map_err(|e| failed("cannot be used", &e))?;
    let mut line = serde_json::to_string(&request).map_err(|e| failed("the request", &e))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|e| failed("the request was not taken", &e))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|e| failed(NO_ANSWER, &e))?;
    let value: Value = serde_json::from_str(&answer).map_err(|e| failed("the answer is no JSON", &e))?;
    match serde_json::from_value::<Refusal>(value.clone()) {
        Ok(refusal) if value.is_object() => Err(Failure::refused(format!("{path}: {}", refusal.error))),
        _ => Ok(value),
    }
}
