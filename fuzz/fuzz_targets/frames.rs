//! libFuzzer's way into a target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edge_fuzz::targets::frames(bytes));
