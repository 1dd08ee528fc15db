//! The guest's initial file system, which is all that it has: busybox, kmod, iproute2, nft, ethtool, weir, nginx, this program, the
//! libraries of all of them, and the modules that may be needed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// The guest's /init.
const INIT: &str = include_str!("init.sh");

/// Modules that are put into the image, below `kernel/`: single ones, and folders with all that is in them.
const MODULES: [&str; 35] = [
    "net/802",
    "net/8021q",
    "net/9p",
    "net/bridge",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
    "net/packet",
    "net/sched",
    "net/unix",
    "net/xdp",
    "lib",
    "crypto",
    "fs/9p",
    "fs/netfs",
    "net/mptcp",
    "net/tls",
    "drivers/dca",
    "drivers/i2c/algos",
    "drivers/ptp",
    "drivers/pps",
    "drivers/virtio",
    "drivers/net/bonding",
    "drivers/net/ipvlan",
    "drivers/net/ethernet/intel/e1000",
    "drivers/net/ethernet/intel/e1000e",
    "drivers/net/ethernet/intel/igb",
    "drivers/net/vmxnet3",
    "drivers/net/vxlan",
    "drivers/net/virtio_net.ko.xz",
    "drivers/net/tun.ko.xz",
    "drivers/net/veth.ko.xz",
    "drivers/net",
];

/// Programs of the host that the guest has, too, where the host has them.
const TOOLS: [&str; 11] =
    ["bash", "ip", "tc", "bridge", "nft", "ethtool", "iptables", "ip6tables", "ss", "bpftool", "setpriv"];

/// What an image is made of, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients<'a> {
    pub cache: &'a Path,
    pub weir: &'a Path,
    pub nginx: &'a Path,
    pub out: &'a Path,
}

/// The kernel in the cache.
///
/// # Errors
/// There is none.
pub fn kernel(cache: &Path) -> Outcome<PathBuf> {
    let folder = cache.join("root/boot");
    let files = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let kernel = files.flatten().find(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"));
    Ok(kernel.ok_or_else(|| format!("{}: no kernel", folder.display()))?.path())
}

/// Builds the image anew.
///
/// # Errors
/// A part is missing, or a tool fails.
pub fn build(parts: &Ingredients<'_>) -> Outcome<PathBuf> {
    fs::create_dir_all(parts.out)?;
    let stage = parts.out.join(format!("image-{}", std::process::id()));
    let image = parts.out.join("image.cpio");
    drop(fs::remove_dir_all(&stage));
    let built = fill(parts, &stage).and_then(|()| pack(parts, &stage, &image));
    fs::remove_dir_all(&stage)?;
    built.map(|()| image)
}

fn fill(parts: &Ingredients<'_>, stage: &Path) -> Outcome<()> {
    for folder in ["bin", "proc", "sys", "dev", "run", "tmp", "share", "etc", "usr", "var/log/nginx", "root"]
    {
        fs::create_dir_all(stage.join(folder))?;
    }
    for (link, target) in
        [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("usr/lib", "../lib")]
    {
        std::os::unix::fs::symlink(target, stage.join(link))?;
    }
    let root = parts.cache.join("root");
    let mut libraries = BTreeSet::new();
    let myself = std::env::current_exe()?;
    let nginx = parts.nginx.join("nginx");
    let own = [("weir", parts.weir), ("nic", &myself), ("nginx", &nginx)];
    for (name, file) in own {
        if name == "nginx" && !file.exists() {
            continue;
        }
        let into = stage.join("bin").join(name);
        // Nobody debugs in the guest, and it has little memory.
        run(Command::new("strip").arg("-o").arg(&into).arg(file))?;
        libraries.extend(libraries_of(file)?);
    }
    for (name, file) in [("busybox", "bin/busybox"), ("kmod", "bin/kmod")] {
        fs::copy(root.join(file), stage.join("bin").join(name))?;
    }
    libraries.extend(libraries_of(&root.join("bin/kmod"))?);
    for tool in TOOLS {
        if let Some(file) = find(tool) {
            fs::copy(&file, stage.join("bin").join(tool))?;
            libraries.extend(libraries_of(&file)?);
        }
    }
    for library in &libraries {
        let into = stage.join(library.strip_prefix("/")?);
        fs::create_dir_all(into.parent().unwrap_or(stage))?;
        fs::copy(library, into)?;
    }
    // nginx drops its rights to this user.
    fs::write(stage.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
    fs::write(stage.join("etc/group"), "root:x:0:\nnogroup:x:65534:\nnobody:x:65534:\n")?;
    std::os::unix::fs::symlink("bash", stage.join("bin/sh"))?;
    modules(&root, stage)?;
    let init = stage.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Copies the modules, and lists what they need of each other.
fn modules(root: &Path, stage: &Path) -> Outcome<()> {
    let all = root.join("usr/lib/modules");
    let version = fs::read_dir(&all)?.next().ok_or("the cache has no modules")??.file_name();
    let (from, into) = (all.join(&version), stage.join("lib/modules").join(&version));
    fs::create_dir_all(&into)?;
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(from.join(list), into.join(list))?;
    }
    for part in MODULES {
        let (from, into) = (from.join("kernel").join(part), into.join("kernel").join(part));
        let deep = part != "drivers/net";
        if from.exists() {
            copy(&from, &into, deep)?;
        }
    }
    run(Command::new(root.join("bin/kmod"))
        .arg0("depmod")
        .arg("-b")
        .arg(stage)
        .arg(&version)
        .env("LD_LIBRARY_PATH", library_path(root)))
}

/// Where the cache's programs find their libraries.
pub fn library_path(root: &Path) -> String {
    let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"];
    folders.map(|folder| root.join(folder).display().to_string()).join(":")
}

/// A file, or the files of a folder, with `deep` those of the folders in it, too.
fn copy(from: &Path, into: &Path, deep: bool) -> Outcome<()> {
    if !from.is_dir() {
        fs::create_dir_all(into.parent().unwrap_or(into))?;
        fs::copy(from, into)?;
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if deep || !entry.file_type()?.is_dir() {
            copy(&entry.path(), &into.join(entry.file_name()), deep)?;
        }
    }
    Ok(())
}

fn pack(parts: &Ingredients<'_>, stage: &Path, image: &Path) -> Outcome<()> {
    let busybox = fs::canonicalize(parts.cache.join("root/bin/busybox"))?;
    let into = fs::File::create(image)?;
    let script = r#""$0" find . | "$0" cpio -o -H newc 2>/dev/null"#;
    run(Command::new("sh").arg("-c").arg(script).arg(busybox).current_dir(stage).stdout(into))
}

/// A program of the host.
fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(tool)).find(|file| file.is_file())
}

/// The shared libraries of a program, its loader among them.
fn libraries_of(program: &Path) -> Outcome<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let missing = text.lines().find(|line| line.contains("not found"));
    if let Some(missing) = missing {
        return Err(format!("{}: {}", program.display(), missing.trim()).into());
    }
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(|path| PathBuf::from(path.trim_end_matches(':'))).collect())
}

fn run(command: &mut Command) -> Outcome<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}
