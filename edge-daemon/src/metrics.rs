//! What is counted, and its exposition for Prometheus.
//!
//! Each worker counts into memory of its own; a scrape sums them up. Nothing on the request path
//! touches a cache line that another core writes, except the two gauges that are also bounds.

mod family;
pub mod fleet;
mod kernel;
pub mod keys;
mod limits;
pub mod lists;
pub mod outside;
pub mod policy;
mod tls;
mod tokens;
pub mod upstreams;
pub mod verdicts;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use edge_common::{Plane, Reason};
use edge_policy::{limit::Rules, verdict::Kind};
use http::StatusCode;
use prometheus::{
    TextEncoder,
    proto::{MetricFamily, MetricType},
};

use self::family::{counter, family, gauge, histogram, histogram_of};
pub use self::{
    family::Spread,
    kernel::KernelView,
    tls::{Fingerprints, HandshakeFailures, Served},
    tokens::TokenFaults,
};
use crate::{issuers::Feed, memory::Memory};

/// One worker's counters.
#[repr(align(128))]
pub struct Counters {
    beats: AtomicU64,
    reasons: [AtomicU64; Reason::COUNT],
    served: [AtomicU64; STATUSES],
    signals: [AtomicU64; Kind::COUNT],
    /// Tokens that were refused.
    pub token_faults: TokenFaults,
    /// From the request's last header to the end of its answer.
    pub request: Spread,
    /// From the request's way upstream to the first byte of the upstream's answer.
    pub upstream: Spread,
    /// From the accepted connection to the completed TLS handshake.
    pub handshake: Spread,
    /// TLS handshakes that did not complete.
    pub handshake_failures: HandshakeFailures,
    /// The TLS libraries of clients.
    pub fingerprints: Fingerprints,
}

impl Counters {
    /// Notes that the worker lives.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Relaxed);
    }

    /// Counts the end of a connection, or of a request that was not served.
    pub fn count(&self, reason: Reason) {
        self.reasons[reason as usize].fetch_add(1, Relaxed);
    }

    /// Counts a served request by the status of its answer.
    pub fn serve(&self, status: StatusCode) {
        self.served[usize::from(status.as_u16())].fetch_add(1, Relaxed);
    }

    /// Counts a signal to the verdict writer.
    pub fn signal(&self, kind: Kind) {
        self.signals[kind.index()].fetch_add(1, Relaxed);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            beats: AtomicU64::new(0),
            reasons: [const { AtomicU64::new(0) }; Reason::COUNT],
            served: [const { AtomicU64::new(0) }; STATUSES],
            signals: [const { AtomicU64::new(0) }; Kind::COUNT],
            token_faults: TokenFaults::default(),
            request: Spread::default(),
            upstream: Spread::default(),
            handshake: Spread::default(),
            handshake_failures: HandshakeFailures::default(),
            fingerprints: Fingerprints::default(),
        }
    }
}

/// What was lost elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Security events.
    pub events: u64,
    /// Lines of the daemon's own log.
    pub log: u64,
    /// Signals.
    pub signals: u64,
    /// Identities that lost their place before they were old.
    pub identities: u64,
}

/// Everything that is counted in the daemon.
pub struct Metrics {
    workers: Vec<Arc<Counters>>,
    /// Client connections now.
    pub connections: AtomicUsize,
    /// TLS handshakes that go on now.
    pub handshakes: AtomicUsize,
    /// What is served over TLS, as of the last look.
    pub tls: ArcSwap<tls::Served>,
    /// Requests in flight now.
    pub requests: AtomicUsize,
    /// How much memory is held.
    pub memory: Memory,
    /// Bans written to the kernel.
    pub bans: AtomicU64,
    /// Bans that the kernel refused.
    pub bans_failed: AtomicU64,
    /// Bans in force, as of the last look.
    pub bans_active: AtomicU64,
    /// What is counted of verdicts.
    pub verdicts: verdicts::VerdictCounts,
    /// Buckets of scenarios, as of the last look.
    pub watched: AtomicU64,
    /// Buckets and culprits forgotten to make room, as of the last look.
    pub watched_evicted: AtomicU64,
    /// What is counted of the audit log.
    pub audit: Arc<crate::audit::Counts>,
    /// What is counted of keys.
    pub keys: keys::KeyCounts,
    /// Nonces that are remembered, as of the last look, and for how many there is room.
    pub nonces: [AtomicU64; 2],
    /// From the misdeed to the kernel's map.
    pub ban_latency: Spread,
    /// Quotas that could not be saved.
    pub quotas_unsaved: AtomicU64,
    /// Times that shared sources could not be saved.
    pub shared_unsaved: AtomicU64,
    /// Handovers that did not come to be.
    pub handovers_failed: AtomicU64,
    /// Reloads that took effect.
    pub reloads_ok: AtomicU64,
    /// Reloads that were refused.
    pub reloads_refused: AtomicU64,
}

impl Metrics {
    /// Counters for so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            tls: ArcSwap::default(),
            requests: AtomicUsize::new(0),
            memory: Memory::default(),
            bans: AtomicU64::new(0),
            bans_failed: AtomicU64::new(0),
            bans_active: AtomicU64::new(0),
            verdicts: verdicts::VerdictCounts::default(),
            watched: AtomicU64::new(0),
            watched_evicted: AtomicU64::new(0),
            audit: Arc::default(),
            keys: keys::KeyCounts::default(),
            nonces: Default::default(),
            ban_latency: Spread::default(),
            quotas_unsaved: AtomicU64::new(0),
            shared_unsaved: AtomicU64::new(0),
            handovers_failed: AtomicU64::new(0),
            reloads_ok: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
        }
    }

    /// How often each worker has noted that it lives.
    #[must_use]
    pub fn beats(&self) -> Vec<u64> {
        self.workers.iter().map(|counters| counters.beats.load(Relaxed)).collect()
    }

    /// The counters of one worker.
    #[must_use]
    pub fn worker(&self, index: usize) -> Arc<Counters> {
        Arc::clone(&self.workers[index])
    }

    /// Connections and requests by the name of their reason, for the status.
    #[must_use]
    pub fn by_reason(&self) -> BTreeMap<String, u64> {
        let count = |reason: &Reason| match reason {
            Reason::Serve => (0..STATUSES).map(|status| self.sum(|c| &c.served[status])).sum(),
            _ => self.sum(|c| &c.reasons[*reason as usize]),
        };
        Reason::ALL.iter().map(|reason| (reason.name().to_owned(), count(reason))).collect()
    }

    /// All of it in Prometheus' text format.
    #[must_use]
    pub fn expose(
        &self,
        kernel: Option<&KernelView>,
        rules: &[&Rules],
        feeds: &[Arc<Feed>],
        lost: &Lost,
        more: Vec<MetricFamily>,
    ) -> String {
        let mut families = vec![
            self.requests_family(),
            self.connections_family(),
            self.signals_family(),
            tokens::faults(|fault| self.sum(|c| c.token_faults.of(fault))),
            self.spread("edged_request_duration_seconds", "Duration of requests.", |c| &c.request),
            self.spread("edged_upstream_duration_seconds", "Wait for upstreams.", |c| &c.upstream),
            self.spread("edged_handshake_duration_seconds", "Duration of TLS handshakes.", |c| {
                &c.handshake
            }),
            histogram(
                "edged_ban_latency_seconds",
                "From a misdeed to the kernel's map.",
                &[&self.ban_latency],
            ),
            reloads(&self.reloads_ok, &self.reloads_refused),
            build_info(),
        ];
        families.extend(self.plain(lost));
        families.extend(self.verdicts.families());
        families.extend(limits::families(rules));
        families.extend(self.tls_families());
        families.extend(self.keys.families());
        families.extend(keys::audit(&self.audit));
        families.extend(tokens::families(feeds, &self.verdicts.denials));
        families.extend(more);
        families.extend(kernel.into_iter().flat_map(KernelView::families));
        // The encoder refuses a family that has not counted anything yet.
        families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot encode metrics");
            String::new()
        })
    }

    fn sum(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.workers.iter().map(|worker| of(worker).load(Relaxed)).sum()
    }

    fn requests_family(&self) -> MetricFamily {
        let refused = Reason::ALL.iter().filter(|r| r.plane() == Plane::Request).map(|reason| {
            let status = edge_policy::denied::status(*reason);
            (*reason, status.as_u16(), self.sum(|c| &c.reasons[*reason as usize]))
        });
        let served = (0..STATUSES)
            .map(|status| (Reason::Serve, status as u16, self.sum(|c| &c.served[status])));
        let metrics = refused.chain(served).filter(|(.., count)| *count > 0).map(
            |(reason, status, count)| {
                counter(&[("reason", reason.name()), ("status", &status.to_string())], count)
            },
        );
        family("edged_requests_total", "Requests by outcome.", MetricType::COUNTER, metrics)
    }

    fn connections_family(&self) -> MetricFamily {
        let reasons = Reason::ALL.iter().filter(|r| r.plane() == Plane::Connection);
        let metrics = reasons.map(|reason| {
            counter(&[("reason", reason.name())], self.sum(|c| &c.reasons[*reason as usize]))
        });
        family(
            "edged_connections_total",
            "TLS connections by outcome.",
            MetricType::COUNTER,
            metrics,
        )
    }

    fn signals_family(&self) -> MetricFamily {
        let counts = Kind::all().map(|kind| (kind, self.sum(|c| &c.signals[kind.index()])));
        let metrics = counts
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| counter(&[("reason", kind.name())], count));
        family(
            "edged_signals_total",
            "Signals to the verdict writer.",
            MetricType::COUNTER,
            metrics,
        )
    }

    fn spread(&self, name: &str, help: &str, of: impl Fn(&Counters) -> &Spread) -> MetricFamily {
        let parts: Vec<_> = self.workers.iter().map(|worker| of(worker)).collect();
        histogram(name, help, &parts)
    }

    fn plain(&self, lost: &Lost) -> Vec<MetricFamily> {
        let total =
            |name, help, value| family(name, help, MetricType::COUNTER, [counter(&[], value)]);
        let now = |name, help, value| family(name, help, MetricType::GAUGE, [gauge(&[], value)]);
        let load = |value: &AtomicU64| value.load(Relaxed);
        vec![
            now(
                "edged_connections_open",
                "Client connections.",
                self.connections.load(Relaxed) as u64,
            ),
            now(
                "edged_requests_in_flight",
                "Requests in flight.",
                self.requests.load(Relaxed) as u64,
            ),
            now("edged_memory_bytes", "Memory that is held.", load(&self.memory.held)),
            now("edged_memory_max_bytes", "Its ceiling.", load(&self.memory.most)),
            total("edged_signals_lost_total", "Signals a full queue lost.", lost.signals),
            total("edged_events_lost_total", "Security events that were lost.", lost.events),
            total("edged_log_lost_total", "Lines of the daemon's log that were lost.", lost.log),
            total(
                "edged_identities_evicted_total",
                "Identities forgotten to make room.",
                lost.identities,
            ),
            total("edged_bans_total", "Bans written to the kernel.", load(&self.bans)),
            total("edged_bans_failed_total", "Bans the kernel refused.", load(&self.bans_failed)),
            now("edged_nonces_entries", "Nonces remembered.", load(&self.nonces[0])),
            now("edged_nonces_capacity", "Nonces there is room for.", load(&self.nonces[1])),
            now("edged_bans_active", "Bans in force.", load(&self.bans_active)),
            now("edged_watched", "Buckets of scenarios.", load(&self.watched)),
            total(
                "edged_watched_evicted_total",
                "Buckets and culprits forgotten to make room.",
                load(&self.watched_evicted),
            ),
            total(
                "edged_quotas_unsaved_total",
                "Quotas that could not be saved.",
                load(&self.quotas_unsaved),
            ),
            total(
                "edged_shared_sources_unsaved_total",
                "Times that what is known of shared sources could not be saved.",
                load(&self.shared_unsaved),
            ),
            total(
                "edged_handovers_failed_total",
                "Successors that asked and did not become it.",
                load(&self.handovers_failed),
            ),
        ]
    }
}

fn reloads(ok: &AtomicU64, refused: &AtomicU64) -> MetricFamily {
    let results = [("ok", ok), ("refused", refused)];
    let metrics = results.map(|(result, n)| counter(&[("result", result)], n.load(Relaxed)));
    family("edged_reloads_total", "Reloads by result.", MetricType::COUNTER, metrics)
}

fn build_info() -> MetricFamily {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    family("edged_build_info", "The build, as labels.", MetricType::GAUGE, [gauge(&version, 1)])
}

/// Status codes have three digits, and an upstream may send any of them.
const STATUSES: usize = 1000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn workers_are_summed_and_each_outcome_has_one_line() {
        let metrics = Metrics::new(2);
        metrics.worker(0).serve(StatusCode::OK);
        metrics.worker(1).serve(StatusCode::OK);
        metrics.worker(0).serve(StatusCode::from_u16(999).unwrap());
        metrics.watched_evicted.store(3, Relaxed);
        metrics.worker(1).count(Reason::SourceRate);
        metrics.worker(0).request.observe(Duration::from_millis(3));
        metrics.worker(1).request.observe(Duration::from_secs(60));
        let lost = Lost { events: 7, ..Lost::default() };
        let text = metrics.expose(None, &[&Rules::default()], &[], &lost, Vec::new());
        for line in [
            "edged_requests_total{reason=\"serve\",status=\"200\"} 2",
            "edged_requests_total{reason=\"serve\",status=\"999\"} 1",
            "edged_watched_evicted_total 3",
            "edged_requests_total{reason=\"source_rate\",status=\"429\"} 1",
            "edged_request_duration_seconds_bucket{le=\"0.0025\"} 0",
            "edged_request_duration_seconds_bucket{le=\"0.005\"} 1",
            "edged_request_duration_seconds_bucket{le=\"+Inf\"} 2",
            "edged_request_duration_seconds_count 2",
            "edged_events_lost_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
