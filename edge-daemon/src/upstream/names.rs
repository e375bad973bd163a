//! Servers by name: looked up by the system's resolver, again and again, and what was last found
//! stays when that fails.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Endpoint, Server, Upstream};
use crate::{config::settings::Address, lookup};

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
        resolve(&upstream, || _ = resolved.send(())).await;
        // Nothing found earlier can stand in for a name that has no address.
        let pause = if lacks_addresses(&upstream) { soon.min(every) } else { every };
        soon = (pause * 2).max(FIRST_RETRY);
        sleep(pause).await;
    }
}

/// Looks every name up, all at once: one that hangs holds up no other. Calls `changed` as soon as one means others.
pub async fn resolve(upstream: &Upstream, changed: impl Fn()) {
    let servers = &upstream.settings.servers;
    let mut lookups = JoinSet::new();
    for (place, server) in servers.iter().enumerate() {
        if let Address::Name(name, port) = &server.address {
            let (name, port) = (name.clone(), *port);
            lookups.spawn(async move { (place, look_up(&name, port).await, name) });
        }
    }
    let mut found: Vec<_> = by_place(upstream).iter().map(Vec::len).collect();
    while let Some(Ok((place, result, name))) = lookups.join_next().await {
        match result {
            Ok(addresses) => {
                upstream.resolutions.fetch_add(1, Relaxed);
                found[place] = addresses.len();
                if lead(upstream, place, addresses) {
                    changed();
                }
            }
            Err(why) => {
                upstream.resolutions_failed.fetch_add(1, Relaxed);
                let upstream = &upstream.settings.name;
                tracing::warn!(
                    upstream,
                    name,
                    why,
                    "cannot be looked up; what was found last stays"
                );
            }
        }
    }
    let found: usize = found.iter().sum();
    let is_over = found > ADDRESSES_MAX;
    if !upstream.is_over.swap(is_over, Relaxed) && is_over {
        let (upstream, servers) = (&upstream.settings.name, ADDRESSES_MAX);
        tracing::warn!(upstream, servers, found, "the other addresses are not asked");
    }
}

async fn look_up(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(LOOKUP_MAX, lookup::addresses(name, port)).await {
        Ok(found) => found.map(in_order).map_err(|error| error.to_string()),
        Err(_) => Err("the resolver did not answer in time".to_owned()),
    }
}

/// Has the name in a place lead to these addresses. Whether that changes anything.
fn lead(upstream: &Upstream, place: usize, found: Vec<SocketAddr>) -> bool {
    let (before, mut places) = (upstream.servers(), by_place(upstream));
    let known = std::mem::take(&mut places[place]);
    let servers = found.into_iter().map(|address| {
        let endpoint = Endpoint::Tcp(address);
        let same = known.iter().find(|server| server.endpoint == endpoint);
        same.map_or_else(|| upstream.server(place, endpoint, None), Arc::clone)
    });
    places[place] = servers.collect();
    let after = shared(places, ADDRESSES_MAX);
    let is_same = before.len() == after.len()
        && before.iter().zip(&after).all(|(one, other)| Arc::ptr_eq(one, other));
    if !is_same {
        let (name, servers) = (&upstream.settings.name, after.len());
        tracing::info!(upstream = name, servers, "its names mean other addresses");
        upstream.put(after);
    }
    !is_same
}

/// The servers of now, by their places in the configuration.
fn by_place(upstream: &Upstream) -> Vec<Vec<Arc<Server>>> {
    let mut places = vec![Vec::new(); upstream.settings.servers.len()];
    upstream.servers().iter().for_each(|server| places[server.place].push(Arc::clone(server)));
    places
}

/// Each address once, in an order of their own: resolvers turn them round for every question.
fn in_order(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
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
/// How long a lookup is waited for. It goes on behind that, and the next wait is for its end.
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
