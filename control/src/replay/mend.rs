//! Frames of a capture as they would come to a port of a box.
//!
//! A capture shows some frames as no wire carried them: before the sender's NIC filled in checksums and cut large
//! segments, behind a tag that a VLAN device would have taken off, or only their first octets. Called by the replay,
//! before the pipeline's parser. Where a checksum is wrong and should be, [`super::survey`] knows.

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header};
use weir_core::parse::Meta;
use weir_core::vlan::{DOT1AD, DOT1Q, IDS, Tag, Vlan};
use weir_core::wire::addr::Addr;
use weir_core::wire::{self, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, edit};

use super::capture::Frame;

/// The largest frame that the pipeline takes: its offsets have 16 bits.
pub const MAX_FRAME: usize = u16::MAX as usize;
/// Octets of a frame before its EtherType, and of a tag.
const ETHERTYPE_AT: usize = 12;
const TAG: usize = 4;
/// Octets of frames that links without jumbo frames carry, with one tag.
const MAX_ON_WIRE: usize = 1518;

/// What [`untag`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    None,
    /// A priority, or such as no box has a sub-interface for.
    Nobodys,
    Of(Vlan),
}

/// Takes off all tags of IEEE 802.1Q and 802.1ad.
pub fn untag(frame: &mut Vec<u8>) -> Tags {
    let is_tagged = |frame: &[u8]| {
        let tags =
            [EtherType::VLAN_TAGGED_FRAME, EtherType::PROVIDER_BRIDGING, EtherType::VLAN_DOUBLE_TAGGED_FRAME];
        frame.len() >= ETH_LEN + TAG
            && wire::get_u16(frame, ETHERTYPE_AT).is_some_and(|t| tags.contains(&EtherType(t)))
    };
    let mut tags = Vec::new();
    while is_tagged(frame) {
        let word = |at| wire::get_u16(frame, at).unwrap_or_default();
        tags.push(Tag { protocol: word(ETHERTYPE_AT), id: word(ETHERTYPE_AT + 2) & 0x0fff });
        frame.drain(ETHERTYPE_AT..ETHERTYPE_AT + TAG);
    }
    let is_vlans = |tag: &Tag| IDS.contains(&tag.id) && [DOT1Q, DOT1AD].contains(&tag.protocol);
    match tags.as_slice() {
        [] => Tags::None,
        [outer] if is_vlans(outer) => Tags::Of(Vlan { outer: *outer, inner: None }),
        [outer, inner] if is_vlans(outer) && is_vlans(inner) => {
            Tags::Of(Vlan { outer: *outer, inner: Some(*inner) })
        }
        _ => Tags::Nobodys,
    }
}

/// Gives an IP packet the length that was captured of it, when its header has none (it was cut by the sender's NIC, and
/// is longer than the field can say or was not told) or when the capture has only its beginning. What was not captured is
/// missing in the stream, as a lost segment is. Returns whether the length changed.
pub fn fit_length(frame: &mut Frame) -> bool {
    if let Some(beyond) = frame.bytes.len().checked_sub(MAX_FRAME) {
        frame.bytes.truncate(MAX_FRAME);
        frame.missing = frame.missing.saturating_add(beyond as u32);
    }
    let is_cut = frame.missing > 0;
    let captured = frame.bytes.len().saturating_sub(ETH_LEN);
    match wire::get_u16(&frame.bytes, ETHERTYPE_AT) {
        Some(ETHERTYPE_IPV4) => edit_v4(&mut frame.bytes, |ip| {
            let total = usize::from(ip.total_len);
            let fits = total > 0 && (total <= captured || !is_cut);
            if fits || captured < ip.header_len() {
                return false;
            }
            ip.total_len = captured as u16;
            true
        }),
        Some(ETHERTYPE_IPV6) => {
            let Ok((ip, _)) = Ipv6Header::from_slice(frame.bytes.get(ETH_LEN..).unwrap_or_default()) else {
                return false;
            };
            let (len, captured) = (usize::from(ip.payload_length), captured - IPV6_LEN);
            // Zero and a hop-by-hop header are a jumbogram (RFC 2675), which is not TCP's business.
            let has_none = len == 0 && ip.next_header == IpNumber::TCP && captured > 0;
            let changes = has_none || (is_cut && len > captured);
            if changes {
                wire::put(&mut frame.bytes, ETH_LEN + 4, &(captured as u16).to_be_bytes());
            }
            changes
        }
        _ => false,
    }
}

/// An IPv4 header's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpSum {
    pub sender: Addr,
    pub is_right: bool,
    /// Zero: left to the NIC.
    pub is_absent: bool,
}

/// Judges the IPv4 header's checksum. `None` for anything but IPv4.
pub fn ip_checksum(frame: &[u8]) -> Option<IpSum> {
    if wire::get_u16(frame, ETHERTYPE_AT) != Some(ETHERTYPE_IPV4) {
        return None;
    }
    let (ip, _) = Ipv4Header::from_slice(frame.get(ETH_LEN..)?).ok()?;
    Some(IpSum {
        sender: Addr::v4(ip.source),
        is_right: ip.header_checksum == ip.calc_header_checksum(),
        is_absent: ip.header_checksum == 0,
    })
}

/// Writes the IPv4 header's checksum.
pub fn write_ip_checksum(frame: &mut [u8]) {
    edit_v4(frame, |_| true);
}

/// Puts a wrong TCP checksum right, unless it was wrong on the wire: `is_believed` says that this sender's are mostly right.
/// What was left to a NIC is put right in any case: a checksum of the pseudo header only, and that of a frame larger than
/// what a wire carries (the sender's NIC made several of it, or the receiver's one of several). Returns whether it changed.
pub fn tcp_checksum(frame: &mut [u8], meta: &Meta, is_believed: bool) -> bool {
    if meta.segment_sum(frame) == 0xffff {
        return false;
    }
    if edit::fill_partial_checksum(frame, meta) {
        return true;
    }
    let mends = !is_believed || frame.len() > MAX_ON_WIRE;
    if mends {
        edit::write_checksum(frame, meta);
    }
    mends
}

/// Edits an IPv4 header; when `edit` says that it changed something, the header is written with its checksum.
fn edit_v4(frame: &mut [u8], edit: impl FnOnce(&mut Ipv4Header) -> bool) -> bool {
    let Ok((mut ip, _)) = Ipv4Header::from_slice(frame.get(ETH_LEN..).unwrap_or_default()) else {
        return false;
    };
    let changed = edit(&mut ip);
    if changed {
        ip.header_checksum = ip.calc_header_checksum();
        wire::put(frame, ETH_LEN, &ip.to_bytes());
    }
    changed
}
