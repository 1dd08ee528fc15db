//! Small packets of one established connection, as many as the gateway carries: 60 octets over IPv4 (64 with the checksum of a wire), 74 over
//! IPv6. benches/bpf/small.bpf.c sends and counts them.

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::XdpMode;
use aya::{Ebpf, EbpfLoader};
use weir_control::lab::{CLIENT_DEVICE, CapturedFrame, Lab, SERVER_DEVICE};
use weir_sys::ethtool;

use crate::Failure;
use crate::contender::REQUESTS_TO_ENTER;
use crate::ends::client;
use crate::live::{Generator, map, program};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/small.bpf.o"));

/// Octets of a frame: `LEN4` and `LEN6` of the program.
const LEN4: usize = 60;
const LEN6: usize = 74;
/// Slots of the map `state`.
const STATE_DEVICE: u32 = 0;
const STATE_ARRIVED: u32 = 2;
/// After an answer the client acknowledges it: a timer's time at most.
const LAST_WORD: Duration = Duration::from_millis(100);

/// The generator at work, and the counter. Dropping it ends it, and takes the counter off its device.
pub struct Small {
    state: Array<MapData, u64>,
    generator: Generator,
    /// The connection that the packets belong to.
    _connection: TcpStream,
}

impl Small {
    /// Opens a connection to that server, lets it settle with some requests, and sends its last segment over and over.
    ///
    /// # Errors
    /// The connection fails, or XDP is refused.
    pub fn start(lab: &Lab, server: IpAddr) -> Result<Self, Failure> {
        // They would make the segments larger.
        lab.client.write_sysctl("net/ipv4/tcp_timestamps", "0")?;
        let capture = lab.capture(&lab.client, CLIENT_DEVICE)?;
        let connection = lab.client.run(|| client::talk(server, REQUESTS_TO_ENTER))?;
        std::thread::sleep(LAST_WORD);
        let frame = last_of(&connection, &capture.stop())?;
        let mut ebpf = lab.client.run(|| load(&frame))?;
        let state = Array::try_from(ebpf.take_map("state").ok_or("no map state")?)?;
        lab.server.run(|| {
            program(&mut ebpf, "sink")?.attach(SERVER_DEVICE, XdpMode::Driver).map_err(Failure::from)
        })?;
        let generator = Generator::start(&lab.client, ebpf, "small", frame.len())?;
        generator.pause(false);
        Ok(Self { state, generator, _connection: connection })
    }

    /// Packets that have arrived at the server so far.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn arrived(&self) -> Result<u64, Failure> {
        Ok(self.state.get(&STATE_ARRIVED, 0)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(self) -> Result<(), Failure> {
        self.generator.stop()
    }
}

/// The last segment without payload that the client sent on a connection, padded.
fn last_of(connection: &TcpStream, frames: &[CapturedFrame]) -> Result<Vec<u8>, Failure> {
    let local = connection.local_addr()?;
    let is_it = |frame: &&CapturedFrame| {
        frame.outgoing && frame.tcp().is_some_and(|tcp| tcp.source == local && tcp.payload.is_empty())
    };
    let mut frame = frames.iter().rfind(is_it).ok_or("the client has acknowledged nothing")?.bytes.clone();
    let octets = if local.is_ipv4() { LEN4 } else { LEN6 };
    if frame.len() > octets {
        return Err(format!("a segment of {} octets, too large for a small one", frame.len()).into());
    }
    frame.resize(octets, 0);
    Ok(frame)
}

/// Loads both programs and tells the generator what to send, for the calling thread's namespace.
fn load(frame: &[u8]) -> Result<Ebpf, Failure> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let mut template = [0; LEN6];
    template[..frame.len()].copy_from_slice(frame);
    Array::<_, [u8; LEN6]>::try_from(map(&mut ebpf, "templates")?)?.set(0, template, 0)?;
    let device = u64::from(ethtool::index_of(CLIENT_DEVICE)?);
    Array::<_, u64>::try_from(map(&mut ebpf, "state")?)?.set(STATE_DEVICE, device, 0)?;
    program(&mut ebpf, "small")?.load()?;
    program(&mut ebpf, "sink")?.load()?;
    Ok(ebpf)
}
