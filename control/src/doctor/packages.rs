//! How this host installs a package: by what its os-release(5) says that it is.

use std::fs;
use std::path::Path;

use super::finding::{Finding, NoCommand};

/// A package by the names that distributions give it.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    usual: &'static str,
    /// Of Fedora and RHEL.
    fedora: &'static str,
    arch: &'static str,
}

pub const NFTABLES: Package = named("nftables");
pub const ETHTOOL: Package = named("ethtool");
pub const IPROUTE2: Package = Package { fedora: "iproute", ..named("iproute2") };
pub const PROCPS: Package = Package { fedora: "procps-ng", arch: "procps-ng", ..named("procps") };

const fn named(usual: &'static str) -> Package {
    Package { usual, fedora: usual, arch: usual }
}

/// Where os-release(5) says that it is, the first of them that there is.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

impl Package {
    /// A finding whose cure is this package.
    pub fn mends(self, finding: Finding) -> Finding {
        let text = OS_RELEASE.iter().find_map(|path| fs::read_to_string(Path::new(path)).ok());
        self.mends_on(&text.unwrap_or_default(), finding)
    }

    fn mends_on(self, os_release: &str, finding: Finding) -> Finding {
        if let Some(command) = self.command(os_release) {
            return finding.mend(command);
        }
        let why = format!("{}; the package is called {} or alike", finding.why, self.usual);
        Finding { why, ..finding }.by_hand(NoCommand::Packages)
    }

    /// The command that installs it on the host of this text; none: of a family that is not known.
    fn command(self, os_release: &str) -> Option<String> {
        let value = |name: &str| {
            let line = os_release.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        // The nearest relative comes first.
        let families = format!("{} {}", value("ID"), value("ID_LIKE"));
        families.split_whitespace().find_map(|family| {
            Some(match family {
                "debian" | "ubuntu" => format!("apt-get install {}", self.usual),
                "fedora" | "rhel" | "centos" => format!("dnf install {}", self.fedora),
                "suse" | "opensuse" | "sles" => format!("zypper install {}", self.usual),
                "arch" => format!("pacman -S {}", self.arch),
                "alpine" => format!("apk add {}", self.usual),
                _ => return None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_that_of_the_host() {
        for (os_release, ip, sysctl) in [
            ("ID=debian\n", "apt-get install iproute2", "apt-get install procps"),
            (
                "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"",
                "apt-get install iproute2",
                "apt-get install procps",
            ),
            ("VERSION_ID=42\nID=fedora\n", "dnf install iproute", "dnf install procps-ng"),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                "dnf install iproute",
                "dnf install procps-ng",
            ),
            (
                "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"",
                "zypper install iproute2",
                "zypper install procps",
            ),
            ("ID=arch\nID_LIKE=''\n", "pacman -S iproute2", "pacman -S procps-ng"),
            ("ID=alpine\n", "apk add iproute2", "apk add procps"),
        ] {
            let commands = [IPROUTE2, PROCPS].map(|package| package.command(os_release));
            assert_eq!(commands, [Some(ip.to_owned()), Some(sysctl.to_owned())], "{os_release}");
        }
    }

    #[test]
    fn package_of_a_host_that_nobody_knows_is_named() {
        for os_release in ["", "ID=nixos\n", "ID_LIKELY=debian\n"] {
            let finding =
                NFTABLES.mends_on(os_release, Finding::bad("nft", "nft", "is missing", "weir needs it"));
            assert!(finding.is_whole() && finding.mend.is_none(), "{finding:?}");
            assert_eq!(finding.by_hand, Some(NoCommand::Packages));
            assert!(finding.why.contains("nftables"), "{finding:?}");
        }
    }
}
