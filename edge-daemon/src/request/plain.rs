//! A request over plain HTTP: it is sent to HTTPS, and never served.

use edge_common::Reason;
use edge_policy::{denied::Denied, head, limit::meter::Now};
use http::{HeaderValue, request::Parts};

use super::{
    Worker,
    charge::{admit_source, pay},
    front::Visitor,
    identify, keys,
    path::{Trace, target},
};

/// Where it is sent: the same target, over TLS. What shows a credential is refused, and what it shows is
/// flagged, wherever that is: a redirect would repeat it.
pub(super) async fn redirect(
    worker: &Worker,
    visitor: &mut Visitor,
    come: (usize, Now),
    trace: &mut Trace,
    head: &Parts,
) -> Result<HeaderValue, Denied> {
    let view = worker.view();
    let plan = &view.plan;
    admit_source(worker, visitor, plan, come, trace, &head.headers).await?;
    let target = target(head, plan.bounds.uri_bytes_max);
    // It is told of, and answered as what it seems to be.
    let checked = plan.lures.check_canary(&head.headers, target.as_ref().ok(), trace.is_led);
    trace.told = checked.err();
    pay(plan, trace, come.1)?;
    let shown =
        target.as_ref().ok().map(|target| identify::shown_key(worker, visitor, plan, head, target));
    keys::refuse_in_clear(worker, visitor, plan, &head.headers)?;
    shown.transpose()?;
    let host = head::check(&head.method, &head.uri, head.version, &head.headers, &plan.head)?;
    let target = target?;
    let port = if plan.https_port == 443 { String::new() } else { format!(":{}", plan.https_port) };
    let location = format!("https://{}{port}{}", host.name, target.path_and_query());
    HeaderValue::try_from(location).map_err(|_| Reason::MalformedRequest.into())
}
