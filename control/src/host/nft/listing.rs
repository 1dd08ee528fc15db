//! A table as `nft --stateless list table` prints it.

use std::collections::BTreeMap;

use super::shut::SHUT;
use super::{FAIL_CLOSED, LOST, TAG};

/// A table `inet weir` as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTable {
    pub comment: Option<String>,
    /// What else is said of the table as a whole: `flags dormant`.
    pub flags: Vec<String>,
    /// `chain NAME`, `set NAME` and so on: the lines in each, without indentation.
    pub sections: BTreeMap<String, Vec<String>>,
    /// All of it, as `nft -f -` takes it.
    pub text: String,
}

impl SeenTable {
    /// Reads nft's listing of one table.
    pub fn parse(text: &str) -> Self {
        let mut table = Self { text: text.to_owned(), ..Self::default() };
        let mut section: Option<String> = None;
        for line in text.lines() {
            let depth = line.len() - line.trim_start_matches('\t').len();
            let words = line.trim();
            match (depth, &section) {
                (1, None) if words.ends_with(" {") => section = Some(words.trim_end_matches(" {").to_owned()),
                (1, Some(_)) if words == "}" => section = None,
                (1, None) => match words.strip_prefix("comment \"").and_then(|w| w.strip_suffix('"')) {
                    Some(comment) => table.comment = Some(comment.to_owned()),
                    None if !words.is_empty() => table.flags.push(words.to_owned()),
                    None => {}
                },
                (2.., Some(name)) => table.sections.entry(name.clone()).or_default().push(words.to_owned()),
                _ => {}
            }
            // A chain that says nothing is there all the same.
            if let Some(name) = &section {
                table.sections.entry(name.clone()).or_default();
            }
        }
        table
    }

    /// Whether weir made it.
    pub fn is_ours(&self) -> bool {
        self.comment.as_deref().is_some_and(|c| c.starts_with(TAG))
    }

    /// Whether it drops what weir is to intercept and cannot.
    pub fn fails_closed(&self) -> bool {
        self.text.contains(&format!(": {FAIL_CLOSED}"))
    }

    /// Whether it is what a start begins with on a box that fails closed.
    pub fn is_shut(&self) -> bool {
        self.text.contains(&format!(", {SHUT}: {FAIL_CLOSED}"))
    }

    /// Whether it drops what comes by ports that are lost.
    pub fn has_lost_ports(&self) -> bool {
        self.text.contains(&format!(", {LOST}: {FAIL_CLOSED}"))
    }

    /// Whether another listing says the same.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.comment, &self.flags, &self.sections) == (&other.comment, &other.flags, &other.sections)
    }

    /// How a base chain hooks in: `type filter hook prerouting ...`.
    pub fn head_of(&self, section: &str) -> Option<&str> {
        let first = self.sections.get(section)?.first()?;
        first.starts_with("type ").then_some(first)
    }

    /// A rule of a chain by its comment.
    pub fn rule(&self, chain: &str, comment: &str) -> Option<&str> {
        let end = format!(" comment \"{comment}\"");
        let lines = self.sections.get(&format!("chain {chain}"))?;
        lines.iter().find(|line| line.ends_with(&end)).map(String::as_str)
    }

    /// `chain: comment` of every rule of a chain, in order; a rule without has an empty one.
    pub fn comments(&self, chain: &str) -> Vec<String> {
        let lines = self.sections.get(&format!("chain {chain}")).into_iter().flatten();
        let rules = lines.filter(|line| !line.starts_with("type "));
        rules
            .map(|line| {
                let comment =
                    line.rsplit_once(" comment \"").map_or("", |(_, end)| end.trim_end_matches('"'));
                format!("{chain}: {comment}")
            })
            .collect()
    }

    /// Lines of chains and sets that another listing has not.
    pub fn beyond<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = String> + 'a {
        self.sections.iter().flat_map(move |(name, lines)| {
            let known = other.sections.get(name);
            let strange = lines.iter().filter(move |line| known.is_none_or(|known| !known.contains(line)));
            strange.map(move |line| format!("{name}: {line}"))
        })
    }
}

/// A listing with the numbers of indexes where nft has put names: those of the devices that have the indexes now, as `index_of` says.
pub(super) fn with_indexes(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> String {
    text.split_inclusive('\n').map(|line| in_numbers(line, &index_of)).collect()
}

fn in_numbers(line: &str, index_of: &impl Fn(&str) -> Option<u32>) -> String {
    const MATCH: &str = " iif != ";
    let Some((before, operand)) = line.split_once(MATCH) else { return line.to_owned() };
    let number = |word: &str| match word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        Some(name) => index_of(name).map_or_else(|| word.to_owned(), |index| index.to_string()),
        None => word.to_owned(),
    };
    let (of, after) = match operand.strip_prefix("{ ").and_then(|list| list.split_once(" }")) {
        Some((list, after)) => (
            format!("{{ {} }}", list.split(", ").map(number).collect::<Vec<_>>().join(", ")),
            after.to_owned(),
        ),
        None => match operand.split_once(' ') {
            Some((one, after)) => (number(one), format!(" {after}")),
            None => return line.to_owned(),
        },
    };
    format!("{before}{MATCH}{of}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_told_by_their_indexes_are_the_same_whatever_has_them_now() {
        let line =
            |list: &str| format!("\t\tiifname {{ \"lan0\", \"eth9\" }} iif != {list} tcp dport 80 drop\n");
        let index_of = |name: &str| (name == "lan0").then_some(5);
        for (listed, meant) in [
            ("{ \"lan0\", 9 }", "{ 5, 9 }"),
            ("{ 5, 9 }", "{ 5, 9 }"),
            ("\"lan0\"", "5"),
            ("5", "5"),
            ("\"gone\"", "\"gone\""),
        ] {
            assert_eq!(with_indexes(&line(listed), index_of), line(meant));
        }
        assert_eq!(with_indexes(LISTING, index_of), LISTING);
    }

    const LISTING: &str = "table inet weir {\n\tcomment \"weir 0123abcd\"\n\tset to_0_ipv4 {\n\t\ttype ipv4_addr\n\
        \t\telements = { 10.0.0.0/8,\n\t\t\t     192.0.2.0/24 }\n\t}\n\n\tchain prerouting {\n\
        \t\ttype filter hook prerouting priority mangle; policy accept;\n\t\tmeta l4proto != tcp return comment \"only TCP\"\n\
        \t}\n\n\tchain syn {\n\t}\n}\n";

    #[test]
    fn listing_of_a_table_is_taken_apart() {
        let table = SeenTable::parse(LISTING);
        assert!(table.is_ours());
        assert_eq!(
            table.sections.keys().collect::<Vec<_>>(),
            ["chain prerouting", "chain syn", "set to_0_ipv4"]
        );
        assert_eq!(table.head_of("chain prerouting").unwrap().split(' ').count(), 8);
        assert_eq!(table.head_of("chain syn"), None);
        assert!(table.rule("prerouting", "only TCP").unwrap().starts_with("meta l4proto"));
        assert_eq!(table.comments("prerouting"), ["prerouting: only TCP"]);
        assert_eq!(table.sections["set to_0_ipv4"].len(), 3);
    }

    #[test]
    fn dormant_table_is_not_the_same_and_strange_lines_are_told() {
        let table = SeenTable::parse(LISTING);
        let dormant = SeenTable::parse(&LISTING.replacen("\tset", "\tflags dormant\n\tset", 1));
        assert!(!table.is_same(&dormant) && table.is_same(&SeenTable::parse(LISTING)));
        let more = SeenTable::parse(&LISTING.replace("chain syn {\n", "chain syn {\n\t\taccept\n"));
        assert_eq!(more.beyond(&table).collect::<Vec<_>>(), ["chain syn: accept"]);
    }
}
