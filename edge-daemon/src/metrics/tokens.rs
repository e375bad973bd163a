//! What is counted of tokens and their issuers.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use edge_identity::jwt::Fault;
use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge};
use crate::issuers::Feed;

/// One worker's count of tokens that were refused, by what was wrong with them.
pub struct TokenFaults([AtomicU64; Fault::ALL.len()]);

impl Default for TokenFaults {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Fault::ALL.len()])
    }
}

impl TokenFaults {
    /// Counts one.
    pub fn count(&self, fault: Fault) {
        self.of(fault).fetch_add(1, Relaxed);
    }

    pub(super) const fn of(&self, fault: Fault) -> &AtomicU64 {
        &self.0[fault as usize]
    }
}

/// How denials of tokens are kept.
#[derive(Debug, Default)]
pub struct DenialCounts {
    /// 1 while some are lost.
    pub lost: AtomicU64,
    /// Denials that hold and may not be on disk.
    pub unsaved: AtomicU64,
}

impl DenialCounts {
    pub(super) fn families(&self) -> [MetricFamily; 2] {
        let now = |name, help, value: &AtomicU64| {
            family(name, help, MetricType::GAUGE, [gauge(&[], value.load(Relaxed))])
        };
        [
            now("edged_token_denials_lost", "Whether revocations of tokens are lost.", &self.lost),
            now("edged_token_denials_unsaved", "Revocations of tokens not on disk.", &self.unsaved),
        ]
    }
}

/// Tokens that were refused, by what was wrong with them.
pub(super) fn faults(count: impl Fn(Fault) -> u64) -> MetricFamily {
    let counts = Fault::ALL.map(|fault| (fault, count(fault)));
    let seen = counts.into_iter().filter(|(_, count)| *count > 0);
    let metrics = seen.map(|(fault, count)| counter(&[("fault", fault.name())], count));
    family("edged_token_faults_total", "Tokens refused, by fault.", MetricType::COUNTER, metrics)
}

/// How the keys of issuers are, and denials.
pub(super) fn families(feeds: &[Arc<Feed>], denials: &DenialCounts) -> Vec<MetricFamily> {
    let fetched = feeds.iter().filter(|feed| feed.source.is_some());
    let fetches = fetched.flat_map(|feed| {
        [("ok", &feed.fetched), ("failed", &feed.failed)].map(|(result, count)| {
            counter(&[("issuer", &feed.name), ("result", result)], count.load(Relaxed))
        })
    });
    let keys = feeds.iter().map(|feed| {
        let count = feed.age_and_count().map_or(0, |(_, count)| count);
        gauge(&[("issuer", &feed.name)], count as u64)
    });
    let ages = feeds.iter().filter(|feed| feed.source.is_some()).filter_map(|feed| {
        let (age_ms, _) = feed.age_and_count()?;
        Some(gauge(&[("issuer", &feed.name)], age_ms / 1000))
    });
    let (counts, now) = (MetricType::COUNTER, MetricType::GAUGE);
    let issuers = [
        family("edged_issuer_fetches_total", "Fetches of issuers' keys.", counts, fetches),
        family("edged_issuer_keys", "Keys of an issuer in force.", now, keys),
        family("edged_issuer_keys_age_seconds", "Since they were last confirmed.", now, ages),
    ];
    issuers.into_iter().chain(denials.families()).collect()
}
