//! Rules of others that are in weir's way: other transparent proxies, and users of the mark. Those that drop are tried (`rehearsal`).

use super::finding::{Finding, Findings};
use super::ground::Ground;
use super::ruleset::{self, Chain, Rule};

/// The priority of weir's chain.
const MANGLE: i32 = -150;

/// Everything of this file. What chains do to weir's packets is tried in `rehearsal`.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let chains = match &ground.chains {
        Ok(chains) => chains,
        Err(why) => {
            return ["foreign-tproxy", "foreign-mark"]
                .into_iter()
                .for_each(|id| found.skip(id, "nft list ruleset", why));
        }
    };
    let before = found.findings.len();
    // Chains that no packet comes to do nothing.
    for base in chains.iter().filter(|chain| chain.is_ip() && chain.hook.is_some()) {
        for chain in ruleset::reached_chains(chains, base) {
            for rule in &chain.rules {
                tproxy(ground, chain, rule, found);
                mark(ground, (base, chain), rule, found);
            }
        }
    }
    let subject = "netfilter";
    for (id, what) in [
        ("foreign-tproxy", "no other transparent proxy takes the intercepts' ports"),
        ("foreign-mark", "no rule of others writes bits of the mark"),
    ] {
        found.good_unless_found(before, Finding::good(id, subject, what));
    }
}

/// The TCP destination ports that a rule asks for; none: all.
fn ports(text: &str) -> Vec<(u16, u16)> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || "{},".contains(c)).filter(|w| !w.is_empty()).collect();
    let at = words.iter().position(|word| matches!(*word, "dport" | "--dport" | "--dports" | "dports"));
    let range = |word: &&&str| {
        let (first, last) = word.split_once(['-', ':']).unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let Some(at) = at else { return Vec::new() };
    words[at + 1..].iter().map(|word| range(&word)).map_while(|range| range).collect()
}

/// Whether packets of the intercepts may match, as far as protocols and ports go.
fn meets_intercepts(ground: &Ground<'_>, lower: &str) -> bool {
    let words = ruleset::words(lower);
    let has = |word| words.contains(&word);
    let ports = ports(lower);
    (has("tcp") || !has("udp"))
        && (ports.is_empty() || ports.iter().any(|(first, last)| ground.takes_port(*first, *last)))
}

fn tproxy(ground: &Ground<'_>, chain: &Chain, rule: &Rule, found: &mut Findings) {
    let lower = rule.text.to_lowercase();
    if !ruleset::words(&lower).contains(&"tproxy") || !meets_intercepts(ground, &lower) {
        return;
    }
    let why = format!(
        "it and weir both want the {} connections of the intercepts on the kernel's road; the later rule wins",
        chain.versions()
    );
    let what = format!("another transparent proxy takes connections: `{}`", rule.text);
    tell_once(Finding::bad("foreign-tproxy", chain.title(), what, why).mend(&rule.delete), found);
}

/// What a rule does to the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marking {
    /// All bits are replaced.
    Whole(u32),
    /// These bits are written.
    Bits(u32),
    /// Some other mark is put in its place.
    Copied,
}

fn number(word: &str) -> Option<u32> {
    let word = word.trim_end_matches([';', ',']);
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// `meta mark set VALUE`, `... set mark or VALUE`, `... set meta mark & A | B`, and the options of iptables.
fn marking(text: &str) -> Option<Marking> {
    if let Some((_, rest)) = text.split_once("meta mark set ") {
        let words: Vec<&str> = rest.split_whitespace().collect();
        if let Some(value) = words.first().and_then(|word| number(word)) {
            return Some(Marking::Whole(value));
        }
        if !matches!(words.as_slice(), ["mark", ..] | ["meta", "mark", ..]) {
            return Some(Marking::Copied);
        }
        let after = |signs: [&str; 2]| {
            let at = words.iter().position(|word| signs.contains(word))?;
            number(words.get(at + 1)?)
        };
        let bits = after(["or", "|"]).unwrap_or(0) | after(["xor", "^"]).unwrap_or(0);
        return Some(Marking::Bits(bits | after(["and", "&"]).map_or(0, |kept| !kept)));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let option = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    for name in ["--set-xmark", "--set-mark", "--tproxy-mark"] {
        let Some((value, mask)) =
            option(name).map(|word| word.split_once('/').unwrap_or((word, "0xffffffff")))
        else {
            continue;
        };
        return match (number(value)?, number(mask)?) {
            (value, u32::MAX) => Some(Marking::Whole(value)),
            (value, mask) => Some(Marking::Bits(value | mask)),
        };
    }
    option("--restore-mark").or(words.iter().find(|word| **word == "--restore-mark")).map(|_| Marking::Copied)
}

/// `base`: the chain by whose hook packets come to this one.
fn mark(ground: &Ground<'_>, (base, chain): (&Chain, &Chain), rule: &Rule, found: &mut Findings) {
    let (mark, mask) = (ground.spec.mark, ground.spec.mask);
    let words = ruleset::words(&rule.text).into_iter().filter(|word| !word.starts_with('"'));
    let words: Vec<&str> = words.collect();
    let Some(marking) = marking(&words.join(" ")) else { return };
    // After routing nobody looks at the mark again.
    if !(base.hooks("prerouting") || base.hooks("output")) {
        return;
    }
    let id = "foreign-mark";
    let what = format!("a rule of others writes the mark: `{}`", rule.text);
    let other = format!("choose another `mark` in [fallback] (it is {mark:#x}/{mask:#x})");
    let delivered = "packets that it marks are delivered to this box itself, and lost";
    let overwritten =
        "it writes over weir's mark, and the relay's packets are forwarded instead of delivered";
    let bad = |why: &str| {
        Finding::bad(id, chain.title(), what.clone(), format!("{why}; {other}")).mend(&rule.delete)
    };
    let may_overwrite = base.hooks("prerouting")
        && base.priority >= MANGLE
        && meets_intercepts(ground, &rule.text.to_lowercase());
    let finding = match marking {
        Marking::Whole(value) if value & mask == mark => bad(delivered),
        Marking::Bits(bits) if bits & mask == mark => bad(delivered),
        Marking::Bits(bits) if bits & mask != 0 => bad("it changes bits of weir's mark"),
        Marking::Bits(_) => return,
        Marking::Whole(_) if may_overwrite => bad(overwritten),
        Marking::Whole(value) if value & mask != 0 => Finding::note(
            id,
            chain.title(),
            what,
            format!("its value has bits of weir's mark; weir writes its own after it: {other}"),
        )
        .mend(&rule.delete),
        Marking::Whole(_) => return,
        Marking::Copied if may_overwrite => Finding::note(
            id,
            chain.title(),
            what,
            format!("{overwritten} where the copied mark has other bits; {other}"),
        )
        .mend(&rule.delete),
        Marking::Copied => return,
    };
    tell_once(finding, found);
}

/// One rule may be come to by several ways.
fn tell_once(finding: Finding, found: &mut Findings) {
    if !found.findings.iter().any(|told| told.id == finding.id && told.mend == finding.mend) {
        found.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_rule_are_read_in_every_form() {
        for (text, expected) in [
            ("tcp dport 80 tproxy to :99", vec![(80, 80)]),
            ("tcp dport { 80, 443-445 } drop", vec![(80, 80), (443, 445)]),
            ("-p tcp -m tcp --dport 8080 -j TPROXY", vec![(8080, 8080)]),
            ("-m multiport --dports 80,1000:1010 -j TPROXY", vec![(80, 80), (1000, 1010)]),
            ("meta l4proto tcp tproxy to :99", vec![]),
        ] {
            assert_eq!(ports(text), expected, "{text}");
        }
    }

    #[test]
    fn marking_is_read_in_every_form() {
        for (text, expected) in [
            ("tcp dport 1 meta mark set 0x00000077", Some(Marking::Whole(0x77))),
            ("meta mark set mark or 0x3", Some(Marking::Bits(3))),
            ("meta mark set meta mark & 0xffffff00 | 0x00000077 accept", Some(Marking::Bits(0xff))),
            ("meta mark set ct mark", Some(Marking::Copied)),
            ("meta mark 0x1 accept", None),
            ("PREROUTING -j MARK --set-xmark 0x10/0xffffffff", Some(Marking::Whole(0x10))),
            ("PREROUTING -j MARK --set-xmark 0x10/0xf0", Some(Marking::Bits(0xf0))),
            ("PREROUTING -j CONNMARK --restore-mark --nfmask 0xff", Some(Marking::Copied)),
        ] {
            assert_eq!(marking(text), expected, "{text}");
        }
    }
}
