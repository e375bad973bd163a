//! What is counted of API keys.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge};
use crate::audit::Counts;

/// Keys by their state, as of the last round of the sweep, and what happened to them.
#[derive(Debug, Default)]
pub struct KeyCounts {
    /// Keys that would be accepted.
    pub active: AtomicU64,
    expiring: AtomicU64,
    exposed: AtomicU64,
    former_pepper: AtomicU64,
    /// Revocations that hold and are not on disk.
    pub unsaved_revocations: AtomicU64,
    /// Argon2id hashes that were computed to check a key or a secret.
    pub hashed: AtomicU64,
    /// Keys whose hash was another key's.
    pub forged: AtomicU64,
    /// Keys that moved to the pepper in use.
    pub renewed: AtomicU64,
}

/// What a round of the sweep has seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Keys that would be accepted.
    pub active: u64,
    /// Those of them that end soon.
    pub expiring: u64,
    /// Keys that were seen where others could read them.
    pub exposed: u64,
    /// Keys that would be accepted and are kept under a former pepper.
    pub former_pepper: u64,
}

/// What is counted of the audit log.
pub(super) fn audit(counts: &Counts) -> [MetricFamily; 2] {
    let last = [gauge(&[], counts.last.load(Relaxed))];
    let lost = [counter(&[], counts.lost.load(Relaxed))];
    [
        family("edged_audit_last_line", "Number of the last line.", MetricType::GAUGE, last),
        family("edged_audit_lost_total", "Entries that were lost.", MetricType::COUNTER, lost),
    ]
}

impl KeyCounts {
    /// Tells what a round has seen.
    pub fn publish(&self, seen: &Tally) {
        self.active.store(seen.active, Relaxed);
        self.expiring.store(seen.expiring, Relaxed);
        self.exposed.store(seen.exposed, Relaxed);
        self.former_pepper.store(seen.former_pepper, Relaxed);
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let now = |name, help, value: &AtomicU64| {
            family(name, help, MetricType::GAUGE, [gauge(&[], value.load(Relaxed))])
        };
        let total = |name, help, value: &AtomicU64| {
            family(name, help, MetricType::COUNTER, [counter(&[], value.load(Relaxed))])
        };
        vec![
            now("edged_keys_active", "Keys that would be accepted.", &self.active),
            now("edged_keys_expiring", "Keys that end soon.", &self.expiring),
            now("edged_keys_exposed", "Keys that others could read.", &self.exposed),
            now("edged_keys_former_pepper", "Keys under a former pepper.", &self.former_pepper),
            now(
                "edged_key_revocations_unsaved",
                "Revocations that hold and are not on disk.",
                &self.unsaved_revocations,
            ),
            total("edged_key_hashes_total", "Argon2id hashes computed.", &self.hashed),
            total("edged_keys_forged_total", "Keys with another key's hash.", &self.forged),
            total("edged_keys_renewed_total", "Keys moved to the pepper in use.", &self.renewed),
        ]
    }
}
