//! What a request is charged to: its source before it is read, and then all other limits.

use std::{mem, time::Duration};

use edge_common::{Reason, Source};
use edge_identity::principal::{Claim, Principal};
use edge_policy::{
    denied::Denied,
    ja4::Ja4,
    led,
    limit::{Admission, Caller, Facts, meter::Now},
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
    trace.admission = plan.limits.admit_source(client, now)?;
    trace.is_led = is_led;
    bear::led(worker, visitor, plan, trace.is_led).await?;
    Ok(client)
}

/// Charges a request, of which all is known, to every limit that asks for more than its source, and
/// waits for its turn where one makes it queue. What the others have said is in `admission` already.
pub(super) async fn charge(
    plan: &Plan,
    (visitor, client): (&Visitor, Source),
    principal: Option<&Principal>,
    route: &Route,
    (head, host): (&Parts, &str),
    (admission, now): (&mut Admission, Now),
) -> Result<(), Denied> {
    // What is no word, number or list of them is no key: it may be another in each token.
    let is_key = |claim: &&Claim| !matches!(claim, Claim::Other(_));
    let claim = |name: &str| principal?.claim(name).filter(is_key).map(Claim::to_string);
    let caller = principal.map(|who| Caller {
        user: [who.origin(), who.id()],
        key: who.key().map(|key| key.id().as_str()),
        tier: who.tier(),
        claim: &claim,
    });
    let facts = Facts {
        source: client,
        caller,
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
