//! Warns when the committed kernel object is older than its sources. Building it takes a
//! toolchain of its own, so this only looks: `cargo xtask bpf` builds.

#[allow(dead_code, reason = "`cargo xtask bpf` uses the rest of it")]
#[path = "../xtask/src/sources.rs"]
mod sources;

use std::{fs, path::Path};

fn main() {
    let root = Path::new("..");
    for source in sources::SOURCES.into_iter().chain([sources::OBJECT, sources::LOCK]) {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let lock = fs::read_to_string(root.join(sources::LOCK)).unwrap_or_default();
    let made_from = sources::lock_value(&lock, "sources_sha256");
    match sources::sources_sha256(root) {
        Ok(hash) if made_from == Some(&hash) => {}
        Ok(_) => println!(
            "cargo::warning=the kernel object is older than its sources: run `cargo xtask bpf`"
        ),
        Err(error) => {
            println!("cargo::warning=cannot read the sources of the kernel object: {error}");
        }
    }
}
