//! `cargo xtask test`: every test, those that need root and a kernel included.

use std::num::NonZero;

use anyhow::Result;
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
        setup::need_outside()?;
        // The whole workspace at once, so that each dependency is built in one way only.
        run(&mut cargo(["build", "--workspace", "--bins"]))?;
        let mut tests = cargo(["test", "--workspace", "--no-fail-fast"]);
        // A test waits for most of its time: for an end, a deadline, an answer that must not come.
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
            tests.env("RUST_TEST_THREADS", (2 * cores).to_string());
        }
        if setup::need_issuers()? {
            tests.env("EDGED_NEED_PEERS", "1");
        }
        run(tests.args(&self.filter).env("EDGED_BIN_DIR", built("debug")))
    }
}

/// Every test.
pub(crate) fn all() -> Result<()> {
    Test { filter: None }.run()
}
