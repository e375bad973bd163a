//! The sockets that clients come in by, and descriptors for all who do.

use std::net::TcpListener;

use anyhow::Context as _;

use crate::{config::Settings, listen, request::Entrance};

/// For each worker, the listeners that the configuration names.
pub(super) fn bind(
    settings: &Settings,
    workers: usize,
) -> anyhow::Result<Vec<Vec<(TcpListener, Entrance)>>> {
    let https = settings.server.https.iter().enumerate();
    let https = https.map(|(n, listener)| (listener.address, Entrance::Https(n)));
    let http = settings.server.http.iter().map(|address| (*address, Entrance::Http));
    let mut listeners: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (address, entrance) in https.chain(http) {
        let sockets = listen::bind(address, workers)
            .with_context(|| format!("cannot listen on {address}"))?;
        for (own, socket) in listeners.iter_mut().zip(sockets) {
            own.push((socket, entrance));
        }
    }
    Ok(listeners)
}

/// A connection is a descriptor or two: takes as many as the system gives, and says so if they
/// are fewer than the configuration's bounds may need.
pub(super) fn provide_descriptors(settings: &Settings, workers: usize) {
    let needed = descriptors_needed(settings, workers);
    match raise_descriptor_limit() {
        Ok(given) if given < needed => {
            tracing::warn!(given, needed, "fewer descriptors than the bounds may need");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open descriptors"),
    }
}

/// Descriptors open at once when every bound on connections is reached.
fn descriptors_needed(settings: &Settings, workers: usize) -> u64 {
    // In use, and kept by each worker for each server.
    let upstreams = settings.upstreams.iter().map(|upstream| {
        let kept = workers.saturating_mul(upstream.servers.len()).saturating_mul(upstream.idle_max);
        kept.saturating_add(upstream.requests_max)
    });
    let connections = upstreams.fold(settings.bounds.connections_max, usize::saturating_add);
    connections.saturating_add(DESCRIPTORS_OWN) as u64
}

/// Raises the soft limit to the hard one, which it returns.
fn raise_descriptor_limit() -> nix::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Descriptors that are not connections: listeners, kernel tables, logs, the store.
const DESCRIPTORS_OWN: usize = 100;
