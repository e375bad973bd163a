//! `cargo xtask differential`: tokens judged beside other libraries, at full length.

use anyhow::{Result, ensure};
use clap::Args;

use crate::{
    setup,
    shell::{cargo, run},
};

/// How many.
#[derive(Args)]
pub(crate) struct Differential {
    /// Different changed tokens for each of the other libraries.
    #[arg(long, default_value_t = 1_000_000)]
    tokens: u64,
}

impl Differential {
    pub(crate) fn run(self) -> Result<()> {
        ensure!(setup::need_issuers()?, "npm's jose is one of the judges");
        for (package, target, test) in [
            ("edge-identity", ["--lib", "--"], "nothing_is_accepted_that_another_library_refuses"),
            ("edge-tests", ["--test=tokens", "--"], "nothing_passes_that_jose_refuses"),
        ] {
            let mut judged = cargo(["test", "-p", package]);
            judged.args(target).args([test, "--nocapture"]);
            judged.env("EDGED_TOKEN_MUTATIONS", self.tokens.to_string());
            run(judged.env("EDGED_NEED_PEERS", "1"))?;
        }
        Ok(())
    }
}
