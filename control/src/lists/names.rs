//! Lists of names: one name or wildcard a line, or lines of a hosts file (hosts(5)), mixed as one likes. `#` begins a
//! comment.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use weir_core::policy::{NameError, NameSet};

use super::file::Open;
use super::{BadLines, idn};

/// Octets of a line, as a guess at how many there are.
const LINE: u64 = 32;
/// Names that hosts files have for the machine itself, and that nobody means to block.
const OWN: [&str; 13] = [
    "localhost",
    "localhost.localdomain",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-localnet",
    "ip6-mcastprefix",
    "ip6-allnodes",
    "ip6-allrouters",
    "ip6-allhosts",
    "localhost4",
    "localhost6",
];

/// Reads all lines.
///
/// # Errors
/// As read(2).
pub fn read(file: &mut Open, bad: &mut BadLines) -> io::Result<NameSet> {
    let mut names = NameSet::with_capacity(usize::try_from(file.size() / LINE).unwrap_or_default());
    file.lines(|number, line| match line.content(&['#']) {
        Ok("") => {}
        Ok(content) => {
            if let Err(message) = insert_line(&mut names, content) {
                bad.add(number, || message);
            }
        }
        Err(message) => bad.add(number, || message.to_owned()),
    })?;
    Ok(names)
}

fn insert_line(names: &mut NameSet, content: &str) -> Result<(), String> {
    let Some((first, rest)) = content.split_once(char::is_whitespace) else {
        return insert(names, content);
    };
    // Link-local ones have a zone: hosts files of some systems have `fe80::1%lo0 localhost`.
    let is_address = match first.split_once('%') {
        Some((address, _)) => address.parse::<Ipv6Addr>().is_ok(),
        None => first.parse::<IpAddr>().is_ok(),
    };
    if !is_address {
        return Err(format!(
            "`{content}`: one name a line, or an address with names behind it as in a hosts file"
        ));
    }
    let named = rest.split_whitespace().filter(|name| !is_own(name));
    // All that can be read are taken, whatever stands beside them.
    named.map(|name| insert(names, name)).fold(Ok(()), Result::and)
}

fn is_own(name: &str) -> bool {
    OWN.contains(&name) || name.parse::<IpAddr>().is_ok()
}

fn insert(names: &mut NameSet, name: &str) -> Result<(), String> {
    if name == "*" {
        return Err("`*` alone would take every name; who means that writes it into the rule".to_owned());
    }
    let ascii = idn::to_ascii(name)?;
    names.insert(&ascii).map(|_| ()).map_err(|error: NameError| format!("`{name}`: {error}"))
}
