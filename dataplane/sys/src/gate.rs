//! The gate of the relay's listeners: while nobody serves them, they are not found, and new connections are forwarded.
//!
//! The program is dataplane/bpf/gate.bpf.c. It ends with the last descriptor, so a crash leaves nothing: then there are no
//! listeners either.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{Map as AyaMap, MapData};
use aya::programs::SkReuseport;
use aya::{Ebpf, EbpfLoader};

use crate::keeper::SignPlace;
use crate::steering::{Map, SteeringError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate.bpf.o"));

const PROGRAM: &str = "weir_gate";
const MAP: &str = "gate";

/// Slots of the map, as in gate.bpf.c.
const SIGN: u32 = 0;
const LIMIT: u32 = 1;
const PASSED_BY: u32 = 2;

/// The loaded program.
pub struct Gate {
    ebpf: Ebpf,
    map: Map<u32, u64>,
}

/// Tells the gate of signs of life; for any thread.
#[derive(Clone, Debug)]
pub struct GatePulse(Map<u32, u64>);

impl GatePulse {
    /// The threads lived at `sign` (ns of CLOCK_MONOTONIC). One system call.
    ///
    /// # Errors
    /// What the kernel says; none is expected.
    pub fn beat(&self, sign: u64) -> io::Result<()> {
        self.0.set(&SIGN, &sign)
    }

    /// Where the sign of life is, for a [`Keeper`](crate::keeper::Keeper).
    ///
    /// # Errors
    /// No more descriptors.
    pub fn place(&self) -> io::Result<SignPlace> {
        Ok(SignPlace { map: self.0.duplicate()?, slot: SIGN })
    }

    /// Lookups that found no listener for want of a sign of life: one for each SYN that was forwarded.
    pub fn passed_by(&self) -> u64 {
        self.0.get(&PASSED_BY).ok().flatten().unwrap_or(0)
    }
}

impl Gate {
    /// Loads the program. A sign of life that is older than `limit` is none; there has not been any yet.
    ///
    /// # Errors
    /// [`SteeringError::NotPermitted`], [`SteeringError::Load`].
    pub fn load(limit: Duration) -> Result<Self, SteeringError> {
        let failed = |reason: String| SteeringError::Load { reason };
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(crate::steering::load_error)?;
        let map = Map::new(MAP, data(&ebpf)?)?;
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        map.set(&LIMIT, &limit).map_err(SteeringError::of_map(MAP, "storing in"))?;
        program(&mut ebpf)?.load().map_err(|error| failed(error.to_string()))?;
        Ok(Self { ebpf, map })
    }

    /// Puts the gate before a listener that shares its port (SO_REUSEPORT), and before all that share it with that one.
    ///
    /// # Errors
    /// EINVAL: the listener does not share its port.
    pub fn guard(&mut self, listener: impl AsFd) -> io::Result<()> {
        let program = program(&mut self.ebpf).map_err(io::Error::other)?;
        program.attach(listener).map_err(io::Error::other)
    }

    /// For telling it of signs of life.
    pub fn pulse(&self) -> GatePulse {
        GatePulse(self.map.clone())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("map", &self.map).finish_non_exhaustive()
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, SteeringError> {
    ebpf.program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| SteeringError::Load { reason: format!("the object has no program {PROGRAM}") })
}

fn data(ebpf: &Ebpf) -> Result<&MapData, SteeringError> {
    match ebpf.map(MAP) {
        Some(AyaMap::Array(data)) => Ok(data),
        _ => Err(SteeringError::NoMap { map: MAP }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::clock::monotonic_ns;
    use crate::sockopt::transparent_listener;

    #[test]
    fn listener_is_found_only_while_there_is_a_fresh_sign_of_life() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut gate = Gate::load(Duration::from_millis(100)).unwrap();
            let listener = transparent_listener(address, 16).unwrap();
            let address = crate::sockopt::local_address(&listener).unwrap();
            gate.guard(&listener).unwrap();
            let pulse = gate.pulse();
            let connects = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
            assert_eq!(connects().unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "never alive");
            assert!(pulse.passed_by() >= 1);
            pulse.beat(monotonic_ns()).unwrap();
            let open = connects().expect("alive");
            std::thread::sleep(Duration::from_millis(150));
            assert!(connects().is_err(), "the sign of life is old");
            assert!(open.peer_addr().is_ok());
            pulse.beat(monotonic_ns()).unwrap();
            connects().expect("alive again");
        }
    }
}
