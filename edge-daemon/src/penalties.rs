//! Verdicts as the request plane knows them: those that the kernel does not enforce because it cannot
//! tell their culprits from others, and bans of clients whose packets carry a trusted proxy's address.
//!
//! One thread writes, the verdict writer; many read, and wait for nobody. It holds what the writer's
//! books hold, and so has their bounds.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use edge_common::Source;
use edge_policy::{
    place::Place,
    verdict::{Culprit, Step},
};

/// What a culprit has to bear, and until when in boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// What.
    pub step: Step,
    /// Until when.
    pub until_ns: u64,
}

type Part = BTreeMap<Culprit, Penalty>;

/// Penalties by culprit. In parts, so that a change copies little.
pub struct Penalties {
    parts: [ArcSwap<Part>; PARTS],
    /// How many there are of each kind of culprit: mostly none, which spares the look.
    counts: [AtomicUsize; KINDS],
    hasher: RandomState,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| ArcSwap::default()),
            counts: Default::default(),
            hasher: RandomState::new(),
        }
    }
}

impl Penalties {
    /// Whether there is any against culprits of this one's kind.
    #[must_use]
    pub fn has_any_like(&self, culprit: &Culprit) -> bool {
        self.counts[kind(culprit)].load(Relaxed) > 0
    }

    /// What a culprit has to bear at this time.
    #[must_use]
    pub fn of(&self, culprit: &Culprit, now_ns: u64) -> Option<Penalty> {
        if !self.has_any_like(culprit) {
            return None;
        }
        self.part(culprit).load().get(culprit).copied().filter(|held| now_ns < held.until_ns)
    }

    /// Notes a penalty, in the place of the culprit's former one.
    pub fn put(&self, culprit: &Culprit, penalty: Penalty) {
        let count = &self.counts[kind(culprit)];
        let is_new = self.change(culprit, |part| part.insert(culprit.clone(), penalty)).is_none();
        count.fetch_add(usize::from(is_new), Relaxed);
    }

    /// Forgets a culprit's penalty.
    pub fn lift(&self, culprit: &Culprit) {
        let was_there = self.change(culprit, |part| part.remove(culprit)).is_some();
        self.counts[kind(culprit)].fetch_sub(usize::from(was_there), Relaxed);
    }

    /// The clients that are banned in the kernel, and until when.
    #[must_use]
    pub fn bans(&self) -> Vec<(Source, u64)> {
        let ban = |(culprit, penalty): (&Culprit, &Penalty)| match culprit {
            Culprit::Source(client) if penalty.step == Step::Ban => {
                Some((*client, penalty.until_ns))
            }
            _ => None,
        };
        let parts = self.parts.iter().map(ArcSwap::load_full);
        parts.flat_map(|part| part.iter().filter_map(ban).collect::<Vec<_>>()).collect()
    }

    fn change(
        &self,
        culprit: &Culprit,
        change: impl FnOnce(&mut Part) -> Option<Penalty>,
    ) -> Option<Penalty> {
        let part = self.part(culprit);
        let mut changed = Part::clone(&part.load());
        let former = change(&mut changed);
        part.store(Arc::new(changed));
        former
    }

    fn part(&self, culprit: &Culprit) -> &ArcSwap<Part> {
        &self.parts[self.hasher.hash_one(culprit) as usize % PARTS]
    }
}

const fn kind(culprit: &Culprit) -> usize {
    match culprit {
        Culprit::Source(_) => 0,
        Culprit::Fingerprint(..) => 1,
        Culprit::Principal(_) => 2,
        Culprit::Account(_) => 3,
        Culprit::Ja4(_) => 4,
        Culprit::Led(..) => 5,
        Culprit::Place(place, _) => 6 + *place as usize,
    }
}

const KINDS: usize = 6 + Place::ALL.len();
const PARTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_penalty_ends_by_time_or_by_word() {
        let penalties = Penalties::default();
        let culprit = |host| Culprit::Source(Source::v4([192, 0, 2, host]));
        let until = |until_ns| Penalty { step: Step::Refuse, until_ns };
        for host in 0..=255 {
            penalties.put(&culprit(host), until(100 + u64::from(host)));
        }
        assert!((0..=255).all(|host| penalties.of(&culprit(host), 99).is_some()));
        assert_eq!(penalties.of(&culprit(0), 100), None);
        assert_eq!(penalties.of(&culprit(1), 100), Some(until(101)));
        penalties.put(&culprit(0), until(200));
        penalties.lift(&culprit(1));
        penalties.lift(&culprit(1));
        assert_eq!(penalties.of(&culprit(0), 150), Some(until(200)));
        assert_eq!(penalties.of(&culprit(1), 99), None);
        assert!(!penalties.has_any_like(&Culprit::Principal("key:k".into())));
        (0..=255).for_each(|host| penalties.lift(&culprit(host)));
        assert!(!penalties.has_any_like(&culprit(0)));
    }
}
