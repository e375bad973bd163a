//! Who is it, and may it: credentials in, a principal or a refusal out. No I/O, no clock, no
//! runtime: time and bytes are arguments.
//!
//! A crate of its own beside `edge-policy`, because it alone needs cryptography and a policy
//! engine.
#![forbid(unsafe_code)]

pub mod access;
pub mod assertion;
pub mod audit;
pub mod certificate;
pub mod credential;
pub mod fleet;
pub mod hex;
pub mod jwt;
pub mod key;
pub mod policy;
pub mod principal;
pub mod replay;
pub mod revocation;
pub mod roles;
pub mod signed;
