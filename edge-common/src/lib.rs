//! The contract of kernel and daemon: everything that both sides must agree on, and nothing else.
//!
//! `no_std`, no allocation, no clock: the kernel programs compile the very same arithmetic that
//! the daemon and its property tests run.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics, asm_experimental_arch),
    allow(internal_features, reason = "see `atomic` and `verifier`")
)]

pub mod atomic;
pub mod cookie;
pub mod facts;
pub mod limit;
pub mod list;
pub mod map;
pub mod open;
pub mod reason;
pub mod service;
pub mod signature;
pub mod source;
pub mod verifier;

pub use limit::{Rate, Verdict};
pub use reason::{Blame, Plane, Reason};
pub use signature::Signature;
pub use source::{ClientWidth, Source};
