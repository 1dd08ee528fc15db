//! A connection that is older than the gateway: weir never saw its handshake, and must not harm it.

use std::net::TcpStream;
use std::sync::atomic::AtomicU64;

use super::{ALLOWED_NAME, Case};
use crate::demo::client;
use crate::demo::origin::HTTP_PORT;
use crate::demo::stage::{Differs, Seen, Stage, plainly};

/// Bytes asked for before and after the start.
const BYTES: u64 = 100_000;

/// An HTTP connection on which one request was answered while the kernel alone forwarded.
#[derive(Debug)]
pub struct EarlyConnection {
    stream: TcpStream,
    case: Case,
}

impl EarlyConnection {
    /// What is asked, for the report.
    pub const ASKED: &'static str = "a flow opened before weir started";
    /// What should happen, for the report.
    pub const EXPECTED: &'static str = "keeps working";
    /// The road it should be on, for the report.
    pub const ROAD: &'static str = "kernel";

    /// Opens the connection; to be called before the gateway starts.
    ///
    /// # Errors
    /// How it failed: then the lab itself does not forward.
    pub fn open(stage: &Stage<'_>, case: Case) -> Result<Self, Differs> {
        let mut early = Self { stream: case.connect(stage, HTTP_PORT)?, case };
        early.ask("before the start")?;
        Ok(early)
    }

    /// Uses the connection again, after the gateway's start.
    ///
    /// # Errors
    /// How it failed.
    pub fn play(mut self, stage: &Stage<'_>) -> Result<Seen, Differs> {
        self.ask("after the start")?;
        Ok(Seen { what: "answered before and after the start".into(), road: stage.road_of(&self.stream)? })
    }

    /// As what it is played.
    pub fn case(&self) -> Case {
        self.case
    }

    fn ask(&mut self, when: &str) -> Result<(), Differs> {
        let path = format!("/bytes/{BYTES}");
        let response = client::get(&mut self.stream, ALLOWED_NAME, &path, &AtomicU64::new(0))
            .map_err(|error| format!("{when}: {}", plainly(&error)))?;
        if response.is_intact() { Ok(()) } else { Err(format!("{when}: wrong hash")) }
    }
}
