//! `verify_host`: whether the name that a client asks for has the address that it connects to.
//!
//! Only a resolver knows, and that is control's: what is asked of it is a [`Question`], and what comes back an [`Answer`].
//! Pipeline and relay call [`need`] when the rules let a connection on, and keep what they were told in [`Answers`], so that
//! the next connection with the same name to the same address does not wait.

use std::hash::Hasher as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::flow::key::FlowKey;
use crate::ids::Nanos;
use crate::inspect::Name;
use crate::policy::{Action, Cause, Decision, VerifyHost};
use crate::wire::addr::{Addr, Endpoint};

#[cfg(test)]
mod tests;

/// Answers that a worker or a relay thread remembers.
const ANSWERS: usize = 8192;
/// Places where an answer may stand.
const WAYS: usize = 4;

/// What is known of a name and a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// The destination is one of the name's addresses.
    Matches,
    /// The name has addresses, and the destination is none of them.
    Differs,
    /// The name has no address that could be found in time, or Encrypted ClientHello hides it.
    Unknown,
}

impl Verified {
    pub const ALL: [Self; 3] = [Self::Matches, Self::Differs, Self::Unknown];

    /// As `weir flows` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Matches => "matches",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
        }
    }
}

/// How far the check of a connection's name is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostCheck {
    /// There is nothing to check.
    #[default]
    None,
    /// The connection is held until there is an answer.
    Waiting,
    /// It was let on, and the answer will be noted.
    Asked,
    Known(Verified),
}

impl HostCheck {
    /// As `weir flows` spells it.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Waiting | Self::Asked => Some("waiting"),
            Self::Known(verified) => Some(verified.name()),
        }
    }
}

/// What the check of a name takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    Known(Verified),
    /// A resolver must say; `waits`: the connection is held until it has.
    Ask {
        waits: bool,
    },
}

impl Need {
    /// How far the check is with that.
    pub const fn check(self) -> HostCheck {
        match self {
            Self::Nothing => HostCheck::None,
            Self::Known(verified) => HostCheck::Known(verified),
            Self::Ask { waits: true } => HostCheck::Waiting,
            Self::Ask { waits: false } => HostCheck::Asked,
        }
    }
}

/// What the check of `name` takes, for a connection to `destination` that the rules let on. `hidden`: the name is the outer
/// one of an Encrypted ClientHello, and the true one is not known. A name that is an address needs no resolver; where
/// a difference is only to be logged it is asked for all the same, since control writes the log.
pub fn need(mode: VerifyHost, name: &str, hidden: bool, destination: IpAddr) -> Need {
    let waits = mode == VerifyHost::Reset;
    if mode == VerifyHost::Off {
        return Need::Nothing;
    }
    if hidden {
        return Need::Known(Verified::Unknown);
    }
    match name.parse::<IpAddr>() {
        Ok(literal) if literal.to_canonical() == destination => Need::Known(Verified::Matches),
        Ok(_) if waits => Need::Known(Verified::Differs),
        Ok(_) | Err(_) => Need::Ask { waits },
    }
}

/// What a decision that lets a connection on becomes by the answer. With `reset` a destination that is not the name's is
/// refused, and a name that is not known takes the intercept's `unidentified`: where that allows, the decision stands.
pub fn rule(mode: VerifyHost, verified: Verified, unidentified: Action, decision: Decision) -> Decision {
    match (mode, verified) {
        (VerifyHost::Reset, Verified::Differs) => {
            Decision { action: Action::Reset, cause: Cause::HostMismatch }
        }
        (VerifyHost::Reset, Verified::Unknown) if unidentified != Action::Allow => {
            Decision { action: unidentified, cause: Cause::HostUnknown }
        }
        _ => decision,
    }
}

/// A name and a destination, as a number that nobody outside can aim at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tag(u128);

/// Whether `name` has the address of `destination`.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub key: FlowKey,
    pub client: Endpoint,
    pub destination: Endpoint,
    pub name: Name,
    pub tag: Tag,
    /// The connection is held meanwhile. Else a difference is to be logged.
    pub waits: bool,
}

impl Question {
    /// `life`: how long it may be remembered, from now on; nothing: not at all.
    pub const fn answer(&self, verified: Verified, life: Nanos) -> Answer {
        Answer { key: self.key, tag: self.tag, verified, life, waits: self.waits }
    }
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub key: FlowKey,
    pub tag: Tag,
    pub verified: Verified,
    pub life: Nanos,
    pub waits: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: Tag,
    until: Nanos,
    verified: Verified,
}

/// What was answered, for as long as it holds: a table of fixed size, in which the answer that ends first makes room.
#[derive(Debug)]
pub struct Answers {
    hasher: SipHasher24,
    /// Empty until there is an answer: most boxes never ask.
    entries: Vec<Entry>,
}

impl Answers {
    /// `secret` keys the tags.
    pub fn new(secret: &[u8; 32]) -> Self {
        let mut key = [0; 16];
        for (octet, (a, b)) in key.iter_mut().zip(secret.iter().zip(secret.iter().skip(16))) {
            // Not the key of the cookies, which are made from the same secret.
            *octet = a.rotate_left(1) ^ b.rotate_left(5) ^ 0x5a;
        }
        Self { hasher: SipHasher24::new_with_key(&key), entries: Vec::new() }
    }

    /// What stands for `name` and the address of `destination`.
    pub fn tag(&self, name: &str, destination: &Addr) -> Tag {
        let mut hasher = self.hasher;
        hasher.write(&destination.0);
        hasher.write(name.as_bytes());
        Tag(hasher.finish128().as_u128())
    }

    /// What is known of a connection's name: what its own check has found, or else what was answered for another one.
    pub fn known(&self, check: HostCheck, name: &str, destination: &Addr, now: Nanos) -> Option<Verified> {
        match check {
            HostCheck::Known(verified) => Some(verified),
            _ => self.get(self.tag(name, destination), now),
        }
    }

    pub fn get(&self, tag: Tag, now: Nanos) -> Option<Verified> {
        let set = self.entries.get(Self::set(tag))?;
        set.iter().find(|entry| entry.tag == tag && entry.until > now).map(|entry| entry.verified)
    }

    /// Remembers what `answer` says. The first one takes the memory of all.
    pub fn learn(&mut self, answer: &Answer, now: Nanos) {
        if answer.life == Nanos(0) {
            return;
        }
        if self.entries.is_empty() {
            let none = Entry { tag: Tag::default(), until: Nanos(0), verified: Verified::Unknown };
            self.entries.resize(ANSWERS, none);
        }
        let Some(set) = self.entries.get_mut(Self::set(answer.tag)) else { return };
        let until = now.saturating_add(answer.life);
        let first_to_end = |entry: &&mut Entry| (entry.tag != answer.tag, entry.until);
        if let Some(place) = set.iter_mut().min_by_key(first_to_end) {
            *place = Entry { tag: answer.tag, until, verified: answer.verified };
        }
    }

    fn set(tag: Tag) -> std::ops::Range<usize> {
        let set = tag.0 as usize % (ANSWERS / WAYS);
        set * WAYS..(set + 1) * WAYS
    }
}
