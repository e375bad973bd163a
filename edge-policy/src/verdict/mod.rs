//! Verdicts: signals fill the buckets of scenarios, a bucket that overflows is a verdict, and a
//! verdict climbs the ladder with every further one.
//!
//! A bucket is one time: when it will have leaked empty. A signal of weight `w` moves it by `w`
//! intervals, and it overflows if it lies more than `capacity` intervals ahead: the arithmetic of GCRA
//! (ITU-T I.371), exact in whole numbers and indifferent to the order in which signals come.

mod culprit;
mod guard;
mod identities;
mod pool;
mod rules;
mod scenario;
mod sentence;
mod signal;
mod trail;

use std::collections::BTreeSet;
use std::hash::Hasher as _;
use std::sync::Arc;

use edge_common::Source;
use siphasher::sip::SipHasher13;

pub use self::culprit::{By, Culprit};
pub use self::guard::{Cap, Facts, Spared};
pub use self::identities::{Identities, NOTES_MAX, Note};
pub use self::rules::{Rules, Wanted};
pub use self::scenario::{Among, Distinct, Filter, Origin, Scenario, Step};
pub use self::sentence::{Level, Verdict};
pub use self::signal::{Asked, Evidence, Kind, Proof, Signal};
use self::{pool::Pool, trail::Trail};

/// The buckets of all scenarios, what became of culprits, and the latest signals. Bounded
/// throughout; see [`Engine::evicted`].
///
/// Sources are clients, as [`Source::client`] gives them. Times are of one clock throughout.
#[derive(Debug)]
pub struct Engine {
    rules: Rules,
    /// The buckets of each scenario.
    buckets: Vec<Pool<Bucket>>,
    past: Pool<Past>,
    /// What was done wrong, and what was served: the latter comes by the thousand.
    trails: [Trail; 2],
    secret: [u8; 16],
    /// Buckets that were dropped by scenarios that are no more.
    evicted_before: u64,
}

/// The bucket of one culprit in one scenario.
#[derive(Clone, Debug, Default)]
struct Bucket {
    /// When it will be empty.
    drained_ns: u64,
    /// What came already, if the scenario counts what differs.
    seen: Vec<u32>,
}

/// What became of a culprit.
#[derive(Clone, Copy, Debug)]
struct Past {
    strikes: u32,
    step: Step,
    /// When its last verdict ends or ended; less than nothing if that was before boot.
    until_ns: i128,
}

impl Engine {
    /// An engine that has seen nothing. What the secret hides: which culprits share a bucket.
    #[must_use]
    pub fn new(rules: Rules, secret: [u8; 16]) -> Self {
        let buckets = pools(&rules);
        let past = Pool::new(rules.culprits_max);
        let trails = [Trail::new(MISDEEDS_KEPT), Trail::new(SERVED_KEPT)];
        Self { rules, buckets, past, trails, secret, evicted_before: 0 }
    }

    /// Goes by other rules from now on; the buckets of scenarios that stay as they are stay.
    pub fn configure(&mut self, rules: Rules) {
        let former = self.rules.scenarios.iter().cloned().zip(self.buckets.drain(..));
        let mut former: Vec<_> = former.collect();
        self.buckets = pools(&rules);
        for (scenario, bucket) in rules.scenarios.iter().zip(&mut self.buckets) {
            if let Some(at) = former.iter().position(|(old, _)| old == scenario) {
                *bucket = former.swap_remove(at).1;
            }
        }
        self.evicted_before += former.iter().map(|(_, pool)| pool.evicted).sum::<u64>();
        self.rules = rules;
    }

    /// Takes a signal in; the verdicts that it leads to, one for each culprit. From a source that is
    /// shared, everybody fills buckets of his own. `facts` is asked of the source, and only if there is a
    /// verdict to be had.
    pub fn judge(
        &mut self,
        signal: Signal,
        is_shared: bool,
        facts: impl Fn(&Signal) -> Facts,
    ) -> Vec<Verdict> {
        let mut over = Vec::new();
        for place in 0..self.rules.scenarios.len() {
            if let Some(culprit) = self.pour(place, &signal, is_shared) {
                over.push((place, culprit));
            }
        }
        let trail = &mut self.trails[usize::from(signal.kind == Kind::Served)];
        if over.is_empty() {
            trail.push(signal);
            return Vec::new();
        }
        trail.push(signal.clone());
        let signal = &signal;
        // The harshest first; the sort is stable, so that the first of equals speaks.
        over.sort_by_key(|(place, _)| std::cmp::Reverse(self.rules.scenarios[*place].step));
        let facts = facts(signal);
        let sentence = |(place, culprit)| self.sentence(place, culprit, (signal, is_shared), facts);
        over.into_iter().filter_map(sentence).collect()
    }

    /// Adds a signal to its bucket in a scenario; whom it is about, if that overflows and so is
    /// emptied.
    fn pour(&mut self, place: usize, signal: &Signal, is_shared: bool) -> Option<Culprit> {
        let scenario = &self.rules.scenarios[place];
        let weight = scenario.filter.weigh(signal);
        if weight == 0 {
            return None;
        }
        let culprit = scenario.culprit(signal, is_shared)?;
        let differs = match scenario.distinct {
            None => None,
            Some(Distinct::Path) => Some(self.hash(signal.path())),
            Some(Distinct::Account) => Some(self.hash(signal.account.as_deref()?)),
            Some(Distinct::Source) => Some(self.hash(signal.source)),
            Some(Distinct::Place(place)) => Some(self.hash(signal.places.get(place)?)),
        };
        let key = self.bucket(scenario, &culprit, signal.source);
        let (now_ns, brim_ns) = (signal.at_ns, scenario.brim_ns());
        let pour_ns = weight.saturating_mul(scenario.interval_ns);
        let capacity = usize::try_from(scenario.capacity).unwrap_or(usize::MAX / 2);
        let bucket = self.buckets[place].entry(key, Bucket::default, |bucket| bucket.drained_ns);
        if bucket.drained_ns <= now_ns {
            bucket.seen.clear();
        }
        if let Some(what) = differs.map(|hash| hash as u32) {
            if bucket.seen.contains(&what) {
                return None;
            }
            bucket.seen.push(what);
        }
        bucket.drained_ns = bucket.drained_ns.max(now_ns).saturating_add(pour_ns);
        // What leaked out is no longer known one by one, so the bound is on what was ever seen.
        let is_over = bucket.drained_ns - now_ns > brim_ns;
        if is_over {
            self.buckets[place].remove(key);
        } else if bucket.seen.len() > 2 * capacity {
            bucket.seen.remove(0);
        }
        is_over.then_some(culprit)
    }

    /// What an overflow comes to; nothing if what is in force already is as harsh.
    fn sentence(
        &mut self,
        place: usize,
        culprit: Culprit,
        (signal, is_shared): (&Signal, bool),
        facts: Facts,
    ) -> Option<Verdict> {
        let scenario = &self.rules.scenarios[place];
        let now_ns = signal.at_ns;
        let is_narrowed = scenario.by.culprit(signal).as_ref() != Some(&culprit);
        let (most, spared) = guard::temper(&culprit, signal, facts, (is_shared, is_narrowed));
        let key = self.hash(&culprit);
        let past = self.past.get(key).copied();
        let is_held = past.is_some_and(|past| {
            i128::from(now_ns) < past.until_ns && past.step >= most.min(scenario.step)
        });
        let strikes =
            past.map_or(0, |past| self.rules.strikes_left(past.strikes, past.until_ns, now_ns));
        let meant = scenario.step.climb(strikes, scenario.up_to);
        let step = meant.min(most);
        if is_held && step > Step::Observe {
            return None;
        }
        let bucket = self.bucket(scenario, &culprit, signal.source);
        let evidence = self.evidence(scenario, &culprit, (signal.source, is_shared));
        let mut verdict = Verdict {
            scenario: Arc::clone(&scenario.name),
            spared: spared.filter(|spared| *spared == Spared::Shared || step < meant),
            culprit,
            step,
            duration_ns: 0,
            strikes,
            evidence,
            last: (signal.kind, now_ns),
            place,
            bucket,
        };
        if step > Step::Observe {
            verdict.strikes = strikes.saturating_add(1);
            let jitter = self.hash((key, verdict.strikes));
            // Else who wants it to could make it as long as he likes.
            let nth = if verdict.culprit.is_anybodys() { 1 } else { verdict.strikes };
            verdict.duration_ns = self.rules.length_ns(scenario.duration_ns, nth, jitter);
            let until_ns = now_ns.saturating_add(verdict.duration_ns).into();
            self.remember(key, Past { strikes: verdict.strikes, step, until_ns });
        }
        Some(verdict)
    }

    /// The signals of the culprit that this scenario is about, the latest first.
    fn evidence(
        &self,
        scenario: &Scenario,
        culprit: &Culprit,
        (source, is_shared): (Source, bool),
    ) -> Vec<Evidence> {
        let is_of_one = scenario.is_narrowed_to(culprit);
        let fits = |signal: &&Signal| {
            scenario.filter.weigh(signal) > 0
                && (!is_of_one || signal.source == source)
                && scenario.culprit(signal, is_shared).as_ref() == Some(culprit)
        };
        let who = match culprit {
            Culprit::Principal(_) | Culprit::Account(_) => Some(culprit.clone()),
            _ => culprit.source().map(Culprit::Source),
        };
        let mut found = Vec::new();
        for trail in &self.trails {
            match &who {
                Some(who) => {
                    found.extend(trail.of(who).take(LOOKED_AT).filter(fits).take(EVIDENCE_MAX));
                }
                None => {
                    found
                        .extend(trail.latest().take(ALL_LOOKED_AT).filter(fits).take(EVIDENCE_MAX));
                }
            }
        }
        found.sort_by_key(|signal| std::cmp::Reverse(signal.at_ns));
        found.into_iter().take(EVIDENCE_MAX).map(Evidence::from).collect()
    }

    /// Takes over a culprit from before a restart, or from elsewhere: how many verdicts it had, and
    /// the last of them. One that ended before boot is as old as it is: its time is less than nothing.
    pub fn restore(
        &mut self,
        culprit: &Culprit,
        strikes: u32,
        step: Step,
        until_ns: impl Into<i128>,
    ) {
        if strikes > 0 {
            let until_ns = until_ns.into();
            self.remember(self.hash(culprit), Past { strikes, step, until_ns });
        }
    }

    /// Forgets all of a culprit, as when an operator lifts its ban.
    pub fn pardon(&mut self, culprit: &Culprit) {
        let key = self.hash(culprit);
        self.past.remove(key);
        self.buckets.iter_mut().for_each(|pool| pool.remove(key));
        let who = culprit.source().map_or_else(|| culprit.clone(), Culprit::Source);
        self.trails.iter_mut().for_each(|trail| trail.forget(&who));
    }

    /// Takes a verdict back that could not be put in force: it is no strike, and the next signal of its
    /// kind leads to it again.
    pub fn retract(&mut self, verdict: &Verdict, now_ns: u64) {
        let key = self.hash(&verdict.culprit);
        let bucket = verdict.bucket;
        let Some(scenario) = self.rules.scenarios.get(verdict.place) else { return };
        let (brim_ns, strikes) = (scenario.brim_ns(), verdict.strikes.saturating_sub(1));
        let full = Bucket { drained_ns: now_ns.saturating_add(brim_ns), seen: Vec::new() };
        *self.buckets[verdict.place].entry(bucket, Bucket::default, |b| b.drained_ns) = full;
        let past = Past { strikes, step: Step::Observe, until_ns: now_ns.into() };
        match strikes {
            0 => self.past.remove(key),
            _ => self.remember(key, past),
        }
    }

    /// How full the buckets of a culprit at a source are, those that are empty left out.
    #[must_use]
    pub fn levels(&self, culprit: &Culprit, source: Source, now_ns: u64) -> Vec<Level> {
        let level = |(scenario, pool): (&Scenario, &Pool<Bucket>)| {
            let full_ns =
                pool.get(self.bucket(scenario, culprit, source))?.drained_ns.checked_sub(now_ns)?;
            let level = full_ns as f64 / scenario.interval_ns as f64;
            let (scenario, capacity) = (Arc::clone(&scenario.name), scenario.capacity);
            (level > 0.0).then_some(Level { scenario, level, capacity })
        };
        self.rules.scenarios.iter().zip(&self.buckets).filter_map(level).collect()
    }

    /// The latest misdeeds of a client, the latest first.
    #[must_use]
    pub fn misdeeds(&self, source: &Source) -> Vec<Evidence> {
        let who = Culprit::Source(*source);
        self.trails[0].of(&who).take(EVIDENCE_MAX).map(Evidence::from).collect()
    }

    /// Whom signals from a client are held against: itself and what it is led to; and, where it is
    /// shared, those behind it who are known of late.
    #[must_use]
    pub fn culprits(&self, source: &Source) -> BTreeSet<Culprit> {
        let own = [Culprit::Source(*source), Culprit::Led(*source, None)];
        let behind =
            |signal: &Signal| guard::narrow(own[usize::from(signal.is_led)].clone(), signal);
        let latest = self.trails.iter().flat_map(|trail| trail.of(&own[0]).take(LOOKED_AT));
        latest.map(behind).chain(own.clone()).collect()
    }

    /// How many verdicts a culprit has had that are not forgotten.
    #[must_use]
    pub fn strikes(&self, culprit: &Culprit, now_ns: u64) -> u32 {
        let past = self.past.get(self.hash(culprit));
        past.map_or(0, |past| self.rules.strikes_left(past.strikes, past.until_ns, now_ns))
    }

    /// Buckets that are not empty, or were not when last looked at.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.iter().map(Pool::len).sum()
    }

    /// Whether there is no bucket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Buckets and culprits that were dropped to make room for others.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        let buckets: u64 = self.buckets.iter().map(|pool| pool.evicted).sum();
        self.evicted_before + buckets + self.past.evicted
    }

    /// The bucket of a culprit in a scenario. Whoever bears a verdict in place of a source fills one for each: what
    /// is little everywhere is not much.
    fn bucket(&self, scenario: &Scenario, culprit: &Culprit, source: Source) -> u64 {
        if scenario.is_narrowed_to(culprit) {
            self.hash((source, culprit))
        } else {
            self.hash(culprit)
        }
    }

    fn remember(&mut self, key: u64, past: Past) {
        *self.past.entry(key, || past, |past| past.until_ns) = past;
    }

    fn hash(&self, what: impl std::hash::Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        what.hash(&mut hasher);
        hasher.finish()
    }
}

fn pools(rules: &Rules) -> Vec<Pool<Bucket>> {
    rules.scenarios.iter().map(|scenario| Pool::new(scenario.groups_max)).collect()
}

/// Signals that a verdict shows.
pub const EVIDENCE_MAX: usize = 10;
/// Signals that are looked at for them: of one culprit, and where nothing links those of one.
const LOOKED_AT: usize = 256;
const ALL_LOOKED_AT: usize = 4_096;
/// Of misdeeds, and of what was served: ~300 bytes each.
const MISDEEDS_KEPT: usize = 32_768;
const SERVED_KEPT: usize = 8_192;
/// The largest capacity of a scenario that counts what differs: a bucket remembers twice as many values.
pub const DISTINCT_MAX: u64 = 500;

#[cfg(test)]
mod tests;
