//! Strict reverse path filtering by rules: IPv6 has no sysctl for it, so firewalls write it so. Which rules ask for the way back is
//! read; whether one drops weir's packets is tried, with that rule and without it: a device may be excepted, a chain never be jumped to,
//! and what is written be there for a log.

use std::slice::from_ref;

use super::{Table, Trial};
use crate::doctor::finding::{Finding, Findings};
use crate::doctor::ruleset::{self, Chain, Spot, reached_chains, words};

pub const ID: &str = "rpfilter-rule";

/// Whether a rule asks whether the way back leads through the device that a packet came in by: nft's `fib saddr . iif ...`, and
/// iptables' rpfilter, which nft may show by its name alone.
fn asks_for_the_way_back(text: &str) -> bool {
    let words = words(text);
    let by_fib = words.iter().enumerate().filter(|(_, word)| **word == "fib").any(|(at, _)| {
        let keys: Vec<&&str> = words[at + 1..]
            .iter()
            .take_while(|word| ["saddr", "daddr", "mark", "iif", "oif", "."].contains(word))
            .collect();
        keys.contains(&&"saddr") && keys.contains(&&"iif")
    });
    by_fib
        || words.windows(2).any(|pair| pair == ["-m", "rpfilter"])
        || words.windows(3).any(|of| of == ["xt", "match", "\"rpfilter\""])
}

/// Such rules of a table, where a packet that arrives can come to them.
fn asking<'a>(table: &Table, chains: &'a [Chain]) -> Vec<Spot<'a>> {
    let hooked = |chain: &&Chain| ["prerouting", "input", "forward"].iter().any(|hook| chain.hooks(hook));
    let bases = chains.iter().filter(|chain| table.has(chain)).filter(hooked);
    let mut spots: Vec<Spot<'a>> = Vec::new();
    for chain in bases.flat_map(|base| reached_chains(chains, base)) {
        let asks = |at: &usize| chain.rules.get(*at).is_some_and(|rule| asks_for_the_way_back(&rule.text));
        let new = (0..chain.rules.len()).filter(asks).map(|at| Spot { chain, at });
        for spot in new {
            if !spots.contains(&spot) {
                spots.push(spot);
            }
        }
    }
    spots
}

/// Those by which packets are lost: with all the others of their table away, and not with them away, too.
pub(super) fn losing<'a>(trial: &Trial<'_>, tables: &[Table], chains: &'a [Chain]) -> Vec<Spot<'a>> {
    let mut losing = Vec::new();
    for table in tables {
        let spots = asking(table, chains);
        let lost = |kept: Option<&Spot<'_>>| {
            let away: Vec<Spot<'_>> = spots.iter().filter(|spot| Some(*spot) != kept).copied().collect();
            trial.lost(from_ref(table), &|| ruleset::delete(&away))
        };
        let Some(without) = (!spots.is_empty()).then(|| lost(None).ok()).flatten() else { continue };
        let loses = |spot: &&Spot<'_>| lost(Some(*spot)).is_ok_and(|lost| !lost.is_subset(&without));
        losing.extend(spots.iter().filter(loses).copied());
    }
    losing
}

pub(super) fn tell(losing: &[Spot<'_>], found: &mut Findings) {
    if losing.is_empty() {
        let what = "no rule of others drops what it takes for a wrong way in";
        return found.push(Finding::good(ID, "netfilter", what));
    }
    for (chain, rule) in losing.iter().filter_map(|spot| Some((spot.chain, spot.rule()?))) {
        let why = format!(
            "what weir hands to the kernel comes in by the devices weir-punt and weir-relay, and its senders are behind the \
             ports: such {} packets are dropped; let the rule except these devices",
            chain.versions()
        );
        let what = format!("a rule of others drops packets by their way in (tried): `{}`", rule.text);
        found.push(Finding::bad(ID, chain.title(), what, why).mend(&rule.delete));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_ask_for_the_way_back_are_known_by_what_they_match() {
        for (text, asks) in [
            ("fib saddr . iif oif missing drop", true),
            ("fib saddr . mark . iif oif 0 counter drop", true),
            ("fib saddr . iif oif vmap { missing : jump away }", true),
            ("fib saddr type != local fib saddr . iif oif 0 drop", true),
            ("xt match \"rpfilter\" counter packets 0 bytes 0 drop", true),
            ("PREROUTING -m rpfilter --invert -j DROP", true),
            // Loose, or another question.
            ("fib saddr oif missing drop", false),
            ("fib daddr . iif type != local drop", false),
            ("iif lan0 log prefix \"fib saddr . iif drop\"", false),
            ("PREROUTING -m comment --comment \"-m rpfilter\" -j DROP", false),
            ("xt match \"comment\" drop comment \"rpfilter\"", false),
        ] {
            assert_eq!(asks_for_the_way_back(text), asks, "{text}");
        }
    }
}
