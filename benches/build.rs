//! Compiles the generators and ceilings in BPF with clang into OUT_DIR, where they are embedded from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

const PROGRAMS: [&str; 4] = ["nic", "redirect", "small", "syn_flood"];

fn main() {
    println!("cargo:rerun-if-env-changed=CLANG");
    PROGRAMS.into_iter().for_each(compile);
}

fn compile(name: &str) {
    let source = Path::new(&env_of("CARGO_MANIFEST_DIR")).join(format!("bpf/{name}.bpf.c"));
    let object = Path::new(&env_of("OUT_DIR")).join(format!("{name}.bpf.o"));
    println!("cargo:rerun-if-changed={}", source.display());
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    // Debian keeps asm/types.h where clang does not look for it when the target is bpf.
    let multiarch = PathBuf::from(format!("/usr/include/{}-linux-gnu", env_of("CARGO_CFG_TARGET_ARCH")));
    let output = Command::new(&clang)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-idirafter"])
        .arg(multiarch)
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .output();
    match output {
        Err(error) => fail(&format!("cannot run `{clang}`: {error}. Install clang, or name it in CLANG")),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            fail(&format!("`{clang}` could not compile {}. It said:\n{said}", source.display()))
        }
        Ok(_) => {}
    }
}

fn env_of(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(sentence: &str) -> ! {
    eprintln!("weir-benches: {sentence}");
    process::exit(1)
}
