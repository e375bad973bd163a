//! What operators took out of the round, in their words.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{Server, Upstream};
use crate::clock;

impl Upstream {
    /// Takes servers out of the round, or puts them back: one, or all that a name leads to, now and later. How many
    /// that changes; `None` if none is called so, nor was when it was drained.
    pub fn drain(&self, word: &str, is_drained: bool) -> Option<usize> {
        let mut drained = self.words();
        let servers = self.servers();
        let meant: Vec<_> =
            servers.iter().filter(|server| is_called(&server.label, word)).collect();
        let is_remembered = || drained.iter().any(|other| is_called(other, word));
        if meant.is_empty() && (is_drained || !is_remembered()) {
            return None;
        }
        let now_ns = clock::boot_ns();
        let change = |one: &&&Arc<Server>| one.health.drain(is_drained, now_ns);
        let changed = meant.iter().filter(change).count();
        if is_drained {
            drained.insert(word.to_owned());
        } else {
            // Of a wider word, what it still means stays.
            drained.retain(|other| {
                let is_wider = meant.iter().any(|server| is_called(&server.label, other));
                !is_wider && !is_called(other, word)
            });
            let left = servers.iter().filter(|server| server.health.is_drained());
            drained.extend(left.map(|server| server.label.clone()));
        }
        Some(changed)
    }

    /// What operators drained, in their words.
    pub fn drained(&self) -> BTreeSet<String> {
        self.words().clone()
    }

    /// Takes over what operators drained of another daemon's.
    pub fn inherit(&self, drained: &BTreeSet<String>) {
        let mut words = self.words();
        words.extend(drained.iter().cloned());
        drain_all(&self.servers(), &words);
    }

    pub(super) fn words(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes those out of the round that are meant by any word.
pub(super) fn drain_all(servers: &[Arc<Server>], words: &BTreeSet<String>) {
    let is_meant = |server: &&Arc<Server>| words.iter().any(|word| is_called(&server.label, word));
    servers.iter().filter(is_meant).for_each(|one| _ = one.health.drain(true, 0));
}

/// Whether a server with this label is meant by a word: the label, or the name that led to it.
fn is_called(label: &str, word: &str) -> bool {
    label.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
