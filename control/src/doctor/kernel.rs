//! The kernel and the tools: version, options, and each feature asked for by using it.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use flate2::read::GzDecoder;
use rustix::fs::makedev;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use weir_sys::uring::{self, UringError};

use super::finding::{Finding, Findings, NoCommand};
use super::ground::Ground;
use super::packages::{ETHTOOL, IPROUTE2, NFTABLES, PROCPS};
use crate::host::sysctl::{self, Key};
use crate::host::{HostError, preflight};

/// The oldest Linux that has all that weir uses.
const OLDEST: (u32, u32) = (5, 19);

/// Options of the kernel, and whether only the fast road needs them.
const OPTIONS: [(&str, bool); 10] = [
    ("CONFIG_BPF_SYSCALL", true),
    ("CONFIG_XDP_SOCKETS", true),
    ("CONFIG_TUN", true),
    ("CONFIG_IO_URING", false),
    ("CONFIG_IP_MULTIPLE_TABLES", false),
    ("CONFIG_IPV6_MULTIPLE_TABLES", false),
    ("CONFIG_NF_TABLES_INET", false),
    ("CONFIG_NFT_TPROXY", false),
    ("CONFIG_NFT_SOCKET", false),
    ("CONFIG_NFT_FIB_INET", false),
];

/// AF_XDP (linux/socket.h).
const AF_XDP: u16 = 44;

/// The device that makes TUN devices, and its number (linux/miscdevice.h).
const TUN: &str = "/dev/net/tun";
const TUN_NUMBER: (u32, u32) = (10, 200);

/// Everything of this file.
pub fn probe(ground: &Ground<'_>, found: &mut Findings) {
    version(found);
    options(ground, found);
    permissions(found);
    nft(found);
    tools(found);
    let switch = fs::read_to_string(ground.proc.join("sys/kernel/io_uring_disabled"));
    found.push(io_uring(uring::probe(), switch.as_deref().unwrap_or_default().trim()));
    if ground.fast {
        let family = AddressFamily::from_raw(AF_XDP);
        let asked = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None);
        match af_xdp(asked.map(drop)) {
            Some(finding) => found.push(finding),
            None => found.skip("af-xdp", "kernel", "needs CAP_NET_RAW"),
        }
        tun(found);
        jit(ground, found);
    }
    if !sysctl::has_ipv6() {
        // Where IPv6 is there and switched off, its switches are there, too.
        let off: Vec<Key> =
            ["all", "default", "lo"].map(|device| Key::of_device(6, device, "disable_ipv6")).into();
        let off: Vec<Key> = off
            .into_iter()
            .filter(|key| key.read().ok().flatten().is_some_and(|value| value != "0"))
            .collect();
        let finding = Finding::note(
            "ipv6",
            "kernel",
            match off.is_empty() {
                true => "this kernel has no IPv6, or was booted without it",
                false => "IPv6 is switched off on this host",
            },
            "what clients send by IPv6 is neither intercepted nor forwarded here",
        );
        found.push(match off.is_empty() {
            true => finding.by_hand(NoCommand::Kernel),
            false => finding.mend(off.iter().map(|key| key.command("0")).collect::<Vec<_>>().join("; ")),
        });
    }
}

fn version(found: &mut Findings) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return found.skip("kernel-version", release, "the release is not a number");
    };
    let (least_major, least_minor) = OLDEST;
    found.push(if (major, minor) >= OLDEST {
        Finding::good("kernel-version", "kernel", format!("Linux {release}"))
    } else {
        Finding::bad(
            "kernel-version",
            "kernel",
            format!("Linux {release} is older than {least_major}.{least_minor}"),
            "BPF links for XDP, multishot polls of io_uring or the nft expressions are not in it: boot a newer kernel",
        )
        .by_hand(NoCommand::Kernel)
    });
}

/// The kernel's configuration, where it tells: /proc/config.gz, or the file beside the kernel's image.
fn configuration() -> Option<(String, String)> {
    if let Ok(file) = fs::File::open("/proc/config.gz") {
        let mut text = String::new();
        GzDecoder::new(file).read_to_string(&mut text).ok()?;
        return Some(("/proc/config.gz".to_owned(), text));
    }
    let path = format!("/boot/config-{}", rustix::system::uname().release().to_string_lossy());
    Some((path.clone(), fs::read_to_string(path).ok()?))
}

fn options(ground: &Ground<'_>, found: &mut Findings) {
    let Some((path, text)) = configuration() else {
        return found.skip(
            "kernel-options",
            "/proc/config.gz",
            "this kernel does not show its options; its features are probed",
        );
    };
    let missing = missing_options(&text, ground.fast);
    found.push(if missing.is_empty() {
        Finding::good("kernel-options", path, "every option that is needed is there")
    } else {
        Finding::bad(
            "kernel-options",
            path,
            format!("the kernel was built without {}", missing.join(", ")),
            "weir cannot start without them: boot a kernel that has them",
        )
        .by_hand(NoCommand::Kernel)
    });
}

fn missing_options(text: &str, fast: bool) -> Vec<&'static str> {
    let has = |option: &str| {
        text.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| matches!(rest, "=y" | "=m")))
    };
    let needed = OPTIONS.iter().filter(|(_, only_fast)| fast || !only_fast);
    needed.map(|(option, _)| *option).filter(|option| !has(option)).collect()
}

fn permissions(found: &mut Findings) {
    let missing = preflight::permissions();
    for error in &missing {
        let finding = Finding::note(
            "permissions",
            "this process",
            error.to_string(),
            "`weir run` needs it, and so do some probes: run `weir doctor` as the user that weir runs as",
        );
        found.push(finding.by_hand(NoCommand::User));
    }
    if missing.is_empty() {
        found.push(Finding::good("permissions", "this process", "has every capability that weir needs"));
    }
}

fn nft(found: &mut Findings) {
    if !preflight::permissions().is_empty() {
        return found.skip("nft", "nft --check", "needs CAP_NET_ADMIN");
    }
    let refused = preflight::kernel();
    for error in &refused {
        let finding = Finding::bad(
            "nft",
            "nft",
            error.to_string(),
            "without it weir cannot hand a connection to its relay",
        );
        found.push(match error {
            HostError::NftMissing => NFTABLES.mends(finding),
            _ => finding.by_hand(NoCommand::Kernel),
        });
    }
    if refused.is_empty() {
        found.push(Finding::good("nft", "nft", "takes tproxy, the socket match and the fib match"));
    }
}

/// What the commands need that doctor and plan print.
fn tools(found: &mut Findings) {
    for (tool, package) in [("ip", IPROUTE2), ("sysctl", PROCPS), ("ethtool", ETHTOOL)] {
        found.push(match on_path(tool) {
            true => Finding::good("tools", tool, "is there"),
            false => package.mends(Finding::note(
                "tools",
                tool,
                "the program is missing",
                "weir does without; the commands that `weir doctor` and `weir plan` print do not",
            )),
        });
    }
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|folder| folder.join(tool).is_file())
}

/// `switch`: the value of kernel.io_uring_disabled; empty: this kernel has none.
fn io_uring(probed: Result<(), UringError>, switch: &str) -> Finding {
    let why = "the relay runs on it: weir does not start";
    match probed {
        Ok(()) => Finding::good("io-uring", "kernel", "has every operation that the relay uses"),
        Err(error @ UringError::Forbidden) if !matches!(switch, "" | "0") => {
            Finding::bad("io-uring", "kernel.io_uring_disabled", error.to_string(), why)
                .mend("sysctl -w kernel.io_uring_disabled=0")
        }
        // A filter of system calls, which lasts as long as what it was put on.
        Err(error @ UringError::Forbidden) => {
            Finding::bad("io-uring", "kernel", error.to_string(), why).by_hand(NoCommand::Starter)
        }
        Err(error) => Finding::bad("io-uring", "kernel", error.to_string(), why).by_hand(NoCommand::Kernel),
    }
}

/// What the kernel says to somebody who wants an AF_XDP socket; none: not to this user.
fn af_xdp(asked: Result<(), Errno>) -> Option<Finding> {
    match asked {
        Ok(()) => Some(Finding::good("af-xdp", "kernel", "gives AF_XDP sockets")),
        Err(Errno::PERM | Errno::ACCESS) => None,
        Err(error) => Some(
            Finding::bad(
                "af-xdp",
                "kernel",
                format!("gives no AF_XDP socket: {error}"),
                "the fast road is made of them: boot a kernel with CONFIG_XDP_SOCKETS, or say handshake = \"relay\" in every intercept",
            )
            .by_hand(NoCommand::Kernel),
        ),
    }
}

fn tun(found: &mut Findings) {
    let opened = fs::OpenOptions::new().read(true).write(true).open(TUN).and_then(|file| file.metadata());
    let what = match opened {
        Ok(meta) if meta.rdev() == makedev(TUN_NUMBER.0, TUN_NUMBER.1) => {
            return found.push(Finding::good("tun", TUN, "can be opened"));
        }
        Ok(_) => "is not the TUN device, which is the character device 10:200".to_owned(),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return found.skip("tun", TUN, "only root may open it here");
        }
        Err(error) => format!("cannot be opened: {error}"),
    };
    let (major, minor) = TUN_NUMBER;
    found.push(
        Finding::bad(
            "tun",
            TUN,
            what,
            "frames reach the kernel's road through a TUN device: weir does not start",
        )
        .mend(format!(
            "modprobe tun; [ -c {TUN} ] || {{ mkdir -p /dev/net; mknod {TUN} c {major} {minor}; }}"
        )),
    );
}

fn jit(ground: &Ground<'_>, found: &mut Findings) {
    let key = "net.core.bpf_jit_enable";
    let path = ground.proc.join("sys/net/core/bpf_jit_enable");
    match fs::read_to_string(&path) {
        Ok(value) if value.trim() == "0" => found.push(
            Finding::note(
                "bpf-jit",
                key,
                "is 0",
                "the steering program is interpreted: every packet takes several times as long",
            )
            .mend(format!("sysctl -w {key}=1")),
        ),
        Ok(_) => found.push(Finding::good("bpf-jit", key, "the steering program is compiled")),
        // The key is the initial network namespace's; built with ALWAYS_ON there is no interpreter.
        Err(_) => match configuration() {
            Some((path, text)) if text.contains("CONFIG_BPF_JIT_ALWAYS_ON=y") => {
                found.push(Finding::good("bpf-jit", path, "the steering program is always compiled"));
            }
            _ => found.skip("bpf-jit", key, "is not visible in this network namespace"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn options_that_are_not_set_are_missing() {
        let mut text: String = OPTIONS.iter().map(|(option, _)| format!("{option}=m\n")).collect();
        assert_eq!(missing_options(&text, true), [""; 0]);
        text = text.replace("CONFIG_XDP_SOCKETS=m", "# CONFIG_XDP_SOCKETS is not set");
        text = text.replace("CONFIG_NFT_TPROXY=m", "CONFIG_NFT_TPROXY_OTHER=y");
        assert_eq!(missing_options(&text, true), ["CONFIG_XDP_SOCKETS", "CONFIG_NFT_TPROXY"]);
        assert_eq!(missing_options(&text, false), ["CONFIG_NFT_TPROXY"]);
    }

    #[test]
    fn io_uring_that_is_missing_old_or_forbidden_is_bad() {
        assert_eq!(io_uring(Ok(()), "").severity, Severity::Good);
        let off = "sysctl -w kernel.io_uring_disabled=0";
        for (error, switch, words, mend, by_hand) in [
            (UringError::Missing, "", "CONFIG_IO_URING", None, Some(NoCommand::Kernel)),
            (
                UringError::TooOld("IORING_OP_SPLICE"),
                "0",
                "lacks IORING_OP_SPLICE",
                None,
                Some(NoCommand::Kernel),
            ),
            (UringError::Forbidden, "2", "not permitted", Some(off), None),
            (UringError::Forbidden, "1", "not permitted", Some(off), None),
            // By a filter of a container's.
            (UringError::Forbidden, "0", "not permitted", None, Some(NoCommand::Starter)),
            (UringError::Forbidden, "", "not permitted", None, Some(NoCommand::Starter)),
        ] {
            let finding = io_uring(Err(error), switch);
            assert_eq!((finding.id, finding.severity), ("io-uring", Severity::Bad));
            assert_eq!((finding.mend.as_deref(), finding.by_hand), (mend, by_hand), "{finding:?}");
            assert!(finding.what.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn kernel_without_af_xdp_is_told_from_a_user_who_may_not_have_it() {
        assert_eq!(af_xdp(Ok(())).map(|finding| finding.severity), Some(Severity::Good));
        assert_eq!(af_xdp(Err(Errno::PERM)), None);
        let finding = af_xdp(Err(Errno::AFNOSUPPORT)).unwrap();
        assert_eq!((finding.id, finding.severity), ("af-xdp", Severity::Bad));
        assert!(finding.why.contains("CONFIG_XDP_SOCKETS"), "{finding:?}");
    }
}
