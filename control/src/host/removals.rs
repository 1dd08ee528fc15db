//! From the kernel's notifications to who removed something of weir's.

use super::culprit::{Culprit, Removal};
use super::notify::Message;
use super::plan::{DUMMY_ADDRESS, Kind};
use super::{PROTOCOL, PUNT_TUN, RELAY_TUN};

// linux/rtnetlink.h: types of messages, the lengths of their heads, and attributes.
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const IFINFOMSG: usize = 16;
pub(super) const IFADDRMSG: usize = 8;
const FIB_RULE_HDR: usize = 12;
const IFLA_IFNAME: u16 = 3;
pub(super) const IFA_LOCAL: u16 = 2;
const FRA_PROTOCOL: u16 = 21;
/// Where `rtm_protocol` is in struct rtmsg.
const RTM_PROTOCOL: usize = 5;

// linux/netfilter/nf_tables.h. The first attribute of tables, chains, rules, sets and their elements names the table.
const NFT_SUBSYSTEM: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
const NFPROTO_INET: u8 = 1;
const NFGENMSG: usize = 4;
const TABLE_NAME: u16 = 1;
const GEN_PROC_PID: u16 = 2;
const GEN_PROC_NAME: u16 = 3;

/// What a message of rtnetlink says was removed of weir's.
pub(crate) fn route_removal(message: Message<'_>) -> Option<Removal> {
    let has = |head: usize, wanted: u16, value: &dyn Fn(&[u8]) -> bool| {
        attributes(message.body, head).any(|(kind, octets)| kind == wanted && value(octets))
    };
    let kind = match message.kind {
        RTM_DELRULE if has(FIB_RULE_HDR, FRA_PROTOCOL, &|octets| octets == [PROTOCOL]) => Kind::Rule,
        RTM_DELROUTE if message.body.get(RTM_PROTOCOL) == Some(&PROTOCOL) => Kind::Route,
        RTM_DELADDR if has(IFADDRMSG, IFA_LOCAL, &|octets| octets == DUMMY_ADDRESS.octets()) => Kind::Address,
        RTM_DELLINK if has(IFINFOMSG, IFLA_IFNAME, &is_tun) => Kind::Tun,
        _ => return None,
    };
    Some(Removal { kind, by: Culprit::of_port(message.port)? })
}

fn is_tun(name: &[u8]) -> bool {
    [RELAY_TUN, PUNT_TUN].iter().any(|tun| name.strip_suffix(&[0]) == Some(tun.as_bytes()))
}

/// A transaction of nft, as it is announced: its changes, then its end with the process that made it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// It changed weir's table.
    touched: bool,
}

impl Batch {
    /// Takes the next message; at the end of a transaction that changed weir's table, whose it was.
    pub fn hear(&mut self, message: Message<'_>) -> Option<Removal> {
        if message.kind >> 8 != NFT_SUBSYSTEM {
            return None;
        }
        let attribute = |wanted| attributes(message.body, NFGENMSG).find(move |(kind, _)| *kind == wanted);
        if message.kind & 0xff != NFT_MSG_NEWGEN {
            let name = attribute(TABLE_NAME).map(|(_, octets)| octets);
            self.touched |= message.body.first() == Some(&NFPROTO_INET) && name == Some(b"weir\0");
            return None;
        }
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        let (_, pid) = attribute(GEN_PROC_PID)?;
        let pid = u32::from_be_bytes(pid.try_into().ok()?);
        let name = attribute(GEN_PROC_NAME).map(|(_, octets)| {
            String::from_utf8_lossy(octets.split(|octet| *octet == 0).next().unwrap_or_default()).into_owned()
        });
        Some(Removal { kind: Kind::Table, by: Culprit::of(pid, name) })
    }
}

/// Type and value of every attribute behind a head of `head` octets.
pub(super) fn attributes(body: &[u8], head: usize) -> impl Iterator<Item = (u16, &[u8])> {
    /// The two upper bits say that it is nested, or in network byte order.
    const TYPE: u16 = 0x3fff;
    let mut rest = body.get(head..);
    std::iter::from_fn(move || {
        let from = rest?;
        let (start, _) = from.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([start[0], start[1]]));
        let value = from.get(4..length)?;
        rest = from.get(length.next_multiple_of(4)..);
        Some((u16::from_ne_bytes([start[2], start[3]]) & TYPE, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut octets = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        octets.extend(kind.to_ne_bytes());
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn body(head: usize, attributes: &[Vec<u8>]) -> Vec<u8> {
        [vec![0; head], attributes.concat()].concat()
    }

    fn removal(kind: u16, body: &[u8]) -> Option<Kind> {
        route_removal(Message { kind, port: std::process::id(), body }).map(|removal| removal.kind)
    }

    #[test]
    fn removals_of_weirs_own_are_told_apart_from_others() {
        let rule =
            |protocol| body(FIB_RULE_HDR, &[attribute(6, &[0; 4]), attribute(FRA_PROTOCOL, &[protocol])]);
        assert_eq!(removal(RTM_DELRULE, &rule(119)), Some(Kind::Rule));
        assert_eq!(removal(RTM_DELRULE, &rule(4)), None);
        assert_eq!(removal(RTM_DELRULE - 1, &rule(119)), None, "added");
        assert_eq!(removal(RTM_DELROUTE, &[2, 0, 0, 0, 0, 119, 0, 0]), Some(Kind::Route));
        assert_eq!(removal(RTM_DELROUTE, &[2, 0, 0, 0, 0, 3, 0, 0]), None);
        let address = |last| body(IFADDRMSG, &[attribute(IFA_LOCAL, &[192, 0, 0, last])]);
        assert_eq!(removal(RTM_DELADDR, &address(8)), Some(Kind::Address));
        assert_eq!(removal(RTM_DELADDR, &address(9)), None);
        let link = |name: &[u8]| body(IFINFOMSG, &[attribute(IFLA_IFNAME, name)]);
        assert_eq!(removal(RTM_DELLINK, &link(b"weir-punt\0")), Some(Kind::Tun));
        assert_eq!(removal(RTM_DELLINK, &link(b"eth0\0")), None);
    }

    #[test]
    fn transaction_that_changed_another_table_is_nobodys_removal() {
        let of_table = |family: u8, name: &[u8]| {
            let mut body = body(NFGENMSG, &[attribute(TABLE_NAME, name)]);
            body[0] = family;
            body
        };
        let end = body(
            NFGENMSG,
            &[attribute(GEN_PROC_PID, &7u32.to_be_bytes()), attribute(GEN_PROC_NAME, b"firewalld\0")],
        );
        let end = Message { kind: NFT_SUBSYSTEM << 8 | NFT_MSG_NEWGEN, port: 0, body: &end };
        for (family, name, is_ours) in [
            (1, &b"weir\0"[..], true),
            (2, b"weir\0", false),
            (1, b"filter\0", false),
            (1, b"weir2\0", false),
        ] {
            let mut batch = Batch::default();
            let body = of_table(family, name);
            assert_eq!(batch.hear(Message { kind: NFT_SUBSYSTEM << 8 | 2, port: 0, body: &body }), None);
            let by = batch.hear(end).map(|removal| removal.by.name);
            assert_eq!(by, is_ours.then(|| Some("firewalld".to_owned())));
            assert_eq!(batch.hear(end), None, "the next one");
        }
    }

    #[test]
    fn attributes_cut_anywhere_end_the_walk() {
        let whole = body(FIB_RULE_HDR, &[attribute(6, &[0; 4]), attribute(FRA_PROTOCOL, &[119])]);
        for length in 0..whole.len() - 3 {
            assert_eq!(removal(RTM_DELRULE, &whole[..length]), None, "{length}");
        }
        assert_eq!(attributes(&[0; 8], 0).count(), 0, "of no length");
    }
}
