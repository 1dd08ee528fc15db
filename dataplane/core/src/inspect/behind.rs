//! What a client sends behind its ClientHello (RFC 8446 sections 4.2.10, 5.1 and appendix D.4): as long as the server may
//! ask for a second one, the headers of records are read, to find where it begins. What stands before it, early data and a
//! change of cipher, is passed over.

use super::tls::{CLIENT_HELLO, HANDSHAKE, MAX_RECORD, RECORD_HEADER};

/// Content types of records; between change_cipher_spec and heartbeat stand alert, handshake and application_data.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HEARTBEAT: u8 = 24;

/// How far the records behind a hello have been read. Octets are shown once each, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Octets of the present record that are to come.
    left: u16,
    /// Octets of a header that were shown, and the first of its length.
    have: u8,
    high: u8,
    /// The record of the first hello goes on: what stands there is a handshake.
    in_record: bool,
}

/// What stands in the octets that were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// No handshake; all of them are read.
    Clear,
    /// A handshake begins so many octets from the first; those before are read.
    Handshake(usize),
    /// What no server goes on after: not TLS.
    Nothing,
}

impl Behind {
    /// Reads on at the end of a hello.
    pub const fn new(in_record: bool) -> Self {
        Self { left: 0, have: 0, high: 0, in_record }
    }

    pub fn read(&mut self, bytes: &[u8]) -> Next {
        let mut at = 0;
        loop {
            let there = bytes.len().saturating_sub(at);
            let skipped = usize::from(self.left).min(there);
            self.left = self.left.saturating_sub(skipped as u16);
            at = at.saturating_add(skipped);
            let Some(&octet) = bytes.get(at) else { return Next::Clear };
            match self.have {
                0 if octet == HANDSHAKE || self.in_record => return Next::Handshake(at),
                0 if !(CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&octet) => return Next::Nothing,
                3 => self.high = octet,
                _ => {}
            }
            at = at.saturating_add(1);
            self.have = self.have.saturating_add(1);
            if usize::from(self.have) == RECORD_HEADER {
                self.have = 0;
                self.left = u16::from_be_bytes([self.high, octet]);
                if usize::from(self.left) > MAX_RECORD {
                    return Next::Nothing;
                }
            }
        }
    }

    /// Whether the handshake that begins `stream`, where this stands, is for certain no ClientHello, so that none will
    /// follow: the server that waits for one takes nothing else.
    pub fn is_no_hello(&self, stream: &[u8]) -> bool {
        let is_empty = stream.get(3..RECORD_HEADER) == Some(&[0, 0]);
        let kind = stream.get(RECORD_HEADER);
        !self.in_record && !is_empty && kind.is_some_and(|&kind| kind != CLIENT_HELLO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, len: usize) -> Vec<u8> {
        let mut out = vec![kind, 3, 3];
        out.extend((len as u16).to_be_bytes());
        out.resize(out.len() + len, HANDSHAKE);
        out
    }

    #[test]
    fn records_are_passed_over_however_they_are_cut_until_a_handshake_begins() {
        let before = [record(20, 1), record(23, 700), record(23, 0), record(21, 2), record(24, 3)].concat();
        let stream = [&before[..], &record(HANDSHAKE, 9)].concat();
        for cut in 1..stream.len() {
            let (mut behind, mut at) = (Behind::default(), 0);
            let found = stream.chunks(cut).find_map(|part| match behind.read(part) {
                Next::Clear => {
                    at += part.len();
                    None
                }
                Next::Handshake(n) => Some(at + n),
                Next::Nothing => panic!("all are records"),
            });
            assert_eq!(found, Some(before.len()), "cut at {cut}");
        }
    }

    #[test]
    fn no_tls_a_record_too_long_and_a_hello_that_goes_on_are_told_apart() {
        assert_eq!(Behind::default().read(b"GET"), Next::Nothing);
        assert_eq!(Behind::default().read(&[25]), Next::Nothing);
        assert_eq!(Behind::default().read(&[23, 3, 3, 0x48, 1]), Next::Nothing);
        assert_eq!(Behind::default().read(&[]), Next::Clear);
        assert_eq!(Behind::new(true).read(&[23]), Next::Handshake(0));
        let behind = Behind::default();
        assert!(behind.is_no_hello(&[22, 3, 3, 0, 4, 16]) && !behind.is_no_hello(&[22, 3, 3, 0, 4, 1]));
        assert!(!behind.is_no_hello(&[22, 3, 3, 0, 0, 22]) && !behind.is_no_hello(&[22, 3, 3, 0, 4]));
        assert!(!Behind::new(true).is_no_hello(&[1, 0, 0, 4, 3, 3]), "no header stands there");
    }
}
