//! `cargo xtask release`: the binaries to install, of a build that is led by a profile: which way the code went, and
//! how often, while a build that counts it served a load.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    setup,
    shell::{built, cargo, need_root, output, run},
};

/// Builds twice, with the load between.
pub(crate) fn build() -> Result<()> {
    need_root("the load that leads the build")?;
    setup::need()?;
    let host = host()?;
    let merge = profdata(&host)?;
    let led = built("led");
    let counts = led.join("counts");
    // What other sources counted leads astray.
    if counts.exists() {
        fs::remove_dir_all(&counts)?;
    }
    fs::create_dir_all(&counts)?;

    println!("== a build that counts");
    let counting =
        with_profile(&host, &led.join("counting"), &format!("generate={}", counts.display()))?;
    println!("== the load");
    run(&mut cargo(["build", "-p", "edge-tests", "--example", "train"]))?;
    run(Command::new(built("debug").join("examples/train")).env("EDGED_BIN_DIR", counting))?;
    println!("== the build that it leads");
    let profile = led.join("edged.profdata");
    run(Command::new(merge).arg("merge").arg("-o").arg(&profile).arg(&counts))?;
    let all = with_profile(&host, &led.join("build"), &format!("use={}", profile.display()))?;
    for name in ["edged", "edgectl"] {
        fs::copy(all.join(name), led.join(name)).with_context(|| name.to_owned())?;
    }
    println!("{} and edgectl beside it are built", led.join("edged").display());
    Ok(())
}

/// Builds the binaries with this to do about profiles; their folder.
fn with_profile(host: &str, folder: &Path, profile: &str) -> Result<PathBuf> {
    // With a target named, what runs at build time is built as always.
    let mut build = cargo(["build", "--release", "--bins", "-p", "edge-daemon", "--target", host]);
    build.arg("--target-dir").arg(folder);
    run(build.env("CARGO_ENCODED_RUSTFLAGS", format!("-Cprofile-{profile}")))?;
    Ok(folder.join(host).join("release"))
}

/// The triple of this host.
fn host() -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// The tool of this toolchain that merges profiles, installed where it is missing.
fn profdata(host: &str) -> Result<PathBuf> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
    let tool = sysroot.join("lib/rustlib").join(host).join("bin/llvm-profdata");
    if !tool.exists() {
        run(Command::new("rustup").args(["component", "add", "llvm-tools"]))?;
    }
    ensure!(tool.exists(), "{} is not there", tool.display());
    Ok(tool)
}
