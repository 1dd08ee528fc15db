//! Compiles the flood's generator with clang into OUT_DIR, where `syn_flood` embeds it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

fn main() {
    let source = Path::new(&env_of("CARGO_MANIFEST_DIR")).join("bpf/syn_flood.bpf.c");
    let object = Path::new(&env_of("OUT_DIR")).join("syn_flood.bpf.o");
    println!("cargo:rerun-if-changed={}", source.display());
    println!("cargo:rerun-if-env-changed=CLANG");
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
