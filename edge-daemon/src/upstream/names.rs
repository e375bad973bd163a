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

/// Whether a name has no address yet, though others or its neighbours may.
#[must_use]
pub fn lacks_addresses(upstream: &Upstream) -> bool {
    let servers = upstream.servers();
    let mut places = 0..upstream.settings.servers.len();
    places.any(|place| servers.iter().all(|server| server.place != place))
}

pub(super) async fn resolve_on_and_on(upstream: Arc<Upstream>, resolved: Arc<watch::Sender<()>>) {
    let every = upstream.settings.resolve_every;
    let mut soon = FIRST_RETRY;
    loop {
        if resolve(&upstream).await {
            let _ = resolved.send(());
        }
        // Nothing found earlier can stand in for a name that has no address.
        let pause = if lacks_addresses(&upstream) { soon.min(every) } else { every };
        soon = (pause * 2).max(FIRST_RETRY);
        sleep(pause).await;
    }
}

/// Looks every name up. Whether that changed anything.
pub async fn resolve(upstream: &Upstream) -> bool {
    let before = upstream.servers();
    let mut after = Vec::new();
    for (place, server) in upstream.settings.servers.iter().enumerate() {
        let known = before.iter().filter(|server| server.place == place);
        let Address::Name(name, port) = &server.address else {
            after.push(known.cloned().collect());
            continue;
        };
        match timeout(LOOKUP_MAX, lookup_host((name.as_str(), *port))).await {
            Ok(Ok(found)) => {
                upstream.resolutions.fetch_add(1, Relaxed);
                let known: Vec<_> = known.collect();
                let servers = addresses(found).into_iter().map(|address| {
                    let endpoint = Endpoint::Tcp(address);
                    let same = known.iter().find(|server| server.endpoint == endpoint);
                    same.map_or_else(|| upstream.server(place, endpoint), |same| Arc::clone(same))
                });
                after.push(servers.collect());
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
                after.push(known.cloned().collect());
            }
        }
    }
    let (name, found) = (&upstream.settings.name, after.iter().map(Vec::len).sum::<usize>());
    let after = shared(after, ADDRESSES_MAX);
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

/// So many of these, of which each place keeps some: those that lead to the most addresses lose the last of them.
pub(super) fn shared<T>(mut places: Vec<Vec<T>>, most: usize) -> Vec<T> {
    places.iter_mut().for_each(|place| place.truncate(most));
    for _ in most..places.iter().map(Vec::len).sum() {
        places.iter_mut().max_by_key(|place| place.len()).map(Vec::pop);
    }
    places.into_iter().flatten().collect()
}

/// When a name that has no address is looked up again; then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long one lookup may take.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Servers of one upstream in all.
pub(super) const ADDRESSES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_with_many_addresses_cuts_off_another_server() {
        let places =
            vec![vec!["static"], vec!["a1", "a2", "a3", "a4"], vec!["b1", "b2"], vec!["last"]];
        assert_eq!(shared(places.clone(), 9), places.concat());
        assert_eq!(shared(places.clone(), 6), ["static", "a1", "a2", "b1", "b2", "last"]);
        assert_eq!(shared(places, 4), ["static", "a1", "b1", "last"]);
    }
}
