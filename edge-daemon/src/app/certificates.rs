//! Looks after what TLS serves: takes what changed on disk, fetches what is due, and tells how it is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{clock, events::Event, metrics::Served, request::Edge, tls::acme};

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
    let changes = plan.tls.tend(at_once);
    if !changes.is_empty() {
        edge.changed.send_replace(());
    }
    for change in changes {
        told(edge, change.what, change.result);
    }
    let mut state = plan.tls.state();
    state.expiries.extend(plan.upstreams.iter().flat_map(|upstream| upstream.expiries()));
    edge.metrics.tls.rcu(|served| Served { state: state.clone(), ..Served::clone(served) });
}

/// Logs, counts and tells what became of a certificate.
fn told(edge: &Edge, what: String, result: Result<(), String>) {
    let result = match result {
        Ok(()) => {
            tracing::info!(what, "new, and served now");
            "ok"
        }
        Err(why) => {
            tracing::error!(what, why, "new and not good; the former is served");
            "refused"
        }
    };
    edge.metrics.tls.rcu(|served| {
        let mut served = Served::clone(served);
        match result {
            "ok" => served.reloads_ok += 1,
            _ => served.reloads_refused += 1,
        }
        served
    });
    edge.events.tell(Event::CertificateReload { what, result });
}

/// Fetches the certificates that are due, one after the other, for as long as the daemon runs. After a
/// failure a name waits, longer each time.
pub(super) async fn fetch(edge: Arc<Edge>) {
    let mut failed = BTreeMap::<String, (Instant, Duration)>::new();
    loop {
        let front = Arc::clone(&edge.plan.load().tls);
        let now_s = clock::unix_s();
        for name in acme::due(&front, now_s) {
            let wait = failed
                .get(&name)
                .map_or(Duration::ZERO, |(since, wait)| wait.saturating_sub(since.elapsed()));
            if !wait.is_zero() {
                continue;
            }
            let fetched = tokio::time::timeout(FETCH_TIMEOUT, acme::fetch(&front, &name)).await;
            let fetched = fetched.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")));
            if fetched.is_ok() {
                failed.remove(&name);
            } else {
                let wait = failed.get(&name).map_or(RETRY_FIRST, |(_, wait)| *wait * 2);
                failed.insert(name.clone(), (Instant::now(), wait.min(RETRY_LAST)));
            }
            let result = fetched.map_err(|error| format!("{error:#}"));
            told(&edge, format!("the certificate of {name}"), result);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one certificate may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);
/// An authority counts failures: the first wait, which doubles, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_LAST: Duration = Duration::from_secs(6 * 3_600);
