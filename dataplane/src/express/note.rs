//! What is noted beside a connection of the lane: weir-core's [`Note`] as the map has it, and back.

use std::borrow::Cow;
use std::collections::HashMap;

use weir_core::express::{Note, Passed};
use weir_core::flow::record::Verdict;
use weir_core::flow::second::HelloRetry;
use weir_core::ids::{Nanos, PoolId, RuleId};
use weir_core::policy::{Action, Cause, Protocol};
use weir_core::verify::Verified;
use weir_sys::steering::ExpressNote;

/// What each number stands for, from 0 on. A change is one of the layout (dataplane/bpf/maps.h).
const ACTIONS: [Action; 5] =
    [Action::Allow, Action::Reset, Action::Drop, Action::Send(PoolId(u16::MAX)), Action::Relay];
const CAUSES: [Cause; 6] = [
    Cause::Rule(RuleId(u16::MAX)),
    Cause::Otherwise,
    Cause::Unidentified,
    Cause::HostMismatch,
    Cause::HostUnknown,
    Cause::HelloRetry,
];
const PROTOCOLS: [Option<Protocol>; 4] =
    [None, Some(Protocol::Tls), Some(Protocol::Http), Some(Protocol::Other)];
const VERIFIED: [Option<Verified>; 4] =
    [None, Some(Verified::Matches), Some(Verified::Differs), Some(Verified::Unknown)];
const RETRIES: [HelloRetry; 4] = [HelloRetry::None, HelloRetry::Asked, HelloRetry::Same, HelloRetry::Changed];

// Flags.
const ECH: u8 = 1;
const SIGNED: u8 = 2;
const PARTIAL: u8 = 4;

// The texts of a note.
const HOST: usize = 0;
const ALPN: usize = 1;
const RULE: usize = 2;

/// The note as the map has it. A name that finds no room is missing, which the note says; so is the end of a rule's place.
pub fn encode(note: &Note<'_>, rule: Option<&str>) -> ExpressNote {
    let Verdict { action, cause } = note.verdict;
    let is_action = |known: &Action| std::mem::discriminant(known) == std::mem::discriminant(&action);
    let is_cause = |known: &Cause| std::mem::discriminant(known) == std::mem::discriminant(&cause);
    let mut codes = [
        place(ACTIONS.iter().position(is_action)),
        place(CAUSES.iter().position(is_cause)),
        place(PROTOCOLS.iter().position(|known| *known == note.protocol)),
        place(VERIFIED.iter().position(|known| *known == note.verified)),
        place(RETRIES.iter().position(|known| *known == note.hello_retry)),
        0,
        0,
        0,
    ];
    let passed = &note.passed;
    let packets = [passed.packets_to_server, passed.packets_to_client];
    let packets = packets.map(|packets| u32::try_from(packets).unwrap_or(u32::MAX));
    let bytes = [passed.bytes_to_server, passed.bytes_to_client];
    let mut made = ExpressNote::new(note.created.0, bytes, packets, codes);
    let host = note.host.as_deref().unwrap_or_default().as_bytes();
    let all = made.put(HOST, host) & made.put(ALPN, &note.alpn);
    let rule = rule.unwrap_or_default();
    let longest = (0..=rule.len()).rev().filter(|end| rule.is_char_boundary(*end));
    longest.map(|end| &rule[..end]).find(|rule| made.put(RULE, rule.as_bytes()));
    for (flag, is_set) in [(ECH, note.ech), (SIGNED, note.signed), (PARTIAL, note.partial || !all)] {
        codes[5] |= if is_set { flag } else { 0 };
    }
    made.codes = codes;
    made
}

fn place(found: Option<usize>) -> u8 {
    found.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

/// Reads notes of connections that are taken over, and keeps where their rules stand.
#[derive(Debug, Default)]
pub struct Reader {
    numbers: HashMap<String, u16>,
    rules: Vec<String>,
}

impl Reader {
    /// A note of the map. `None`: it is none that this version writes.
    pub fn decode(&mut self, noted: &ExpressNote) -> Option<Note<'static>> {
        let [action, cause, protocol, verified, hello_retry, flags, ..] = noted.codes;
        let [host, alpn, rule] = noted.texts();
        let text = |octets: &[u8]| std::str::from_utf8(octets).ok().map(str::to_owned);
        let mut cause = *CAUSES.get(usize::from(cause))?;
        if let Cause::Rule(id) = &mut cause {
            *id = self.number(text(rule)?);
        }
        let host = Some(text(host)?).filter(|host| !host.is_empty());
        Some(Note {
            created: Nanos(noted.created),
            verdict: Verdict { action: *ACTIONS.get(usize::from(action))?, cause },
            protocol: *PROTOCOLS.get(usize::from(protocol))?,
            verified: *VERIFIED.get(usize::from(verified))?,
            hello_retry: *RETRIES.get(usize::from(hello_retry))?,
            ech: flags & ECH != 0,
            signed: flags & SIGNED != 0,
            partial: flags & PARTIAL != 0,
            host: host.map(Cow::Owned),
            alpn: Cow::Owned(alpn.to_vec()),
            passed: Passed {
                packets_to_server: noted.packets[0].into(),
                packets_to_client: noted.packets[1].into(),
                bytes_to_server: noted.bytes[0],
                bytes_to_client: noted.bytes[1],
                ..Passed::default()
            },
        })
    }

    /// Where the rules stand, by the numbers in the notes.
    pub fn into_rules(self) -> Vec<String> {
        self.rules
    }

    /// Of more rules than have numbers, the others stand nowhere.
    fn number(&mut self, rule: String) -> RuleId {
        if let Some(number) = self.numbers.get(&rule) {
            return RuleId(*number);
        }
        let Some(number) = u16::try_from(self.rules.len()).ok().filter(|number| *number < u16::MAX) else {
            return RuleId(u16::MAX);
        };
        self.numbers.insert(rule.clone(), number);
        self.rules.push(rule);
        RuleId(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(host: Option<&str>, cause: Cause) -> Note<'_> {
        Note {
            created: Nanos(77),
            verdict: Verdict { action: Action::Send(PoolId(u16::MAX)), cause },
            protocol: Some(Protocol::Tls),
            verified: Some(Verified::Unknown),
            hello_retry: HelloRetry::Same,
            ech: true,
            signed: false,
            partial: false,
            host: host.map(Cow::Borrowed),
            alpn: Cow::Borrowed(b"\x02h2\x08http/1.1"),
            passed: Passed {
                packets_to_server: 1,
                packets_to_client: 2,
                bytes_to_server: 3,
                bytes_to_client: 1 << 40,
                ..Passed::default()
            },
        }
    }

    #[test]
    fn notes_are_read_back_as_they_were_written_and_rules_are_kept_once() {
        let mut reader = Reader::default();
        for (host, rule) in [(Some("www.example"), "a.toml:7"), (None, "b.toml:9"), (Some("x"), "a.toml:7")] {
            let number = RuleId(if rule == "a.toml:7" { 0 } else { 1 });
            let written = note(host, Cause::Rule(number));
            assert_eq!(reader.decode(&encode(&written, Some(rule))), Some(written));
        }
        let otherwise = note(None, Cause::Otherwise);
        assert_eq!(reader.decode(&encode(&otherwise, None)), Some(otherwise));
        assert_eq!(reader.into_rules(), ["a.toml:7", "b.toml:9"]);
    }

    #[test]
    fn name_that_finds_no_room_is_missing_and_said_to_be() {
        let long = "x".repeat(200);
        let mut reader = Reader::default();
        let place = format!("{}:12", "ä".repeat(90));
        let read = reader.decode(&encode(&note(Some(&long), Cause::Rule(RuleId(0))), Some(&place))).unwrap();
        assert_eq!((read.host, read.partial), (None, true));
        assert_eq!(read.alpn, &b"\x02h2\x08http/1.1"[..]);
        assert!(place.starts_with(&reader.into_rules()[0]));
    }

    #[test]
    fn codes_that_nobody_writes_are_no_note() {
        let good = encode(&note(None, Cause::Otherwise), None);
        for at in 0..5 {
            let mut bad = good;
            bad.codes[at] = 200;
            assert_eq!(Reader::default().decode(&bad), None, "{at}");
        }
    }
}
