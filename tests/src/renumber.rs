//! Shifts the sequence numbers of a host, so that they can be made to wrap where a test wants it: the host counts as it
//! likes, and everybody else sees it count from another number.

use crate::packet::ethernet;

/// The shift between a host and its wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Renumber(pub u32);

impl Renumber {
    /// A packet that the host sends.
    pub fn sent(self, packet: &mut [u8]) {
        if self.0 != 0 {
            edit(packet, |tcp| add(tcp, 4, self.0));
        }
    }

    /// A packet for the host: what it acknowledges is the host's.
    pub fn received(self, packet: &mut [u8]) {
        if self.0 == 0 {
            return;
        }
        let back = self.0.wrapping_neg();
        edit(packet, |tcp| {
            if tcp[13] & 0x10 != 0 {
                add(tcp, 8, back);
            }
            // Damaged packets may say anything.
            let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
            let mut at = 20;
            while at + 1 < end {
                match tcp[at] {
                    0 => break,
                    1 => at += 1,
                    kind => {
                        let len = usize::from(tcp[at + 1]).max(2);
                        if kind == 5 {
                            (at + 2..(at + len).min(end)).step_by(4).for_each(|edge| add(tcp, edge, back));
                        }
                        at += len;
                    }
                }
            }
        });
    }
}

fn add(bytes: &mut [u8], at: usize, by: u32) {
    let Some(place) = bytes.get_mut(at..at + 4) else { return };
    let old = u32::from_be_bytes(place.try_into().expect("four octets"));
    place.copy_from_slice(&old.wrapping_add(by).to_be_bytes());
}

/// Changes the TCP header of an IP packet without extension headers; a right checksum stays right, a wrong one wrong.
fn edit(packet: &mut [u8], change: impl FnOnce(&mut [u8])) {
    let v6 = packet[0] >> 4 == 6;
    let l4 = if v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    let before = sum(&packet[l4..]);
    change(&mut packet[l4..]);
    let after = sum(&packet[l4..]);
    // RFC 1624, equation 3.
    let field = u16::from_be_bytes([packet[l4 + 16], packet[l4 + 17]]);
    let mut new = u32::from(!field) + u32::from(!before) + u32::from(after);
    while new > 0xffff {
        new = (new & 0xffff) + (new >> 16);
    }
    packet[l4 + 16..l4 + 18].copy_from_slice(&(!(new as u16)).to_be_bytes());
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An IP packet as a frame.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    ethernet(packet[0] >> 4 == 6, packet)
}
