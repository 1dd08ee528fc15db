//! A connection that a rule gives to the relay: two TCP connections, and neither end can tell.

use std::sync::atomic::AtomicU64;

use super::{ALLOWED_NAME, Case};
use crate::demo::client;
use crate::demo::origin::HTTP_PORT;
use crate::demo::stage::{Differs, Seen, Stage, own_address, plainly};
use crate::lab::CLIENT_DEVICE;

/// The origin says whom it sees; the client's link shows who answers.
pub(super) fn play(stage: &Stage<'_>, case: Case) -> Result<Seen, Differs> {
    let watch = stage.watch(&stage.lab.client, CLIENT_DEVICE)?;
    let mut stream = stage.connect_to(case.family.addresses().other_client, case.target(HTTP_PORT))?;
    let client = own_address(&stream)?;
    let response = client::get(&mut stream, ALLOWED_NAME, "/whoami", &AtomicU64::new(0))
        .map_err(|error| plainly(&error))?;
    if response.text() != client.to_string() {
        return Err(format!("the origin saw {} instead of {client}", response.text()));
    }
    let origin = case.target(HTTP_PORT);
    let answers = watch.frames_of(client);
    let foreign = answers.iter().find(|frame| frame.destination == client && frame.source != origin);
    if let Some(frame) = foreign {
        return Err(format!("the client was answered by {} instead of {origin}", frame.source));
    }
    Ok(Seen { what: "each saw the other's own address and port".into(), road: stage.road_of(&stream)? })
}
