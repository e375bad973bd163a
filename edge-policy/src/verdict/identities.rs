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

/// That an identity succeeded from a source, as it is kept over a restart: it means something under the
/// same secret alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The number of its line.
    pub line: u32,
    /// Whose it is.
    pub mark: u64,
    /// Seconds since it was noted.
    pub age_s: u32,
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
    ///
    /// A source and something beside it is another source: what succeeds from there counts there alone.
    pub fn succeed(&self, source: impl Hash, identity: u64, now_ns: u64) {
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

    /// Whether the identity with this mark succeeded from a source, as far back as is known.
    #[must_use]
    pub fn knows(&self, source: impl Hash, identity: u64) -> bool {
        let (line, source, _) = self.find(source, 0);
        let mark = source | (identity >> 40) << 24;
        line.0.iter().any(|word| word.load(Relaxed) & !TIME == mark)
    }

    /// What the marks are made with.
    #[must_use]
    pub const fn secret(&self) -> [u8; 16] {
        self.secret
    }

    /// All that was noted within this time.
    pub fn notes(&self, within_ns: u64, now_ns: u64) -> impl Iterator<Item = Note> + '_ {
        let (now, within) = ((now_ns / UNIT_NS) & TIME, within_ns / UNIT_NS);
        (0..).zip(&self.lines).flat_map(move |(number, line)| {
            line.0.iter().filter_map(move |word| {
                let value = word.load(Relaxed);
                let age = age(value, now);
                let note = Note { line: number, mark: value & !TIME, age_s: age as u32 };
                (value != 0 && age <= within).then_some(note)
            })
        })
    }

    /// Puts a note back where it was, unless its line is full. Before anybody succeeds.
    pub fn restore(&self, note: Note, now_ns: u64) {
        let Some(line) = self.lines.get(note.line as usize) else { return };
        if let Some(word) = line.0.iter().find(|word| word.load(Relaxed) == 0) {
            let at = (now_ns / UNIT_NS).wrapping_sub(note.age_s.into()) & TIME;
            word.store(note.mark & !TIME | at, Relaxed);
        }
    }

    /// Identities that lost their place before they were old.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    fn find(&self, source: impl Hash, now_ns: u64) -> (&Line, u64, u64) {
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
/// Notes that there is room for.
pub const NOTES_MAX: usize = LINES * WAYS;
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
            known.succeed(here, known.mark(name), 1000 * SECOND);
        }
        known.succeed(there, known.mark("a"), 1000 * SECOND);
        assert_eq!(known.count(&here, 60 * SECOND, 1030 * SECOND), 3);
        assert_eq!(known.count(&there, 60 * SECOND, 1030 * SECOND), 1);
        known.succeed(here, known.mark("a"), 1050 * SECOND);
        assert_eq!(known.count(&here, 60 * SECOND, 1070 * SECOND), 1);
        assert_eq!(known.evicted(), 0);
        let knows = |source, name| known.knows(source, known.mark(name));
        assert!(knows(&here, "b") && knows(&there, "a"), "long ago");
        assert!(!knows(&there, "b") && !knows(&here, "d"));
        known.succeed((here, "beside"), known.mark("d"), 1050 * SECOND);
        assert!(known.knows((here, "beside"), known.mark("d")) && !knows(&here, "d"));
        assert_eq!(known.count(&here, 60 * SECOND, 1070 * SECOND), 1);
    }

    #[test]
    fn half_a_year_of_uptime_makes_nothing_old_young_nor_young_old() {
        const ROUND: u64 = TIME + 1;
        let known = Identities::new([7; 16]);
        let here = Source::v4([192, 0, 2, 1]);
        let succeed = |name, at| known.succeed(here, known.mark(name), at * SECOND);
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
        known.succeed(other, known.mark("x"), 5 * SECOND);
        for number in 0..200 {
            known.succeed(nat, known.mark(format!("user {number}")), 5 * SECOND);
        }
        assert_eq!(known.count(&nat, 60 * SECOND, 6 * SECOND), 8);
        assert_eq!(known.count(&other, 60 * SECOND, 6 * SECOND), 1);
        assert_eq!(known.evicted(), 192);
    }

    #[test]
    fn what_is_kept_is_as_old_as_before() {
        let known = Identities::new([7; 16]);
        let (here, there) = (Source::v4([192, 0, 2, 1]), Source::v4([192, 0, 2, 2]));
        known.succeed(there, known.mark("a"), 900 * SECOND);
        for (name, at) in [("a", 1000), ("b", 1020), ("c", 1050)] {
            known.succeed(here, known.mark(name), at * SECOND);
        }
        let notes: Vec<_> = known.notes(60 * SECOND, 1060 * SECOND).collect();
        let mut ages: Vec<_> = notes.iter().map(|note| note.age_s).collect();
        ages.sort_unstable();
        assert_eq!(ages, [10, 40, 60]);
        // The clock began anew, less than a minute ago.
        let again = Identities::new(known.secret());
        let later = notes.iter().map(|note| Note { age_s: note.age_s + 5, ..*note });
        later.for_each(|note| again.restore(note, 20 * SECOND));
        let count = |source, at: u64| again.count(source, 60 * SECOND, at * SECOND);
        assert_eq!((count(&here, 20), count(&here, 34), count(&there, 20)), (2, 2, 0));
        again.succeed(here, again.mark("b"), 40 * SECOND);
        assert_eq!((count(&here, 40), again.evicted()), (2, 0));
        again.restore(Note { line: u32::MAX, mark: 1 << 60, age_s: 0 }, SECOND);
    }
}
