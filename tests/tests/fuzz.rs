//! Damaged and nested frames without number: the program must judge each as the model does.

use anyhow::Result;
use edge_tests::{corpus::Corpus, differential::Guard};

/// The full count is `cargo xtask bench kernel 9`'s.
const FRAMES: u64 = 100_000;

#[test]
fn the_program_judges_every_frame_as_the_model_does() -> Result<()> {
    Guard::new("fuzz")?.compare(Corpus { seed: 0xf17e }, 0..FRAMES)
}
