//! The count of open connections: exact, of fixed size, from any number of CPUs.
//!
//! A word holds 48 bits of the client's hash and its count; a word at zero is free. Nothing is
//! ever freed under a reader's hands, which a hash table of counters cannot promise: there, an
//! increment may land on an entry that another CPU has just removed and given to another client.

use core::sync::atomic::AtomicU64;

use crate::atomic;

/// Words in a set: one cache line.
pub const WAYS: usize = 8;

/// A set of the table: where a client's hash leads.
pub type Set = [AtomicU64; WAYS];

/// Adds one open connection; `false` if the set has no room for it.
#[inline(always)]
#[must_use]
pub fn add(set: &Set, hash: u64) -> bool {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let mut place = WAYS;
        let mut from = 0;
        let mut way = 0;
        while way < WAYS {
            let word = atomic::load(&set[way]);
            if word == 0 && from == 0 {
                place = way;
            } else if is_of(word, hash) && word & COUNT < COUNT {
                (place, from) = (way, word);
            }
            way += 1;
        }
        if place == WAYS {
            return false;
        }
        // Two CPUs may each take a free word for the same client: `count` adds them up.
        let to = (if from == 0 { hash & !COUNT } else { from }) + 1;
        // `place` is below WAYS; the mask lets the kernel's verifier see it.
        if atomic::replace(&set[place & (WAYS - 1)], from, to) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Takes away one connection that [`add`] has added under the same hash; `false` if other CPUs
/// changed the set under each of its tries.
#[inline(always)]
#[must_use]
pub fn subtract(set: &Set, hash: u64) -> bool {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let mut way = 0;
        while way < WAYS {
            let word = atomic::load(&set[way]);
            if is_of(word, hash) {
                let less = if word & COUNT == 1 { 0 } else { word - 1 };
                if atomic::replace(&set[way], word, less) {
                    return true;
                }
            }
            way += 1;
        }
        attempt += 1;
    }
    false
}

/// The client's open connections.
#[inline(always)]
#[must_use]
pub fn count(set: &Set, hash: u64) -> u32 {
    let mut count = 0;
    let mut way = 0;
    while way < WAYS {
        let word = atomic::load(&set[way]);
        if is_of(word, hash) {
            count += (word & COUNT) as u32;
        }
        way += 1;
    }
    count
}

#[inline(always)]
const fn is_of(word: u64, hash: u64) -> bool {
    (word ^ hash) & !COUNT == 0 && word & COUNT != 0
}

/// The bits of a word that hold the count.
const COUNT: u64 = 0xffff;

/// Compare-and-swap tries; each failure means that another CPU just changed the same set.
const ATTEMPTS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use core::sync::atomic::Ordering::Relaxed;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_set_says_so_and_stays_exact() {
        let set = Set::default();
        for client in 1..=WAYS as u64 {
            assert!(add(&set, client << 16));
        }
        assert!(!add(&set, 99 << 16));
        assert_eq!(count(&set, 99 << 16), 0);
        assert!(subtract(&set, 1 << 16));
        assert!(add(&set, 99 << 16));
        assert_eq!(count(&set, 99 << 16), 1);
    }

    #[test]
    fn a_client_may_outgrow_a_word() {
        let set = Set::default();
        for _ in 0..70_000 {
            assert!(add(&set, 7 << 16));
        }
        assert_eq!(count(&set, 7 << 16), 70_000);
        for _ in 0..70_000 {
            assert!(subtract(&set, 7 << 16));
        }
        assert!(set.iter().all(|word| word.load(Relaxed) == 0));
    }

    #[test]
    fn cpus_together_lose_nothing() {
        let set = Set::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let set = &set;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        // One hash that all share, one of its own.
                        for hash in [5 << 16, (100 + thread) << 16] {
                            if add(set, hash) {
                                while !subtract(set, hash) {}
                            }
                        }
                    }
                });
            }
        });
        assert!(set.iter().all(|word| word.load(Relaxed) == 0), "{set:?}");
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0_u64..12, any::<bool>()), 0..400)) {
            let set = Set::default();
            let mut model = HashMap::<u64, u32>::new();
            for (client, opens) in steps {
                let hash = client << 16 | 0xbeef;
                let open = model.entry(hash).or_default();
                if opens {
                    *open += u32::from(add(&set, hash));
                } else if *open > 0 {
                    prop_assert!(subtract(&set, hash));
                    *open -= 1;
                }
                prop_assert_eq!(count(&set, hash), *open);
            }
        }
    }
}
