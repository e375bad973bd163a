//! The keys of one rule: fixed memory, however many come, and exact from any number of cores.
//!
//! A table of sets of cells. A cell is one 128-bit word, the key's mark above its state, so that
//! one compare-and-swap charges a key exactly and no lock is held. A new key takes the place of the
//! idlest of its set, and goes on with what that one had used up, as counters do in the Space-Saving
//! algorithm (Metwally, Agrawal and El Abbadi, 2005): whatever comes, a set admits no more than its places
//! do. Who is at its limit loses its place to nobody: where all are, the newcomers of that set share one
//! cell, hence one limit, until somebody has become idler.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_common::atomic;
use portable_atomic::{AtomicU128, Ordering};

use super::{
    meter::{FULL, Meter, Now, Outcome, STATE_BITS},
    standing::Left,
};

/// Where the keys of one rule are kept.
#[derive(Debug)]
pub struct Table {
    sets: Box<[Set]>,
    /// Keys that lost their place before they were idle.
    evicted: AtomicU64,
    /// Requests that met a shared cell, because a set was full of keys at their limit.
    crowded: AtomicU64,
}

/// Two cache lines: the places of [`WAYS`] keys, and one that the others share.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Set {
    keys: [AtomicU128; WAYS],
    rest: AtomicU128,
}

/// Where a key is charged.
struct Place {
    /// Of the set; [`WAYS`] is what all others share.
    way: usize,
    /// What is there.
    word: u128,
    /// What is to be there above the state.
    tag: u128,
    /// The past that the key goes on with.
    state: u128,
}

/// What an admitted request holds until it ends, where the meter counts what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    set: usize,
    way: usize,
    mark: u128,
}

/// A charge that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What is left.
    pub left: Left,
    /// How long the request has to wait for its turn.
    pub delay_ns: u64,
    /// To be given back to [`Table::release`] when the request ends.
    pub hold: Hold,
}

/// A charge that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is left.
    pub left: Left,
    /// After how long it would be admitted; `None`: never.
    pub wait_ns: Option<u64>,
    /// Whether strangers may have used it up.
    pub is_shared: bool,
}

impl Table {
    /// Room for so many keys. Of as many that are active at once, one in some two hundred finds its set full.
    #[must_use]
    pub fn new(keys_max: usize) -> Self {
        let sets = (0..keys_max.div_ceil(KEYS).max(1)).map(|_| Set::default()).collect();
        Self { sets, evicted: AtomicU64::new(0), crowded: AtomicU64::new(0) }
    }

    /// Has the place of the key with this hash brought in, which is soon to be charged.
    pub fn fetch(&self, hash: u64) {
        atomic::fetch(&self.sets[self.index(hash)]);
    }

    /// Charges the key with this hash. All bits of the hash count.
    ///
    /// # Errors
    /// If the key is at its limit.
    pub fn charge(
        &self,
        meter: &Meter,
        hash: u64,
        cost: u64,
        now: Now,
    ) -> Result<Admitted, Refused> {
        let (index, mark) = (self.index(hash), mark(hash));
        let set = &self.sets[index];
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let place = set.place(meter, mark, now);
            let is_last = attempts.next().is_none();
            let (left, wait_ns) = match meter.charge(place.state, cost, now) {
                Outcome::Admit { state, left, delay_ns } if !is_last => {
                    if set.replace(&place, state) {
                        self.count(&place, mark);
                        let hold = Hold { set: index, way: place.way, mark: place.tag & MARK };
                        return Ok(Admitted { left, delay_ns, hold });
                    }
                    continue;
                }
                // So contended that other cores admitted one each time.
                Outcome::Admit { left, .. } => (left, Some(0)),
                Outcome::Refuse { left, wait_ns } => (left, wait_ns),
            };
            if place.way == WAYS {
                self.crowded.fetch_add(1, Relaxed);
            }
            return Err(Refused { left, wait_ns, is_shared: place.is_shared() });
        }
    }

    /// Counts what an admission took from others.
    fn count(&self, place: &Place, mark: u128) {
        if place.way == WAYS {
            self.crowded.fetch_add(1, Relaxed);
        } else if place.word & MARK != mark && place.is_shared() {
            self.evicted.fetch_add(1, Relaxed);
        }
    }

    /// Gives back what a request held that has ended.
    pub fn release(&self, meter: &Meter, hold: Hold) {
        let cell = self.sets[hold.set].cell(hold.way);
        // The cell still is the key's: one that holds requests in flight loses its place to nobody.
        let _ = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (word & MARK == hold.mark).then(|| word & !STATE | meter.release(word & STATE))
        });
    }

    /// What a key would be told, without a charge.
    #[must_use]
    pub fn look(&self, meter: &Meter, hash: u64, cost: u64, now: Now) -> Outcome {
        let place = self.sets[self.index(hash)].place(meter, mark(hash), now);
        meter.charge(place.state, cost, now)
    }

    /// After how long a key would be admitted at such a cost if nothing else came; `None`: never.
    #[must_use]
    pub fn wait_ns(&self, meter: &Meter, hash: u64, cost: u64, now: Now) -> Option<u64> {
        match self.look(meter, hash, cost, now) {
            Outcome::Admit { .. } => Some(0),
            Outcome::Refuse { wait_ns, .. } => wait_ns,
        }
    }

    /// Keys that lost their place before they were idle, and requests that met a shared cell.
    #[must_use]
    pub fn losses(&self) -> (u64, u64) {
        (self.evicted.load(Relaxed), self.crowded.load(Relaxed))
    }

    /// Its sets: words lie where they do in a table of as many.
    #[must_use]
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Every key that is not idle, and what others share: the number of its set, and its word. For a table of
    /// as many sets to [`Self::restore`].
    pub fn words<'a>(
        &'a self,
        meter: &'a Meter,
        now: Now,
    ) -> impl Iterator<Item = (usize, u128)> + 'a {
        self.sets.iter().enumerate().flat_map(move |(index, set)| {
            let cells = set.keys.iter().chain([&set.rest]);
            let words = cells.map(|cell| cell.load(Ordering::Acquire));
            words
                .filter(move |word| meter.fullness(word & STATE, now) > 0)
                .map(move |word| (index, word))
        })
    }

    /// How many words it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.sets.len() * (WAYS + 1)
    }

    /// Puts a word back where it was: with what the same key has used up since, or in the place of one that is
    /// idle.
    pub fn restore(&self, meter: &Meter, now: Now, (index, word): (usize, u128)) {
        let Some(set) = self.sets.get(index) else { return };
        let found = |cell: &AtomicU128| {
            let kept = cell.load(Ordering::Acquire);
            let is_same = kept & MARK == word & MARK;
            Some((kept, is_same)).filter(|_| is_same || meter.fullness(kept & STATE, now) == 0)
        };
        let place = || {
            if word & MARK == REST {
                return Some((&set.rest, set.rest.load(Ordering::Acquire)));
            }
            let free = set.keys.iter().filter_map(|cell| Some((cell, found(cell)?)));
            free.max_by_key(|(_, (_, is_same))| *is_same).map(|(cell, (kept, _))| (cell, kept))
        };
        // Whoever is charged at this moment keeps the place, and what it was charged.
        while let Some((cell, kept)) = place() {
            let put = word & !STATE | meter.both(word & STATE, kept & STATE, now);
            if cell.compare_exchange(kept, put, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                break;
            }
        }
    }

    /// The set that a hash leads to: by its lower bits, as its upper ones are the mark.
    fn index(&self, hash: u64) -> usize {
        let spread = u64::from((hash as u32).swap_bytes());
        ((spread * self.sets.len() as u64) >> 32) as usize
    }
}

impl Set {
    fn cell(&self, way: usize) -> &AtomicU128 {
        self.keys.get(way).unwrap_or(&self.rest)
    }

    /// Puts a key's next state in its place, unless another core was there first.
    fn replace(&self, place: &Place, state: u128) -> bool {
        let (cell, word) = (self.cell(place.way), place.tag | state);
        cell.compare_exchange(place.word, word, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Where the key is, or else the idlest of the set unless it is full, or else what all others
    /// share.
    fn place(&self, meter: &Meter, mark: u128, now: Now) -> Place {
        let mut words = [0; WAYS];
        for (way, cell) in self.keys.iter().enumerate() {
            let word = cell.load(Ordering::Acquire);
            words[way] = word;
            if word & MARK == mark {
                let is_shared = word & SHARED != 0 && is_shared_still(word, meter, now);
                let tag = if is_shared { word & !STATE } else { mark };
                return Place { way, word, tag, state: word & STATE };
            }
        }
        let fullness = |way: usize| meter.fullness(words[way] & STATE, now);
        match (0..WAYS).map(|way| (fullness(way), way)).min() {
            Some((0, way)) => Place { way, word: words[way], tag: mark, state: 0 },
            Some((fullness, way)) if fullness < FULL => {
                let tag = mark | SHARED | age(meter, now);
                Place { way, word: words[way], tag, state: words[way] & STATE }
            }
            _ => {
                let word = self.rest.load(Ordering::Acquire);
                Place { way: WAYS, word, tag: REST | SHARED, state: word & STATE }
            }
        }
    }
}

impl Place {
    /// Whether what was used up there may have been strangers'.
    const fn is_shared(&self) -> bool {
        self.tag & SHARED != 0
    }
}

/// When a place is taken over, by a clock that the meter's memory is one turn of.
fn age(meter: &Meter, now: Now) -> u128 {
    u128::from(now.boot_ns / meter.memory_ns().max(1) % AGES) << (STATE_BITS + 1)
}

/// Whether anything may be left of what others used up: a whole turn of the clock is over when its hand has
/// moved on twice.
fn is_shared_still(word: u128, meter: &Meter, now: Now) -> bool {
    let turns = age(meter, now).wrapping_sub(word & AGE) & AGE;
    turns < 2 << (STATE_BITS + 1) && meter.fullness(word & STATE, now) > 0
}

/// The upper bits of the hash, in their place; never zero, which is an empty cell's, nor [`REST`].
const fn mark(hash: u64) -> u128 {
    let mark = (hash as u128 >> (64 - MARK_BITS)) << (128 - MARK_BITS);
    if mark == 0 || mark == REST { 2 << (128 - MARK_BITS) } else { mark }
}

/// The bits of a word that say what its key has done.
pub const STATE: u128 = (1 << STATE_BITS) - 1;
/// The bit of a word that says that others may have done a part of it.
const SHARED: u128 = 1 << STATE_BITS;
/// The bits of a word that say since when, where others may.
const AGE: u128 = (AGES as u128 - 1) << (STATE_BITS + 1);
const AGES: u64 = 16;
const MARK_BITS: u32 = 128 - STATE_BITS - 1 - AGES.ilog2();
/// The bits of a word that hold the mark.
const MARK: u128 = !(STATE | SHARED | AGE);
/// The mark of what is shared.
const REST: u128 = 1 << (128 - MARK_BITS);

/// Keys in a set. With the shared cell, two cache lines.
pub const WAYS: usize = 7;

/// Keys that a set is meant for. Where they fall is chance (Poisson): seven places for three leave 0.6 % of
/// them without one.
const KEYS: usize = 3;

/// Compare-and-swap tries before a contended key is refused; each failure means that another core
/// just charged the same cell.
const ATTEMPTS: u32 = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::limit::meter::{Bucket, Window};

    const SECOND: u64 = 1_000_000_000;

    fn now(ns: u64) -> Now {
        Now { boot_ns: ns, unix_ns: 1_700_000_000 * SECOND + ns }
    }

    fn bucket(count: u64, size: u64) -> Meter {
        Meter::TokenBucket(Bucket::new(count, SECOND, size).unwrap())
    }

    /// One of each kind that holds 100 and gets 10 a second.
    fn ten_a_second() -> [Meter; 3] {
        [
            bucket(10, 100),
            Meter::SlidingWindow { limit: 100, window_ns: 10 * SECOND },
            Meter::FixedWindow { limit: 100, window: Window::Ns(10 * SECOND) },
        ]
    }

    /// Hashes that differ in every bit that matters.
    fn hash(n: u64) -> u64 {
        n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn each_key_has_a_limit_of_its_own() {
        let (table, meter) = (Table::new(1 << 12), bucket(1, 3));
        for key in 0..2_000 {
            let admitted =
                (0..10).filter(|_| table.charge(&meter, hash(key), 1, now(0)).is_ok()).count();
            assert_eq!(admitted, 3, "{key}");
        }
        assert_eq!(table.losses(), (0, 0));
    }

    #[test]
    fn a_flood_of_new_keys_never_frees_the_offender() {
        let meters = [
            bucket(1, 5),
            Meter::FixedWindow { limit: 5, window: Window::Ns(3_600 * SECOND) },
            Meter::SlidingWindow { limit: 5, window_ns: 3_600 * SECOND },
            Meter::Concurrent { limit: 5 },
        ];
        for meter in meters {
            let table = Table::new(KEYS);
            let offender = hash(99);
            while table.charge(&meter, offender, 1, now(0)).is_ok() {}
            for stranger in 1_000..20_000 {
                let _ = table.charge(&meter, hash(stranger), 1, now(10));
            }
            assert!(table.charge(&meter, offender, 1, now(20)).is_err(), "{meter:?}");
            let (evicted, crowded) = table.losses();
            assert!(evicted + crowded > 0, "{meter:?}");
        }
    }

    #[test]
    fn a_flood_of_new_keys_gives_an_offender_no_more_than_its_refill() {
        let (table, meter, offender) = (Table::new(KEYS), bucket(1, 5), hash(99));
        while table.charge(&meter, offender, 1, now(0)).is_ok() {}
        for second in 1..50 {
            // It has one token by now, so that its place may be lost to whoever is no idler.
            let at = |ns| now(second * SECOND + ns);
            for stranger in 0..500 {
                let _ = table.charge(&meter, hash(1_000 * second + stranger), 1, at(stranger));
            }
            let admitted = (0..9).filter(|_| table.charge(&meter, offender, 1, at(500)).is_ok());
            assert!(admitted.count() <= 1, "{second}");
        }
    }

    #[test]
    fn keys_that_come_back_and_drive_each_other_out_have_no_more_than_their_places() {
        // A hundred are asked for each second.
        for meter in ten_a_second() {
            for keys in [WAYS as u64 + 1, 2 * WAYS as u64] {
                let (table, mut admitted) = (Table::new(KEYS), vec![0; keys as usize]);
                for tick in 0..6_000 {
                    let at = now(tick * SECOND / 100);
                    for key in 0..keys {
                        let charged = table.charge(&meter, hash(key), 1, at).is_ok();
                        admitted[key as usize] += u64::from(charged);
                    }
                }
                let (sum, one) = (admitted.iter().sum::<u64>(), 100 + 60 * 10);
                assert!(sum <= one * (WAYS as u64 + 1), "{meter:?}, {keys}: {admitted:?}");
                assert!(sum >= one * (WAYS as u64 - 1), "{meter:?}, {keys}: {admitted:?}");
            }
        }
    }

    #[test]
    fn as_many_keys_as_it_is_for_have_limits_of_their_own() {
        let (table, meter) = (Table::new(100_000), bucket(1, 3));
        let admitted = |key: u64| {
            (0..5).filter(|_| table.charge(&meter, hash(key), 1, now(0)).is_ok()).count()
        };
        let wrong = (0..100_000).filter(|key| admitted(*key) != 3).count();
        assert!(wrong < 1_000, "{wrong}");
    }

    #[test]
    fn a_refusal_for_what_strangers_did_says_so() {
        let (table, meter) = (Table::new(KEYS), bucket(1, 2));
        let ask = |key, ns| table.charge(&meter, hash(key), 1, now(ns));
        for key in 0..WAYS as u64 {
            while ask(key, 0).is_ok() {}
            assert!(!ask(key, 0).unwrap_err().is_shared);
        }
        assert!(ask(100, 0).is_ok() && ask(101, 0).is_ok(), "in the place that all others share");
        assert!(ask(102, 0).unwrap_err().is_shared);
        // One is no longer full, and its place goes to another with what it has used up.
        assert!(ask(103, SECOND + 1).is_ok());
        assert!(ask(103, SECOND + 1).unwrap_err().is_shared);
        assert!(!ask(0, SECOND + 1).is_ok_and(|_| ask(0, SECOND + 1).is_ok()));
        // Once all of that is over, what is used up is its own.
        assert!(ask(103, 9 * SECOND).is_ok() && ask(103, 9 * SECOND).is_ok());
        assert!(!ask(103, 9 * SECOND).unwrap_err().is_shared);
    }

    #[test]
    fn who_never_pauses_is_not_taken_for_a_stranger_for_ever() {
        for meter in ten_a_second() {
            let table = Table::new(KEYS);
            let ask = |key, ns| table.charge(&meter, hash(key), 1, now(ns));
            for key in 0..WAYS as u64 {
                (0..50).for_each(|_| _ = ask(key, 0));
            }
            let refused = |from: u64, to: u64| {
                (from..to).filter_map(|ns| ask(99, ns * SECOND / 100).err()).collect::<Vec<_>>()
            };
            let (soon, later) = (refused(100, 900), refused(4_100, 20_000));
            assert!(!soon.is_empty() && soon.iter().all(|refused| refused.is_shared), "{meter:?}");
            assert!(later.len() > 9_000 && later.iter().all(|refused| !refused.is_shared));
        }
    }

    #[test]
    fn where_all_are_at_their_limit_newcomers_share_one() {
        let (table, meter) = (Table::new(KEYS), bucket(1, 2));
        let mut offenders: Vec<_> = (0..WAYS as u64).map(hash).collect();
        for offender in &offenders {
            while table.charge(&meter, *offender, 1, now(0)).is_ok() {}
        }
        let newcomers = (100..200).map(hash);
        let admitted = newcomers.filter(|n| table.charge(&meter, *n, 1, now(0)).is_ok()).count();
        assert_eq!((admitted, table.losses()), (2, (0, 100)));
        offenders.retain(|o| table.charge(&meter, *o, 1, now(0)).is_ok());
        assert!(offenders.is_empty());
        // Who waited is admitted again, offenders and newcomers alike.
        assert!(table.charge(&meter, hash(5), 1, now(2 * SECOND)).is_ok());
        assert!(table.charge(&meter, hash(150), 1, now(9 * SECOND)).is_ok());
    }

    #[test]
    fn what_is_in_flight_is_given_back() {
        let (table, meter) = (Table::new(64), Meter::Concurrent { limit: 2 });
        let first = table.charge(&meter, hash(1), 1, now(0)).unwrap();
        let second = table.charge(&meter, hash(1), 1, now(0)).unwrap();
        assert!(table.charge(&meter, hash(1), 1, now(0)).is_err());
        assert!(table.charge(&meter, hash(2), 1, now(0)).is_ok());
        table.release(&meter, first.hold);
        assert!(table.charge(&meter, hash(1), 1, now(0)).is_ok());
        table.release(&meter, second.hold);
        assert_eq!(table.charge(&meter, hash(1), 1, now(0)).unwrap().left.remaining, 0);
    }

    #[test]
    fn cores_together_admit_what_one_would() {
        let (table, meter) = (Table::new(1), bucket(1, 5_000));
        let admitted: usize = std::thread::scope(|scope| {
            let work = || {
                let charge = |n: u64| table.charge(&meter, hash(7), 1, now(n)).is_ok();
                (0..10_000).filter(|n| charge(*n)).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(admitted, 5_000);
    }

    #[test]
    fn what_was_kept_is_where_it_was() {
        let meter = Meter::FixedWindow { limit: 10, window: Window::Month };
        let (old, new) = (Table::new(1_000), Table::new(1_000));
        for key in 0..500 {
            for _ in 0..=key % 10 {
                old.charge(&meter, hash(key), 1, now(0)).unwrap();
            }
        }
        let kept: Vec<_> = old.words(&meter, now(0)).collect();
        assert_eq!(kept.iter().map(|(_, word)| word).collect::<HashSet<_>>().len(), 500);
        kept.iter().for_each(|kept| new.restore(&meter, now(0), *kept));
        for key in 0..500 {
            let (was, is) =
                (old.look(&meter, hash(key), 1, now(1)), new.look(&meter, hash(key), 1, now(1)));
            assert_eq!(was, is, "{key}");
        }
    }

    #[test]
    fn what_comes_back_late_takes_nothing_from_what_was_counted_since() {
        let key = hash(7);
        for (meter, used) in [
            (Meter::FixedWindow { limit: 10, window: Window::Month }, 7),
            (Meter::FixedWindow { limit: 6, window: Window::Month }, 6),
            (bucket(1, 10), 4),
        ] {
            let (old, new) = (Table::new(1_000), Table::new(1_000));
            (0..3).for_each(|_| _ = old.charge(&meter, key, 1, now(0)).unwrap());
            (0..4).for_each(|_| _ = new.charge(&meter, key, 1, now(0)).unwrap());
            old.words(&meter, now(0)).for_each(|kept| new.restore(&meter, now(0), kept));
            let left = (0..20).filter(|_| new.charge(&meter, key, 1, now(0)).is_ok()).count();
            assert_eq!(left as u64, meter.most() - used, "{meter:?}");
        }
    }

    #[test]
    fn what_is_shared_is_kept_as_well() {
        let meter = Meter::FixedWindow { limit: 3, window: Window::Month };
        let (old, new) = (Table::new(KEYS), Table::new(KEYS));
        let admitted = |table: &Table, key: u64| {
            (0..9).filter(|_| table.charge(&meter, hash(key), 1, now(0)).is_ok()).count()
        };
        assert!((0..=WAYS as u64).all(|key| admitted(&old, key) == 3), "the last one shares");
        assert_eq!(admitted(&old, 100), 0);
        old.words(&meter, now(0)).for_each(|kept| new.restore(&meter, now(0), kept));
        assert!((0..200).all(|key| admitted(&new, key) == 0), "nobody begins anew");
    }
}
