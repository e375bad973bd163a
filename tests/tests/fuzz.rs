//! Damaged and nested frames without number: the program must judge each as the model does.

use anyhow::Result;
use edge_tests::{corpus::Corpus, differential::Guard};

/// The full count is `cargo xtask bench kernel 9`'s.
const FRAMES: u64 = 100_000;

#[test]
fn the_program_judges_every_frame_as_the_model_does() -> Result<()> {
    Guard::new("fuzz")?.compare(Corpus { seed: 0xf17e }, 0..FRAMES)
}

/// Frames that disagreed once, by seed and number.
#[test]
fn what_disagreed_once_agrees() -> Result<()> {
    let mut guard = Guard::new("again")?;
    for (seed, number) in [(0xf17e, 33_988), (1_795_370_365, 6_011_563)] {
        guard.compare(Corpus { seed }, number..number + 1)?;
    }
    Ok(())
}
