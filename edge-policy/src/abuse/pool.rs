//! Clients by source, of which an idle one is found in bounded work.

use std::collections::HashMap;

use edge_common::Source;

use super::Client;

/// Clients in a row, so that an eviction can look at a few of them in turn.
#[derive(Debug, Default)]
pub(super) struct Pool {
    index: HashMap<Source, usize>,
    clients: Vec<(Source, Client)>,
    hand: usize,
}

impl Pool {
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(super) fn find(&self, source: &Source) -> Option<Client> {
        self.index.get(source).map(|at| self.clients[*at].1)
    }

    /// Replaces what is known of a client; whether there was any.
    pub(super) fn replace(&mut self, source: &Source, client: Client) -> bool {
        let Some(at) = self.index.get(source) else { return false };
        self.clients[*at].1 = client;
        true
    }

    /// Adds a client that is not in the pool.
    pub(super) fn insert(&mut self, source: Source, client: Client) {
        self.index.insert(source, self.clients.len());
        self.clients.push((source, client));
    }

    pub(super) fn remove(&mut self, source: &Source) {
        let Some(at) = self.index.remove(source) else { return };
        self.clients.swap_remove(at);
        if let Some((moved, _)) = self.clients.get(at) {
            self.index.insert(*moved, at);
        }
    }

    /// Of the next [`SAMPLE`] clients the one with the lowest rank.
    pub(super) fn idlest(&mut self, rank: impl Fn(&Client) -> f64) -> Option<(Source, Client)> {
        let count = self.len();
        let sample = (0..SAMPLE.min(count)).map(|step| self.clients[(self.hand + step) % count]);
        let idlest = sample.min_by(|(_, a), (_, b)| rank(a).total_cmp(&rank(b)));
        self.hand = if count == 0 { 0 } else { (self.hand + SAMPLE) % count };
        idlest
    }
}

/// Clients that an eviction looks at.
const SAMPLE: usize = 16;
