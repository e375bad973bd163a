//! Who holds how many connections, or is in how many handshakes, of all workers together.

use std::{
    collections::HashMap,
    hash::BuildHasher as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use edge_common::Source;

/// Connections by the client that holds them: as many entries as there are connections, at most.
#[derive(Default)]
pub struct Crowd {
    /// Each a part of all clients, locked for as long as it takes to count.
    shards: [Mutex<HashMap<Source, usize>>; SHARDS],
    hasher: std::hash::RandomState,
}

/// One of a client's connections, counted as such until this is dropped.
pub struct Place {
    crowd: Arc<Crowd>,
    client: Source,
}

impl Crowd {
    /// A place for one more connection of a client, which may have so many.
    #[must_use]
    pub fn enter(self: &Arc<Self>, client: Source, most: usize) -> Option<Place> {
        let mut shard = self.shard(client);
        let held = shard.entry(client).or_default();
        if *held >= most {
            return None;
        }
        *held += 1;
        Some(Place { crowd: Arc::clone(self), client })
    }

    fn shard(&self, client: Source) -> MutexGuard<'_, HashMap<Source, usize>> {
        let shard = self.hasher.hash_one(client) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.crowd.shard(self.client);
        if let Some(held) = shard.get_mut(&self.client) {
            *held -= 1;
            if *held == 0 {
                shard.remove(&self.client);
            }
        }
    }
}

const SHARDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_holder_goes() {
        let crowd = Arc::new(Crowd::default());
        let [one, two] = [1, 2].map(|n| Source::from(std::net::IpAddr::from([192, 0, 2, n])));
        let first = crowd.enter(one, 2);
        let second = crowd.enter(one, 2);
        assert!(first.is_some() && second.is_some() && crowd.enter(one, 2).is_none());
        assert!(crowd.enter(two, 2).is_some());
        drop(first);
        assert!(crowd.enter(one, 2).is_some());
        drop(second);
        assert!(crowd.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
