//! Request limits: rules that say whose requests are counted together, how, and how many may pass.
//!
//! `meter` has the algorithms, `key` says whose requests are one key's, `table` has the keys of a meter, `counted`
//! those of a rule, `standing` what the client is told.

mod admission;
mod counted;
mod key;
pub mod keyed;
pub mod lease;
pub mod meter;
pub mod standing;
mod state;
pub mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_common::{Reason, Source};
use http::Method;
use http::header::HeaderName;

pub use self::admission::{Admission, Held};
pub use self::counted::Counted;
pub use self::key::Part;
pub use self::standing::{Standing, retry_after_s};
pub use self::state::State;
use self::{
    counted::Counts,
    keyed::Keyed,
    lease::Share,
    meter::{Meter, Now},
    standing::Left,
    table::{Admitted, Refused},
};
use crate::{
    denied::{Denied, Hit},
    place::Place,
};

/// A limit, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What operators call it.
    pub name: Arc<str>,
    /// Whose requests are counted together: those that agree in all of this. Empty: everybody's.
    pub by: Vec<Part>,
    /// Which requests it speaks of.
    pub only: Only,
    /// How they are counted; `None` admits all.
    pub meter: Option<Meter>,
    /// How those of a caller of some tier are counted instead.
    pub tiers: Vec<(String, Option<Meter>)>,
    /// Keys that are told apart.
    pub keys_max: usize,
    /// Whether it only counts what it would have refused.
    pub shadow: bool,
    /// Whether many edges share it.
    pub fleet: bool,
    /// Whether what was used up outlives a restart.
    pub persist: bool,
    /// What its refusals are counted as.
    pub reason: Reason,
}

/// Which requests a rule speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// Routes, by their paths; empty is all.
    pub routes: Vec<String>,
    /// Methods; empty is all.
    pub methods: Vec<Method>,
}

/// What is known of a request when it is charged.
pub struct Facts<'a> {
    /// The client, as wide as clients are told apart.
    pub source: Source,
    /// Whether it is known that several are at its source: who he is tells each from the others there.
    pub is_shared: bool,
    /// Who it is, if that is known.
    pub caller: Option<Caller<'a>>,
    /// The path of its route; a slash at its end means nothing.
    pub route: &'a str,
    /// Its method.
    pub method: &'a Method,
    /// The host that it asks for.
    pub host: &'a str,
    /// Its headers.
    pub header: &'a dyn Fn(&HeaderName) -> Option<&'a [u8]>,
    /// The fingerprint of its TLS client.
    pub ja4: Option<&'a str>,
    /// Where its client is from, if anybody knows.
    pub place: &'a dyn Fn(Place) -> Option<u64>,
    /// What it costs.
    pub cost: u64,
}

impl Facts<'_> {
    /// Those of a request of which nothing is known but its source, and what it costs.
    #[must_use]
    pub fn of(source: Source, cost: u64) -> Self {
        static GET: Method = Method::GET;
        Self {
            source,
            is_shared: false,
            caller: None,
            route: "",
            method: &GET,
            host: "",
            header: &|_| None,
            ja4: None,
            place: &|_| None,
            cost,
        }
    }
}

/// Who sends a request.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// With whom it has a name, and the name: together no other caller's.
    pub user: [&'a str; 2],
    /// The public id of its API key.
    pub key: Option<&'a str>,
    /// Its tier.
    pub tier: Option<&'a str>,
    /// What is claimed of it.
    pub claim: &'a dyn Fn(&str) -> Option<String>,
}

/// A rule in force: what it says, and what it has counted.
#[derive(Debug)]
pub struct Rule {
    /// What it says.
    pub spec: Spec,
    state: Arc<State>,
    counts: Counts,
}

impl Spec {
    /// Whether nothing but the client's address has to be known. Such a rule is asked before the
    /// request is read, so that nonsense and guessing are slowed as well.
    #[must_use]
    pub fn is_early(&self) -> bool {
        self.by == [Part::Source] && self.only == Only::default() && self.tiers.is_empty()
    }

    /// Whether it is a limit by key that many edges share.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.fleet && !self.by.is_empty()
    }

    /// Whether the other's keys are the same, in as many places.
    fn has_keys_of(&self, other: &Self) -> bool {
        (self.is_keyed(), &self.by, self.keys_max) == (other.is_keyed(), &other.by, other.keys_max)
    }
}

impl Only {
    fn covers(&self, facts: &Facts<'_>) -> bool {
        let is_same = |r: &String| r.trim_end_matches('/') == facts.route.trim_end_matches('/');
        (self.routes.is_empty() || self.routes.iter().any(is_same))
            && (self.methods.is_empty() || self.methods.contains(facts.method))
    }
}

impl Rule {
    /// A rule that begins anew, or where the `former` one of its name was.
    #[must_use]
    pub fn new(spec: Spec, former: Option<&Self>, secret: [u8; 16]) -> Self {
        let kept = former.filter(|former| former.spec.has_keys_of(&spec));
        let anew = || State {
            secret,
            share: Share::default(),
            keyed: spec.is_keyed().then(Keyed::default),
            refused: AtomicU64::new(0),
            would_refuse: AtomicU64::new(0),
        };
        let state = kept.map_or_else(|| Arc::new(anew()), |former| Arc::clone(&former.state));
        let counts = Counts::new(&spec, kept.map(|former| &former.counts));
        Self { spec, state, counts }
    }

    /// What it knows of its requests.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// What it has counted: of those without a tier that has numbers of its own, and of each such tier.
    pub fn counted(&self) -> impl Iterator<Item = (Option<&str>, &Counted)> {
        self.counts.iter()
    }

    /// Keys that lost their place before they were idle, and charges that were shared.
    #[must_use]
    pub fn losses(&self) -> (u64, u64) {
        let each = self.counted().map(|(_, counted)| counted.table.losses());
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// By what a request is counted, and where its key leads, if the rule speaks of it. What is soon to be
    /// charged is brought in.
    fn seek(&self, facts: &Facts<'_>, paid: u64) -> Option<(&Counted, u64)> {
        let tier = facts.caller.and_then(|caller| caller.tier);
        // What is in flight counts, whatever it costs.
        let counts = |counted: &&Counted| facts.cost > paid || counted.meter.is_concurrent();
        let counted = self.counts.of(tier).filter(counts)?;
        if !self.spec.only.covers(facts) {
            return None;
        }
        let hash = key::hash(&self.spec.by, &self.state.secret, facts)?;
        counted.table.fetch(hash);
        Some((counted, hash))
    }

    /// Charges a request what it costs beyond what is `paid`.
    fn charge(
        &self,
        (Counted { meter: whole, table, .. }, hash): (&Counted, u64),
        facts: &Facts<'_>,
        paid: u64,
        now: Now,
        admission: &mut Admission,
    ) -> Result<(), Denied> {
        let cost = facts.cost.saturating_sub(paid);
        let meter = &self.part(*whole, hash, cost);
        let standing = |left: Left| Standing { left, window_s: meter.window_s() };
        match table.charge(meter, hash, cost, now) {
            Ok(Admitted { left, delay_ns, hold }) => {
                if meter.is_concurrent() {
                    admission.held.push(Held::new(Arc::clone(table), *meter, hold));
                }
                if !self.spec.shadow {
                    admission.add(standing(left), delay_ns);
                }
                Ok(())
            }
            Err(_) if self.spec.shadow => {
                self.state.would_refuse.fetch_add(1, Relaxed);
                admission.would_refuse.push(Arc::clone(&self.state));
                Ok(())
            }
            Err(Refused { left, wait_ns, is_shared }) => {
                self.state.refused.fetch_add(1, Relaxed);
                // Who comes again pays the whole again.
                let anew = || table.wait_ns(meter, hash, facts.cost, now);
                let wait_ns = if paid == 0 { wait_ns } else { anew() };
                // An edge's part may be larger when it is leased anew.
                let later = || (facts.cost <= whole.most()).then_some(SECOND_NS);
                let wait_ns = wait_ns.or_else(later);
                // What is told of the reset is when to come again.
                let left = Left { reset_ns: wait_ns.unwrap_or(left.reset_ns), ..left };
                let limit = Arc::clone(&self.spec.name);
                let hit = Some(Box::new(Hit { limit, standing: standing(left) }));
                // What strangers have used up is not the client's fault.
                let reason = if is_shared { Reason::GlobalRate } else { self.spec.reason };
                Err(Denied { wait_ns, hit, ..Denied::new(reason) })
            }
        }
    }

    /// This edge's part of a meter that many share.
    fn part(&self, meter: Meter, hash: u64, cost: u64) -> Meter {
        if !self.spec.fleet {
            return meter;
        }
        if let Some(keyed) = &self.state.keyed {
            return meter.part(keyed.ask(hash, cost));
        }
        self.state.share.ask(cost);
        meter.part(self.state.share.parts())
    }
}

/// All rules in force.
#[derive(Debug, Default)]
pub struct Rules {
    early: Vec<Rule>,
    late: Vec<Rule>,
}

impl FromIterator<Rule> for Rules {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let (early, late) = rules.into_iter().partition(|rule| rule.spec.is_early());
        Self { early, late }
    }
}

impl Rules {
    /// Charges a request of which nothing but its source is known to the rules that ask for no more.
    ///
    /// # Errors
    /// If a rule refuses.
    pub fn admit_source(&self, source: Source, now: Now) -> Result<Admission, Denied> {
        admit(&self.early, &Facts::of(source, ASKED), 0, now)
    }

    /// The same of a request from a source that several share, of whose sender no more is known than who he
    /// is, if that.
    ///
    /// # Errors
    /// If a rule refuses.
    pub fn admit_shared(
        &self,
        source: Source,
        caller: Option<Caller<'_>>,
        now: Now,
    ) -> Result<Admission, Denied> {
        let facts = Facts { is_shared: true, caller, ..Facts::of(source, ASKED) };
        admit(&self.early, &facts, 0, now)
    }

    /// Charges a request to all other rules, and to those by its source what it costs beyond the one
    /// that they were charged, as `admitted` says; none of them makes it wait once more.
    ///
    /// # Errors
    /// If a rule refuses; what the others in flight held is given back.
    pub fn admit(
        &self,
        facts: &Facts<'_>,
        admitted: &Admission,
        now: Now,
    ) -> Result<Admission, Denied> {
        if facts.cost <= ASKED {
            return admit(&self.late, facts, 0, now);
        }
        let is_concurrent = |rule: &&Rule| rule.spec.meter.is_some_and(|m| m.is_concurrent());
        // Of one that would have refused it this would not have been asked.
        let is_settled = |rule: &&Rule| {
            admitted.would_refuse.iter().any(|state| Arc::ptr_eq(state, &rule.state))
        };
        let early = self.early.iter().filter(|rule| !is_concurrent(rule) && !is_settled(rule));
        let early = Admission { delay_ns: 0, ..admit(early, facts, ASKED, now)? };
        Ok(early.and(admit(&self.late, facts, 0, now)?))
    }

    /// What an edge without a lease may use of each at the most, until the next look at all of them.
    pub fn begin(&self, alone: u32) {
        self.iter().for_each(|rule| rule.state.begin(alone));
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.early.iter().chain(&self.late)
    }

    /// The rule of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.iter().find(|rule| &*rule.spec.name == name)
    }
}

/// Charges a request, of which so much is paid, to each rule that speaks of it, in their order, until
/// one refuses.
///
/// # Errors
/// If a rule refuses; what the others in flight held is given back.
fn admit<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    facts: &Facts<'_>,
    paid: u64,
    now: Now,
) -> Result<Admission, Denied> {
    let mut rules = rules.into_iter().filter_map(|rule| Some((rule, rule.seek(facts, paid)?)));
    let mut admission = Admission::default();
    loop {
        // The places of several are brought in together, and then charged one by one.
        let mut found = [None; TOGETHER];
        found.iter_mut().zip(&mut rules).for_each(|(place, rule)| *place = Some(rule));
        for (rule, place) in found.into_iter().flatten() {
            rule.charge(place, facts, paid, now, &mut admission)?;
        }
        if found[TOGETHER - 1].is_none() {
            return Ok(admission);
        }
    }
}

/// Rules whose places are brought in before the first is charged.
const TOGETHER: usize = 8;

/// What a request is charged of which nothing but its source is known.
const ASKED: u64 = 1;

/// After which an edge's part of what many share may be another.
const SECOND_NS: u64 = 1_000_000_000;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod fleet_tests;
