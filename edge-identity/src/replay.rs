//! What came once and must not come again: nonces of signed requests, `jti` of DPoP proofs.
//!
//! A [`Shard`] holds fingerprints until the time at which what they stand for is refused as stale
//! anyway. Its memory is fixed. Nothing is ever pushed out: when it is full, it says so. Nobody fills it
//! for the others: whoever signed has as many places at the most as are free.

use std::ops::Range;

/// 112 bits of a keyed hash of the thing, of which two of a million look alike with a chance below
/// 2^-72, and in [`SIGNER`] 16 bits of one of who signed it.
pub type Fingerprint = [u8; 16];

/// Where a fingerprint says who signed. It tells no two things apart.
pub const SIGNER: Range<usize> = 12..14;

/// What became of a thing that may come once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is new, and is remembered under this number, below the shard's capacity.
    Now(u32),
    /// It came before.
    Before,
    /// Whether it came before cannot be said any more.
    Stale,
    /// It is new, and there is no room to remember it, or none for whoever signed it.
    Full,
}

/// A part of the memory, for one caller at a time.
#[derive(Debug)]
pub struct Shard {
    /// Entries ever used so far, and those that are free again: a list through `next`.
    slots: Vec<Slot>,
    free: u32,
    len: u32,
    capacity: u32,
    /// By the low bits of the fingerprint: the first entry of a chain through `next`.
    chains: Box<[u32]>,
    /// By the second in which they end, modulo their number: a chain through `next_to_end`.
    ends: Box<[u32]>,
    /// How many entries signers have; those whose hashes agree share a number.
    held: Box<[u32]>,
    /// What ends up to here was forgotten, in unix seconds.
    swept_s: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    fingerprint: Fingerprint,
    next: u32,
    next_to_end: u32,
}

impl Shard {
    /// Room for `capacity` things that end at most `lifetime_s` after they come.
    #[must_use]
    pub fn new(capacity: u32, lifetime_s: u64) -> Self {
        let capacity = capacity.clamp(1, NONE - 1);
        let seconds = usize::try_from(lifetime_s).unwrap_or(usize::MAX).saturating_add(2);
        Self {
            slots: Vec::new(),
            free: NONE,
            len: 0,
            capacity,
            // A chain for each entry, or for two: more would cost as much as it saves.
            chains: vec![NONE; 1 << capacity.ilog2()].into(),
            ends: vec![NONE; seconds].into(),
            held: vec![0; SIGNERS].into(),
            swept_s: 0,
        }
    }

    /// Remembers a thing until a time, in unix seconds, unless it came before or its signer has as many
    /// places as are free.
    pub fn admit(&mut self, fingerprint: &Fingerprint, until_s: u64, now_s: u64) -> Seen {
        self.sweep(now_s);
        let has_room = self.held[signer(fingerprint)] < self.capacity - self.len;
        self.see(fingerprint, until_s, has_room)
    }

    /// Remembers again what was remembered, whoever signed it and however many places he has.
    pub fn restore(&mut self, fingerprint: &Fingerprint, until_s: u64) -> Seen {
        self.see(fingerprint, until_s, true)
    }

    fn see(&mut self, fingerprint: &Fingerprint, until_s: u64, has_room: bool) -> Seen {
        // A clock that went back does not bring back what was forgotten.
        if until_s <= self.swept_s || until_s - self.swept_s >= self.ends.len() as u64 {
            return Seen::Stale;
        }
        let chain = self.chain(fingerprint);
        let mut at = self.chains[chain];
        while at != NONE {
            let slot = &self.slots[at as usize];
            if is_same(&slot.fingerprint, fingerprint) {
                return Seen::Before;
            }
            at = slot.next;
        }
        let Some(number) = has_room.then(|| self.take()).flatten() else { return Seen::Full };
        let end = self.end(until_s);
        self.slots[number as usize] = Slot {
            fingerprint: *fingerprint,
            next: self.chains[chain],
            next_to_end: self.ends[end],
        };
        self.chains[chain] = number;
        self.ends[end] = number;
        self.held[signer(fingerprint)] += 1;
        self.len += 1;
        Seen::Now(number)
    }

    /// How many things are remembered.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Each thing that is remembered: its number, what it looks like, and its end in unix seconds.
    pub fn entries(&self) -> impl Iterator<Item = (u32, Fingerprint, u64)> + '_ {
        let chain = move |until_s: u64| {
            let first = self.ends[self.end(until_s)];
            std::iter::successors(Some(first).filter(|at| *at != NONE), move |at| {
                Some(self.slots[*at as usize].next_to_end).filter(|at| *at != NONE)
            })
            .map(move |at| (at, self.slots[at as usize].fingerprint, until_s))
        };
        (self.swept_s + 1..self.swept_s + self.ends.len() as u64).flat_map(chain)
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets what has ended; for good, whatever a clock says later. After a long silence all has, and the
    /// whole is cleared at once.
    pub fn sweep(&mut self, now_s: u64) {
        let Some(past_s) = now_s.checked_sub(1).filter(|past_s| *past_s > self.swept_s) else {
            return;
        };
        if past_s - self.swept_s >= self.ends.len() as u64 {
            self.slots.clear();
            self.chains.fill(NONE);
            self.ends.fill(NONE);
            self.held.fill(0);
            (self.free, self.len, self.swept_s) = (NONE, 0, past_s);
        }
        while self.swept_s < past_s {
            self.swept_s += 1;
            let end = self.end(self.swept_s);
            let mut at = std::mem::replace(&mut self.ends[end], NONE);
            while at != NONE {
                let next = self.slots[at as usize].next_to_end;
                self.forget(at);
                at = next;
            }
        }
    }

    fn forget(&mut self, number: u32) {
        let Slot { fingerprint, next, .. } = self.slots[number as usize];
        let chain = self.chain(&fingerprint);
        if self.chains[chain] == number {
            self.chains[chain] = next;
        } else {
            let mut at = self.chains[chain];
            while self.slots[at as usize].next != number {
                at = self.slots[at as usize].next;
            }
            self.slots[at as usize].next = next;
        }
        self.slots[number as usize].next = self.free;
        self.free = number;
        self.held[signer(&fingerprint)] -= 1;
        self.len -= 1;
    }

    fn take(&mut self) -> Option<u32> {
        if self.free != NONE {
            let number = self.free;
            self.free = self.slots[number as usize].next;
            return Some(number);
        }
        let number = u32::try_from(self.slots.len()).ok().filter(|n| *n < self.capacity)?;
        if self.slots.is_empty() {
            // Once, so that it never moves under a request; the pages come as they are used.
            self.slots.reserve_exact(self.capacity as usize);
        }
        self.slots.push(Slot { fingerprint: [0; 16], next: NONE, next_to_end: NONE });
        Some(number)
    }

    fn chain(&self, fingerprint: &Fingerprint) -> usize {
        let [a, b, c, d, ..] = *fingerprint;
        u32::from_le_bytes([a, b, c, d]) as usize & (self.chains.len() - 1)
    }

    fn end(&self, until_s: u64) -> usize {
        usize::try_from(until_s % self.ends.len() as u64).unwrap_or(0)
    }
}

fn is_same(a: &Fingerprint, b: &Fingerprint) -> bool {
    a[..SIGNER.start] == b[..SIGNER.start] && a[SIGNER.end..] == b[SIGNER.end..]
}

fn signer(fingerprint: &Fingerprint) -> usize {
    let [a, b] = [fingerprint[SIGNER.start], fingerprint[SIGNER.start + 1]];
    usize::from(u16::from_le_bytes([a, b])) % SIGNERS
}

/// Signers that are told apart.
const SIGNERS: usize = 4096;

/// No entry.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Each signed by another.
    fn print(n: u32) -> Fingerprint {
        signed(n, n)
    }

    fn signed(n: u32, by: u32) -> Fingerprint {
        let mut print = [7; 16];
        print[..4].copy_from_slice(&n.to_le_bytes());
        print[SIGNER].copy_from_slice(&by.to_le_bytes()[..2]);
        print
    }

    #[test]
    fn nobody_fills_it_for_the_others() {
        let mut shard = Shard::new(1000, 100);
        let mut next = 0;
        let mut admitted = |shard: &mut Shard, by, most: u32, now_s| {
            let new = (0..most).filter(|_| {
                next += 1;
                matches!(shard.admit(&signed(next, by), now_s + 50, now_s), Seen::Now(_))
            });
            new.count()
        };
        assert_eq!(admitted(&mut shard, 1, 5000, 1000), 500, "as many as are left");
        assert_eq!(admitted(&mut shard, 2, 5000, 1000), 250);
        assert_eq!(admitted(&mut shard, 1, 5000, 1000), 0);
        assert_eq!(admitted(&mut shard, 3, 100, 1000), 100, "who takes little has it");
        assert_eq!(admitted(&mut shard, 1, 5000, 1000), 0);
        assert_eq!(admitted(&mut shard, 1, 5000, 1051), 500, "what has ended is nobody's");
        assert_eq!(admitted(&mut shard, 1, 5000, 9999), 500, "and after a long silence");
        assert_eq!(shard.admit(&signed(1, 1), 10_049, 9999), Seen::Full);
        assert_eq!(shard.restore(&signed(1, 1), 10_049), Seen::Now(500), "he had it");
    }

    #[test]
    fn a_thing_comes_once_until_it_is_stale() {
        let mut shard = Shard::new(10, 100);
        // It lies a hundred seconds ahead of nothing: the first look sweeps up to now.
        assert_eq!(shard.admit(&print(1), 1100, 1000), Seen::Now(0));
        assert_eq!(shard.admit(&print(1), 1100, 1000), Seen::Before);
        assert_eq!(shard.admit(&signed(1, 9), 1100, 1100), Seen::Before, "whoever is said to sign");
        assert_eq!(shard.admit(&print(2), 1150, 1100), Seen::Now(1));
        assert_eq!(shard.admit(&print(1), 1100, 1101), Seen::Stale);
        assert_eq!(shard.len(), 1);
        // Ahead of what was promised.
        assert_eq!(shard.admit(&print(3), 1300, 1101), Seen::Stale);
    }

    #[test]
    fn an_entry_takes_28_bytes() {
        // The share of one of 64 shards of a million, with its room for chance.
        let mut shard = Shard::new(16_625, 960);
        shard.sweep(1000);
        assert!((0..16_625).all(|n| shard.restore(&print(n), 1100) == Seen::Now(n)));
        assert_eq!(shard.restore(&print(16_625), 1100), Seen::Full);
        let bytes = size_of::<Slot>() * shard.slots.capacity() + 4 * shard.chains.len();
        assert!(bytes <= 28 * 16_625, "{bytes}");
    }

    #[test]
    fn a_full_shard_refuses_until_something_ends() {
        let mut shard = Shard::new(3, 100);
        for n in 0..3 {
            assert_eq!(shard.admit(&print(n), 1050 + u64::from(n), 1000), Seen::Now(n));
        }
        assert_eq!(shard.admit(&print(7), 1100, 1000), Seen::Full);
        assert_eq!(shard.admit(&print(2), 1052, 1050), Seen::Before);
        assert_eq!(shard.admit(&print(7), 1100, 1051), Seen::Now(0));
        assert_eq!(shard.admit(&print(8), 1100, 1051), Seen::Full);
        assert_eq!(shard.admit(&print(0), 1050, 1051), Seen::Stale);
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing_back() {
        let mut shard = Shard::new(10, 100);
        assert_eq!(shard.admit(&print(1), 1100, 1000), Seen::Now(0));
        assert_eq!(shard.admit(&print(2), 5100, 5000), Seen::Now(0));
        assert_eq!(shard.admit(&print(1), 1100, 1000), Seen::Stale);
        assert_eq!(shard.len(), 1);
    }

    proptest! {
        /// Against a map without bounds: nothing is taken twice, nothing refused without cause. Of five signers.
        #[test]
        fn it_does_what_a_map_does(
            steps in proptest::collection::vec((0_u32..40, 0_u64..12, 0_u64..9), 1..200),
        ) {
            let (mut shard, mut model, mut now_s) = (Shard::new(16, 12), HashMap::new(), 1000);
            for (n, life_s, step_s) in steps {
                now_s += step_s / 3;
                model.retain(|_, until_s| *until_s >= now_s);
                let until_s = now_s + life_s;
                let seen = shard.admit(&signed(n, n % 5), until_s, now_s);
                let held = model.keys().filter(|other: &&u32| **other % 5 == n % 5).count();
                match (model.contains_key(&n), held + model.len() < 16) {
                    (true, _) => prop_assert_eq!(seen, Seen::Before),
                    (false, false) => prop_assert_eq!(seen, Seen::Full),
                    (false, true) => {
                        prop_assert!(matches!(seen, Seen::Now(number) if number < 16));
                        model.insert(n, until_s);
                    }
                }
                prop_assert_eq!(shard.len() as usize, model.len());
                let entries = shard.entries().map(|(_, print, until_s)| (print, until_s));
                let expected = model.iter().map(|(n, until_s)| (signed(*n, n % 5), *until_s));
                prop_assert_eq!(
                    entries.collect::<HashMap<_, _>>(),
                    expected.collect::<HashMap<_, _>>()
                );
            }
        }
    }
}
