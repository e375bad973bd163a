//! `cargo xtask soak`: the soak of the tests at its full length, on a release build.

use anyhow::Result;
use clap::Args;

use crate::{
    setup,
    shell::{built, cargo, need_root, run},
};

/// For how long.
#[derive(Args)]
pub(crate) struct Soak {
    /// Minutes of load and chaos.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

impl Soak {
    pub(crate) fn run(self) -> Result<()> {
        need_root("the soak")?;
        setup::need()?;
        run(&mut cargo(["build", "--release", "--bins", "-p", "edge-daemon"]))?;
        let mut soak = cargo(["test", "-p", "edge-tests", "--test", "soak", "--", "--nocapture"]);
        soak.env("EDGED_SOAK_SECONDS", (self.minutes * 60).to_string());
        run(soak.env("EDGED_BIN_DIR", built("release")))
    }
}
