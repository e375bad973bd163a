//! What is counted of TLS.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use edge_policy::{ja4::Ja4, sketch::Sketch};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::{Metrics, counter, family, gauge};
use crate::tls::{Expiry, Failure, State};

/// One worker's failed handshakes, by kind.
#[derive(Default)]
pub struct HandshakeFailures([AtomicU64; Failure::ALL.len()]);

impl HandshakeFailures {
    /// Counts a handshake that did not complete.
    pub fn count(&self, failure: Failure) {
        self.0[failure as usize].fetch_add(1, Relaxed);
    }
}

/// The fingerprints that one worker saw most.
pub struct Fingerprints(Mutex<Sketch<Ja4>>);

impl Default for Fingerprints {
    fn default() -> Self {
        Self(Mutex::new(Sketch::new(FINGERPRINTS_KEPT)))
    }
}

impl Fingerprints {
    /// Counts a handshake. Waits for nobody but a scrape.
    pub fn count(&self, ja4: Ja4) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(ja4, 1.0);
    }
}

/// What is served over TLS, and how often what changed on disk was taken.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// What is served.
    pub state: State,
    /// Changes on disk that are served.
    pub reloads_ok: u64,
    /// Changes on disk that were not good.
    pub reloads_refused: u64,
}

impl Metrics {
    /// The fingerprints seen most by all workers together, with the handshakes of each at most.
    fn fingerprints(&self) -> Vec<(Ja4, u64)> {
        let mut sums = BTreeMap::<Ja4, f64>::new();
        for worker in &self.workers {
            let sketch = worker.fingerprints.0.lock().unwrap_or_else(PoisonError::into_inner);
            for place in sketch.places() {
                *sums.entry(place.key).or_default() += place.weight;
            }
        }
        let mut sums: Vec<_> = sums.into_iter().map(|(ja4, sum)| (ja4, sum as u64)).collect();
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
        sums.truncate(FINGERPRINTS_TOLD);
        sums
    }

    pub(super) fn tls_families(&self) -> Vec<MetricFamily> {
        let failures = Failure::ALL.map(|failure| {
            let count = self.sum(|counters| &counters.handshake_failures.0[failure as usize]);
            counter(&[("kind", failure.name())], count)
        });
        let served = self.tls.load();
        let by_certificate = |value: fn(&crate::tls::CertificateState) -> u64| {
            let certificates = served.state.certificates.iter();
            let one = move |c: &crate::tls::CertificateState| {
                gauge(&[("name", &c.name), ("key", c.kind)], value(c))
            };
            certificates.map(one).collect::<Vec<_>>()
        };
        let unstapled = by_certificate(|c| u64::from(c.is_unstapled));
        let expiry = expiries(&served.state.expiries);
        let stale = by_certificate(|c| u64::from(c.is_stale));
        let reloads = [("ok", served.reloads_ok), ("refused", served.reloads_refused)]
            .map(|(result, count)| counter(&[("result", result)], count));
        let fingerprints = self.fingerprints();
        let fingerprints =
            fingerprints.iter().map(|(ja4, sum)| gauge(&[("ja4", ja4.as_str())], *sum));
        let in_flight = self.handshakes.load(Relaxed) as u64;
        let plain = |value: u64| [gauge(&[], value)];
        let trust = plain(u64::from(served.state.trust_is_stale));
        use MetricType::{COUNTER, GAUGE};
        vec![
            family(
                "edged_handshake_failures_total",
                "TLS handshakes that did not complete, by kind.",
                COUNTER,
                failures,
            ),
            family("edged_handshakes_in_flight", "TLS handshakes now.", GAUGE, plain(in_flight)),
            family(
                "edged_ja4_handshakes",
                "Handshakes of the fingerprints seen most.",
                GAUGE,
                fingerprints,
            ),
            family(
                "edged_certificate_expiry_seconds",
                "When a certificate ends, or what is said of certificates, in unix time.",
                GAUGE,
                expiry,
            ),
            family(
                "edged_ocsp_stale",
                "1 if a certificate's OCSP response is not good and nothing is stapled.",
                GAUGE,
                unstapled,
            ),
            family(
                "edged_certificate_stale",
                "1 if a certificate's files are not good and what they held before is served.",
                GAUGE,
                stale,
            ),
            family(
                "edged_client_trust_stale",
                "1 if the authorities of clients are not good and what they held before holds, or a list \
                 of what they revoked is overdue.",
                GAUGE,
                trust,
            ),
            family(
                "edged_certificate_reloads_total",
                "Certificates and authorities that changed on disk, by result.",
                COUNTER,
                reloads,
            ),
        ]
    }
}

/// Of what has the same name and use, when the first ends.
fn expiries(all: &[Expiry]) -> Vec<Metric> {
    let mut first = BTreeMap::new();
    for one in all {
        let ends_s = first.entry((one.used_for, &*one.name, one.kind)).or_insert(one.ends_s);
        *ends_s = one.ends_s.min(*ends_s);
    }
    let metric = |((used_for, name, kind), ends_s): (_, i64)| {
        let labels = [("use", used_for), ("name", name), ("key", kind)];
        gauge(&labels, u64::try_from(ends_s).unwrap_or(0))
    };
    first.into_iter().map(metric).collect()
}

/// Places for fingerprints in each worker.
const FINGERPRINTS_KEPT: usize = 64;
/// Fingerprints that a scrape tells of.
const FINGERPRINTS_TOLD: usize = 16;
