//! Netfilter's chains as others have made them: nft's text, and that of the iptables that is not nft's.
//!
//! Only text tells it all: nft's JSON hides what rules of iptables match and do.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6`, `inet`, `netdev`, `bridge`, `arp`.
    pub family: String,
    pub table: String,
    pub name: String,
    /// Where it hooks in; none: it is jumped to.
    pub hook: Option<String>,
    pub priority: i32,
    /// Its policy is to drop.
    pub drops: bool,
    pub rules: Vec<Rule>,
    /// It is of iptables in its old form, which nft does not show.
    pub legacy: bool,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub text: String,
    /// The command that deletes it.
    pub delete: String,
}

impl Chain {
    /// As people name it.
    pub fn title(&self) -> String {
        let legacy = if self.legacy { " (iptables-legacy)" } else { "" };
        format!("{} {} {}{legacy}", self.family, self.table, self.name)
    }

    pub fn hooks(&self, hook: &str) -> bool {
        self.hook.as_deref() == Some(hook)
    }

    /// Whether packets of IP are judged here at all.
    pub fn is_ip(&self) -> bool {
        matches!(self.family.as_str(), "ip" | "ip6" | "inet")
    }

    /// The words for the versions of IP that are judged here.
    pub fn versions(&self) -> &'static str {
        match self.family.as_str() {
            "ip" => "IPv4",
            "ip6" => "IPv6",
            _ => "IPv4 and IPv6",
        }
    }
}

/// The words of a rule. What is in quotation marks is one word, with them: names, comments and what goes to a log are nobody's keywords.
/// Braces and commas are between words.
pub fn words(text: &str) -> Vec<&str> {
    let (mut words, mut begin, mut quoted, mut escaped) = (Vec::new(), None, false, false);
    for (at, c) in text.char_indices() {
        let is_between = !quoted && (c.is_whitespace() || ",{}".contains(c));
        match begin {
            Some(begun) if is_between => {
                words.push(&text[begun..at]);
                begin = None;
            }
            None if !is_between => begin = Some(at),
            _ => {}
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    words.extend(begin.map(|begun| &text[begun..]));
    words
}

/// A chain, and those that it jumps to.
pub fn reached_chains<'a>(chains: &'a [Chain], base: &'a Chain) -> Vec<&'a Chain> {
    let (mut seen, mut todo, mut reached) = (BTreeSet::new(), vec![base], Vec::new());
    let same_table = |c: &&Chain| (&c.family, &c.table, c.legacy) == (&base.family, &base.table, base.legacy);
    while let Some(chain) = todo.pop() {
        if !seen.insert(&chain.name) {
            continue;
        }
        reached.push(chain);
        for rule in &chain.rules {
            // Also in a map of verdicts: `vmap { lo : accept, lan0 : jump here }`.
            let words = words(&rule.text);
            let target = |name: &str| {
                words
                    .windows(2)
                    .any(|pair| matches!(pair[0], "jump" | "goto" | "-j" | "-g") && pair[1] == name)
            };
            todo.extend(chains.iter().filter(same_table).filter(|c| c.hook.is_none() && target(&c.name)));
        }
    }
    reached
}

/// A chain's rules, and those of the chains that it jumps to.
pub fn reached<'a>(chains: &'a [Chain], base: &'a Chain) -> Vec<&'a Rule> {
    reached_chains(chains, base).into_iter().flat_map(|chain| &chain.rules).collect()
}

/// A rule by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot<'a> {
    pub chain: &'a Chain,
    /// Its number in the chain.
    pub at: usize,
}

impl<'a> Spot<'a> {
    pub fn rule(&self) -> Option<&'a Rule> {
        self.chain.rules.get(self.at)
    }
}

/// Deletes from the ruleset of this namespace the rules that stand where these do: it is a copy of that which they are of.
///
/// # Errors
/// A sentence: why one cannot be deleted.
pub fn delete(spots: &[Spot<'_>]) -> Result<(), String> {
    if spots.is_empty() {
        return Ok(());
    }
    let chains = read()?;
    let same = |spot: &Spot<'_>| {
        let chain = chains.iter().find(|chain| chain.title() == spot.chain.title())?;
        chain.rules.get(spot.at).map(|rule| rule.delete.as_str())
    };
    let commands: Vec<&str> = spots.iter().filter_map(same).collect();
    commands.into_iter().try_for_each(|command| run("sh", &["-c", command]).map(drop))
}

/// All chains of this namespace but weir's.
///
/// # Errors
/// A sentence: why they cannot be read.
pub fn read() -> Result<Vec<Chain>, String> {
    let mut chains = parse_nft(&run("nft", &["-s", "-t", "-a", "-y", "list", "ruleset"])?);
    chains.retain(|chain| (chain.family.as_str(), chain.table.as_str()) != ("inet", "weir"));
    for (family, names, save) in
        [("ip", "ip_tables_names", "iptables-legacy"), ("ip6", "ip6_tables_names", "ip6tables-legacy")]
    {
        let tables = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if tables.trim().is_empty() {
            continue;
        }
        // Tables are there: without the program nobody can say what is in them.
        chains.extend(parse_legacy(family, save, &run(&format!("{save}-save"), &[])?));
    }
    Ok(chains)
}

/// What a program prints.
///
/// # Errors
/// A sentence: it cannot be run, or the first line of what it says.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr)
        .lines()
        .next()
        .unwrap_or("it failed and did not say why")
        .to_owned())
}

/// Reads what `nft -a -y list ruleset` prints: blocks of tables, in them blocks of chains, in them a rule a line (or
/// several, where a set is long; the handle is at the end of the last).
fn parse_nft(text: &str) -> Vec<Chain> {
    let (mut chains, mut table) = (Vec::new(), (String::new(), String::new()));
    let mut chain: Option<Chain> = None;
    let mut pending = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words.as_slice(), &mut chain) {
            (["table", family, name, "{", ..], _) => table = ((*family).to_owned(), (*name).to_owned()),
            (["chain", name, "{", ..], None) => {
                let (family, table) = table.clone();
                chain = Some(Chain { family, table, name: (*name).to_owned(), ..Chain::default() });
            }
            (["}", ..], Some(_)) if pending.is_empty() => chains.extend(chain.take()),
            (["type", _, "hook", hook, rest @ ..], Some(chain)) if pending.is_empty() => {
                chain.hook = Some((*hook).to_owned());
                let after = |word: &str| {
                    rest.iter().skip_while(|w| **w != word).nth(1).map(|w| w.trim_end_matches(';'))
                };
                chain.priority = after("priority").and_then(|n| n.parse().ok()).unwrap_or(0);
                chain.drops = after("policy") == Some("drop");
            }
            (_, Some(chain)) => {
                pending.push_str(line.trim());
                pending.push(' ');
                if let Some((text, handle)) = pending.rsplit_once(" # handle ") {
                    let Chain { family, table, name, .. } = &*chain;
                    let delete = format!("nft delete rule {family} {table} {name} handle {}", handle.trim());
                    chain.rules.push(Rule { text: text.to_owned(), delete });
                    pending.clear();
                }
            }
            _ => {}
        }
    }
    chains
}

/// Reads what `iptables-legacy-save` prints.
fn parse_legacy(family: &str, program: &str, text: &str) -> Vec<Chain> {
    let (mut chains, mut table): (Vec<Chain>, &str) = (Vec::new(), "");
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            let hook = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&name);
            chains.push(Chain {
                family: family.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
                hook: hook.then(|| name.to_lowercase()),
                priority: match table {
                    "raw" => -300,
                    "mangle" => -150,
                    "nat" => -100,
                    _ => 0,
                },
                drops: policy == Some("DROP"),
                rules: Vec::new(),
                legacy: true,
            });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let name = rule.split_whitespace().next().unwrap_or_default();
            let of = chains.iter_mut().find(|chain| chain.table == table && chain.name == name);
            if let Some(chain) = of {
                let delete = format!("{program} -t {table} -D {rule}");
                chain.rules.push(Rule { text: rule.to_owned(), delete });
            }
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &str = r#"table inet fw { # handle 4
	set s { # handle 9
		type ipv4_addr
		elements = { 192.0.2.1,
			     192.0.2.2 }
	}

	chain pre { # handle 1
		type filter hook prerouting priority -150; policy accept;
		tcp dport { 80, 81,
			    82 } tproxy ip to :99 meta mark set 0x00000010 # handle 3
		jump more # handle 5
	}

	chain more { # handle 2
		ct state invalid drop # handle 6
	}
}
table ip filter { # handle 8
	chain FORWARD { # handle 1
		type filter hook forward priority 0; policy drop;
	}
}
"#;

    #[test]
    fn nft_text_becomes_chains_with_commands_that_delete_their_rules() {
        let chains = parse_nft(NFT);
        let titles: Vec<String> = chains.iter().map(Chain::title).collect();
        assert_eq!(titles, ["inet fw pre", "inet fw more", "ip filter FORWARD"]);
        assert!(chains[0].hooks("prerouting") && chains[0].priority == -150 && !chains[0].drops);
        assert!(chains[2].hooks("forward") && chains[2].drops && chains[2].rules.is_empty());
        assert_eq!(
            chains[0].rules[0].text,
            "tcp dport { 80, 81, 82 } tproxy ip to :99 meta mark set 0x00000010"
        );
        assert_eq!(chains[0].rules[0].delete, "nft delete rule inet fw pre handle 3");
        let reached: Vec<&str> = reached(&chains, &chains[0]).iter().map(|rule| rule.text.as_str()).collect();
        assert_eq!(reached.last(), Some(&"ct state invalid drop"));
    }

    #[test]
    fn words_in_quotation_marks_are_no_keywords() {
        for (text, expected) in [
            (
                "iifname \"lan0\" log prefix \"drop: \" counter accept",
                &["iifname", "\"lan0\"", "log", "prefix", "\"drop: \"", "counter", "accept"][..],
            ),
            (
                "ct state vmap { invalid : drop, new : jump a }",
                &["ct", "state", "vmap", "invalid", ":", "drop", "new", ":", "jump", "a"],
            ),
            (
                r#"-m comment --comment "a \"drop\" b" -j LOG"#,
                &["-m", "comment", "--comment", r#""a \"drop\" b""#, "-j", "LOG"],
            ),
            ("drop", &["drop"]),
            ("", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn legacy_text_becomes_chains_too() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n:mine - [0:0]\n\
                    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A mine -j ACCEPT\nCOMMIT\n";
        let chains = parse_legacy("ip6", "ip6tables-legacy", text);
        assert_eq!(chains.len(), 3);
        assert!(chains[1].drops && chains[1].hooks("forward") && chains[2].hook.is_none());
        let delete = "ip6tables-legacy -t filter -D FORWARD -m conntrack --ctstate INVALID -j DROP";
        assert_eq!(chains[1].rules[0].delete, delete);
    }
}
