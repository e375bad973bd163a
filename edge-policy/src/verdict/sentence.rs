//! What an engine says: verdicts, and how full buckets are.

use std::sync::Arc;

use super::{Culprit, Evidence, Kind, Spared, Step};

/// What is to be done about a culprit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The scenario.
    pub scenario: Arc<str>,
    /// Whom it is about.
    pub culprit: Culprit,
    /// What is to be done.
    pub step: Step,
    /// For how long.
    pub duration_ns: u64,
    /// How many verdicts it has had, this one included.
    pub strikes: u32,
    /// Why it is milder than the scenario says, or about somebody narrower.
    pub spared: Option<Spared>,
    /// The signals that led to it, the latest first; at most [`EVIDENCE_MAX`](super::EVIDENCE_MAX).
    pub evidence: Vec<Evidence>,
    /// What the last of them was, and when.
    pub last: (Kind, u64),
    /// Which scenario, by its place, and which bucket: what [`Engine::retract`](super::Engine::retract) needs.
    pub(super) place: usize,
    pub(super) bucket: u64,
}

/// How full a bucket of a culprit is.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// The scenario.
    pub scenario: Arc<str>,
    /// What is in it.
    pub level: f64,
    /// What it holds.
    pub capacity: u64,
}
