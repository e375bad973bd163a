//! Another hand: it changes what the kernel holds behind the daemon's back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use edge_common::Source;

use crate::netns::run;

/// The one pinned table of this name.
///
/// # Errors
/// If there is none.
pub fn pinned(dir: &Path, name: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path());
    let found = entries.filter(|path| path.is_dir()).map(|path| path.join(name));
    found.into_iter().find(|path| path.exists()).with_context(|| format!("no {name} in {dir:?}"))
}

/// Runs `bpftool` on the entry of a source.
///
/// # Errors
/// If it fails.
pub fn bpftool(args: &[&str], key: Source) -> Result<()> {
    let key = key.octets().map(|byte| format!("{byte:02x}"));
    let mut bpftool = Command::new("bpftool");
    run(bpftool.args(args).args(["key", "hex"]).args(key)).map(drop)
}
