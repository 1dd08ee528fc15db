//! Compiles the BPF programs with clang into OUT_DIR, where `steering` and `gate` embed them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

fn main() {
    let folder = Path::new(&env_of("CARGO_MANIFEST_DIR")).join("../bpf");
    for file in [
        "weir.bpf.c",
        "gate.bpf.c",
        "parse.h",
        "state.h",
        "sums.h",
        "cookie.h",
        "splice.h",
        "express.h",
        "local.h",
        "vlan.h",
        "maps.h",
    ] {
        println!("cargo:rerun-if-changed={}", folder.join(file).display());
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    for program in ["weir.bpf", "gate.bpf"] {
        compile(&folder.join(format!("{program}.c")), program);
    }
}

fn compile(source: &Path, program: &str) {
    let object = Path::new(&env_of("OUT_DIR")).join(format!("{program}.o"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]);
    for folder in multiarch_headers() {
        command.arg("-idirafter").arg(folder);
    }
    command.arg("-c").arg(source).arg("-o").arg(&object);
    match command.output() {
        Err(error) => fail(&format!(
            "cannot run `{clang}` to compile the BPF programs: {error}. Install clang (Debian: apt install clang), \
             or name it in the environment variable CLANG"
        )),
        Ok(output) if !output.status.success() => fail(&format!(
            "`{clang}` could not compile {}. If a header is missing, install libbpf-dev and linux-libc-dev. \
             It said:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        )),
        Ok(_) => {}
    }
}

/// Where Debian keeps `asm/types.h`, which clang does not look for when the target is bpf.
fn multiarch_headers() -> Vec<PathBuf> {
    let arch = env_of("CARGO_CFG_TARGET_ARCH");
    let folder = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    folder.is_dir().then_some(folder).into_iter().collect()
}

fn env_of(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(sentence: &str) -> ! {
    eprintln!("weir-sys: {sentence}");
    process::exit(1)
}
