//! `cargo xtask test`: every test, those that need root and a kernel included.

use anyhow::{Result, ensure};
use clap::Args;

use crate::{
    setup,
    shell::{built, cargo, need_root, run},
};

/// Which tests.
#[derive(Args)]
pub(crate) struct Test {
    /// Only tests whose name holds this.
    filter: Option<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        need_root("the tests")?;
        setup::need()?;
        run(&mut cargo(["build", "-p", "edge-daemon", "--bins"]))?;
        let plain = cargo(["test", "--no-fail-fast"]).args(&self.filter).status()?;
        // The tests in namespaces run even if a plain one failed: one run shows it all.
        let lab = cargo(["test", "--no-fail-fast", "-p", "edge-tests"])
            .args(&self.filter)
            .env("EDGED_BIN_DIR", built("debug"))
            .status()?;
        ensure!(plain.success() && lab.success(), "a test failed");
        Ok(())
    }
}

/// Every test.
pub(crate) fn all() -> Result<()> {
    Test { filter: None }.run()
}
