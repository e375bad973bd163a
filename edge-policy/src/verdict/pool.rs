//! Values by key, of which one that matters little is found in bounded work.

use std::collections::HashMap;

/// Values in a row, so that an eviction can look at a few of them in turn. Keys are keyed hashes.
#[derive(Debug)]
pub(super) struct Pool<V> {
    index: HashMap<u64, usize, Ready>,
    values: Vec<(u64, V)>,
    hand: usize,
    most: usize,
    /// Values that were dropped to make room.
    pub(super) evicted: u64,
}

/// The keys are hashes already.
type Ready = std::hash::BuildHasherDefault<AsIs>;

#[derive(Debug, Default)]
pub(super) struct AsIs(u64);

impl std::hash::Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

impl<V> Pool<V> {
    pub(super) fn new(most: usize) -> Self {
        let (index, values) = (HashMap::default(), Vec::new());
        Self { index, values, hand: 0, most: most.max(1), evicted: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn get(&self, key: u64) -> Option<&V> {
        self.index.get(&key).map(|at| &self.values[*at].1)
    }

    /// The value of a key, made by `new` if there is none; for a new one the least of a few goes, by
    /// `rank`, if there is no room.
    pub(super) fn entry<R: Ord>(
        &mut self,
        key: u64,
        new: impl FnOnce() -> V,
        rank: impl Fn(&V) -> R,
    ) -> &mut V {
        let at = match self.index.get(&key) {
            Some(at) => *at,
            None => {
                if self.len() >= self.most {
                    self.evict(&rank);
                }
                self.index.insert(key, self.len());
                self.values.push((key, new()));
                self.len() - 1
            }
        };
        &mut self.values[at].1
    }

    pub(super) fn remove(&mut self, key: u64) {
        let Some(at) = self.index.remove(&key) else { return };
        self.values.swap_remove(at);
        if let Some((moved, _)) = self.values.get(at) {
            self.index.insert(*moved, at);
        }
    }

    /// Of the next [`SAMPLE`] values the one with the lowest rank goes.
    fn evict<R: Ord>(&mut self, rank: impl Fn(&V) -> R) {
        let count = self.len();
        let sample = (0..SAMPLE.min(count)).map(|step| &self.values[(self.hand + step) % count]);
        let least = sample.min_by_key(|(_, value)| rank(value)).map(|(key, _)| *key);
        self.hand = (self.hand + SAMPLE) % count.max(1);
        if let Some(key) = least {
            self.remove(key);
            self.evicted += 1;
        }
    }
}

/// Values that an eviction looks at.
const SAMPLE: usize = 16;
