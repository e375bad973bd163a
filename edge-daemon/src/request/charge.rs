//! What a request is charged to: the limits' view of it.

use std::{mem, time::Duration};

use edge_common::Source;
use edge_identity::principal::{Claim, Principal};
use edge_policy::{
    denied::Denied,
    ja4::Ja4,
    limit::{Admission, Caller, Facts, meter::Now},
    route::Route,
};
use http::request::Parts;

use super::{Plan, front::Visitor};

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
    let late = plan.limits.admit(&facts, now)?;
    *admission = mem::take(admission).and(late);
    if admission.delay_ns > 0 {
        tokio::time::sleep(Duration::from_nanos(admission.delay_ns)).await;
    }
    Ok(())
}
