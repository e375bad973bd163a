//! May it: the one decision, for requests that came and for those that an operator asks about.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use edge_identity::{
    access::{self, Facts, Refusal, Ruled},
    key::{Key, KeyId, KeyRing},
    policy::{Ruling, label},
    principal::{Claim, Method, Named, Principal},
};
use edge_policy::{denied::status, route::Route, target::Target};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Edge, Plan, front::Visitor};
use crate::{
    clock,
    control::access::{Access, Question, Said},
    issuers::Issuers,
};

/// What each set of policies said so far, since its policies were loaded.
#[derive(Debug, Default)]
pub struct Tally {
    /// It permitted.
    pub permit: AtomicU64,
    /// A policy forbade.
    pub forbid: AtomicU64,
    /// No policy permitted.
    pub no_permit: AtomicU64,
    /// A policy could not be evaluated.
    pub failed: AtomicU64,
}

impl Tally {
    fn of(&self, ruling: &Ruling) -> &AtomicU64 {
        match ruling {
            Ruling::Permit(_) => &self.permit,
            Ruling::Forbid(_) => &self.forbid,
            Ruling::NoPermit => &self.no_permit,
            Ruling::Failed(_) => &self.failed,
        }
    }
}

/// Grants or refuses a route, and counts what the policies said.
pub(super) fn authorize(
    plan: &Plan,
    route: &Route,
    principal: Option<&Principal>,
    facts: &Facts<'_>,
) -> Result<(), Box<Refusal>> {
    let mut ruled = Vec::new();
    let decided = access::authorize(&plan.rules, route, principal, facts, &mut ruled);
    for Ruled { set, ruling } in &ruled {
        if let Some(tally) = plan.tallies.get(*set) {
            tally.of(ruling).fetch_add(1, Relaxed);
        }
    }
    decided
}

/// What TLS told of a visitor, as policies see it.
pub(super) fn tls(visitor: &Visitor) -> Option<access::Tls<'_>> {
    let facts = visitor.tls.as_ref()?;
    Some(access::Tls {
        version: facts.version,
        server_name: facts.server_name.as_deref(),
        ja4: visitor.own_ja4().and(facts.ja4.as_ref()).map(edge_policy::ja4::Ja4::as_str),
    })
}

impl Edge {
    /// What would be decided of a request, by the plan in force and the function that requests go by.
    ///
    /// # Errors
    /// If the question names no request or nobody who could come.
    pub fn explain(&self, question: &Question) -> Result<Access, String> {
        let plan = self.plan.load();
        let method = question.method.parse().map_err(|_| "not a method of HTTP".to_owned())?;
        let target = Target::parse(&question.target, plan.bounds.uri_bytes_max)
            .map_err(|reason| format!("no request has this target: {}", reason.meaning()))?;
        let principal = principal(question, &self.keys, &plan.issuers)?;
        let headers = headers(&question.headers)?;
        let facts = Facts {
            method: &method,
            host: &question.host,
            target: &target,
            client: question.address,
            tls: Some(access::Tls {
                version: &question.tls.version,
                server_name: question.tls.server_name.as_deref(),
                ja4: question.tls.ja4.as_deref(),
            }),
            token: None,
            now_ms: question.at_ms.unwrap_or_else(clock::unix_ms),
        };
        Ok(decide(&plan, principal.as_ref(), &headers, &facts))
    }
}

fn decide(
    plan: &Plan,
    principal: Option<&Principal>,
    headers: &HeaderMap,
    facts: &Facts<'_>,
) -> Access {
    let who = principal.map(|who| format!("{} by {}", who.identity(), who.method().name()));
    let answer = |route, refused: Option<(edge_common::Reason, String)>, said| Access {
        is_allowed: refused.is_none(),
        principal: who.clone(),
        route,
        status: refused.as_ref().map(|(reason, _)| status(*reason).as_u16()),
        reason: refused.as_ref().map(|(reason, _)| reason.name().to_owned()),
        rule: refused.map(|(_, rule)| rule),
        policies: said,
    };
    let found = plan.routes.find(facts.host, &facts.target.path, facts.method, headers);
    let route = match found {
        Ok(route) => route,
        Err(denied) => {
            let refused = (denied.reason, denied.reason.meaning().to_owned());
            return answer(None, Some(refused), Vec::new());
        }
    };
    let label = label(&route.at);
    // A key is always for the edge; what else a route does not take proves nothing there.
    let methods = route.access.methods();
    let is_ours = |who: &&Principal| who.method() == Method::Key || methods.contains(who.method());
    let principal = principal.filter(is_ours);
    let is_good = |key: &Arc<Key>| key.check(facts.now_ms, plan.key_rules.refuse_exposed);
    if let Some(Err(reason)) = principal.and_then(Principal::key).map(is_good) {
        let rule = access::Rule::Key(reason).to_string();
        return answer(Some(label), Some((reason, rule)), Vec::new());
    }
    let rules = &plan.rules;
    let mut ruled = Vec::new();
    let decided = access::authorize(rules, route, principal, facts, &mut ruled);
    let refused = decided.err().map(|refusal| (refusal.denied.reason, refusal.rule.to_string()));
    let said = ruled.into_iter().filter_map(|Ruled { set, ruling }| {
        let set = rules.sets.get(set)?;
        Some(Said { set: set.name.clone(), shadow: set.shadow, ruling: ruling.to_string() })
    });
    answer(Some(label), refused, said.collect())
}

/// Whom a question is about: nobody, the holder of a key of ours, or somebody with these claims.
fn principal(
    question: &Question,
    keys: &KeyRing,
    issuers: &Issuers,
) -> Result<Option<Principal>, String> {
    let Some(who) = &question.principal else { return Ok(None) };
    let (method, issuer, id) = match who.split_once(':') {
        None => return key(who, question, keys).map(Some),
        Some(("key", id)) => return key(id, question, keys).map(Some),
        Some(("cert", _)) if issuers.has("cert") => {
            let either = "is a kind and an issuer: mtls:ID or sub:cert:SUBJECT";
            return Err(format!("'cert' {either}"));
        }
        Some(("cert" | "mtls", id)) => (Method::Mtls, None, id),
        Some(("sub", subject)) => {
            let (issuer, subject) = bearer(subject, issuers)?;
            (Method::Jwt, Some(issuer), subject)
        }
        // As logs and upstreams are told it.
        Some((issuer, subject)) if issuers.has(issuer) => (Method::Jwt, Some(issuer), subject),
        Some((kind, _)) => return Err(format!("'{kind}' is no kind and no issuer: {FORMS}")),
    };
    if id.is_empty() {
        return Err(format!("'{who}' names nobody: {FORMS}"));
    }
    let claims = question.claims.iter().map(|(name, value)| (name.clone(), claim(value)));
    Ok(Some(Principal::Named(Arc::new(Named {
        method,
        issuer: issuer.map(str::to_owned),
        id: id.to_owned(),
        name: question.name.clone().unwrap_or_default(),
        scopes: question.scopes.clone(),
        roles: question.roles.clone(),
        tier: question.tier.clone(),
        claims: claims.collect(),
    }))))
}

/// The holder of a key, who is what the key says.
fn key(id: &str, question: &Question, keys: &KeyRing) -> Result<Principal, String> {
    let key = id.parse::<KeyId>().ok().and_then(|id| keys.by_id(&id));
    let key = key.ok_or_else(|| format!("no key has the id '{id}': {FORMS}"))?;
    if !question.scopes.is_empty() || !question.roles.is_empty() || !question.claims.is_empty() {
        return Err("it is a key of ours, which has its own scopes and no claims".to_owned());
    }
    let method = if key.signing().is_some() { Method::Signature } else { Method::Key };
    Ok(Principal::Key { key, method })
}

/// The issuer and the subject, where the issuer need not be named if there is but one.
fn bearer<'a>(subject: &'a str, issuers: &'a Issuers) -> Result<(&'a str, &'a str), String> {
    let named = subject.split_once(':').filter(|(issuer, _)| issuers.has(issuer));
    named.or_else(|| Some((issuers.only()?, subject))).ok_or_else(|| {
        let known: Vec<_> = issuers.names().collect();
        match known.is_empty() {
            true => "no [[issuer]] is configured whose tokens have subjects".to_owned(),
            false => format!("whose '{subject}'? sub:ISSUER:SUBJECT, of {}", known.join(", ")),
        }
    })
}

/// A claim as it is typed: JSON, as a token would have it; what is none is text.
fn claim(value: &str) -> Claim {
    let parsed = serde_json::from_str(value);
    parsed.map_or_else(|_| Claim::Text(value.to_owned()), |value| Claim::of(&value))
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let pair = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        let (name, value) = pair.ok_or_else(|| format!("no request has the header '{name}'"))?;
        headers.try_append(name, value).map_err(|_| "no request has so many headers")?;
    }
    Ok(headers)
}

/// How somebody is named.
const FORMS: &str = "key:ID, sub:ISSUER:SUBJECT or cert:ID";
