//! The flood itself: the kernel sends SYNs that benches/bpf/syn_flood.bpf.c writes, from the client's device.

use std::fmt;
use std::net::IpAddr;

use aya::maps::{Array, MapData};
use aya::{Ebpf, EbpfLoader};
use weir_control::lab::{IPV4, IPV6, Lab};
use weir_core::flow::key::Tuple;
use weir_core::frame::{Frame as _, HeapFrame};
use weir_core::tcp::flags::TcpFlags;
use weir_core::tcp::options::Timestamps;
use weir_core::tcp::seq::Seq;
use weir_core::wire::addr::Endpoint;
use weir_core::wire::build::{self, Segment, SegmentOptions};
use weir_core::wire::{ETH_LEN, edit};
use weir_sys::ethtool;

use crate::Failure;
use crate::live::{Generator, map, program};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/syn_flood.bpf.o"));

const PROGRAM: &str = "syn_flood";
/// Octets of the longest SYN: `LEN6` of the program.
const LEN6: usize = 94;
/// Slots of the maps `config` and `state`.
const CONFIG_DEVICE: u32 = 0;
const CONFIG_INTERVAL_NS: u32 = 1;
const CONFIG_BURST: u32 = 2;
const STATE_SENT: u32 = 1;
/// SYNs that go out together at most when there is a rate; veth's ring has room for 256.
const BURST: u64 = 16;
/// `PAUSED` of the program.
const PAUSED: u64 = u64::MAX;
/// The real client's and the gateway's link-layer addresses in the lab.
const CLIENT_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 1];
const GATEWAY_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 2];

/// How many SYNs.
#[derive(Clone, Copy, Debug)]
pub enum Rate {
    Paused,
    PerSecond(f64),
    FlatOut,
}

/// The running flood. It is told its rate through a map, while the program runs.
pub struct Flood {
    config: Array<MapData, u64>,
    state: Array<MapData, u64>,
    generator: Generator,
}

impl fmt::Debug for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flood").field("generator", &self.generator).finish_non_exhaustive()
    }
}

impl Flood {
    /// Starts it, paused.
    ///
    /// # Errors
    /// BPF is refused.
    pub fn start(lab: &Lab) -> Result<Self, Failure> {
        let mut ebpf = lab.client.run(load)?;
        let config = Array::try_from(ebpf.take_map("config").ok_or("no map config")?)?;
        let state = Array::try_from(ebpf.take_map("state").ok_or("no map state")?)?;
        let generator = Generator::start(&lab.client, ebpf, PROGRAM, LEN6)?;
        Ok(Self { config, state, generator })
    }

    /// Changes it from now on.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_rate(&mut self, rate: Rate) -> Result<(), Failure> {
        let interval = match rate {
            Rate::Paused => PAUSED,
            Rate::PerSecond(rate) => (1e9 / rate.max(1.0)) as u64,
            Rate::FlatOut => 0,
        };
        self.config.set(CONFIG_INTERVAL_NS, interval, 0)?;
        // The map's value alone says what is sent; this only lets the thread sleep.
        self.generator.pause(interval == PAUSED);
        Ok(())
    }

    /// SYNs that were sent so far.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sent(&self) -> Result<u64, Failure> {
        Ok(self.state.get(&STATE_SENT, 0)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.set_rate(Rate::Paused)?;
        self.generator.stop()
    }
}

/// Loads the program and tells it what to send, for the calling thread's namespace.
fn load() -> Result<Ebpf, Failure> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let mut templates = Array::<_, [u8; LEN6]>::try_from(map(&mut ebpf, "templates")?)?;
    for (slot, family) in [(0, IPV4), (1, IPV6)] {
        templates.set(slot, template(family.servers[0])?, 0)?;
    }
    let mut config = Array::<_, u64>::try_from(map(&mut ebpf, "config")?)?;
    config.set(CONFIG_DEVICE, u64::from(ethtool::index_of("client0")?), 0)?;
    config.set(CONFIG_INTERVAL_NS, PAUSED, 0)?;
    config.set(CONFIG_BURST, BURST, 0)?;
    program(&mut ebpf, PROGRAM)?.load()?;
    Ok(ebpf)
}
/// A SYN to port 80 of `server` as the program wants it: what it fills in is zero, checksums are sums of the rest.
fn template(server: IpAddr) -> Result<[u8; LEN6], Failure> {
    let source: IpAddr = if server.is_ipv4() { "0.0.0.0".parse()? } else { "2a00::".parse()? };
    let syn = Segment {
        tuple: Tuple {
            src: Endpoint { addr: source.into(), port: 0 },
            dst: Endpoint { addr: server.into(), port: 80 },
        },
        flags: TcpFlags(TcpFlags::SYN),
        seq: Seq(0),
        ack: Seq(0),
        window: 64_240,
        options: SegmentOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack: true,
            timestamps: Some(Timestamps { val: 0x1234_5678, ecr: 0 }),
        },
    };
    let mut frame = HeapFrame::new(LEN6);
    let meta = build::segment(&mut frame, &syn, &[]).ok_or("a SYN does not fit its frame")?;
    let bytes = frame.data_mut();
    edit::set_macs(bytes, &[GATEWAY_MAC, CLIENT_MAC]);
    let l4 = usize::from(meta.l4);
    // ~(~sum) is the sum.
    bytes[l4 + 16..l4 + 18].iter_mut().for_each(|octet| *octet = !*octet);
    if !meta.v6 {
        bytes[ETH_LEN + 10..ETH_LEN + 12].iter_mut().for_each(|octet| *octet = !*octet);
    }
    let mut template = [0; LEN6];
    template[..bytes.len()].copy_from_slice(bytes);
    Ok(template)
}

#[cfg(test)]
mod tests {
    use aya::programs::{TestRun as _, TestRunOptions};
    use weir_core::parse::{Parsed, parse};
    use weir_core::tcp::options::SynOptions;

    use super::*;

    #[test]
    fn syns_have_right_checksums_and_random_sources() {
        let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
        let mut templates = Array::<_, [u8; LEN6]>::try_from(map(&mut ebpf, "templates").unwrap()).unwrap();
        templates.set(0, template(IPV4.servers[0]).unwrap(), 0).unwrap();
        templates.set(1, template(IPV6.servers[0]).unwrap(), 0).unwrap();
        program(&mut ebpf, PROGRAM).unwrap().load().unwrap();
        let mut sources = std::collections::HashSet::new();
        for run in 0..1000 {
            let mut out = [0xa5; LEN6];
            let options = TestRunOptions {
                data_in: Some(&[0xa5; LEN6]),
                data_out: Some(&mut out),
                ..TestRunOptions::new()
            };
            let result = program(&mut ebpf, PROGRAM).unwrap().test_run(options).unwrap();
            let frame = &out[..result.data_size_out as usize];
            let Ok(Parsed::Tcp(meta)) = parse(frame) else { panic!("{frame:02x?}") };
            assert_eq!((meta.v6, meta.end as usize), (run % 2 == 1, frame.len()));
            assert_eq!(meta.segment_sum(frame), 0xffff);
            assert_eq!((meta.flags, meta.tuple.dst.port), (TcpFlags(TcpFlags::SYN), 80));
            assert!(SynOptions::read(meta.options_of(frame)).sack);
            sources.insert(meta.tuple.src.addr);
        }
        assert!(sources.len() > 990, "{}", sources.len());
    }
}
