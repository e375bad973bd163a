//! `[[issuer]]` and `[tokens]` as checked.

use std::time::Duration;

use edge_identity::jwt;

use crate::issuers::{KeyFiles, Source};

/// `[[issuer]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What is asked of its tokens.
    pub terms: jwt::Issuer,
    /// Where its keys are from.
    pub keys: KeySource,
}

/// Where an issuer's keys are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// From this host.
    Static(KeyFiles),
    /// From the issuer.
    Fetched(Box<Source>),
}

/// `[tokens]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The longest token, in bytes.
    pub bytes_max: usize,
    /// What each worker's cache of verified tokens may take, in bytes.
    pub cache_bytes: usize,
    /// For how long a token stays in it.
    pub cache_time: Duration,
    /// How old a DPoP proof may be.
    pub proof_age: Duration,
    /// For how long a nonce for DPoP proofs is good; `None`: none is asked for.
    pub proof_nonces: Option<Duration>,
}
