//! `cargo xtask fuzz`: parsers of what strangers send, with coverage to guide the fuzzer.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{cargo, installed, root, run};

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// The target; all of them, one after the other, without one.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Fuzz {
    pub(crate) fn run(self) -> Result<()> {
        need_fuzzer()?;
        let (dir, known) = (root().join("fuzz"), targets()?);
        if let Some(wanted) = &self.target {
            ensure!(known.contains(wanted), "no such target; there are {}", known.join(", "));
        }
        let wanted = |name: &&String| self.target.as_ref().is_none_or(|target| target == *name);
        let mut broken = Vec::new();
        for name in known.iter().filter(wanted) {
            println!("== {name}");
            if let Err(error) = fuzz(&dir, name, self.seconds) {
                println!("{name}: {error:#}");
                broken.push(name.as_str());
            }
        }
        ensure!(
            broken.is_empty(),
            "broken: {}; put what fuzz/artifacts has of them into fuzz/regressions/TARGET/",
            broken.join(", ")
        );
        Ok(())
    }
}

fn fuzz(dir: &Path, name: &str, seconds: u64) -> Result<()> {
    // What the fuzzer finds is kept in the first folder.
    let corpus = dir.join("corpus").join(name);
    fs::create_dir_all(&corpus)?;
    let mut fuzzer = cargo_fuzz();
    fuzzer.current_dir(dir).args(["fuzz", "run", name]).arg(corpus);
    for folder in ["seeds", "regressions"] {
        let folder = dir.join(folder).join(name);
        if folder.exists() {
            fuzzer.arg(folder);
        }
    }
    let time = format!("-max_total_time={seconds}");
    run(fuzzer.args(["--", &time, "-max_len=4096", "-timeout=10", "-print_final_stats=1"]))
}

/// The names of the targets: each has a file.
fn targets() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join("fuzz/fuzz_targets"))?.collect::<Result<Vec<_>, _>>()?;
    let stem = |path: &Path| path.file_stem()?.to_str().map(str::to_owned);
    let mut names: Vec<_> = entries.iter().filter_map(|entry| stem(&entry.path())).collect();
    names.sort();
    Ok(names)
}

/// The fuzzer, and the toolchain whose standard library has what it instruments with.
fn need_fuzzer() -> Result<()> {
    let nightly = Command::new("rustc").args(["+nightly", "--version"]).output();
    ensure!(
        nightly.is_ok_and(|done| done.status.success()),
        "fuzzing needs nightly: rustup toolchain install nightly"
    );
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    let own = home.is_some_and(|home| home.join(".cargo/bin/cargo-fuzz").is_file());
    if own || installed("cargo-fuzz") {
        return Ok(());
    }
    println!("installing cargo-fuzz");
    let install = ["install", "cargo-fuzz", "--locked", "--version", "0.13.2"];
    run(&mut cargo(install)).context("cargo-fuzz")
}

/// Cargo by way of rustup, which knows nightly.
fn cargo_fuzz() -> Command {
    let mut command = Command::new("cargo");
    // What this task itself runs under would choose another toolchain.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
    command.arg("+nightly");
    command
}
