//! What parses the bytes of strangers, over seeds and damaged ones; the fuzzer runs the same targets.

use std::collections::BTreeSet;

use anyhow::Result;
use edge_tests::{
    daemon::root,
    fuzz::{inputs, run},
    targets::TARGETS,
};

/// Damaged seeds for each target; `EDGED_FUZZ` asks for more.
const DAMAGED: usize = 20_000;

#[test]
fn nothing_that_must_hold_breaks_on_damaged_input() -> Result<()> {
    let damaged = std::env::var("EDGED_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(DAMAGED);
    TARGETS.iter().try_for_each(|(name, target)| run(name, *target, damaged))
}

#[test]
fn what_broke_once_holds() -> Result<()> {
    for (name, target) in TARGETS {
        inputs("regressions", name)?.iter().for_each(|bytes| target(bytes));
    }
    Ok(())
}

/// One list: each target has its way in for the fuzzer, and its seeds.
#[test]
fn every_target_is_fuzzed() -> Result<()> {
    let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len(), "two targets of one name");
    let fuzz = root().join("fuzz");
    for folder in ["fuzz_targets", "seeds"] {
        let entries = std::fs::read_dir(fuzz.join(folder))?.collect::<Result<Vec<_>, _>>()?;
        let there = entries.iter().map(std::fs::DirEntry::path);
        let there = there.filter_map(|p| p.file_stem()?.to_str().map(str::to_owned));
        assert_eq!(there.collect::<BTreeSet<_>>(), names, "fuzz/{folder}");
    }
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml"))?;
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
    Ok(())
}
