//! `cargo xtask bench`: builds for release and measures beside the best-known others.

use std::process::Command;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    setup,
    shell::{built, cargo, need_root, run},
};

/// What to measure.
#[derive(Args)]
pub(crate) struct Bench {
    /// The part of the product.
    area: Area,
    /// The numbers of the measures; all of the area without any.
    measures: Vec<u32>,
    /// The daemon that `cargo xtask release` has built.
    #[arg(long)]
    led: bool,
    /// Short rounds: shows that it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// A part of the product that has benches.
#[derive(Clone, Copy, ValueEnum)]
enum Area {
    /// Packets in the XDP program.
    Kernel,
    /// Requests through the TLS reverse proxy.
    Gateway,
    /// Credentials and access.
    Identity,
    /// Request limits.
    Limits,
    /// From a bad act to a dropped packet.
    Verdicts,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        need_root("a bench")?;
        setup::need()?;
        setup::need_peers()?;
        let packages = ["-p", "edge-daemon", "-p", "edge-tests"];
        let build = ["build", "--quiet", "--release", "--bins", "--example", "bench"];
        run(cargo(build).args(packages))?;
        let daemon = built(if self.led { "led" } else { "release" });
        let mut bench = Command::new(built("release").join("examples/bench"));
        bench.env("EDGED_BIN_DIR", daemon).arg(match self.area {
            Area::Kernel => "kernel",
            Area::Gateway => "gateway",
            Area::Identity => "identity",
            Area::Limits => "limits",
            Area::Verdicts => "verdicts",
        });
        bench.args(self.measures.iter().map(u32::to_string));
        for (wanted, flag) in [(self.quick, "--quick"), (self.json, "--json")] {
            if wanted {
                bench.arg(flag);
            }
        }
        run(&mut bench)
    }
}
