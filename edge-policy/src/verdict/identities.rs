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
        let mut oldest = (&line.0[0], u64::MAX);
        for word in &line.0 {
            let value = word.load(Relaxed);
            if value & !TIME == mark {
                if value & TIME < now {
                    word.store(mark | now, Relaxed);
                }
                return;
            }
            let time = if value == 0 { 0 } else { 1 + (value & TIME) };
            if time < oldest.1 {
                oldest = (word, time);
            }
        }
        if oldest.1 > 0 && oldest.1 + AGE > now {
            self.evicted.fetch_add(1, Relaxed);
        }
        oldest.0.store(mark | now, Relaxed);
    }

    /// How many identities succeeded from a source within this time; at most eight are told apart.
    #[must_use]
    pub fn count(&self, source: &Source, within_ns: u64, now_ns: u64) -> usize {
        let (line, source, now) = self.find(source, now_ns);
        let since = now.saturating_sub(within_ns / UNIT_NS);
        let is_one = |word: &&AtomicU64| {
            let value = word.load(Relaxed);
            value != 0 && value & SOURCE == source && value & TIME >= since
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

const WAYS: usize = 8;
/// 4 MiB.
const LINES: usize = 65_536;
/// Sixteen bits for the source, at the top; 24 for the identity; 24 for the time.
const SOURCE: u64 = 0xffff << 48;
const TIME: u64 = (1 << 24) - 1;
/// The time is told to a second; it returns to its beginning after half a year of uptime, when what
/// is older than that is taken for old.
const UNIT_NS: u64 = 1_000_000_000;
/// What is older may go unnoticed.
const AGE: u64 = 600;

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
