//! Whether a caller may use a route. What is not granted is refused.

use std::net::IpAddr;

use edge_common::Reason;
use edge_policy::auth::{Challenge, Method, Methods, TokenError};
use edge_policy::denied::Denied;
use edge_policy::route::{Access, Requirement, Route};

use crate::key::Grants;
use crate::principal::Principal;

/// Grants or refuses a route to the principal, or to a caller who proved nothing.
///
/// # Errors
/// 401 with the route's challenges if nothing or the wrong kind of proof was given, 403 if the
/// principal may not do this.
pub fn authorize(route: &Route, principal: Option<&Principal>) -> Result<(), Denied> {
    let Access::Needs(needed) = &route.access else { return Ok(()) };
    let Some(principal) = principal else {
        return Err(unproved(Reason::CredentialMissing, route.access.methods()));
    };
    if !needed.methods.contains(principal.method()) {
        return Err(unproved(Reason::CredentialUnfit, needed.methods));
    }
    let scoped = has_all(principal.scopes(), &needed.scopes)
        && has_any(principal.scopes(), &needed.any_scope);
    if !scoped {
        return Err(unscoped(needed, principal.method()));
    }
    if !has_any(principal.roles(), &needed.roles) {
        return Err(Reason::NotPermitted.into());
    }
    Ok(())
}

/// Whether a key may come from this address, and go to this place.
///
/// # Errors
/// [`Reason::KeyNetwork`] or [`Reason::KeyPlace`].
pub fn confine(grants: &Grants, client: IpAddr, host: &str, path: &str) -> Result<(), Reason> {
    if !grants.admits(client) {
        return Err(Reason::KeyNetwork);
    }
    if grants.reaches(host, path) { Ok(()) } else { Err(Reason::KeyPlace) }
}

/// The refusal of a caller who has not proved who it is in a way that the route takes.
#[must_use]
pub fn unproved(reason: Reason, methods: Methods) -> Denied {
    Denied { challenge: Challenge::of(methods), ..Denied::new(reason) }
}

/// The refusal for want of a scope; who came with a token learns which (RFC 6750, 3.1).
fn unscoped(needed: &Requirement, method: Method) -> Denied {
    let refused = Denied::new(Reason::NotPermitted);
    if method != Method::Jwt {
        return refused;
    }
    let scopes = if needed.scopes.is_empty() { &needed.any_scope } else { &needed.scopes };
    let error = Some(TokenError::InsufficientScope);
    let scopes = scopes.clone();
    let challenge = Challenge { error, scopes, ..Challenge::of(Method::Jwt.into()) };
    Denied { challenge, ..refused }
}

fn has_all(held: &[String], needed: &[String]) -> bool {
    needed.iter().all(|one| held.contains(one))
}

/// Where nothing is needed, nothing is missing.
fn has_any(held: &[String], needed: &[String]) -> bool {
    needed.is_empty() || needed.iter().any(|one| held.contains(one))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::principal::Named;

    fn route(access: Access) -> Route {
        Route { access, ..Route::default() }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn needs(methods: &[Method], all: &[&str], any: &[&str], roles: &[&str]) -> Route {
        route(Access::Needs(Box::new(Requirement {
            methods: methods.iter().copied().collect(),
            scopes: words(all),
            any_scope: words(any),
            roles: words(roles),
            audience: Vec::new(),
        })))
    }

    fn somebody(method: Method, scopes: &[&str], roles: &[&str]) -> Principal {
        Principal::Named(Arc::new(Named {
            method,
            id: "id".into(),
            name: String::new(),
            scopes: words(scopes),
            roles: words(roles),
            tier: None,
            claims: BTreeMap::new(),
        }))
    }

    fn decided(route: &Route, principal: Option<&Principal>) -> Option<Reason> {
        authorize(route, principal).err().map(|denied| denied.reason)
    }

    #[test]
    fn what_is_not_granted_is_refused() {
        use Method::{Jwt, Key};
        let permit = None;
        let (missing, unfit) = (Some(Reason::CredentialMissing), Some(Reason::CredentialUnfit));
        let forbid = Some(Reason::NotPermitted);
        let nobody = route(Access::Needs(Box::default()));
        let plain = needs(&[Key], &[], &[], &[]);
        let both = needs(&[Key, Jwt], &["a", "b"], &[], &[]);
        let any = needs(&[Key], &[], &["a", "b"], &[]);
        let role = needs(&[Key], &["a"], &[], &["admin", "ops"]);
        for (route, principal, expected) in [
            (&route(Access::Anyone), None, permit),
            (&nobody, Some(somebody(Key, &["a"], &[])), unfit),
            (&plain, None, missing),
            (&plain, Some(somebody(Key, &[], &[])), permit),
            (&plain, Some(somebody(Jwt, &[], &[])), unfit),
            (&both, Some(somebody(Jwt, &["b", "a", "c"], &[])), permit),
            (&both, Some(somebody(Key, &["a"], &[])), forbid),
            (&both, Some(somebody(Key, &["A", "b"], &[])), forbid),
            (&any, Some(somebody(Key, &["b"], &[])), permit),
            (&any, Some(somebody(Key, &["c"], &[])), forbid),
            (&role, Some(somebody(Key, &["a"], &["ops"])), permit),
            (&role, Some(somebody(Key, &["a"], &["op"])), forbid),
            (&role, Some(somebody(Key, &[], &["admin"])), forbid),
        ] {
            assert_eq!(decided(route, principal.as_ref()), expected, "{route:?} {principal:?}");
        }
    }

    #[test]
    fn a_refusal_asks_for_what_the_route_takes() {
        let route = needs(&[Method::Key, Method::Jwt], &["a"], &[], &[]);
        let missing = authorize(&route, None).unwrap_err().challenge;
        assert_eq!(missing, Challenge::of(route.access.methods()));
        let token = somebody(Method::Jwt, &[], &[]);
        let short = authorize(&route, Some(&token)).unwrap_err().challenge;
        assert_eq!(short.methods, Methods::from(Method::Jwt));
        assert_eq!(
            (short.error, short.scopes),
            (Some(TokenError::InsufficientScope), words(&["a"]))
        );
        let key = somebody(Method::Key, &[], &[]);
        let silent = authorize(&route, Some(&key)).unwrap_err().challenge;
        assert_eq!(silent, Challenge::default());
    }
}
