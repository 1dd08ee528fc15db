//! Forwarding by an XDP program that does nothing but redirect (benches/bpf/redirect.bpf.c): the ceiling for the express lane.

use aya::maps::{DevMapHash, HashMap};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use weir_sys::ethtool;

use super::SIDES;
use crate::Failure;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));

/// Puts it on both devices of the calling thread's namespace, where it stays until the result is dropped.
///
/// # Errors
/// XDP is refused.
pub fn start() -> Result<Ebpf, Failure> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let mut macs = HashMap::<_, u32, [u8; 12]>::try_from(ebpf.take_map("macs").ok_or("no map macs")?)?;
    let mut devices = DevMapHash::try_from(ebpf.take_map("devices").ok_or("no map devices")?)?;
    let [lan, wan] = SIDES;
    for (from, to) in [(lan, wan), (wan, lan)] {
        let from = ethtool::index_of(from.device)?;
        let mut octets = [0; 12];
        octets[..6].copy_from_slice(&to.peer);
        octets[6..].copy_from_slice(&to.mac);
        macs.insert(from, octets, 0)?;
        devices.insert(from, ethtool::index_of(to.device)?, None, 0)?;
    }
    let program: &mut Xdp = ebpf.program_mut("redirect").ok_or("no program in its object")?.try_into()?;
    program.load()?;
    for side in SIDES {
        program.attach(side.device, XdpMode::Driver)?;
    }
    Ok(ebpf)
}
