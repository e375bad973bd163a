//! What a rule has counted, tier by tier.
//!
//! A tier with numbers of its own has a table of its own: what a key has done is written in the terms
//! of one meter, and who loses its place to a new key is decided among those who are measured alike.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Spec,
    meter::{Meter, Now},
    table::{STATE, Table},
};

/// A meter, and the keys that it measures.
#[derive(Clone, Debug)]
pub struct Counted {
    /// How requests are counted.
    pub meter: Meter,
    /// What each key has done.
    pub table: Arc<Table>,
    /// Kept words of windows that are yet to come: they count once the clock is right.
    ahead: Arc<Mutex<Vec<Word>>>,
}

/// The number of a set, and what was there.
type Word = (usize, u128);

impl Counted {
    /// Puts words back where they were. One of a window that is over would only take a place; one of a window
    /// that is yet to come waits for it.
    pub fn restore(&self, words: impl IntoIterator<Item = Word>, now: Now) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        for (set, word) in words {
            if self.meter.is_ahead(word & STATE, now) {
                ahead.push((set, word));
            } else if self.meter.fullness(word & STATE, now) > 0 {
                self.table.restore(&self.meter, now, (set, word));
            }
        }
    }

    /// The words that are to be kept, those that wait among them, and no more than there is room for.
    pub fn words(&self, now: Now) -> Vec<Word> {
        let waiting =
            std::mem::take(&mut *self.ahead.lock().unwrap_or_else(PoisonError::into_inner));
        self.restore(waiting, now);
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let words = self.table.words(&self.meter, now);
        words.chain(ahead.iter().copied()).take(self.table.capacity()).collect()
    }
}

/// What a rule has counted of those without a tier that it knows, and of each that it does.
#[derive(Debug)]
pub(super) struct Counts {
    own: Option<Counted>,
    tiers: Vec<(String, Option<Counted>)>,
}

impl Counts {
    /// Counts that begin anew, but for those of the `former` that mean the same.
    pub(super) fn new(spec: &Spec, former: Option<&Self>) -> Self {
        let counted = |meter: Option<Meter>, former: Option<&Counted>| {
            let meter = meter?;
            let kept = former.filter(|former| former.meter.goes_on_as(&meter));
            Some(kept.map_or_else(
                || Counted {
                    meter,
                    table: Table::new(spec.keys_max).into(),
                    ahead: Arc::default(),
                },
                |former| Counted { meter, ..former.clone() },
            ))
        };
        let tier = |(name, meter): &(String, Option<Meter>)| {
            let former = former.and_then(|former| former.tier(name)?.as_ref());
            (name.clone(), counted(*meter, former))
        };
        Self {
            own: counted(spec.meter, former.and_then(|former| former.own.as_ref())),
            tiers: spec.tiers.iter().map(tier).collect(),
        }
    }

    /// By what a caller of this tier is counted; `None`: he is not.
    pub(super) fn of(&self, tier: Option<&str>) -> Option<&Counted> {
        tier.and_then(|tier| self.tier(tier)).unwrap_or(&self.own).as_ref()
    }

    /// Each, with the name of its tier.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<&str>, &Counted)> {
        let tiers =
            self.tiers.iter().map(|(name, counted)| (Some(name.as_str()), counted.as_ref()));
        let all = std::iter::once((None, self.own.as_ref())).chain(tiers);
        all.filter_map(|(name, counted)| Some((name, counted?)))
    }

    fn tier(&self, name: &str) -> Option<&Option<Counted>> {
        self.tiers.iter().find(|(tier, _)| tier == name).map(|(_, counted)| counted)
    }
}
