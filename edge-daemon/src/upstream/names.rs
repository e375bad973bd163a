//! Servers by name: looked up by the system's resolver, again and again, and what was last found
//! stays when that fails.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::watch,
    time::{sleep, timeout},
};

use super::{Endpoint, Server, Upstream};
use crate::config::settings::Address;

/// Whether any of its servers is known by name.
#[must_use]
pub fn has_names(upstream: &Upstream) -> bool {
    upstream.settings.servers.iter().any(|server| matches!(server.address, Address::Name(..)))
}

pub(super) async fn resolve_on_and_on(upstream: Arc<Upstream>, resolved: Arc<watch::Sender<()>>) {
    loop {
        if resolve(&upstream).await {
            let _ = resolved.send(());
        }
        sleep(upstream.settings.resolve_every).await;
    }
}

/// Looks every name up. Whether that changed anything.
pub async fn resolve(upstream: &Upstream) -> bool {
    let before = upstream.servers();
    let mut after = Vec::new();
    for (place, server) in upstream.settings.servers.iter().enumerate() {
        let known = before.iter().filter(|server| server.place == place);
        let Address::Name(name, port) = &server.address else {
            after.extend(known.cloned());
            continue;
        };
        match timeout(LOOKUP_MAX, lookup_host((name.as_str(), *port))).await {
            Ok(Ok(found)) => {
                upstream.resolutions.fetch_add(1, Relaxed);
                let known: Vec<_> = known.collect();
                after.extend(addresses(found).into_iter().map(|address| {
                    let endpoint = Endpoint::Tcp(address);
                    let same = known.iter().find(|server| server.endpoint == endpoint);
                    same.map_or_else(|| upstream.server(place, endpoint), |same| Arc::clone(same))
                }));
            }
            failed => {
                upstream.resolutions_failed.fetch_add(1, Relaxed);
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "the resolver did not answer in time".to_owned(),
                };
                let upstream = &upstream.settings.name;
                tracing::warn!(
                    upstream,
                    name,
                    why,
                    "cannot be looked up; what was found last stays"
                );
                after.extend(known.cloned());
            }
        }
    }
    let (name, found) = (&upstream.settings.name, after.len());
    after.truncate(ADDRESSES_MAX);
    let is_over = found > after.len();
    let was_over = upstream.is_over.swap(is_over, Relaxed);
    if is_over && !was_over {
        let servers = after.len();
        tracing::warn!(upstream = name, servers, found, "the other addresses are not asked");
    }
    let same = |a: &[Arc<Server>], b: &[Arc<Server>]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    let changes = !same(&before, &after);
    if changes {
        let servers = after.len();
        tracing::info!(upstream = name, servers, "its names mean other addresses");
        upstream.put(after);
    }
    changes
}

/// Each address once, in an order of their own: resolvers turn them round for every question.
fn addresses(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// How long one lookup may take.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Servers of one upstream in all.
const ADDRESSES_MAX: usize = 64;
