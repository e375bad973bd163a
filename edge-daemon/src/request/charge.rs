//! What a request is charged to: its source before it is read, and then all other limits.
//!
//! Where several share a source, or one of their TLS libraries is under a verdict there, it is charged once it is known
//! who sends it: one who goes on under a verdict uses up nothing of what his neighbours may ask.

use std::{
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::LazyLock,
    time::Duration,
};

use edge_common::{Reason, Source};
use edge_identity::principal::{Claim, Principal};
use edge_policy::{
    denied::Denied,
    ja4::Ja4,
    led,
    limit::{Admission, Caller, Facts, Rules, meter::Now},
    route::Route,
};
use http::{HeaderMap, request::Parts};

use super::{Plan, Worker, bear, front::Visitor, path::Trace};
use crate::clock;

/// What is asked of every request before it is read: whether there is room for it, whose it is, and what
/// its source has to bear and may ask.
pub(super) async fn admit_source(
    worker: &Worker,
    visitor: &mut Visitor,
    plan: &Plan,
    (in_flight, now): (usize, Now),
    trace: &mut Trace,
    headers: &HeaderMap,
) -> Result<Source, Denied> {
    if in_flight > plan.bounds.requests_max || worker.edge.metrics.memory.refuses_request(in_flight)
    {
        return Err(Reason::Overload.into());
    }
    worker.spare(in_flight);
    *visitor = visitor.of_request(plan, headers)?;
    // Beyond its own limit or verdict a client is refused for itself, whoever leads it.
    let is_led = mem::take(&mut trace.is_led) || led::is_led(headers);
    bear::source(worker, visitor, plan).await?;
    let client = Source::from(visitor.address).client(plan.client);
    if is_put_off(worker, visitor, client, now) {
        plan.shared.requests.admit_source(client, now)?;
        trace.payment = Payment::Owed(client);
    } else {
        trace.admission = plan.limits.admit_source(client, now)?;
    }
    trace.is_led = is_led;
    bear::led(worker, visitor, plan, trace.is_led).await?;
    Ok(client)
}

/// Whether it has to be known who sends a request before it is charged to its source.
fn is_put_off(worker: &Worker, visitor: &Visitor, client: Source, now: Now) -> bool {
    worker.edge.identities.is_shared(&client, now.boot_ns)
        || bear::is_refused_unproven(worker, visitor, client)
}

/// Charges what never became a request, as little as others at its source are to suffer for it; the answer to it.
pub(super) fn unread(
    worker: &Worker,
    visitor: &Visitor,
    denied: Denied,
    trace: &mut Trace,
    now: Now,
) -> Denied {
    let plan = &worker.view().plan;
    let client = Source::from(visitor.address).client(plan.client);
    let is_put_off = is_put_off(worker, visitor, client, now);
    let rules = if is_put_off { &plan.shared.requests } else { &plan.limits };
    let Err(limited) = rules.admit_source(client, now) else { return denied };
    trace.told = is_put_off.then(|| Denied { hit: limited.hit.clone(), ..denied });
    limited
}

/// Whom somebody claims to be who has not proved it.
#[derive(Clone, Copy)]
pub(super) enum Claimed<'a> {
    /// A key that there is, by its id: he has shown it.
    Shown(&'a str),
    /// Whatever he named, which need not be.
    Named(&'a str),
}

impl Claimed<'_> {
    /// With whom he falls: who has shown a key, with those who have as well; the others with so many that a refusal
    /// tells nobody whether there is a key of that name.
    fn crowd(self, crowds: u64) -> String {
        static CROWDS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        match self {
            Self::Shown(id) => id.to_owned(),
            Self::Named(name) => format!("#{}", CROWDS.hash_one(name) % crowds),
        }
    }
}

/// Charges a proof that costs the edge much, if nothing but the shared bound was charged for it: to whoever claims
/// the same at that source. That is not the key itself, which pays for nobody's guesses.
/// What is given has to be held while the proof takes.
pub(super) fn claim(
    plan: &Plan,
    owed: Option<Source>,
    claimed: Claimed<'_>,
) -> Result<Admission, Denied> {
    let Some(client) = owed else { return Ok(Admission::default()) };
    charge_claim(&plan.limits, client, &claimed.crowd(CROWDS_APART), clock::now())
}

fn charge_claim(
    limits: &Rules,
    client: Source,
    crowd: &str,
    now: Now,
) -> Result<Admission, Denied> {
    let caller = Caller { user: [CLAIMED, crowd], key: None, tier: None, claim: &|_| None };
    limits.admit_shared(client, Some(caller), now).map_err(nobodys)
}

/// A refusal for what others may have used up.
fn nobodys(denied: Denied) -> Denied {
    Denied { reason: Reason::GlobalRate, ..denied }
}

/// Charges a request to its source, if that was put off until it is known who sends it: he has the source's
/// limits to himself, and those who prove nothing have them together, so that none of these is to blame.
pub(super) fn pay(plan: &Plan, trace: &mut Trace, now: Now) -> Result<(), Denied> {
    let Payment::Owed(client) = trace.payment else { return Ok(()) };
    trace.payment = Payment::Late;
    let caller = trace.principal.as_ref().map(|who| caller(who, &|_| None));
    match plan.limits.admit_shared(client, caller, now) {
        Ok(admission) => trace.admission = admission,
        Err(denied) if trace.principal.is_none() => return Err(nobodys(denied)),
        Err(denied) => {
            trace.is_led = false;
            return Err(denied);
        }
    }
    Ok(())
}

/// The refusal of a request that proved nothing: that of the verdict on its TLS library there, or else of
/// its source's limit, if it was not charged to that before. What it did itself is told even then.
pub(super) async fn refused(
    worker: &Worker,
    visitor: &Visitor,
    denied: Denied,
    trace: &mut Trace,
    now: Now,
) -> Denied {
    let denied = bear::refused(worker, visitor, denied).await;
    let is_verdict = matches!(denied.reason, Reason::BannedRequest | Reason::Throttled);
    // A claim that was too much has been charged.
    if is_verdict || denied.hit.is_some() {
        return denied;
    }
    let plan = &worker.view().plan;
    match pay(plan, trace, now) {
        Ok(()) => denied,
        Err(limited) => {
            let hit = limited.hit.clone();
            trace.told.get_or_insert(Denied { hit, ..denied });
            limited
        }
    }
}

/// When a request is charged to its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payment {
    /// Before it was read.
    Early,
    /// Once it is known who sends it, since several are at its source: this one.
    Owed(Source),
    /// That is done, or not to be.
    Late,
}

impl Payment {
    /// Whether several are known to be at its source.
    pub(super) fn is_shared(self) -> bool {
        self != Self::Early
    }

    /// The source that it is still to be charged to.
    pub(super) fn owed(self) -> Option<Source> {
        match self {
            Self::Owed(client) => Some(client),
            Self::Early | Self::Late => None,
        }
    }
}

/// What those who share a source may do together.
pub struct SharedSource {
    /// Their requests.
    pub requests: Rules,
    /// Their TLS handshakes.
    pub handshakes: Rules,
}

/// Charges a request, of which all is known, to every limit that asks for more than its source, and
/// waits for its turn where one makes it queue. What the others have said is in `admission` already.
pub(super) async fn charge(
    plan: &Plan,
    (visitor, client, is_shared): (&Visitor, Source, bool),
    principal: Option<&Principal>,
    route: &Route,
    (head, host): (&Parts, &str),
    (admission, now): (&mut Admission, Now),
) -> Result<(), Denied> {
    // What is no word, number or list of them is no key: it may be another in each token.
    let is_key = |claim: &&Claim| !matches!(claim, Claim::Other(_));
    let claim = |name: &str| principal?.claim(name).filter(is_key).map(Claim::to_string);
    let ja4 = visitor.own_ja4();
    let facts = Facts {
        source: client,
        is_shared,
        caller: principal.map(|who| caller(who, &claim)),
        route: route.at.path.as_str(),
        method: &head.method,
        host,
        header: &|name| head.headers.get(name).map(http::HeaderValue::as_bytes),
        ja4: ja4.as_ref().map(Ja4::as_str),
        place: &|place| plan.geo.find(place, client.into()),
        cost: route.cost,
    };
    let late = plan.limits.admit(&facts, admission, now).map_err(|denied| {
        let has_used_it_up = !is_shared || principal.is_some();
        if has_used_it_up { denied } else { nobodys(denied) }
    })?;
    *admission = mem::take(admission).and(late);
    if admission.delay_ns > 0 {
        tokio::time::sleep(Duration::from_nanos(admission.delay_ns)).await;
    }
    Ok(())
}

fn caller<'a>(who: &'a Principal, claim: &'a dyn Fn(&str) -> Option<String>) -> Caller<'a> {
    Caller {
        user: [who.origin(), who.id()],
        key: who.key().map(|key| key.id().as_str()),
        tier: who.tier(),
        claim,
    }
}

/// With whom those have a name who have not proved it; no issuer is called so.
const CLAIMED: &str = "claimed key";
/// More than a source has of its limit by `shared_requests` as shipped, so that nobody uses up all of them.
const CROWDS_APART: u64 = 64;

#[cfg(test)]
mod tests {
    use edge_policy::limit::{
        Only, Part, Rule, Spec,
        meter::{Bucket, Meter},
    };

    use super::*;

    #[test]
    fn who_has_shown_a_key_is_charged_apart_from_others_and_from_whoever_names_one() {
        let spec = Spec {
            name: "per_source".into(),
            by: vec![Part::Source],
            only: Only::default(),
            meter: Some(Meter::TokenBucket(Bucket::new(1, 3_600_000_000_000, 3).unwrap())),
            tiers: Vec::new(),
            keys_max: 1_000,
            shadow: false,
            fleet: false,
            persist: false,
            reason: Reason::SourceRate,
        };
        let limits: Rules = [Rule::new(spec, None, [7; 16])].into_iter().collect();
        let client = Source::v4([192, 0, 2, 1]);
        let now = Now { boot_ns: 1, unix_ns: 1 };
        // All names are of one crowd.
        let ask = |claimed: Claimed<'_>| charge_claim(&limits, client, &claimed.crowd(1), now);
        let passed = |claimed| (0..9).filter(|_| ask(claimed).is_ok()).count();
        assert_eq!(passed(Claimed::Named("a")), 3);
        assert_eq!(passed(Claimed::Named("b")), 0);
        assert!(ask(Claimed::Named("c")).is_err_and(|denied| denied.reason == Reason::GlobalRate));
        assert_eq!([Claimed::Shown("a"), Claimed::Shown("b")].map(passed), [3, 3]);
        assert_eq!(passed(Claimed::Shown("a")), 0);
    }
}
