//! A table as nft lists it, and the walk of a packet through its chains.

use std::collections::HashMap;

use serde_json::Value;

use super::packet::{Packet, has};

/// The chain that packets enter the table by.
const ENTRY: &str = "prerouting";
/// The only one of a table whose start has not come to its end; what is forwarded comes there.
const FORWARD: &str = "forward";
/// Chains jumped through, at most (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// What a rule does with the packet in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is given to the listener on this port.
    Tproxy(u16),
    Accept,
    Drop,
    /// Accepted as it is, without a mark.
    Leave,
    /// The chain ends here for it.
    Return,
}

impl Verdict {
    pub fn sentence(&self) -> String {
        match self {
            Self::Tproxy(port) => format!("given to the listener on port {port}, and marked"),
            Self::Accept => "accepted".to_owned(),
            Self::Drop => "dropped".to_owned(),
            Self::Leave | Self::Return => "left alone: nothing below this rule is asked".to_owned(),
        }
    }
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    pub handle: u64,
    /// As nft prints it.
    pub text: String,
    pub verdict: Verdict,
    /// The mark that it leaves; none: the rule sets none.
    pub mark: Option<u32>,
    /// Packets and octets, where the rule counts.
    pub counter: Option<(u64, u64)>,
    /// Rules before it that could not be judged.
    pub doubts: Vec<String>,
}

#[derive(Clone, Debug)]
struct Rule {
    handle: u64,
    text: String,
    expressions: Vec<Value>,
}

/// A table: chains with their rules, and named sets.
#[derive(Clone, Debug, Default)]
pub struct Table {
    chains: HashMap<String, Vec<Rule>>,
    sets: HashMap<String, Value>,
}

/// What an expression list comes to.
enum Outcome {
    /// The rule does not match, or matches and lets the next one decide.
    Next,
    Jump(String),
    Done(Verdict),
    /// It holds an expression that is not known here.
    Unknown,
}

impl Table {
    /// `json` and `text` are two listings of the same table, both with handles.
    pub fn new(json: &Value, text: &str) -> Self {
        let mut table = Self::default();
        for object in json["nftables"].as_array().into_iter().flatten() {
            if let Some(set) = object.get("set") {
                let name = set["name"].as_str().unwrap_or_default();
                table.sets.insert(name.to_owned(), set["elem"].clone());
            }
            let Some(rule) = object.get("rule") else { continue };
            let handle = rule["handle"].as_u64().unwrap_or(0);
            let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
            let rule_ = Rule { handle, text: line(text, handle), expressions };
            table
                .chains
                .entry(rule["chain"].as_str().unwrap_or_default().to_owned())
                .or_default()
                .push(rule_);
        }
        table
    }

    /// The rule that decides on a packet; none where all let it pass.
    pub fn walk(&self, packet: &Packet) -> Option<Hit> {
        if !self.chains.contains_key(ENTRY) {
            return (packet.fib == "unicast").then(|| self.chain(FORWARD, packet, &mut Vec::new(), 0))?;
        }
        self.chain(ENTRY, packet, &mut Vec::new(), 0)
    }

    fn chain(&self, name: &str, packet: &Packet, doubts: &mut Vec<String>, depth: usize) -> Option<Hit> {
        if depth > DEPTH {
            return None;
        }
        for rule in self.chains.get(name)? {
            let mut mark = None;
            match self.rule(rule, packet, &mut mark) {
                Outcome::Next => {}
                Outcome::Unknown => doubts.push(format!("not judged: handle {}: {}", rule.handle, rule.text)),
                Outcome::Jump(target) => {
                    let hit = self.chain(&target, packet, doubts, depth + 1);
                    // A return goes on behind the jump.
                    if let Some(hit) = hit.filter(|hit| hit.verdict != Verdict::Return) {
                        return Some(hit);
                    }
                }
                Outcome::Done(verdict) => {
                    let leaves = verdict == Verdict::Accept && mark.is_none();
                    return Some(Hit {
                        handle: rule.handle,
                        text: rule.text.clone(),
                        verdict: if leaves { Verdict::Leave } else { verdict },
                        mark,
                        counter: counter(rule),
                        doubts: doubts.clone(),
                    });
                }
            }
        }
        None
    }

    fn rule(&self, rule: &Rule, packet: &Packet, mark: &mut Option<u32>) -> Outcome {
        let mut tproxy = None;
        for expression in &rule.expressions {
            if let Some(condition) = expression.get("match") {
                match self.matches(condition, packet) {
                    Some(true) => {}
                    Some(false) => return Outcome::Next,
                    None => return Outcome::Unknown,
                }
            } else if let Some(to) = expression.get("tproxy") {
                let port = to["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                // Without a listener the expression ends its rule.
                tproxy = port.filter(|port| packet.socket.is_some() || packet.listener == Some(*port));
                if tproxy.is_none() {
                    return Outcome::Next;
                }
            } else if expression["mangle"]["key"]["meta"]["key"] == "mark" {
                *mark = number(&expression["mangle"]["value"]);
            } else if expression.get("accept").is_some() {
                return Outcome::Done(tproxy.map_or(Verdict::Accept, Verdict::Tproxy));
            } else if expression.get("drop").is_some() || expression.get("reject").is_some() {
                return Outcome::Done(Verdict::Drop);
            } else if expression.get("return").is_some() {
                return Outcome::Done(Verdict::Return);
            } else if let Some(target) = expression["jump"]["target"].as_str() {
                return Outcome::Jump(target.to_owned());
            } else if expression.get("counter").is_none() && expression.get("log").is_none() {
                return Outcome::Unknown;
            }
        }
        Outcome::Next
    }

    /// Whether a condition holds; none where that cannot be told.
    fn matches(&self, condition: &Value, packet: &Packet) -> Option<bool> {
        let Some(value) = packet.value(&condition["left"])? else { return Some(false) };
        let right = &condition["right"];
        let named = right.as_str().and_then(|name| name.strip_prefix('@'));
        let right = match named {
            Some(name) => self.sets.get(name)?,
            None => right,
        };
        match condition["op"].as_str()? {
            "==" | "in" => Some(has(right, &value)),
            "!=" => Some(!has(right, &value)),
            _ => None,
        }
    }
}

/// The line of a listing that ends with a rule's handle.
fn line(text: &str, handle: u64) -> String {
    let end = format!(" # handle {handle}");
    let mut lines = text.lines().map(str::trim);
    // Tables, sets and chains have handles of their own, behind a brace.
    let found = lines.find_map(|line| line.strip_suffix(&end).filter(|rule| !rule.ends_with('{')));
    found.unwrap_or_default().to_owned()
}

fn counter(rule: &Rule) -> Option<(u64, u64)> {
    let counter = rule.expressions.iter().find_map(|expression| expression.get("counter"))?;
    Some((counter["packets"].as_u64()?, counter["bytes"].as_u64()?))
}

/// A mark expression, of a packet that has none yet.
fn number(value: &Value) -> Option<u32> {
    let two = |name: &str, with: fn(u32, u32) -> u32| {
        let sides = value[name].as_array()?;
        Some(with(number(sides.first()?)?, number(sides.get(1)?)?))
    };
    if value["meta"]["key"] == "mark" {
        return Some(0);
    }
    let plain = value.as_u64().and_then(|number| u32::try_from(number).ok());
    plain
        .or_else(|| two("|", |a, b| a | b))
        .or_else(|| two("&", |a, b| a & b))
        .or_else(|| two("^", |a, b| a ^ b))
}
