//! What a request is charged to: its source before it is read, and then all other limits.
//!
//! Where several share a source, or one of their TLS libraries is under a verdict there, it is charged once it is known
//! who sends it: one who goes on under a verdict uses up nothing of what his neighbours may ask.

use std::{mem, time::Duration};

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
    let is_shared = worker.edge.identities.is_shared(&client, now.boot_ns);
    if is_shared || bear::is_refused_unproven(worker, visitor, client) {
        plan.shared.requests.admit_source(client, now)?;
        trace.payment = Payment::Owed(client);
    } else {
        trace.admission = plan.limits.admit_source(client, now)?;
    }
    trace.is_led = is_led;
    bear::led(worker, visitor, plan, trace.is_led).await?;
    Ok(client)
}

/// Charges a request to its source, if that was put off until it is known who sends it: he has the source's
/// limits to himself, and those who prove nothing have them together.
pub(super) fn pay(plan: &Plan, trace: &mut Trace, now: Now) -> Result<(), Denied> {
    let Payment::Owed(client) = trace.payment else { return Ok(()) };
    trace.payment = Payment::Late;
    let caller = trace.principal.as_ref().map(|who| caller(who, &|_| None));
    let admitted = plan.limits.admit_shared(client, caller, now);
    trace.admission = admitted.inspect_err(|_| trace.is_led = false)?;
    Ok(())
}

/// The refusal of a request that proved nothing: that of the verdict on its TLS library there, or else of
/// its source's limit, if it was not charged to that before.
pub(super) async fn refused(
    worker: &Worker,
    visitor: &Visitor,
    denied: Denied,
    trace: &mut Trace,
    now: Now,
) -> Denied {
    let denied = bear::refused(worker, visitor, denied).await;
    if matches!(denied.reason, Reason::BannedRequest | Reason::Throttled) {
        return denied;
    }
    let plan = &worker.view().plan;
    pay(plan, trace, now).err().unwrap_or(denied)
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
    let facts = Facts {
        source: client,
        is_shared,
        caller: principal.map(|who| caller(who, &claim)),
        route: route.at.path.as_str(),
        method: &head.method,
        host,
        header: &|name| head.headers.get(name).map(http::HeaderValue::as_bytes),
        ja4: visitor.tls.as_ref().and_then(|tls| tls.ja4.as_ref()).map(Ja4::as_str),
        place: &|place| plan.geo.find(place, client.into()),
        cost: route.cost,
    };
    let late = plan.limits.admit(&facts, admission, now)?;
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
