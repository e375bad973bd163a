//! Looks after what TLS serves: takes what changed on disk, and tells how it is.

use std::{sync::Arc, time::Duration};

use crate::{events::Event, metrics::Served, request::Edge};

/// Looks every second, for as long as the daemon runs.
pub(super) async fn tend(edge: Arc<Edge>) {
    loop {
        look(&edge, false);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks once; at once, or when what has changed has come to rest.
pub(super) fn look(edge: &Edge, at_once: bool) {
    let plan = edge.plan.load_full();
    let metrics = &edge.metrics;
    let mut served = Served::clone(&metrics.tls.load());
    for change in plan.tls.tend(at_once) {
        let what = change.what;
        let result = match change.result {
            Ok(()) => {
                tracing::info!(what, "changed on disk and served now");
                served.reloads_ok += 1;
                "ok"
            }
            Err(why) => {
                tracing::error!(what, why, "changed on disk and not good; the former is served");
                served.reloads_refused += 1;
                "refused"
            }
        };
        edge.events.tell(Event::CertificateReload { what, result });
    }
    served.state = plan.tls.state();
    metrics.tls.store(Arc::new(served));
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
