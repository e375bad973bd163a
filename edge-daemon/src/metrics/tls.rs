//! What is counted of TLS.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::{MetricFamily, MetricType};

use super::{Metrics, counter, family};
use crate::tls::Failure;

/// One worker's failed handshakes, by kind.
#[derive(Default)]
pub struct HandshakeFailures([AtomicU64; Failure::ALL.len()]);

impl HandshakeFailures {
    /// Counts a handshake that did not complete.
    pub fn count(&self, failure: Failure) {
        self.0[failure as usize].fetch_add(1, Relaxed);
    }
}

impl Metrics {
    pub(super) fn handshake_failures_family(&self) -> MetricFamily {
        let metrics = Failure::ALL.map(|failure| {
            let count = self.sum(|counters| &counters.handshake_failures.0[failure as usize]);
            counter(&[("kind", failure.name())], count)
        });
        let help = "TLS handshakes that did not complete, by kind.";
        family("edged_handshake_failures_total", help, MetricType::COUNTER, metrics)
    }
}
