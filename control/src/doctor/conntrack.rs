//! Connection tracking in the way: most packets of a connection on the fast road pass the kernel by, and what it does see
//! it may take for invalid.

use std::fs;

use super::finding::{Finding, Findings};
use super::ground::Ground;
use super::ruleset::{self, Rule};
use crate::host::sysctl::Key;

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    let before = found.findings.len();
    match &ground.chains {
        Ok(_) if !ground.fast => {}
        Ok(_) => invalid(ground, found),
        Err(why) => found.skip("conntrack-invalid", "nft list ruleset", why),
    }
    if ground.fast {
        let good =
            Finding::good("conntrack-invalid", "netfilter", "no rule drops what conntrack does not know");
        found.good_unless_found(before, good);
    }
    table(ground, found);
}

/// Whether a rule drops packets that conntrack calls invalid.
fn drops_invalid(rule: &Rule) -> bool {
    let text = rule.text.to_lowercase();
    let words = ruleset::words(&text);
    let option = |word: &&str| matches!(*word, "--ctstate" | "--state");
    let asks = words.windows(2).any(|pair| pair == ["ct", "state"]) || words.iter().any(option);
    // All but these.
    let is_inverted = words.windows(3).any(|of| of == ["ct", "state", "!="])
        || words.windows(2).any(|pair| pair[0] == "!" && option(&pair[1]));
    let has = |any: &[&str]| words.iter().any(|word| any.contains(word));
    // Also in a map of verdicts: `ct state vmap { invalid : drop, ... }`.
    asks && !is_inverted && has(&["invalid"]) && has(&["drop", "reject"])
}

fn invalid(ground: &Ground<'_>, found: &mut Findings) {
    let Ok(chains) = &ground.chains else { return };
    let (liberal, loose) =
        ("net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_tcp_loose");
    let is = |key: &str, value: &str| Key::new(key).read().ok().flatten().as_deref() == Some(value);
    if is(liberal, "1") && !is(loose, "0") {
        return;
    }
    let hooked = |hook: &Option<String>| matches!(hook.as_deref(), Some("prerouting" | "forward"));
    for base in chains.iter().filter(|chain| chain.is_ip() && hooked(&chain.hook)) {
        let Some(rule) = ruleset::reached(chains, base).into_iter().find(|rule| drops_invalid(rule)) else {
            continue;
        };
        let set =
            "sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1 net.netfilter.nf_conntrack_tcp_loose=1";
        found.push(
            Finding::bad(
                "conntrack-invalid",
                base.title(),
                format!("drops what conntrack calls invalid: `{}`", rule.text),
                format!(
                    "of {} connections on the fast road the kernel sees single packets only: when one takes the kernel's road, \
                     or all do because weir is down, their numbers are not what conntrack expects, and they are dropped",
                    base.versions()
                ),
            )
            .mend(set),
        );
    }
}

/// Connections in the table, against its size.
fn table(ground: &Ground<'_>, found: &mut Findings) {
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(ground.proc.join(format!("sys/net/netfilter/{name}"))).ok()?.trim().parse().ok()
    };
    let id = "conntrack-table";
    let (Some(count), Some(most)) = (read("nf_conntrack_count"), read("nf_conntrack_max")) else {
        return found.push(Finding::good(id, "conntrack", "is not loaded"));
    };
    let key = "net.netfilter.nf_conntrack_max";
    found.push(if most > 0 && count >= most / 10 * 9 {
        Finding::bad(
            id,
            key,
            format!("{count} of {most} entries are taken"),
            "when the table is full the kernel drops new connections, those of the relay too",
        )
        .mend(format!("sysctl -w {key}={}", count.max(most) * 2))
    } else {
        Finding::good(id, key, format!("{count} of {most} entries are taken"))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_drop_the_invalid_are_known_in_every_form() {
        for (text, drops) in [
            ("ct state invalid drop", true),
            ("ct state invalid counter packets 0 bytes 0 drop", true),
            ("ct state { invalid, untracked } log prefix \"x\" reject", true),
            ("FORWARD -m conntrack --ctstate INVALID -j DROP", true),
            ("FORWARD -m state --state INVALID -j DROP", true),
            ("ct state vmap { invalid : drop, established : accept }", true),
            ("ct state invalid accept", false),
            ("ct state invalid log prefix \"drop invalid: \"", false),
            ("ct state != invalid drop", false),
            ("FORWARD -m conntrack ! --ctstate INVALID -j DROP", false),
            ("tcp dport 80 drop comment \"no ct state invalid here\"", false),
            ("ct state established,related accept", false),
            ("tcp dport 80 drop", false),
        ] {
            let rule = Rule { text: text.to_owned(), delete: String::new() };
            assert_eq!(drops_invalid(&rule), drops, "{text}");
        }
    }
}
