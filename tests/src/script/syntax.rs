//! From lines to what happens.

use weir_core::ids::Nanos;

use super::icmp::{self, Icmp};
use super::number::Number;
use super::options::Options;
use super::settings::Settings;
use super::{Fault, fault, payload};

/// A whole script.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) settings: Settings,
    pub(super) lines: Vec<Line>,
}

/// One line of what happens.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Where it stands, from 1.
    pub(super) at: usize,
    pub(super) text: String,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    In(Wire, Packet),
    Out(Wire, Packet),
    IcmpIn(Wire, Icmp),
    IcmpOut(Wire, Icmp),
    Wait(Nanos),
    /// A counter moves, so many times.
    Counter(String, usize),
    Flows(usize, usize),
    Held(usize),
    /// `client.isn = 5`: the initial sequence number or the port of connections from here on.
    Set(String, u32),
    Says(Side, Vec<u8>),
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wire {
    Lan,
    Wan,
    /// The leg to a server of the pool, from 1.
    Pool(u8),
    Kernel,
    Relay,
}

impl Wire {
    fn read(word: &str) -> Option<Self> {
        Some(match word {
            "lan" => Self::Lan,
            "wan" => Self::Wan,
            "pool1" => Self::Pool(1),
            "pool2" => Self::Pool(2),
            "pool3" => Self::Pool(3),
            "kernel" => Self::Kernel,
            "relay" => Self::Relay,
            _ => return None,
        })
    }
}

/// A packet as a line has it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) flags: u8,
    pub(super) seq: Number,
    pub(super) end: Option<Number>,
    pub(super) ack: Option<Number>,
    pub(super) window: Option<u16>,
    pub(super) urgent: u16,
    pub(super) ttl: Option<u8>,
    pub(super) options: Options,
    pub(super) payload: Option<Vec<u8>>,
    /// One octet of the payload is another.
    pub(super) changed: Option<usize>,
    pub(super) damaged: bool,
    /// Whatever octets there are, but some.
    pub(super) any_payload: bool,
    /// It comes in by the port of the lan, whatever its wire.
    pub(super) by_lan: bool,
    /// In whose name, when it is not the side that its wire says.
    pub(super) sender: Option<Side>,
}

/// The words of a line, one by one.
#[derive(Debug)]
pub(super) struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    /// `<...>` and `"..."` are one word.
    pub(super) fn of(text: &'a str) -> Self {
        let mut words = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let closed = |end: char| rest.get(1..).and_then(|more| more.find(end)).map(|at| at + 2);
            let length = match first {
                '<' if rest.len() > 1 && !rest.starts_with("< ") => closed('>'),
                '"' => closed('"'),
                _ => None,
            };
            let length = length.unwrap_or_else(|| rest.find(char::is_whitespace).unwrap_or(rest.len()));
            words.push(&rest[..length]);
            rest = rest[length..].trim_start();
        }
        Self { words, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    pub(super) fn skip(&mut self) {
        self.at += 1;
    }

    /// Takes the next word if it is this one.
    pub(super) fn take(&mut self, word: &str) -> bool {
        let is = self.peek() == Some(word);
        self.at += usize::from(is);
        is
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, String> {
        let word = self.peek().ok_or_else(|| format!("the line ends where {what} should be"))?;
        self.skip();
        Ok(word)
    }

    pub(super) fn number(&mut self, what: &str) -> Result<u32, String> {
        let word = self.word(what)?;
        word.parse().map_err(|_| format!("`{word}` is no number: {what}"))
    }
}

/// Reads a script.
pub(super) fn read(text: &str) -> Result<Script, Fault> {
    let mut script = Script { settings: Settings::default(), lines: Vec::new() };
    for (at, whole) in text.lines().enumerate().map(|(at, text)| (at + 1, text)) {
        let text = whole.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let plain = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
        let setting = text.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let read = match setting.filter(|(key, _)| plain(key)) {
            Some((key, value)) if settable(key) => number(value).map(|n| Some(What::Set(key.into(), n))),
            Some((key, value)) => {
                if script.lines.iter().any(|line| !matches!(line.what, What::Set(..) | What::Says(..))) {
                    return fault(at, format!("`{key}` belongs before the first packet"));
                }
                script.settings.set(key, value).map(|()| None)
            }
            None => line(text).map(Some),
        };
        match read {
            Ok(Some(what)) => script.lines.push(Line { at, text: text.into(), what }),
            Ok(None) => {}
            Err(what) => return fault(at, what),
        }
    }
    Ok(script)
}

fn settable(key: &str) -> bool {
    ["client.isn", "server.isn", "pool1.isn", "pool2.isn", "pool3.isn", "client.port", "server.port"]
        .contains(&key)
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// A span of time: `3s`, `200ms`.
pub(super) fn span(text: &str) -> Result<Nanos, String> {
    let wrong = || format!("`{text}` is no time: 3s, 200ms");
    if let Some(n) = text.strip_suffix("ms") {
        return Ok(Nanos::from_millis(n.parse().map_err(|_| wrong())?));
    }
    let seconds = text.strip_suffix('s').ok_or_else(wrong)?;
    Ok(Nanos::from_secs(seconds.parse().map_err(|_| wrong())?))
}

fn line(text: &str) -> Result<What, String> {
    if let Some(wait) = text.strip_prefix('+') {
        return Ok(What::Wait(span(wait)?));
    }
    let mut words = Words::of(text);
    let first = words.word("a word")?;
    let what = if let Some(wire) = Wire::read(first) {
        match words.word("`>` or `<`")? {
            ">" if words.take("icmp") => What::IcmpIn(wire, icmp::read(&mut words)?),
            "<" if words.take("icmp") => What::IcmpOut(wire, icmp::read(&mut words)?),
            ">" => What::In(wire, packet(&mut words, false)?),
            "<" => What::Out(wire, packet(&mut words, true)?),
            other => return Err(format!("`{other}` stands where `>` or `<` should")),
        }
    } else {
        happening(first, &mut words)?
    };
    match words.peek() {
        Some(more) => Err(format!("`{more}` is too much, or nothing that a packet has")),
        None => Ok(what),
    }
}

fn happening(first: &str, words: &mut Words<'_>) -> Result<What, String> {
    Ok(match first {
        "flows" => What::Flows(
            words.number("flows on the fast road")? as usize,
            words.number("flows on the kernel road")? as usize,
        ),
        "held" => What::Held(words.number("frames")? as usize),
        "client" | "server" if words.take("says") => {
            let side = if first == "client" { Side::Client } else { Side::Server };
            What::Says(side, payload::read(words)?.ok_or("`says` wants octets")?)
        }
        _ => {
            let name = match first {
                "drop" | "punt" => format!("{first} {}", words.word("a reason")?),
                total => total.to_owned(),
            };
            let times = match words.peek().and_then(|word| word.strip_prefix('x')) {
                Some(times) => {
                    words.skip();
                    number(times)? as usize
                }
                None => 1,
            };
            What::Counter(name, times)
        }
    })
}

fn packet(words: &mut Words<'_>, out: bool) -> Result<Packet, String> {
    let flags = flags(words.word("flags")?)?;
    let place = words.word("a sequence number")?;
    let (seq, end) = match place.split_once(':') {
        Some((seq, end)) => (Number::read(seq)?, Some(Number::read(end)?)),
        None => (Number::read(place)?, None),
    };
    let mut packet = Packet {
        flags,
        seq,
        end,
        ack: None,
        window: None,
        urgent: 0,
        ttl: None,
        options: Options::These(Vec::new()),
        payload: None,
        changed: None,
        damaged: false,
        any_payload: false,
        by_lan: false,
        sender: None,
    };
    while let Some(word) = words.peek() {
        if let Some(octets) = payload::read(words)? {
            packet.payload = Some(octets);
            continue;
        }
        words.skip();
        match word {
            "ack" => packet.ack = Some(Number::read(words.word("a number behind `ack`")?)?),
            "win" => packet.window = Some(words.number("the window")? as u16),
            "urg" => packet.urgent = words.number("the urgent pointer")? as u16,
            "ttl" => packet.ttl = Some(words.number("the TTL")? as u8),
            "changed" => packet.changed = Some(words.number("which octet")? as usize),
            "damaged" => packet.damaged = true,
            "octets" if out => packet.any_payload = true,
            "by" if !out && words.take("lan") => packet.by_lan = true,
            "as" => packet.sender = Some(side(words.word("`client` or `server`")?)?),
            _ => match word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
                Some(options) => packet.options = Options::read(options)?,
                None => return Err(format!("`{word}` is nothing that a packet has")),
            },
        }
    }
    if flags & crate::packet::ACK != 0 && packet.ack.is_none() {
        return Err("a packet with ACK wants `ack N`".into());
    }
    if !out && packet.options == Options::Any {
        return Err("`<*>` is only for what is expected".into());
    }
    Ok(packet)
}

fn side(word: &str) -> Result<Side, String> {
    match word {
        "client" => Ok(Side::Client),
        "server" => Ok(Side::Server),
        _ => Err(format!("`{word}` is neither `client` nor `server`")),
    }
}

/// The letters of flags, from the lowest bit up.
pub(super) const LETTERS: [char; 8] = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'C'];

fn flags(word: &str) -> Result<u8, String> {
    word.chars().try_fold(0, |flags, letter| match LETTERS.iter().position(|l| *l == letter) {
        Some(bit) => Ok(flags | 1 << bit),
        None => Err(format!("`{word}` are no flags: S F R P . U E C")),
    })
}
