//! `cargo xtask demo`: builds the daemon and shows its main job on real traffic.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{
    setup,
    shell::{built, cargo, need_root, run},
};

/// What to do with the lab afterwards.
#[derive(Args)]
pub(crate) struct Demo {
    /// Leave the lab up, and say how to explore it.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Let the ban last two seconds instead of four.
    #[arg(long, conflicts_with = "clean")]
    quick: bool,
    /// Only remove a lab that was kept.
    #[arg(long)]
    clean: bool,
}

impl Demo {
    /// The demo that leaves nothing behind, with the shorter wait.
    pub(crate) const QUICK: Self = Self { keep: false, quick: true, clean: false };

    pub(crate) fn run(self) -> Result<()> {
        need_root("the demo")?;
        setup::need()?;
        run(&mut cargo(["build", "--workspace", "--bins", "--example", "demo"]))?;
        let mut demo = Command::new(built("debug").join("examples/demo"));
        demo.env("EDGED_BIN_DIR", built("debug"));
        for (wanted, flag) in
            [(self.keep, "--keep"), (self.quick, "--quick"), (self.clean, "--clean")]
        {
            if wanted {
                demo.arg(flag);
            }
        }
        run(&mut demo)
    }
}
