//! Verdicts in force, by culprit and by their end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use edge_policy::verdict::Origin;

use super::admit::is_capped;
use crate::store::BanRecord;

/// A verdict in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// As it is on disk, in calendar time, but for what is milder.
    pub(super) record: BanRecord,
    /// When it ends in boot time, which no correction of the calendar moves.
    pub(super) until_ns: u64,
    /// What is in force once those before it are over or taken back, the harshest first: what is milder and
    /// outlasts them, and what an operator's or another edge's verdict does not cover.
    pub(super) milder: Vec<Held>,
}

impl Held {
    pub(super) const fn new(record: BanRecord, until_ns: u64) -> Self {
        Self { record, until_ns, milder: Vec::new() }
    }

    /// Several verdicts on one culprit, the latest first: the harshest, and what it does not cover. Of each step
    /// the longest is kept, one that the cap made milder, and some beneath what operators and other edges say, so
    /// that they are few.
    /// `None`: there is none.
    pub(super) fn of(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let apart = |mut held: Self| {
            let milder = std::mem::take(&mut held.milder);
            std::iter::once(held).chain(milder)
        };
        let mut all: Vec<_> = verdicts.into_iter().flat_map(apart).collect();
        // What is to be a ban in its turn waits for it before its equals.
        let rank = |held: &Self| (held.record.step, is_capped(&held.record), held.until_ns);
        all.sort_by_key(|held| Reverse(rank(held)));
        let strikes = all.iter().map(|held| held.record.strikes).max().unwrap_or_default();
        let (mut kept, mut until_ns) = (Vec::<Self>::new(), 0);
        for mut held in all {
            held.record.strikes = strikes;
            let has_room = held.until_ns > until_ns || kept.len() < BENEATH_MAX;
            until_ns = until_ns.max(held.until_ns);
            if has_room && !kept.iter().any(|harsher| harsher.covers(&held)) {
                kept.push(held);
            }
        }
        let mut kept = kept.into_iter();
        let first = kept.next()?;
        Some(Self { milder: kept.collect(), ..first })
    }

    /// Whether another means nothing beside it. What an operator or another edge says may be taken back by itself,
    /// and covers its like alone.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (own, others) = (&self.record, &other.record);
        let is_like = match own.origin {
            Origin::Scenario | Origin::Crowdsec => true,
            Origin::Operator => own.origin == others.origin && own.reason == others.reason,
            Origin::Fleet => own.scenario == others.scenario && own.reason == others.reason,
        };
        self.until_ns >= other.until_ns && own.step >= others.step && is_like
    }

    /// Itself and what is beneath it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.milder)
    }

    /// As it is on disk.
    pub(super) fn on_disk(&self) -> BanRecord {
        let milder = self.milder.iter().map(|held| held.record.clone()).collect();
        BanRecord { milder, ..self.record.clone() }
    }
}

/// Verdicts on one culprit beyond which none is kept that others outlast.
const BENEATH_MAX: usize = 8;

/// Verdicts in force.
#[derive(Debug)]
pub(super) struct Book<K> {
    held: BTreeMap<K, Held>,
    ends: BTreeSet<(u64, K)>,
}

impl<K: Clone + Ord> Book<K> {
    pub(super) const fn new() -> Self {
        Self { held: BTreeMap::new(), ends: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn get(&self, culprit: &K) -> Option<&Held> {
        self.held.get(culprit)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Held)> {
        self.held.iter()
    }

    pub(super) fn insert(&mut self, culprit: K, held: Held) {
        self.remove(&culprit);
        self.ends.insert((held.until_ns, culprit.clone()));
        self.held.insert(culprit, held);
    }

    pub(super) fn remove(&mut self, culprit: &K) -> Option<Held> {
        let held = self.held.remove(culprit)?;
        self.ends.remove(&(held.until_ns, culprit.clone()));
        Some(held)
    }

    /// The one that ends first.
    pub(super) fn first(&self) -> Option<K> {
        self.ends.first().map(|(_, culprit)| culprit.clone())
    }

    /// Those that have ended.
    pub(super) fn ended(&self, now_ns: u64) -> Vec<K> {
        let ended = self.ends.iter().take_while(|(until_ns, _)| *until_ns <= now_ns);
        ended.map(|(_, culprit)| culprit.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use edge_common::Source;
    use edge_policy::verdict::{Culprit, Spared, Step};

    use super::*;

    fn record(culprit: Culprit, step: Step, strikes: u32) -> BanRecord {
        BanRecord {
            culprit,
            step,
            since_ms: 1,
            until_ms: 0,
            strikes,
            reason: "source_rate".into(),
            scenario: "flood".into(),
            origin: Origin::Scenario,
            spared: None,
            evidence: Vec::new(),
            milder: Vec::new(),
        }
    }

    #[test]
    fn a_shorter_verdict_takes_nothing_from_a_longer_and_milder_one() {
        let client = Culprit::Source(Source::v4([192, 0, 2, 1]));
        let held =
            |(step, until_ns, strikes)| Held::new(record(client.clone(), step, strikes), until_ns);
        let of = |verdicts: &[(Step, u64, u32)]| {
            // One after the other, each over those before it.
            let all = verdicts
                .iter()
                .fold(None, |former, next| Held::of(std::iter::once(held(*next)).chain(former)));
            let all = all.unwrap();
            assert_eq!(all.on_disk().milder.len(), all.milder.len());
            all.all().map(|h| (h.record.step, h.until_ns, h.record.strikes)).collect::<Vec<_>>()
        };
        let (order, ban) = ((Step::Refuse, 700, 1), (Step::Ban, 40, 2));
        let both = [(Step::Ban, 40, 2), (Step::Refuse, 700, 2)];
        assert_eq!((of(&[order, ban]), of(&[ban, order])), (both.into(), both.into()));
        assert_eq!(of(&[order, ban, (Step::Ban, 700, 3)]), [(Step::Ban, 700, 3)]);
        assert_eq!(of(&[ban, order, (Step::Ban, 50, 3)])[0], (Step::Ban, 50, 3));
        assert_eq!(of(&[order, (Step::Refuse, 20, 2)]), [(Step::Refuse, 700, 2)]);
        let all =
            [(Step::Ban, 1, 1), (Step::Refuse, 2, 1), (Step::Throttle, 3, 1), (Step::Delay, 4, 1)];
        assert_eq!(of(&all), all);
        assert_eq!(Held::of([]), None);
        // What an operator takes back takes nothing else with it, and he may say much.
        let by_hand = |reason: &str, until_ns| {
            let mut held = held((Step::Ban, until_ns, 1));
            (held.record.origin, held.record.reason) = (Origin::Operator, reason.to_owned());
            held
        };
        let of = |verdicts: &[Held]| {
            let all = verdicts.iter().cloned();
            let all = all.fold(None, |former, next| Held::of(std::iter::once(next).chain(former)));
            all.unwrap().all().map(|held| held.until_ns).collect::<Vec<_>>()
        };
        let (jail, short) = (by_hand("jail", 90), held((Step::Ban, 40, 1)));
        let expected = vec![90, 40];
        assert_eq!(of(&[jail.clone(), short.clone()]), expected);
        assert_eq!(of(&[short, jail.clone(), by_hand("jail", 60)]), expected);
        assert_eq!(of(&[jail, held((Step::Ban, 90, 1)), by_hand("other", 60)]), [90]);
        let many: Vec<_> = (1..99).map(|n| by_hand(&n.to_string(), n)).collect();
        assert_eq!(of(&many).len(), BENEATH_MAX);
        // A ban that waits for its turn is not lost to an order that lasts longer.
        let order = held(order);
        let mut capped = held((Step::Refuse, 40, 1));
        capped.record.origin = Origin::Fleet;
        capped.record.spared = Some(Spared::Cap.name().to_owned());
        let both = [capped.clone(), order.clone()];
        let of = |verdicts| Held::of(verdicts).map(|held| held.all().count());
        assert_eq!((of(both.clone()), of([order, capped])), (Some(2), Some(2)));
        assert!(Held::of(both).is_some_and(|held| is_capped(&held.record)));
    }

    #[test]
    fn verdicts_end_by_boot_time_alone() {
        let culprit = |host| Culprit::Source(Source::v4([192, 0, 2, host]));
        let held = |host, until_ns, until_ms| {
            let record = BanRecord { until_ms, ..record(culprit(host), Step::Ban, 1) };
            Held::new(record, until_ns)
        };
        let mut book = Book::new();
        // The calendar says the opposite of both.
        book.insert(culprit(1), held(1, 100, u64::MAX));
        book.insert(culprit(2), held(2, 50, 0));
        book.insert(culprit(2), held(2, 101, 0));
        assert!(book.ended(99).is_empty());
        assert_eq!((book.ended(100), book.first()), (vec![culprit(1)], Some(culprit(1))));
        book.remove(&culprit(1));
        assert_eq!((book.len(), book.first()), (1, Some(culprit(2))));
    }
}
