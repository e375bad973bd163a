//! The rate limiter's arithmetic, for packets in the kernel and for requests in the daemon.
//!
//! GCRA (ITU-T I.371, the virtual scheduling form): a source's whole history is the one time at
//! which its bucket will be empty again. That time and a fingerprint of the source share a 64-bit
//! word, so that one compare-and-swap charges a source exactly, from any number of CPUs.

use core::sync::atomic::AtomicU64;

use crate::{atomic, verifier};

/// Words in a set: the places a source may live in. 4 x 8 bytes never span two cache lines.
pub const WAYS: usize = 4;

/// A set of the table: where a source's hash leads.
pub type Set = [AtomicU64; WAYS];

/// A tick is 8 ns: 48 bits of it wrap every 26 days, and a million per second is still exact.
pub const TICK_NS: u64 = 8;

/// The longest a bucket may take to drain: half of the clock's period, less a day.
pub const DRAIN_NS_MAX: u64 = 12 * 24 * 3600 * 1_000_000_000;

/// Ticks of a byte limit in a nanosecond: 48 bits of them wrap every 19 hours.
const BYTE_TICKS: u64 = 4;

/// Bytes that a byte limit's interval speaks of, so that fast rates keep their digits.
pub const BYTES_UNIT: u64 = 1 << 16;

/// The longest a bucket of bytes may take to drain.
const BYTES_DRAIN_NS_MAX: u64 = 3600 * 1_000_000_000;

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

    /// `bytes` a period, `burst` bytes of them at once, for [`Charge::bytes`]; `None` if any is zero, if
    /// the burst holds no [`BYTES_UNIT`] or takes longer than an hour, or if the rate is beyond 2^48
    /// bytes a second.
    #[must_use]
    pub const fn of_bytes(bytes: u64, period_ns: u64, burst: u64) -> Option<Self> {
        if bytes == 0 || burst < BYTES_UNIT {
            return None;
        }
        let interval = period_ns as u128 * BYTE_TICKS as u128 * BYTES_UNIT as u128 / bytes as u128;
        let capacity = interval * burst as u128 / BYTES_UNIT as u128;
        if interval == 0 || capacity > BYTES_DRAIN_NS_MAX as u128 * BYTE_TICKS as u128 {
            return None;
        }
        Some(Self { interval: interval as u64, capacity: capacity as u64 })
    }

    /// `factor` times as much of everything. The interval is rounded up: it is never more than
    /// that.
    #[must_use]
    pub const fn times(self, factor: u64) -> Self {
        if factor == 0 {
            return Self::OFF;
        }
        Self { interval: self.interval.div_ceil(factor), capacity: self.capacity }
    }

    /// The same limit, of which one unit in `of` is charged.
    #[must_use]
    pub const fn sampled(self, of: u64) -> Self {
        let interval = self.interval.saturating_mul(of);
        let capacity = if self.capacity > interval { self.capacity } else { interval };
        Self { interval, capacity }
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
}

/// Charges one unit to the source with this hash, at `now_ns`, in the set its hash leads to.
///
/// A source that is not in the set takes the place of the one that is closest to idle: a flood of
/// new sources replaces other newcomers, and never one that is at its limit while any other is
/// below it. Where all are at their limit, as a flood can bring about where the burst is small, newcomers take the
/// last place from each other: the other three keep theirs, and no newcomer is refused for want of a
/// place. That holds among sources of one limit: those of another must not share the set. A word
/// that stays contended after a few tries belongs to a source that is being hammered from several
/// CPUs at once: it is refused.
#[inline(always)]
pub fn charge(set: &Set, hash: u64, rate: Rate, now_ns: u64) -> Verdict {
    Charge::unit(rate, now_ns).settle(set, hash, Mode::Charge)
}

/// Whether a verdict has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What is admitted is charged.
    Charge,
    /// Nothing is: the verdict tells what [`Mode::Charge`] would have said.
    Look,
}

/// A charge: what it costs, at which time, in the ticks of its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Ticks that it occupies.
    pub cost: u64,
    /// Ticks that each of its limit's charges occupies; 0 where they differ.
    pub each: u64,
    /// Ticks that a full bucket holds.
    pub capacity: u64,
    /// The time.
    pub now: u64,
}

impl Charge {
    /// One unit at a rate that [`Rate::new`] made.
    #[inline(always)]
    #[must_use]
    pub const fn unit(rate: Rate, now_ns: u64) -> Self {
        let Rate { interval: cost, capacity } = rate;
        Self { cost, each: cost, capacity, now: now_ns / TICK_NS }
    }

    /// Bytes at a rate that [`Rate::of_bytes`] made: their ticks are quarters of a nanosecond.
    ///
    /// A byte costs a fraction of a tick; the whole is rounded up: below 100 MB/s by less than one
    /// part in two thousand of the smallest packet's cost, at 10 GB/s by one in twenty-five. What is
    /// larger than the burst takes all of it: segments that were put together are, and would never fit.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(rate: Rate, bytes: u64, now_ns: u64) -> Self {
        let cost = (bytes * rate.interval).div_ceil(BYTES_UNIT);
        let capacity = rate.capacity;
        let cost = if cost > capacity { capacity } else { cost };
        Self { cost, each: 0, capacity, now: now_ns * BYTE_TICKS }
    }

    /// Charges the source with this hash in the set its hash leads to; see [`charge`].
    #[inline(always)]
    #[must_use]
    pub fn settle(self, set: &Set, hash: u64, mode: Mode) -> Verdict {
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            if let Some(verdict) = self.attempt(set, hash, mode) {
                return verdict;
            }
            attempt += 1;
        }
        Verdict::Refuse { wait: self.cost }
    }

    /// One try of [`Self::settle`]; `None` if another CPU just charged the same set.
    #[inline(always)]
    #[must_use]
    pub fn attempt(self, set: &Set, hash: u64, mode: Mode) -> Option<Verdict> {
        let now = self.now & CLOCK;
        let mark = fingerprint(hash);
        let (way, word) = place(set, mark, self, hash);
        let ahead = if word & !CLOCK == mark { ahead(word, self.capacity, now) } else { 0 };
        let after = ahead + self.cost;
        if after > self.capacity {
            return Some(Verdict::Refuse { wait: after - self.capacity });
        }
        let charged = mark | (now.wrapping_add(after) & CLOCK);
        // `way` is below WAYS by construction; the mask lets the kernel's verifier see it.
        let is_done =
            matches!(mode, Mode::Look) || atomic::replace(&set[way & (WAYS - 1)], word, charged);
        is_done.then_some(Verdict::Admit { ahead: after })
    }
}

/// Charges one unit to a bucket that has a word of its own: the word to put in its place; `None` if
/// the unit does not fit.
#[inline(always)]
#[must_use]
pub fn charged(word: u64, rate: Rate, now_ns: u64) -> Option<u64> {
    let now = (now_ns / TICK_NS) & CLOCK;
    let after = ahead(word, rate.capacity, now) + rate.interval;
    (after <= rate.capacity).then_some(now.wrapping_add(after) & CLOCK)
}

/// What a source would still be given, without charging it: ticks until its bucket is empty.
#[must_use]
pub fn peek(set: &Set, hash: u64, rate: Rate, now_ns: u64) -> u64 {
    let charge = Charge::unit(rate, now_ns);
    let mark = fingerprint(hash);
    let (_, word) = place(set, mark, charge, hash);
    if word & !CLOCK == mark { ahead(word, charge.capacity, charge.now & CLOCK) } else { 0 }
}

/// Where the source lives in the set, or else the place that it takes, and the word there: that which is
/// closest to idle, or the last, if nobody in the set has room for one charge more.
#[inline(always)]
fn place(set: &Set, mark: u64, charge: Charge, hash: u64) -> (usize, u64) {
    let Charge { each, capacity, now, .. } = charge;
    let (mut least, mut found) = (u64::MAX, 0);
    let mut way = 0;
    while way < WAYS {
        let word = atomic::load(&set[way]);
        let rank = match word {
            word if word & !CLOCK == mark => 0,
            0 => 1,
            word => match ahead(word, capacity, now & CLOCK) {
                ahead if ahead + each > capacity => AT_LIMIT - way as u64,
                ahead => 1 + ahead,
            },
        };
        let rank = rank * WAYS as u64 + way as u64;
        if rank < least {
            (least, found) = (rank, word);
        }
        // The ways through this loop then are four times a few, not a few to the power of four.
        (least, found) = (verifier::forget(least, hash), verifier::forget(found, hash));
        way += 1;
    }
    (least as usize % WAYS, found)
}

/// Ticks from now until the word's bucket is empty. A time farther ahead than a full bucket lies in
/// the past: empty. A little farther is still full: another CPU that read its clock later has filled
/// it.
///
/// Two words are read amiss, both in the source's favour or for one bucket's time at most. One that
/// stays untouched until the clock has nearly wrapped, 26 days less the capacity, seems to lie
/// ahead again and to be that full until the clock has passed it. And when a smaller burst is
/// configured, one that is fuller than the new capacity seems to lie in the past: the source starts
/// anew with an empty bucket.
#[inline(always)]
fn ahead(word: u64, capacity: u64, now: u64) -> u64 {
    let ahead = (word & CLOCK).wrapping_sub(now) & CLOCK;
    if ahead > capacity + SKEW { 0 } else { ahead }
}

/// The upper 16 bits of the hash, never zero, so that an empty word matches nobody. The lower
/// bits choose the set.
#[inline(always)]
const fn fingerprint(hash: u64) -> u64 {
    let mark = hash & !CLOCK;
    if mark == 0 { 1 << 48 } else { mark }
}

/// Ticks by which a charge may come later than its clock was read: 2 s of a client's units, 67 ms of
/// its bytes. A virtual CPU can be halted so long in mid-packet.
const SKEW: u64 = 1 << 28;

/// The bits of a word that hold time.
const CLOCK: u64 = (1 << 48) - 1;

/// Ranks behind every word that is below its limit.
const AT_LIMIT: u64 = 1 << 50;

/// Compare-and-swap tries before a contended source is refused; each failure means that another CPU just charged the same set.
pub const ATTEMPTS: u32 = 8;

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
    fn nor_does_one_that_fills_every_bucket_as_the_offender_did() {
        for burst in 1..=3 {
            let rate = Rate::new(60, 3600 * SECOND, burst).unwrap();
            let set = Set::default();
            let offender = 0xdead_u64 << 48;
            assert_eq!(admitted(&set, offender, rate, 0..100), burst as usize);
            for n in 0..50_000_u64 {
                let stranger = (n / burst % 0xbeef + 1) << 48;
                let _ = charge(&set, stranger, rate, 1_000 + n);
                // It goes on, and is held to what it may: it is never anew in its set.
                if n % 100 == 0 {
                    assert_eq!(admitted(&set, offender, rate, std::iter::once(1_000 + n)), 0);
                }
            }
            // Who comes anew is not refused for want of a place.
            assert_eq!(admitted(&set, 0xcafe << 48, rate, std::iter::once(60_000)), 1);
        }
    }

    #[test]
    fn a_clock_that_was_read_early_finds_a_full_bucket_full() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        let set = Set::default();
        let now = 7 * SECOND;
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(now, 9)), 5);
        assert_eq!(admitted(&set, 7 << 48, rate, (1..9).map(|n| now - n * 1_000)), 0);
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::once(now - SECOND)), 0);
    }

    #[test]
    fn what_is_larger_than_the_burst_takes_all_of_it() {
        let rate = Rate::of_bytes(100_000, SECOND, 65_536).unwrap();
        let set = Set::default();
        let fits = |bytes, now_ns| {
            let verdict = Charge::bytes(rate, bytes, now_ns).settle(&set, 7 << 48, Mode::Charge);
            matches!(verdict, Verdict::Admit { .. })
        };
        assert!(fits(524_280, SECOND) && !fits(524_280, SECOND) && !fits(60, SECOND));
        // The bucket drains in 0.66 s; until then the large one waits, as it would behind others.
        assert!(!fits(524_280, SECOND + 600_000_000) && fits(524_280, SECOND + 700_000_000));
    }

    #[test]
    fn a_bucket_with_a_word_of_its_own_gives_a_burst_then_the_rate() {
        let rate = Rate::new(10, SECOND, 5).unwrap();
        let (mut word, mut admitted) = (0, 0);
        let times = std::iter::repeat_n(0, 9).chain((0..10_000).map(|ms| SECOND + ms * 1_000_000));
        for now_ns in times {
            if let Some(charged) = charged(word, rate, now_ns) {
                (word, admitted) = (charged, admitted + 1);
            }
        }
        assert!((105..=110).contains(&admitted), "{admitted}");
        // A shorter bucket is not held to what a longer one was filled with.
        let slow = Rate::new(1, 3600 * SECOND, 1).unwrap();
        let full = charged(0, slow, SECOND).unwrap();
        assert_eq!(charged(full, slow, 2 * SECOND), None);
        assert!(charged(full, rate, 2 * SECOND).is_some());
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

    #[test]
    fn bytes_are_admitted_at_their_rate_whatever_the_packets() {
        for (rate_bytes, tolerance) in
            [(1_000_000, 0.001), (100_000_000, 0.001), (10_000_000_000, 0.05)]
        {
            for size in [60_u64, 1500, 9000] {
                let rate = Rate::of_bytes(rate_bytes, SECOND, 2 * BYTES_UNIT).unwrap();
                let set = Set::default();
                // Offered twice the rate in even steps, for as long as 100 000 packets take.
                let step = |packet: u64| packet * size * SECOND / (2 * rate_bytes);
                let taken = (0..100_000)
                    .filter(|packet| {
                        let verdict = Charge::bytes(rate, size, step(*packet)).settle(
                            &set,
                            7 << 48,
                            Mode::Charge,
                        );
                        matches!(verdict, Verdict::Admit { .. })
                    })
                    .count() as f64;
                let fair = 50_000.0 + (2 * BYTES_UNIT / size) as f64 / 2.0;
                let off = (taken - fair).abs() / fair;
                assert!(off < tolerance + 0.03, "{rate_bytes} {size}: {taken} of {fair}");
            }
        }
    }

    #[test]
    fn byte_rates_out_of_range_are_refused() {
        assert_eq!(Rate::of_bytes(0, SECOND, BYTES_UNIT), None);
        assert_eq!(Rate::of_bytes(1_000, SECOND, BYTES_UNIT - 1), None);
        assert_eq!(Rate::of_bytes(1, SECOND, BYTES_UNIT), None);
        let rate = Rate::of_bytes(1_000_000, SECOND, 1_000_000).unwrap();
        assert!(!rate.is_off());
    }

    #[test]
    fn a_look_charges_nothing() {
        let rate = Rate::new(1, SECOND, 2).unwrap();
        let set = Set::default();
        for _ in 0..5 {
            let verdict = Charge::unit(rate, 0).settle(&set, 7 << 48, Mode::Look);
            assert!(matches!(verdict, Verdict::Admit { .. }));
        }
        assert_eq!(admitted(&set, 7 << 48, rate, std::iter::repeat_n(0, 9)), 2);
        let verdict = Charge::unit(rate, 0).settle(&set, 7 << 48, Mode::Look);
        assert!(matches!(verdict, Verdict::Refuse { .. }));
    }

    #[test]
    fn a_multiple_never_exceeds_its_factor() {
        let rate = Rate::new(1_000_000, SECOND, 64).unwrap();
        assert_eq!(rate.times(1), rate);
        assert_eq!(rate.times(32), Rate { interval: 4, capacity: rate.capacity });
        assert!(rate.times(0).is_off());
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
