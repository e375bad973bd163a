//! The targets of the ordinary tests, for a fuzzer that is guided by coverage: `cargo xtask fuzz`.

#[path = "../../tests/src/targets.rs"]
pub mod targets;
