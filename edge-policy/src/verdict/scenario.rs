//! What a scenario asks of a signal, and what that leads to.

use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};

use super::culprit::{By, Culprit};
use super::guard;
use super::signal::{Kind, Signal};
use crate::place::{Place, Places};

/// A pattern of misbehaviour, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What it is called.
    pub name: Arc<str>,
    /// Which signals it is about, and what each weighs.
    pub filter: Filter,
    /// Whom they are held against.
    pub by: By,
    /// What must differ for a signal to count again.
    pub distinct: Option<Distinct>,
    /// What may come at once without consequence.
    pub capacity: u64,
    /// The time in which one of them is forgotten; at least 1.
    pub interval_ns: u64,
    /// What the first overflow leads to.
    pub step: Step,
    /// How far further ones lead; at least `step`.
    pub up_to: Step,
    /// How long the first verdict lasts.
    pub duration_ns: u64,
    /// Buckets at once.
    pub groups_max: usize,
}

/// The signals that a scenario is about. What is empty asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What each kind weighs, by [`Kind::index`]; 0: the scenario is not about it.
    pub weights: [u16; Kind::COUNT],
    /// Methods of the request.
    pub methods: Vec<Method>,
    /// What its path begins with, by whole segments.
    pub paths: Vec<Box<str>>,
    /// Statuses of the answer.
    pub statuses: Vec<u16>,
    /// Whether the sender must have proved who it is (`true`), or must not have.
    pub proven: Option<bool>,
    /// Where its address must be from, all of them.
    pub places: Vec<Among>,
}

/// Places that an address is to be from, or not to be from. One of which nobody knows where it is from
/// is neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Among {
    /// What they are.
    pub place: Place,
    /// Which.
    pub ids: Vec<u64>,
    /// Whether it is to be from elsewhere.
    pub is_elsewhere: bool,
}

impl Among {
    /// Whether every address that is in the other is in this one.
    fn covers(&self, other: &Self) -> bool {
        let has = |ids: &[u64], others: &[u64]| others.iter().all(|id| ids.contains(id));
        self.place == other.place
            && match (self.is_elsewhere, other.is_elsewhere) {
                (false, false) => has(&self.ids, &other.ids),
                (true, true) => has(&other.ids, &self.ids),
                (true, false) => !self.ids.iter().any(|id| other.ids.contains(id)),
                (false, true) => false,
            }
    }

    fn fits(&self, places: Places) -> bool {
        places.get(self.place).is_some_and(|id| self.ids.contains(&id) != self.is_elsewhere)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            weights: [0; Kind::COUNT],
            methods: Vec::new(),
            paths: Vec::new(),
            statuses: Vec::new(),
            proven: None,
            places: Vec::new(),
        }
    }
}

impl Filter {
    /// What a signal weighs; 0 if the scenario is not about it.
    #[must_use]
    pub fn weigh(&self, signal: &Signal) -> u64 {
        let weight = self.weights[signal.kind.index()];
        let asked = signal.request.as_deref();
        let fits = weight > 0
            && self.proven.is_none_or(|proven| proven == signal.principal.is_some())
            && (self.methods.is_empty()
                || asked.is_some_and(|a| self.methods.iter().any(|m| m.as_str() == &*a.method)))
            && (self.statuses.is_empty()
                || asked.is_some_and(|a| self.statuses.contains(&a.status)))
            && self.takes(signal.path())
            && self.places.iter().all(|among| among.fits(signal.places));
        if fits { weight.into() } else { 0 }
    }
}

impl Filter {
    /// Whether it takes what is asked for at a path.
    #[must_use]
    pub fn takes(&self, path: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|top| is_under(path, top))
    }

    /// The kinds that weigh anything.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::all().filter(|kind| self.weights[kind.index()] > 0)
    }

    /// Whether it takes every signal that `other` takes, and weighs it no less.
    fn covers(&self, other: &Self) -> bool {
        let heavier = self.weights.iter().zip(&other.weights).all(|(own, other)| own >= other);
        heavier
            && has_all(&self.methods, &other.methods, PartialEq::eq)
            && has_all(&self.paths, &other.paths, |own, path| is_under(path, own))
            && has_all(&self.statuses, &other.statuses, PartialEq::eq)
            && (self.proven.is_none() || self.proven == other.proven)
            && self.places.iter().all(|own| other.places.iter().any(|other| own.covers(other)))
    }
}

/// Whether what asks for one of `own`, or for nothing if there is none, takes whatever asks for one of
/// `others` does.
fn has_all<T>(own: &[T], others: &[T], has: impl Fn(&T, &T) -> bool) -> bool {
    let is_had = |other: &T| own.iter().any(|own| has(own, other));
    own.is_empty() || (!others.is_empty() && others.iter().all(is_had))
}

impl Scenario {
    /// Whether it goes by where addresses are from.
    #[must_use]
    pub fn asks_place(&self) -> bool {
        matches!(self.by, By::Place(_))
            || matches!(self.distinct, Some(Distinct::Place(_)))
            || !self.filter.places.is_empty()
    }

    /// Whom a signal is held against, if it tells; from a shared source whoever would bear it.
    pub(super) fn culprit(&self, signal: &Signal, is_shared: bool) -> Option<Culprit> {
        let culprit = self.by.culprit(signal)?;
        Some(if is_shared { guard::narrow(culprit, signal) } else { culprit })
    }

    /// Whether a culprit bears this scenario's verdict in place of a source.
    pub(super) const fn is_narrowed_to(&self, culprit: &Culprit) -> bool {
        matches!((self.by, culprit), (By::Source | By::Fingerprint, Culprit::Principal(_)))
    }

    /// How far ahead a bucket may lie.
    pub(super) const fn brim_ns(&self) -> u64 {
        self.capacity.saturating_mul(self.interval_ns)
    }

    /// Whether `other` never speaks because this one always does before it, and no less harshly.
    #[must_use]
    pub fn shadows(&self, other: &Self) -> bool {
        self.by == other.by
            && self.filter.covers(&other.filter)
            && (self.distinct.is_none() || self.distinct == other.distinct)
            && self.capacity <= other.capacity
            && self.interval_ns >= other.interval_ns
            && (self.step, self.up_to, self.duration_ns)
                >= (other.step, other.up_to, other.duration_ns)
    }
}

/// Whether a path is `top` or lies below it.
fn is_under(path: &str, top: &str) -> bool {
    let top = top.trim_end_matches('/');
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where a verdict comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A scenario of this edge.
    #[default]
    Scenario,
    /// An operator of this edge.
    Operator,
    /// `CrowdSec`.
    Crowdsec,
    /// Another edge of the fleet.
    Fleet,
}

impl Origin {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scenario => "scenario",
            Self::Operator => "operator",
            Self::Crowdsec => "crowdsec",
            Self::Fleet => "fleet",
        }
    }
}

/// What must differ for a signal to count again while its bucket is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinct {
    /// The path.
    Path,
    /// The account of a login.
    Account,
    /// The client's address.
    Source,
    /// Where it is from.
    Place(Place),
}

/// The rungs of the ladder, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// It is told, and nothing else.
    #[serde(rename = "observe")]
    Observe,
    /// Its requests wait.
    #[serde(rename = "delay")]
    Delay,
    /// Its requests are refused with 429.
    #[serde(rename = "429")]
    Throttle,
    /// Its requests are refused with 403.
    #[serde(rename = "403")]
    Refuse,
    /// Its packets are dropped in the kernel.
    #[serde(rename = "ban")]
    Ban,
}

impl Step {
    /// Every rung, with its name in the configuration.
    pub const ALL: [(&'static str, Self); 5] = [
        ("observe", Self::Observe),
        ("delay", Self::Delay),
        ("429", Self::Throttle),
        ("403", Self::Refuse),
        ("ban", Self::Ban),
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// So many rungs higher, but not beyond `most`. From "observe" nothing leads up.
    #[must_use]
    pub fn climb(self, rungs: u32, most: Self) -> Self {
        if self == Self::Observe {
            return self;
        }
        let at = (self as usize).saturating_add(rungs as usize).min(most as usize);
        Self::ALL[at].1
    }
}
