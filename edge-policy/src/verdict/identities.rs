//! Who succeeded from where of late: what tells a NAT or a proxy from a lone client.
//!
//! Fixed memory: lines of eight words, each a mark of the source, one of the identity and the time. A
//! success is a few loads and mostly no store; a new one takes the place of the oldest of its line.

use std::hash::{Hash, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_common::Source;
use siphasher::sip::SipHasher13;

/// The identities that succeeded, by source. Shared by all that serve.
pub struct Identities {
    lines: Box<[Line]>,
    secret: [u8; 16],
    /// Identities that lost their place before they were old.
    evicted: AtomicU64,
}

/// A cache line.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; WAYS]);

impl Identities {
    /// None yet, with marks that nobody outside can foresee.
    #[must_use]
    pub fn new(secret: [u8; 16]) -> Self {
        let lines = (0..LINES).map(|_| Line::default()).collect();
        Self { lines, secret, evicted: AtomicU64::new(0) }
    }

    /// The mark of an identity that somebody outside may have chosen the name of.
    pub fn mark(&self, identity: impl Hash) -> u64 {
        self.hash(identity)
    }

    /// Notes that the identity with this mark succeeded from a source.
    pub fn succeed(&self, source: &Source, identity: u64, now_ns: u64) {
        let (line, source, now) = self.find(source, now_ns);
        let mark = source | (identity >> 40) << 24;
        let mut oldest = (&line.0[0], 0);
        for word in &line.0 {
            let value = word.load(Relaxed);
            let age = age(value, now);
            if value & !TIME == mark {
                if age > 0 {
                    word.store(mark | now, Relaxed);
                }
                return;
            }
            let age = if value == 0 { u64::MAX } else { age };
            if age > oldest.1 {
                oldest = (word, age);
            }
        }
        if oldest.1 <= AGE {
            self.evicted.fetch_add(1, Relaxed);
        }
        oldest.0.store(mark | now, Relaxed);
    }

    /// How many identities succeeded from a source within this time; at most eight are told apart.
    #[must_use]
    pub fn count(&self, source: &Source, within_ns: u64, now_ns: u64) -> usize {
        let (line, source, now) = self.find(source, now_ns);
        let within = within_ns / UNIT_NS;
        let is_one = |word: &&AtomicU64| {
            let value = word.load(Relaxed);
            value != 0 && value & SOURCE == source && age(value, now) <= within
        };
        line.0.iter().filter(is_one).count()
    }

    /// Identities that lost their place before they were old.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    fn find(&self, source: &Source, now_ns: u64) -> (&Line, u64, u64) {
        let hash = self.hash(source);
        let line = &self.lines[hash as usize % LINES];
        (line, hash & SOURCE, (now_ns / UNIT_NS) & TIME)
    }

    fn hash(&self, what: impl Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        what.hash(&mut hasher);
        hasher.finish()
    }
}

/// How long ago a value was noted. What another thread noted meanwhile, by a clock that it read later, is
/// of now.
const fn age(value: u64, now: u64) -> u64 {
    let age = now.wrapping_sub(value & TIME) & TIME;
    if age > TIME - AHEAD { 0 } else { age }
}

const WAYS: usize = 8;
/// 4 MiB.
const LINES: usize = 65_536;
/// Sixteen bits for the source, at the top; 24 for the identity; 24 for the time.
const SOURCE: u64 = 0xffff << 48;
const TIME: u64 = (1 << 24) - 1;
/// The time is told to a second, and returns to its beginning after half a year of uptime: an age is the
/// way from one to the other around it.
const UNIT_NS: u64 = 1_000_000_000;
/// What is older may go unnoticed.
const AGE: u64 = 600;
/// By how much two threads' clocks may seem to differ.
const AHEAD: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn distinct_identities_count_and_grow_old() {
        let known = Identities::new([7; 16]);
        let (here, there) = (Source::v4([192, 0, 2, 1]), Source::v4([192, 0, 2, 2]));
        for name in ["a", "b", "a", "c", "a"] {
            known.succeed(&here, known.mark(name), 1000 * SECOND);
        }
        known.succeed(&there, known.mark("a"), 1000 * SECOND);
        assert_eq!(known.count(&here, 60 * SECOND, 1030 * SECOND), 3);
        assert_eq!(known.count(&there, 60 * SECOND, 1030 * SECOND), 1);
        known.succeed(&here, known.mark("a"), 1050 * SECOND);
        assert_eq!(known.count(&here, 60 * SECOND, 1070 * SECOND), 1);
        assert_eq!(known.evicted(), 0);
    }

    #[test]
    fn half_a_year_of_uptime_makes_nothing_old_young_nor_young_old() {
        const ROUND: u64 = TIME + 1;
        let known = Identities::new([7; 16]);
        let here = Source::v4([192, 0, 2, 1]);
        let succeed = |name, at| known.succeed(&here, known.mark(name), at * SECOND);
        let count = |at: u64| known.count(&here, 60 * SECOND, at * SECOND);
        succeed("old", ROUND - 100_000);
        succeed("a", ROUND - 30);
        assert_eq!((count(ROUND - 1), count(ROUND + 20), count(ROUND + 40)), (1, 1, 0));
        succeed("a", ROUND + 50);
        succeed("b", ROUND + 52);
        // Noted by a thread whose clock is a little behind.
        succeed("b", ROUND + 51);
        assert_eq!((count(ROUND + 51), count(ROUND + 100), known.evicted()), (2, 2, 0));
        // What is old gives way first, and costs nobody.
        (0..6).for_each(|n| succeed(["c", "d", "e", "f", "g", "h"][n], ROUND + 1_000));
        assert_eq!(known.evicted(), 0);
        assert_eq!(count(ROUND + 1_000), 6);
    }

    #[test]
    fn a_crowd_is_one_line_and_pushes_nobody_else_out() {
        let known = Identities::new([7; 16]);
        let (nat, other) = (Source::v4([192, 0, 2, 1]), Source::v4([192, 0, 2, 9]));
        known.succeed(&other, known.mark("x"), 5 * SECOND);
        for number in 0..200 {
            known.succeed(&nat, known.mark(format!("user {number}")), 5 * SECOND);
        }
        assert_eq!(known.count(&nat, 60 * SECOND, 6 * SECOND), 8);
        assert_eq!(known.count(&other, 60 * SECOND, 6 * SECOND), 1);
        assert_eq!(known.evicted(), 192);
    }
}
