//! What each key of a limit that many edges share is asked for at this edge, and which part of its limit
//! the edge may use.
//!
//! A key of which little is wanted needs no lease: each edge has the part that it would have if all
//! asked for the same. Those that are asked for more are noted here, and leased; the request path reads
//! one number and adds to another.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use super::lease::WHOLE;

/// The keys of one limit that are asked for now. Fixed memory: a key that finds no room has the part of
/// those without a lease.
#[derive(Debug)]
pub struct Keyed {
    sets: Box<[[Slot; WAYS]]>,
    /// The part of a key without a lease.
    alone: AtomicU32,
    /// Requests whose key found no room to be noted.
    unnoted: AtomicU64,
}

/// A key: its hash, or 0; what was asked of it; its part, or 0 without a lease.
#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    asked: AtomicU64,
    parts: AtomicU32,
}

impl Default for Keyed {
    fn default() -> Self {
        Self {
            sets: (0..SETS).map(|_| Default::default()).collect(),
            alone: AtomicU32::new(WHOLE),
            unnoted: AtomicU64::new(0),
        }
    }
}

impl Keyed {
    /// Notes that so much was asked of a key, and tells this edge's part of its limit.
    #[must_use]
    pub fn ask(&self, key: u64, cost: u64) -> u32 {
        let Some(slot) = self.slot(key) else {
            self.unnoted.fetch_add(1, Relaxed);
            return self.alone();
        };
        slot.asked.fetch_add(cost, Relaxed);
        match slot.parts.load(Relaxed) {
            0 => self.alone(),
            parts => parts.min(WHOLE),
        }
    }

    /// The part of a key without a lease.
    #[must_use]
    pub fn alone(&self) -> u32 {
        self.alone.load(Relaxed).clamp(1, WHOLE)
    }

    /// Sets it.
    pub fn set_alone(&self, parts: u32) {
        self.alone.store(parts, Relaxed);
    }

    /// What was asked of each key since the last look. Those of which nothing was, and that have no
    /// lease, give their places to others.
    #[must_use]
    pub fn take_asked(&self) -> BTreeMap<u64, u64> {
        let mut asked = BTreeMap::new();
        for slot in self.sets.iter().flatten() {
            let key = slot.key.load(Relaxed);
            match (key, slot.asked.swap(0, Relaxed), slot.parts.load(Relaxed)) {
                (0, ..) => {}
                (_, 0, 0) => slot.key.store(0, Relaxed),
                // One that two cores noted at once is there twice.
                (_, more, _) => *asked.entry(key).or_default() += more,
            }
        }
        asked
    }

    /// Sets this edge's part of a key, in parts of [`WHOLE`], of which nothing is one; without a lease
    /// it is that of those without.
    pub fn lease(&self, key: u64, parts: Option<u32>) {
        let key = key.max(1);
        let parts = parts.map_or(0, |parts| parts.clamp(1, WHOLE));
        if parts > 0 && self.slot(key).is_none() {
            return;
        }
        let same = self.set(key).iter().filter(|slot| slot.key.load(Relaxed) == key);
        same.for_each(|slot| slot.parts.store(parts, Relaxed));
    }

    /// Keys with a lease.
    #[must_use]
    pub fn leased(&self) -> u64 {
        let leased = self.sets.iter().flatten().filter(|slot| slot.parts.load(Relaxed) > 0);
        leased.count() as u64
    }

    /// Requests whose key found no room to be noted.
    #[must_use]
    pub fn unnoted(&self) -> u64 {
        self.unnoted.load(Relaxed)
    }

    /// The place of a key, or one that is free.
    fn slot(&self, key: u64) -> Option<&Slot> {
        let key = key.max(1);
        let set = self.set(key);
        let own = set.iter().find(|slot| slot.key.load(Relaxed) == key);
        own.or_else(|| {
            set.iter().find(|slot| match slot.key.compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => {
                    slot.parts.store(0, Relaxed);
                    true
                }
                Err(there) => there == key,
            })
        })
    }

    fn set(&self, key: u64) -> &[Slot; WAYS] {
        // The lower bits chose the key's place among what was counted of it.
        &self.sets[(key >> 40) as usize % SETS]
    }
}

/// Sets of places.
const SETS: usize = 1_024;
/// Places in a set.
const WAYS: usize = 8;
/// Keys that are noted at once.
pub const NOTED_MAX: usize = SETS * WAYS;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> u64 {
        n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn a_key_has_its_lease_and_others_the_part_without() {
        let keyed = Keyed::default();
        keyed.set_alone(WHOLE / 4);
        assert_eq!((keyed.ask(key(1), 3), keyed.ask(key(1), 4)), (WHOLE / 4, WHOLE / 4));
        assert_eq!(keyed.take_asked(), BTreeMap::from([(key(1), 7)]));
        keyed.lease(key(1), Some(WHOLE));
        assert_eq!((keyed.ask(key(1), 1), keyed.ask(key(2), 1)), (WHOLE, WHOLE / 4));
        // One that others want is told of, before anybody asks here.
        keyed.lease(key(3), Some(0));
        assert_eq!((keyed.ask(key(3), 1), keyed.leased()), (1, 2));
        keyed.lease(key(1), None);
        keyed.lease(key(3), None);
        assert_eq!((keyed.ask(key(1), 1), keyed.ask(0, 1)), (WHOLE / 4, WHOLE / 4));
    }

    #[test]
    fn a_flood_of_keys_takes_no_place_of_one_with_a_lease() {
        let keyed = Keyed::default();
        keyed.set_alone(7);
        keyed.lease(key(0), Some(500));
        for n in 1..100_000 {
            assert_eq!(keyed.ask(key(n), 1), 7);
        }
        assert_eq!(keyed.ask(key(0), 1), 500);
        assert!(keyed.unnoted() > 80_000);
        assert!(keyed.take_asked().len() <= NOTED_MAX);
        // Who is gone makes room.
        assert_eq!(keyed.take_asked(), BTreeMap::from([(key(0), 0)]));
        assert_eq!(keyed.ask(key(5), 1), 7);
        assert!(keyed.take_asked().contains_key(&key(5)));
    }
}
