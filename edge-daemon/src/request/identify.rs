//! Who a request is from: looks at what it presents, and has each kind of credential proved in
//! its own way.

use std::sync::Arc;

use edge_common::{Reason, Source};
use edge_identity::{
    access::unproved,
    credential::{self, Shown},
    principal::{Method, Methods, Named, Presented, Principal},
};
use edge_policy::{
    auth::{Challenge, TokenError},
    denied::Denied,
    head::Host,
    route::Route,
    target::Target,
};
use http::request::Parts;

use super::{
    Plan, Worker, front::Visitor, incoming::Incoming, keys, signed, token, token::Admitted,
};
use crate::clock;

/// A request as far as it is known before anybody is asked who sent it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'r> {
    pub(crate) head: &'r Parts,
    pub(crate) host: &'r Host,
    pub(crate) target: &'r Target,
    pub(crate) visitor: &'r Visitor,
    /// The source that it is still to be charged to.
    pub(crate) owed: Option<Source>,
}

/// What is known of the sender of a request.
#[derive(Default)]
pub(crate) struct Identity {
    /// Who it is; `None` if nothing was presented that is for the edge.
    pub(crate) principal: Option<Principal>,
    /// The token that says so, if one does.
    pub(crate) token: Option<Admitted>,
}

/// The key that a request shows, if any. Asked of every request, whether or not a route takes it:
/// a credential in the URL or two keys are a mistake anywhere.
pub(crate) fn shown_key<'a>(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    head: &'a Parts,
    target: &Target,
) -> Result<Option<Shown<'a>>, Denied> {
    let (path, query) = (&target.path, target.query.as_deref());
    let shown = credential::present(&head.headers, path, query, &plan.keys.url_parameters);
    shown.map_err(|reason| {
        if reason == Reason::CredentialInUrl {
            keys::flag_in_target(worker, visitor, plan, target);
        }
        unproved(reason, Method::Key.into())
    })
}

/// Proves what a request presents, in the one way that it and the route have in common.
///
/// The body is as it came, but where a signature covers it: then it breaks off unless it is the one
/// that was signed. May wait, bounded, for keys of an issuer; never for a disk.
pub(crate) async fn identify(
    worker: &Worker,
    (plan, route): (&Arc<Plan>, &Route),
    asked: Asked<'_>,
    shown: Option<Shown<'_>>,
    body: &mut Option<Incoming>,
) -> Result<Identity, Denied> {
    let methods = route.access.methods();
    let certificate = asked.visitor.certificate.is_some();
    let presented = Presented { headers: &asked.head.headers, key: shown.is_some(), certificate };
    let method = presented.method(methods).map_err(|reason| unproved(reason, methods))?;
    let proved = match (method, shown) {
        (None, _) => return Ok(Identity::default()),
        (Some(Method::Key), Some(shown)) => keys::prove(worker, plan, shown, asked.owed)
            .await
            .map(|key| Principal::Key { key, method: Method::Key }),
        (Some(Method::Jwt), None) => {
            let (named, token) = Box::pin(token::prove(worker, plan, route, asked)).await?;
            return Ok(Identity { principal: Some(Principal::Named(named)), token: Some(token) });
        }
        (Some(Method::Mtls), _) => {
            by_certificate(plan, asked.visitor).map(Principal::Named).map_err(Denied::new)
        }
        (Some(method @ Method::Signature), shown) => {
            Box::pin(signed::prove(worker, plan, asked, shown, body))
                .await
                .map(|key| Principal::Key { key, method })
        }
        // The configuration lets a route take only what can be proved.
        (Some(_), _) => Err(Reason::InternalError.into()),
    };
    let principal = proved.map_err(|denied| refused(denied, methods, method))?;
    Ok(Identity { principal: Some(principal), token: None })
}

/// Looks again at who was let in and then held back: a key or a token may have ended or been revoked
/// meanwhile. Of a certificate that was, the connection is closed.
pub(crate) fn still_good(
    worker: &Worker,
    plan: &Plan,
    principal: Option<&Principal>,
    token: Option<&Admitted>,
) -> Result<(), Denied> {
    let now_ms = clock::unix_ms();
    let key = principal.and_then(Principal::key).map_or(Ok(()), |key| {
        // Under a new pepper it is another object, and that is the one which is revoked.
        let newest = worker.edge.keys.by_id(key.id()).ok_or(Reason::CredentialInvalid)?;
        newest.check(now_ms, plan.key_rules.refuse_exposed)
    });
    let token = token.map_or(Ok(()), |token| token.check(worker, plan, now_ms));
    key.and(token)
        .map_err(|reason| unproved(reason, principal.map(Principal::method).into_iter().collect()))
}

/// The refusal of a credential that proves nothing, with what the route takes instead.
fn refused(denied: Denied, methods: Methods, presented: Option<Method>) -> Denied {
    // Whatever it proves, it was too much.
    if denied.hit.is_some() {
        return denied;
    }
    let error = (presented == Some(Method::Jwt)).then_some(TokenError::InvalidToken);
    // A route that takes anyone still refuses a bad key, and a 401 must ask for something.
    let methods = if methods == Methods::NONE { Method::Key.into() } else { methods };
    let challenge = Challenge { error, ..Challenge::of(methods) };
    Denied { challenge, ..denied }
}

/// Whom the connection's certificate stands for, by the mappings in force.
fn by_certificate(plan: &Arc<Plan>, visitor: &Visitor) -> Result<Arc<Named>, Reason> {
    let certificate = visitor.certificate.as_ref().ok_or(Reason::CredentialMissing)?;
    certificate.principal(plan).ok_or(Reason::CredentialInvalid)
}
