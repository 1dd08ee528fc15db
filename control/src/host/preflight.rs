//! What `weir run` asks before it touches anything: may this process do what it must, and can this kernel?

use rustix::thread::{CapabilitySet, capabilities};

use super::{HostError, nft};

/// A capability, its name, and what weir needs it for. One of each row is enough.
const NEEDED: [(&[(CapabilitySet, &str)], &str); 3] = [
    (&[(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")], "changing rules, routes and nft tables"),
    (&[(CapabilitySet::NET_RAW, "CAP_NET_RAW")], "AF_XDP sockets"),
    (
        &[(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")],
        "loading the steering program",
    ),
];

/// What a rule needs of the kernel: the rule, and the option of the kernel's configuration.
const EXPRESSIONS: [(&str, &str, &str); 3] = [
    ("tcp dport 1 tproxy ip to :1", "tproxy", "CONFIG_NFT_TPROXY"),
    ("tcp dport 1 socket transparent 1", "the socket match", "CONFIG_NFT_SOCKET"),
    ("fib daddr type local", "the fib match", "CONFIG_NFT_FIB_INET"),
];

/// Everything that stops weir, one sentence each; nothing when all is well. Changes nothing.
pub fn preflight() -> Vec<HostError> {
    let mut found = permissions();
    if found.is_empty() {
        found.extend(kernel());
    }
    found
}

/// What this process may not do of what weir must.
pub fn permissions() -> Vec<HostError> {
    let effective = match capabilities(None) {
        Ok(sets) => sets.effective,
        Err(e) => return vec![HostError::Permission(format!("cannot read this process' capabilities: {e}"))],
    };
    let missing = NEEDED.iter().filter(|(any, _)| !any.iter().any(|(one, _)| effective.contains(*one)));
    missing
        .map(|(any, what)| {
            let names: Vec<&str> = any.iter().map(|(_, name)| *name).collect();
            let names = names.join(" or ");
            HostError::Permission(format!(
                "{names} is missing, which is needed for {what}: run weir as root, or give its service that capability"
            ))
        })
        .collect()
}

/// What this kernel's nft refuses of what weir's table needs. Asks `nft --check`, which needs CAP_NET_ADMIN.
pub fn kernel() -> Vec<HostError> {
    let mut found = Vec::new();
    for (rule, what, option) in EXPRESSIONS {
        let script = format!(
            "add table inet weir_probe\n\
             add chain inet weir_probe probe {{ type filter hook prerouting priority mangle; }}\n\
             add rule inet weir_probe probe {rule}\n"
        );
        match nft::check(&script) {
            Ok(()) => {}
            Err(HostError::NftMissing) => return vec![HostError::NftMissing],
            Err(reason) => found.push(HostError::Kernel(format!(
                "this kernel refuses {what} in an nft rule ({reason}): it must be built with {option}, or its module be there"
            ))),
        }
    }
    found
}
