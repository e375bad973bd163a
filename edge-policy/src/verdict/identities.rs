//! Who succeeded from where of late: what tells a NAT or a proxy from a lone client.
//!
//! Fixed memory: lines of eight words, each a mark of the source, one of the identity and the time. A
//! success is a few loads and mostly no store. In a full line a new one takes the place that matters
//! least: what is old; its own source's, once that is known for a shared one; what a source has beyond
//! that; and else what is of a source that has the fewest. So neither a busy neighbour of the line nor any
//! number of sources with an identity each make a shared source look like a lone client.

use std::cmp::Reverse;
use std::hash::{Hash, Hasher as _};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use edge_common::Source;
use siphasher::sip::SipHasher13;

/// The identities that succeeded, by source. Shared by all that serve.
pub struct Identities {
    lines: Box<[Line]>,
    secret: [u8; 16],
    /// So many make a source a shared one.
    enough: AtomicUsize,
    /// What is older counts for nothing; in units of time.
    within: AtomicU64,
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
        let (enough, within) = (AtomicUsize::new(WAYS), AtomicU64::new(WITHIN));
        Self { lines, secret, enough, within, evicted: AtomicU64::new(0) }
    }

    /// What makes a source a shared one from now on: so many identities within this time.
    pub fn expect(&self, shared_by: usize, within: Duration) {
        self.enough.store(shared_by.clamp(1, WAYS), Relaxed);
        self.within.store(within.as_secs(), Relaxed);
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
        let values = line.0.each_ref().map(|word| word.load(Relaxed));
        if let Some(at) = values.iter().position(|value| value & !TIME == mark) {
            if age(values[at], now) > 0 {
                line.0[at].store(mark | now, Relaxed);
            }
            return;
        }
        let ages = values.map(|value| if value == 0 { u64::MAX } else { age(value, now) });
        let place = self.least(values, ages, source);
        if ages[place] <= self.within.load(Relaxed) {
            self.evicted.fetch_add(1, Relaxed);
        }
        line.0[place].store(mark | now, Relaxed);
    }

    /// The place in a line that matters least to all but a source with one more identity.
    fn least(&self, values: [u64; WAYS], ages: [u64; WAYS], source: u64) -> usize {
        let (enough, within) = (self.enough.load(Relaxed), self.within.load(Relaxed));
        let count = |of: u64| values.iter().filter(|value| *value & SOURCE == of).count();
        let is_enough = count(source) >= enough;
        let rank = |place: &usize| {
            let (of, age) = (values[*place] & SOURCE, ages[*place]);
            let matters = match count(of) {
                _ if age > within => 0,
                _ if of == source && is_enough => 1,
                _ if of == source => WAYS + 3,
                count if count > enough => 2,
                count if count == enough => WAYS + 4,
                count => 2 + count,
            };
            (matters, Reverse(age))
        };
        (0..WAYS).min_by_key(rank).unwrap_or(0)
    }

    /// Whether so many identities succeeded from a source of late that it is a NAT or a proxy.
    #[must_use]
    pub fn is_shared(&self, source: &Source, now_ns: u64) -> bool {
        let within = self.within.load(Relaxed);
        self.count(source, within, now_ns) >= self.enough.load(Relaxed)
    }

    /// How many identities succeeded from a source within this time; at most eight are told apart.
    fn count(&self, source: &Source, within: u64, now_ns: u64) -> usize {
        let (line, source, now) = self.find(source, now_ns);
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
/// Until it is told otherwise; in units of time.
const WITHIN: u64 = 600;
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
        assert_eq!(known.count(&here, 60, 1030 * SECOND), 3);
        assert_eq!(known.count(&there, 60, 1030 * SECOND), 1);
        known.succeed(here, known.mark("a"), 1050 * SECOND);
        assert_eq!(known.count(&here, 60, 1070 * SECOND), 1);
        assert_eq!(known.evicted(), 0);
        known.expect(3, Duration::from_secs(60));
        assert!(known.is_shared(&here, 1030 * SECOND) && !known.is_shared(&there, 1030 * SECOND));
        assert!(!known.is_shared(&here, 1070 * SECOND));
        let knows = |source, name| known.knows(source, known.mark(name));
        assert!(knows(&here, "b") && knows(&there, "a"), "long ago");
        assert!(!knows(&there, "b") && !knows(&here, "d"));
        known.succeed((here, "beside"), known.mark("d"), 1050 * SECOND);
        assert!(known.knows((here, "beside"), known.mark("d")) && !knows(&here, "d"));
        assert_eq!(known.count(&here, 60, 1070 * SECOND), 1);
    }

    #[test]
    fn half_a_year_of_uptime_makes_nothing_old_young_nor_young_old() {
        const ROUND: u64 = TIME + 1;
        let known = Identities::new([7; 16]);
        let here = Source::v4([192, 0, 2, 1]);
        let succeed = |name, at| known.succeed(here, known.mark(name), at * SECOND);
        let count = |at: u64| known.count(&here, 60, at * SECOND);
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
        assert_eq!(known.count(&nat, 60, 6 * SECOND), 8);
        assert_eq!(known.count(&other, 60, 6 * SECOND), 1);
        assert_eq!(known.evicted(), 192);
    }

    /// Sources whose identities are all in one line.
    fn of_one_line(known: &Identities, count: usize) -> Vec<Source> {
        let all = (0_u32..).map(|n| Source::v4(n.to_be_bytes()));
        let line = |source: &Source| known.hash(source) as usize % LINES;
        let first = line(&Source::v4([0; 4]));
        all.filter(|source| line(source) == first).take(count).collect()
    }

    #[test]
    fn a_busy_source_leaves_a_small_one_of_its_line_what_it_has() {
        for shared_by in [2, 3, 4] {
            let known = Identities::new([7; 16]);
            known.expect(shared_by, Duration::from_secs(600));
            let sources = of_one_line(&known, 2);
            let [busy, small] = sources[..] else { unreachable!() };
            let count = |source, at: u64| known.count(source, 600, at * SECOND);
            let crowd = |at: u64| {
                for n in 0..200 {
                    known.succeed(busy, known.mark(format!("user {n}")), at * SECOND);
                }
            };
            crowd(1);
            assert_eq!(count(&busy, 1), 8, "alone it has all");
            for n in 0..shared_by as u64 {
                known.succeed(small, known.mark(n), (2 + n) * SECOND);
                crowd(2 + n);
            }
            // They come again too seldom to be the youngest.
            for at in [100, 200, 300] {
                crowd(at);
                assert!(count(&busy, at) >= shared_by);
                assert_eq!(count(&small, at), shared_by, "{shared_by}");
            }
            // What is old is nobody's.
            crowd(2_000);
            assert_eq!((count(&busy, 2_000), count(&small, 2_000)), (8, 0));
        }
    }

    #[test]
    fn who_fills_a_line_from_many_sources_takes_no_shared_one_s_place() {
        let known = Identities::new([7; 16]);
        known.expect(3, Duration::from_secs(600));
        let sources = of_one_line(&known, 24);
        let (small, late, attacker) = (&sources[0], &sources[1], &sources[2..]);
        let one = known.mark("one");
        let count = |source| known.count(source, 600, 100 * SECOND);
        let spray =
            |at: u64| attacker.iter().for_each(|from| known.succeed(from, one, at * SECOND));
        (0..3).for_each(|n| known.succeed(small, known.mark(n), SECOND));
        spray(2);
        assert_eq!(count(small), 3);
        // Nor do they keep one from getting there whose identities come between two rounds of them.
        (0..3).for_each(|n| known.succeed(late, known.mark(n), 3 * SECOND));
        spray(4);
        assert_eq!((count(small), count(late)), (3, 3));
        // With as many identities at each of them, the latest of them have what is left.
        for n in 0..5 {
            attacker.iter().for_each(|from| known.succeed(from, known.mark(n), 5 * SECOND));
        }
        assert_eq!((count(small), count(late)), (3, 3));
        // Nor has a third shared one what two need.
        for n in 0..5 {
            known.succeed(attacker[0], known.mark(n), 6 * SECOND);
        }
        assert_eq!((count(small), count(late), count(&attacker[0])), (3, 3, 2));
        // Where every place is of one that needs it, somebody new has one all the same.
        let known = Identities::new([7; 16]);
        known.expect(8, Duration::from_secs(600));
        (0..8).for_each(|n| known.succeed(small, known.mark(n), SECOND));
        known.succeed(late, one, 2 * SECOND);
        assert!(known.knows(late, one));
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
        let count = |source, at: u64| again.count(source, 60, at * SECOND);
        assert_eq!((count(&here, 20), count(&here, 34), count(&there, 20)), (2, 2, 0));
        again.succeed(here, again.mark("b"), 40 * SECOND);
        assert_eq!((count(&here, 40), again.evicted()), (2, 0));
        again.restore(Note { line: u32::MAX, mark: 1 << 60, age_s: 0 }, SECOND);
    }
}
