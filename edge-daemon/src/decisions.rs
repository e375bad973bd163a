//! What the verdict writer decides, as it decides it: for `edgectl watch`, for webhooks, for whoever
//! shares bans with others.
//!
//! The latest are kept in a ring, each under a number. A reader asks for what came after the last that
//! it has seen; one that is too slow is told how many it missed. Nobody who reads holds up who writes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use edge_identity::key::Key;
use edge_policy::verdict::{Culprit, Evidence, Origin, Step};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A client's packets are dropped from now on.
    Ban,
    /// A culprit's requests are delayed or refused from now on.
    Penalty,
    /// A scenario spoke, and nothing is done.
    Observed,
    /// A ban or penalty has ended, or was lifted.
    Lift,
    /// Something asks for a person.
    Alarm,
    /// A feed brought nothing, or nothing that can be its list; what was there stays.
    Feed,
    /// The server between the edges of a fleet was lost, or found.
    Fleet,
    /// A key was revoked, replaced, exposed or forged, has ended or soon will.
    Key,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ban,
        Self::Penalty,
        Self::Observed,
        Self::Lift,
        Self::Alarm,
        Self::Feed,
        Self::Fleet,
        Self::Key,
    ];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Penalty => "penalty",
            Self::Observed => "observed",
            Self::Lift => "lift",
            Self::Alarm => "alarm",
            Self::Feed => "feed",
            Self::Fleet => "fleet",
            Self::Key => "key",
        }
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: What,
    /// About whom; `None`: about the edge itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub culprit: Option<Culprit>,
    /// On which rung.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Whose decision it was.
    pub origin: Origin,
    /// By which scenario; who, if nobody of this edge; which feed; empty if nobody said.
    pub scenario: String,
    /// The last misdeed, why it ended, or what the alarm is about.
    pub reason: String,
    /// When it ends, in unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// How many verdicts the culprit has had, this one included.
    pub strikes: u32,
    /// Why it is milder than the scenario says, or about somebody narrower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spared: Option<String>,
    /// The signals that led to it, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

impl Decision {
    /// That something asks for a person.
    #[must_use]
    pub fn alarm(why: String) -> Self {
        Self::of(What::Alarm, None, why)
    }

    /// That what was in force against a culprit is over.
    #[must_use]
    pub fn lift(culprit: Culprit, why: &str) -> Self {
        Self::of(What::Lift, Some(culprit), why.to_owned())
    }

    /// That a feed of this name brought nothing.
    #[must_use]
    pub fn feed(name: &str, why: &str) -> Self {
        Self { scenario: name.to_owned(), ..Self::of(What::Feed, None, why.to_owned()) }
    }

    /// What became of a key, for its owner to know.
    #[must_use]
    pub fn key(key: &Key, what: &str, until_ms: Option<u64>) -> Self {
        let culprit = Culprit::Principal(format!("key:{}", key.id()).into());
        let reason = format!("{what}; its owner is {}", key.owner());
        Self { until_ms, ..Self::of(What::Key, Some(culprit), reason) }
    }

    /// That the fleet's server was lost or found.
    #[must_use]
    pub fn fleet(why: String) -> Self {
        Self::of(What::Fleet, None, why)
    }

    fn of(what: What, culprit: Option<Culprit>, reason: String) -> Self {
        Self {
            at_ms: clock::unix_ms(),
            what,
            culprit,
            step: None,
            origin: Origin::Scenario,
            scenario: String::new(),
            reason,
            until_ms: None,
            strikes: 0,
            spared: None,
            evidence: Vec::new(),
        }
    }
}

/// The latest decisions.
#[derive(Default)]
pub struct Decisions {
    ring: Mutex<Ring>,
    came: Notify,
}

#[derive(Default)]
struct Ring {
    kept: VecDeque<Arc<Decision>>,
    /// Number of the next decision.
    next: u64,
}

/// What came after a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// The decisions, the oldest first.
    pub decisions: Vec<Arc<Decision>>,
    /// The number to ask with next.
    pub next: u64,
    /// Those that are kept no more.
    pub missed: u64,
}

impl Decisions {
    /// Tells of a decision. Never waits for a reader.
    pub fn tell(&self, decision: Decision) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Arc::new(decision));
        ring.next += 1;
        drop(ring);
        self.came.notify_waiters();
    }

    /// The number of the next decision: with it, a reader begins at the present.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).next
    }

    /// What came from this number on, at most so many at once.
    #[must_use]
    pub fn since(&self, from: u64, most: usize) -> Since {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.next - ring.kept.len() as u64;
        // Who comes with a number from before a restart begins anew.
        let from = if from > ring.next { first } else { from };
        let begin = from.max(first);
        let skip = usize::try_from(begin - first).unwrap_or(usize::MAX);
        let decisions: Vec<_> = ring.kept.iter().skip(skip).take(most).cloned().collect();
        let next = begin + decisions.len() as u64;
        Since { decisions, next, missed: begin - from }
    }

    /// Waits until there is something from this number on.
    pub async fn wait(&self, from: u64) {
        loop {
            // Listened for before it is looked for, so that nothing falls in between.
            let came = self.came.notified();
            if self.next() != from {
                return;
            }
            came.await;
        }
    }
}

/// Decisions that are kept: ~1 KiB each with its evidence.
const KEPT: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(n: u64) -> Decision {
        Decision { at_ms: n, ..Decision::alarm("x".into()) }
    }

    #[test]
    fn a_reader_sees_all_in_order_or_hears_what_it_missed() {
        let decisions = Decisions::default();
        (0..10).for_each(|n| decisions.tell(alarm(n)));
        let first = decisions.since(4, 3);
        assert_eq!(first.decisions.iter().map(|d| d.at_ms).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!((first.next, first.missed), (7, 0));
        assert_eq!(decisions.since(10, 3), Since { next: 10, ..Since::default() });
        (0..KEPT as u64).for_each(|n| decisions.tell(alarm(n)));
        assert_eq!(decisions.since(4, 1).missed, 6);
        assert_eq!(decisions.since(u64::MAX, 1).decisions[0].at_ms, 0);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let decisions = Arc::new(Decisions::default());
        let teller = Arc::clone(&decisions);
        let told = std::thread::spawn(move || teller.tell(alarm(1)));
        decisions.wait(0).await;
        told.join().unwrap();
        assert_eq!(decisions.since(0, 9).decisions.len(), 1);
    }
}
