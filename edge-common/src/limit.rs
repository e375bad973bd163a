//! The rate limiter's arithmetic, for packets in the kernel and for requests in the daemon.
//!
//! GCRA (ITU-T I.371, the virtual scheduling form): a source's whole history is the one time at
//! which its bucket will be empty again. That time and a fingerprint of the source share a 64-bit
//! word, so that one compare-and-swap charges a source exactly, from any number of CPUs.

use core::sync::atomic::AtomicU64;

use crate::atomic;

/// Words in a set: the places a source may live in. 4 x 8 bytes never span two cache lines.
pub const WAYS: usize = 4;

/// A set of the table: where a source's hash leads.
pub type Set = [AtomicU64; WAYS];

/// A tick is 8 ns: 48 bits of it wrap every 26 days, and a million per second is still exact.
pub const TICK_NS: u64 = 8;

/// The longest a bucket may take to drain: half of the clock's period, less a day.
pub const DRAIN_NS_MAX: u64 = 12 * 24 * 3600 * 1_000_000_000;

/// A limit: so many a period, with so many at once. In ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Ticks that one unit occupies; 0 switches the limit off.
    pub interval: u64,
    /// Ticks that a full bucket holds: `burst` intervals.
    pub capacity: u64,
}

/// What the limiter says of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits; the bucket now drains in `ahead` ticks.
    Admit {
        /// Ticks until the bucket is empty.
        ahead: u64,
    },
    /// It does not fit; it will in `wait` ticks.
    Refuse {
        /// Ticks until one unit fits.
        wait: u64,
    },
}

impl Rate {
    /// No limit.
    pub const OFF: Self = Self { interval: 0, capacity: 0 };

    /// `count` units in `period_ns`, `burst` of them at once; `None` if any is zero, if a unit
    /// is shorter than a tick or if the bucket drains more slowly than [`DRAIN_NS_MAX`].
    #[must_use]
    pub const fn new(count: u64, period_ns: u64, burst: u64) -> Option<Self> {
        if count == 0 || burst == 0 {
            return None;
        }
        let interval = period_ns / TICK_NS / count;
        let Some(capacity) = interval.checked_mul(burst) else { return None };
        if interval == 0 || capacity > DRAIN_NS_MAX / TICK_NS {
            return None;
        }
        Some(Self { interval, capacity })
    }

    /// Whether this limit is switched off.
    ///
    /// So is one that not even a single unit fits. [`Self::new`] makes none, but the kernel may see
    /// one while the daemon writes its settings, half old and half new: to refuse every client for
    /// that instant would be worse than to refuse none.
    #[inline(always)]
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.interval == 0 || self.interval > self.capacity
    }

    /// Units that a full bucket holds.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        self.units(self.capacity)
    }

    /// Units that still fit into a bucket that drains in `ahead` ticks.
    #[must_use]
    pub const fn remaining(&self, ahead: u64) -> u64 {
        self.units(self.capacity.saturating_sub(ahead))
    }

    /// Whole units that so many ticks hold.
    const fn units(&self, ticks: u64) -> u64 {
        match ticks.checked_div(self.interval) {
            Some(units) => units,
            None => 0,
        }
    }

    /// Whether one more unit fits into a bucket that drains in `ahead` ticks.
    #[inline(always)]
    #[must_use]
    pub const fn decide(&self, ahead: u64) -> Verdict {
        let after = ahead + self.interval;
        if after <= self.capacity {
            Verdict::Admit { ahead: after }
        } else {
            Verdict::Refuse { wait: after - self.capacity }
        }
    }
}

/// Charges one unit to the source with this hash, at `now_ns`, in the set its hash leads to.
///
/// A source that is not in the set takes the place of the one that is closest to idle: a flood of
/// new sources replaces other newcomers, and never one that is at its limit while any other is
/// below it. A word that stays contended after a few tries belongs to a source that is
/// being hammered from several CPUs at once: it is refused.
#[inline(always)]
pub fn charge(set: &Set, hash: u64, rate: Rate, now_ns: u64) -> Verdict {
    let now = (now_ns / TICK_NS) & CLOCK;
    let mark = fingerprint(hash);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let (way, word) = place(set, mark, rate, now);
        let ahead = if word & !CLOCK == mark { ahead(word, rate, now) } else { 0 };
        let verdict = rate.decide(ahead);
        let Verdict::Admit { ahead } = verdict else { return verdict };
        let charged = mark | (now.wrapping_add(ahead) & CLOCK);
        // `way` is below WAYS by construction; the mask lets the kernel's verifier see it.
        if atomic::replace(&set[way & (WAYS - 1)], word, charged) {
            return verdict;
        }
        attempt += 1;
    }
    Verdict::Refuse { wait: rate.interval }
}

/// What a source would still be given, without charging it: ticks until its bucket is empty.
#[must_use]
pub fn peek(set: &Set, hash: u64, rate: Rate, now_ns: u64) -> u64 {
    let now = (now_ns / TICK_NS) & CLOCK;
    let mark = fingerprint(hash);
    let (_, word) = place(set, mark, rate, now);
    if word & !CLOCK == mark { ahead(word, rate, now) } else { 0 }
}

/// Where the source lives in the set, or else the place that is closest to idle.
#[inline(always)]
fn place(set: &Set, mark: u64, rate: Rate, now: u64) -> (usize, u64) {
    let mut idlest = (0, 0);
    let mut least = u64::MAX;
    let mut way = 0;
    while way < WAYS {
        let word = atomic::load(&set[way]);
        if word & !CLOCK == mark {
            return (way, word);
        }
        let ahead = if word == 0 { 0 } else { ahead(word, rate, now) };
        if ahead < least {
            least = ahead;
            idlest = (way, word);
        }
        way += 1;
    }
    idlest
}

/// Ticks from now until the word's bucket is empty. A time farther ahead than a full bucket lies in
/// the past: empty.
///
/// Two words are read amiss, both in the source's favour or for one bucket's time at most. One that
/// stays untouched until the clock has nearly wrapped, 26 days less the capacity, seems to lie
/// ahead again and to be that full until the clock has passed it. And when a smaller burst is
/// configured, one that is fuller than the new capacity seems to lie in the past: the source starts
/// anew with an empty bucket.
#[inline(always)]
fn ahead(word: u64, rate: Rate, now: u64) -> u64 {
    let ahead = (word & CLOCK).wrapping_sub(now) & CLOCK;
    if ahead > rate.capacity { 0 } else { ahead }
}

/// The upper 16 bits of the hash, never zero, so that an empty word matches nobody. The lower
/// bits choose the set.
#[inline(always)]
const fn fingerprint(hash: u64) -> u64 {
    let mark = hash & !CLOCK;
    if mark == 0 { 1 << 48 } else { mark }
}

/// The bits of a word that hold time.
const CLOCK: u64 = (1 << 48) - 1;

/// Compare-and-swap tries; each failure means that another CPU just charged the same set.
const ATTEMPTS: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admitted(set: &Set, hash: u64, rate: Rate, times: impl Iterator<Item = u64>) -> usize {
        times.filter(|t| matches!(charge(set, hash, rate, *t), Verdict::Admit { .. })).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        let set = Set::default();
        assert_eq!(admitted(&set, 1 << 50, rate, std::iter::repeat_n(0, 100)), 5);
        // Offered a hundred times the rate for ten seconds, it admits the rate.
        let offered = (0..10_000).map(|ms| SECOND + ms * 1_000_000);
        assert!((100..=105).contains(&admitted(&set, 1 << 50, rate, offered)));
    }

    #[test]
    fn refusal_says_when_to_come_back() {
        let rate = Rate::new(10, SECOND, 1).unwrap();
        let set = Set::default();
        assert_eq!(charge(&set, 9 << 48, rate, 0), Verdict::Admit { ahead: rate.interval });
        let Verdict::Refuse { wait } = charge(&set, 9 << 48, rate, 0) else { panic!("admitted") };
        assert_eq!(wait * TICK_NS, SECOND / 10);
        assert!(matches!(charge(&set, 9 << 48, rate, wait * TICK_NS), Verdict::Admit { .. }));
    }

    #[test]
    fn a_flood_of_new_sources_never_frees_the_offender() {
        let rate = Rate::new(10, SECOND, 20).unwrap();
        let set = Set::default();
        let offender = 0xdead_u64 << 48;
        assert_eq!(admitted(&set, offender, rate, std::iter::repeat_n(0, 100)), 20);
        for stranger in 1..50_000_u64 {
            let _ = charge(&set, stranger << 48, rate, 1_000);
        }
        assert!(matches!(charge(&set, offender, rate, 2_000), Verdict::Refuse { .. }));
    }

    #[test]
    fn the_clock_may_wrap_in_mid_burst() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        let set = Set::default();
        let wrap = (CLOCK + 1) * TICK_NS;
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(wrap - 10, 9)), 5);
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(wrap + 10, 9)), 0);
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(wrap + SECOND, 9)), 5);
    }

    #[test]
    fn cpus_together_admit_what_one_would() {
        let rate = Rate::new(1, 3600 * SECOND, 50).unwrap();
        let set = Set::default();
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| admitted(&set, 3 << 48, rate, 0..5_000))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(total, 50);
    }

    #[test]
    fn a_smaller_burst_starts_the_fuller_buckets_anew() {
        let (wide, tight) = (Rate::new(10, SECOND, 50).unwrap(), Rate::new(10, SECOND, 5).unwrap());
        let set = Set::default();
        assert_eq!(admitted(&set, 7 << 48, wide, std::iter::repeat_n(0, 99)), 50);
        assert_eq!(admitted(&set, 7 << 48, tight, std::iter::repeat_n(0, 99)), 5);
    }

    #[test]
    fn a_word_of_a_whole_period_ago_counts_until_its_time_is_over() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        let set = Set::default();
        let period = (CLOCK + 1) * TICK_NS;
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(0, 9)), 5);
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(period, 9)), 0);
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(period + SECOND, 9)), 5);
    }

    #[test]
    fn a_limit_that_nothing_fits_is_off() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        assert!(!rate.is_off() && Rate::OFF.is_off());
        assert!(!Rate { capacity: rate.interval, ..rate }.is_off());
        assert!(Rate { capacity: rate.interval - 1, ..rate }.is_off());
        assert!(Rate { capacity: 0, ..rate }.is_off());
        assert!(Rate { interval: 0, ..rate }.is_off());
    }

    #[test]
    fn rates_out_of_range_are_refused() {
        assert_eq!(Rate::new(0, SECOND, 1), None);
        assert_eq!(Rate::new(1, SECOND, 0), None);
        assert_eq!(Rate::new(SECOND, SECOND, 1), None);
        assert_eq!(Rate::new(1, 13 * 24 * 3600 * SECOND, 1), None);
        assert_eq!(Rate::new(1_000_000, SECOND, 7).unwrap().burst(), 7);
    }

    proptest! {
        /// Against the textbook token bucket in exact arithmetic.
        #[test]
        fn agrees_with_a_token_bucket(
            interval_ticks in 1_u64..1_000_000,
            burst in 1_u64..50,
            gaps in proptest::collection::vec(0_u64..3_000_000, 1..300),
        ) {
            let rate = Rate { interval: interval_ticks, capacity: interval_ticks * burst };
            let set = Set::default();
            // Tokens in units of 1/interval, so that one tick refills exactly one.
            let mut tokens = interval_ticks * burst;
            let mut now = 0;
            for gap in gaps {
                now += gap;
                tokens = (tokens + gap).min(interval_ticks * burst);
                let fits = tokens >= interval_ticks;
                if fits {
                    tokens -= interval_ticks;
                }
                let verdict = charge(&set, 5 << 48, rate, now * TICK_NS);
                prop_assert_eq!(matches!(verdict, Verdict::Admit { .. }), fits);
                if let Verdict::Admit { ahead } = verdict {
                    prop_assert_eq!(rate.remaining(ahead), tokens / interval_ticks);
                }
            }
        }
    }
}
