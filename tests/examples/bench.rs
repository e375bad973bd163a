//! Runs the measures of an area; `cargo xtask bench` builds for release and calls this.

use std::process::ExitCode;

use anyhow::{Context, Result};
use edge_tests::bench::{Effort, Report, run};

/// The daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("could not run: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let (flags, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    let (area, measures) = words.split_first().context("which area?")?;
    let measures: Result<Vec<u32>, _> = measures.iter().map(|m| m.parse()).collect();
    let effort = if has("--quick") { Effort::QUICK } else { Effort::FULL };
    let mut report = Report::new(area, has("--json"));
    run(area, &measures?, effort, &mut report)?;
    report.close();
    Ok(())
}
