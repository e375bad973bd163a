//! Verdicts in force, by culprit and by their end.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::BanRecord;

/// A verdict in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// As it is on disk, in calendar time.
    pub(super) record: BanRecord,
    /// When it ends in boot time, which no correction of the calendar moves.
    pub(super) until_ns: u64,
}

/// Verdicts in force.
#[derive(Debug)]
pub(super) struct Book<K> {
    held: BTreeMap<K, Held>,
    ends: BTreeSet<(u64, K)>,
}

impl<K: Clone + Ord> Book<K> {
    pub(super) const fn new() -> Self {
        Self { held: BTreeMap::new(), ends: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn get(&self, culprit: &K) -> Option<&Held> {
        self.held.get(culprit)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Held)> {
        self.held.iter()
    }

    pub(super) fn insert(&mut self, culprit: K, held: Held) {
        self.remove(&culprit);
        self.ends.insert((held.until_ns, culprit.clone()));
        self.held.insert(culprit, held);
    }

    pub(super) fn remove(&mut self, culprit: &K) -> Option<Held> {
        let held = self.held.remove(culprit)?;
        self.ends.remove(&(held.until_ns, culprit.clone()));
        Some(held)
    }

    /// The one that ends first.
    pub(super) fn first(&self) -> Option<K> {
        self.ends.first().map(|(_, culprit)| culprit.clone())
    }

    /// Those that have ended.
    pub(super) fn ended(&self, now_ns: u64) -> Vec<K> {
        let ended = self.ends.iter().take_while(|(until_ns, _)| *until_ns <= now_ns);
        ended.map(|(_, culprit)| culprit.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use edge_common::Source;
    use edge_policy::verdict::{Culprit, Origin, Step};

    use super::*;

    #[test]
    fn verdicts_end_by_boot_time_alone() {
        let culprit = |host| Culprit::Source(Source::v4([192, 0, 2, host]));
        let held = |host, until_ns, until_ms| Held {
            record: BanRecord {
                culprit: culprit(host),
                step: Step::Ban,
                since_ms: 1,
                until_ms,
                strikes: 1,
                reason: "source_rate".into(),
                scenario: "flood".into(),
                origin: Origin::Scenario,
                spared: None,
                evidence: Vec::new(),
            },
            until_ns,
        };
        let mut book = Book::new();
        // The calendar says the opposite of both.
        book.insert(culprit(1), held(1, 100, u64::MAX));
        book.insert(culprit(2), held(2, 50, 0));
        book.insert(culprit(2), held(2, 101, 0));
        assert!(book.ended(99).is_empty());
        assert_eq!((book.ended(100), book.first()), (vec![culprit(1)], Some(culprit(1))));
        book.remove(&culprit(1));
        assert_eq!((book.len(), book.first()), (1, Some(culprit(2))));
    }
}
