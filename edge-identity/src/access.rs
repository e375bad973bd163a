//! Whether a caller may use a route. What is not granted is refused.

use std::fmt;
use std::net::IpAddr;

use edge_common::Reason;
use edge_policy::auth::{Challenge, Method, Methods, PresentedToken, TokenError, TokenScheme};
use edge_policy::denied::Denied;
use edge_policy::owner::{Attribute, Owner};
use edge_policy::route::{Access, Requirement, Route};
use edge_policy::target::Target;

use crate::policy::{Ruling, Set};
use crate::principal::{Claim, Principal};
use crate::roles::Roles;

/// What a decision goes by besides the principal: the request as it will be passed on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its method.
    pub method: &'a http::Method,
    /// The host that it is for, without port.
    pub host: &'a str,
    /// What it asks for, in the one normal form.
    pub target: &'a Target,
    /// Where it comes from.
    pub client: IpAddr,
    /// What the TLS handshake told, if there was one.
    pub tls: Option<Tls<'a>>,
    /// The scheme under which its token came, if one did.
    pub token: Option<TokenScheme>,
    /// When it came, in unix milliseconds.
    pub now_ms: u64,
}

/// What a TLS handshake told.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'a> {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'a str,
    /// The name that the client asked for.
    pub server_name: Option<&'a str>,
    /// The fingerprint of the client's TLS library.
    pub ja4: Option<&'a str>,
}

/// What all routes go by.
#[derive(Debug, Default)]
pub struct Rules {
    /// What each role comes to.
    pub roles: Roles,
    /// Sets of policies, by the numbers that routes have for them.
    pub sets: Vec<Set>,
}

/// What one set of policies said of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruled {
    /// The set's number.
    pub set: usize,
    /// What it said.
    pub ruling: Ruling,
}

/// A refusal, and the rule behind it, which only operators see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller gets.
    pub denied: Denied,
    /// What refused it.
    pub rule: Rule,
}

/// What a caller did not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// To prove who it is in one of these ways.
    Methods(Methods),
    /// To come with a token of one of these issuers.
    Issuers(Vec<String>),
    /// To hold this scope.
    Scope(String),
    /// To hold one of these scopes.
    AnyScope(Vec<String>),
    /// To be one of these.
    Roles(Vec<String>),
    /// To ask for what is its own.
    Owner(Owner),
    /// To come from where its key may, and to go where that may.
    Key(Reason),
    /// To be permitted by this set of policies.
    Policy(String, Ruling),
}

/// Grants or refuses a route to the principal, or to a caller who proved nothing. What sets of
/// policies said is noted in `ruled`, of those as well that are only counted.
///
/// # Errors
/// 401 with the route's challenges if nothing or the wrong kind of proof was given, 403 if the
/// principal may not do this.
pub fn authorize(
    rules: &Rules,
    route: &Route,
    principal: Option<&Principal>,
    facts: &Facts<'_>,
    ruled: &mut Vec<Ruled>,
) -> Result<(), Box<Refusal>> {
    if let Access::Needs(needed) = &route.access {
        check(rules, needed, principal, facts, ruled)?;
    }
    principal.map_or(Ok(()), |principal| confine(principal, facts))
}

fn check(
    rules: &Rules,
    needed: &Requirement,
    principal: Option<&Principal>,
    facts: &Facts<'_>,
    ruled: &mut Vec<Ruled>,
) -> Result<(), Box<Refusal>> {
    let roles = &rules.roles;
    let by_method = |reason| {
        let (denied, rule) = (unproved(reason, needed.methods), Rule::Methods(needed.methods));
        Box::new(Refusal { denied, rule })
    };
    let principal = principal.ok_or_else(|| by_method(Reason::CredentialMissing))?;
    if !needed.methods.contains(principal.method()) {
        return Err(by_method(Reason::CredentialUnfit));
    }
    let issuer = principal.issuer().filter(|_| !needed.issuers.is_empty());
    if issuer.is_some_and(|issuer| !needed.issuers.iter().any(|one| one == issuer)) {
        // As one that is good for nobody: what it is good for elsewhere is not told.
        let challenge = of_token(facts.token, TokenError::InvalidToken, needed.methods);
        let denied = Denied { challenge, ..Denied::new(Reason::CredentialUnfit) };
        return Err(Box::new(Refusal { denied, rule: Rule::Issuers(needed.issuers.clone()) }));
    }
    check_scopes(roles, needed, principal, facts.token)?;
    if !needed.roles.is_empty() && !needed.roles.iter().any(|role| roles.is(principal, role)) {
        return Err(forbidden(Rule::Roles(needed.roles.clone())));
    }
    if let Some(owner) = &needed.owner
        && !is_owner(owner, roles, principal, facts.target)
    {
        return Err(forbidden(Rule::Owner(owner.clone())));
    }
    check_policies(rules, needed, principal, facts, ruled)
}

fn check_policies(
    rules: &Rules,
    needed: &Requirement,
    principal: &Principal,
    facts: &Facts<'_>,
    ruled: &mut Vec<Ruled>,
) -> Result<(), Box<Refusal>> {
    let bare = if needed.policies.is_empty() { None } else { facts.target.bare() };
    for slice in &needed.policies {
        let Some(set) = rules.sets.get(slice.set) else {
            return Err(forbidden(Rule::Policy(slice.set.to_string(), Ruling::NoPermit)));
        };
        let mut ruling = set.decide(slice.route, principal, &rules.roles, facts);
        // Both of what servers make of the path must be permitted.
        if let Some(target) = bare.as_ref().filter(|_| ruling.is_permit()) {
            let facts = Facts { target, ..*facts };
            ruling = set.decide(slice.route, principal, &rules.roles, &facts);
        }
        ruled.push(Ruled { set: slice.set, ruling: ruling.clone() });
        if !ruling.is_permit() && !set.shadow {
            let failed = matches!(ruling, Ruling::Failed(_));
            let reason = if failed { Reason::InternalError } else { Reason::NotPermitted };
            let rule = Rule::Policy(set.name.clone(), ruling);
            return Err(Box::new(Refusal { denied: reason.into(), rule }));
        }
    }
    Ok(())
}

/// Holds a key to where it may come from and go to, on a route that takes anyone as well.
fn confine(principal: &Principal, facts: &Facts<'_>) -> Result<(), Box<Refusal>> {
    let Some(grants) = principal.key().map(|key| key.grants()) else { return Ok(()) };
    let reason = if !grants.admits(facts.client) {
        Reason::KeyNetwork
    } else if !grants.reaches(facts.host, &facts.target.path) {
        Reason::KeyPlace
    } else {
        return Ok(());
    };
    Err(Box::new(Refusal { denied: reason.into(), rule: Rule::Key(reason) }))
}

/// The refusal of a caller who has not proved who it is in a way that the route takes.
#[must_use]
pub fn unproved(reason: Reason, methods: Methods) -> Denied {
    Denied { challenge: Challenge::of(methods), ..Denied::new(reason) }
}

fn forbidden(rule: Rule) -> Box<Refusal> {
    Box::new(Refusal { denied: Reason::NotPermitted.into(), rule })
}

fn check_scopes(
    roles: &Roles,
    needed: &Requirement,
    principal: &Principal,
    token: Option<TokenScheme>,
) -> Result<(), Box<Refusal>> {
    let granted = |scope: &String| roles.grants(principal, scope);
    if let Some(missing) = needed.scopes.iter().find(|scope| !granted(scope)) {
        return Err(unscoped(Rule::Scope(missing.clone()), &needed.scopes, principal, token));
    }
    if !needed.any_scope.is_empty() && !needed.any_scope.iter().any(granted) {
        let rule = Rule::AnyScope(needed.any_scope.clone());
        return Err(unscoped(rule, &needed.any_scope, principal, token));
    }
    Ok(())
}

/// The refusal for want of a scope; who came with a token learns which (RFC 6750, 3.1).
fn unscoped(
    rule: Rule,
    scopes: &[String],
    principal: &Principal,
    token: Option<TokenScheme>,
) -> Box<Refusal> {
    let mut refusal = forbidden(rule);
    if principal.method() == Method::Jwt {
        let challenge = of_token(token, TokenError::InsufficientScope, Method::Jwt.into());
        refusal.denied.challenge = Challenge { scopes: scopes.to_vec(), ..challenge };
    }
    refusal
}

/// What a client learns of the token that it presented, under the scheme that it came with.
fn of_token(token: Option<TokenScheme>, error: TokenError, methods: Methods) -> Challenge {
    let token = token.map(|scheme| Box::new(PresentedToken { scheme, ..Default::default() }));
    Challenge { error: Some(error), token, ..Challenge::of(methods) }
}

fn is_owner(owner: &Owner, roles: &Roles, principal: &Principal, target: &Target) -> bool {
    if owner.unless.iter().any(|role| roles.is(principal, role)) {
        return true;
    }
    let Some(named) = owner.named(target) else { return false };
    match &owner.equals {
        Attribute::Id => principal.id() == named,
        Attribute::Name => principal.name() == named,
        Attribute::Claim(name) => match principal.claim(name) {
            Some(Claim::Text(text)) => *text == named,
            Some(Claim::Number(number)) => number.to_string() == named,
            Some(Claim::List(list)) => list.iter().any(|one| *one == named),
            Some(Claim::Flag(_) | Claim::Other(_)) | None => false,
        },
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Methods(methods) => {
                let names: Vec<_> = methods.iter().map(Method::name).collect();
                write!(f, "auth: needs {}", names.join(" or "))
            }
            Self::Issuers(names) => write!(f, "issuers: needs {}", names.join(" or ")),
            Self::Scope(scope) => write!(f, "scopes: needs {scope}"),
            Self::AnyScope(scopes) => write!(f, "any_scope: needs {}", scopes.join(" or ")),
            Self::Roles(roles) => write!(f, "roles: needs {}", roles.join(" or ")),
            Self::Owner(owner) => write!(f, "owner: {owner}"),
            Self::Key(reason) => write!(f, "key: {}", reason.name()),
            Self::Policy(set, ruling) => write!(f, "policies: {set}: {ruling}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use edge_policy::owner::{Place, Template};

    use super::*;
    use crate::principal::Named;
    use crate::principal::tests::{somebody, words};
    use crate::roles::Role;

    fn route(access: Access) -> Route {
        Route { access, ..Route::default() }
    }

    fn needs(methods: &[Method], all: &[&str], any: &[&str], roles: &[&str]) -> Route {
        route(Access::Needs(Box::new(Requirement {
            methods: methods.iter().copied().collect(),
            scopes: words(all),
            any_scope: words(any),
            roles: words(roles),
            ..Requirement::default()
        })))
    }

    fn roles() -> Roles {
        let role = |name: &str, inherits: &[&str], scopes: &[&str]| Role {
            name: name.into(),
            inherits: words(inherits),
            scopes: words(scopes),
        };
        Roles::new(&[role("boss", &["ops"], &["a"]), role("ops", &[], &["b"])]).unwrap()
    }

    fn facts(target: &Target) -> Facts<'_> {
        let client = IpAddr::from([192, 0, 2, 1]);
        Facts {
            method: &http::Method::GET,
            host: "h",
            target,
            client,
            tls: None,
            token: None,
            now_ms: 0,
        }
    }

    fn decided(route: &Route, principal: Option<&Principal>, target: &str) -> Option<Reason> {
        let target = Target::parse(target, usize::MAX).unwrap();
        let rules = Rules { roles: roles(), sets: Vec::new() };
        let decided = authorize(&rules, route, principal, &facts(&target), &mut Vec::new());
        decided.err().map(|refusal| refusal.denied.reason)
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
            (&nobody, Some(somebody(Key, &["a"], &["boss"])), unfit),
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
            // By roles, and by what they include.
            (&both, Some(somebody(Key, &[], &["boss"])), permit),
            (&both, Some(somebody(Key, &[], &["ops"])), forbid),
            (&both, Some(somebody(Key, &["a"], &["ops"])), permit),
            (&any, Some(somebody(Key, &[], &["ops"])), permit),
            (&role, Some(somebody(Key, &[], &["boss"])), permit),
        ] {
            let found = decided(route, principal.as_ref(), "/");
            assert_eq!(found, expected, "{route:?} {principal:?}");
        }
    }

    fn owned(place: Place, equals: Attribute) -> Route {
        let owner = Some(Owner { place, equals, unless: words(&["ops"]) });
        let methods = Method::Jwt.into();
        route(Access::Needs(Box::new(Requirement { methods, owner, ..Requirement::default() })))
    }

    #[test]
    fn only_the_owner_gets_what_is_owned() {
        let users = owned(Place::Path(Template::parse("/users/{id}").unwrap()), Attribute::Id);
        let alice = somebody(Method::Jwt, &[], &[]);
        let forbid = Some(Reason::NotPermitted);
        for (path, expected) in [
            ("/users/alice", None),
            ("/users/alice/orders", None),
            ("/users/%61lice", None),
            ("/users/bob/../alice", None),
            ("/users/bob", forbid),
            ("/users/Alice", forbid),
            ("/users/alice/../bob", forbid),
            ("/users/%2561lice", forbid),
            ("/users/alice;bob", forbid),
            ("/users", forbid),
            ("/other", forbid),
        ] {
            assert_eq!(decided(&users, Some(&alice), path), expected, "{path}");
        }
        let boss = somebody(Method::Jwt, &[], &["boss"]);
        assert_eq!(decided(&users, Some(&boss), "/users/bob"), None);
    }

    #[test]
    fn an_owner_is_compared_with_what_the_issuer_says() {
        let claims = BTreeMap::from([
            ("account".to_owned(), Claim::Number(7)),
            ("tenants".to_owned(), Claim::List(words(&["red", "blue"]))),
            ("vip".to_owned(), Claim::Flag(true)),
            ("mail".to_owned(), Claim::Text("a@b".into())),
        ]);
        let Principal::Named(named) = somebody(Method::Jwt, &[], &[]) else { panic!("named") };
        let alice = Principal::Named(Arc::new(Named { claims, ..(*named).clone() }));
        for (claim, value, is_owner) in [
            ("account", "7", true),
            ("account", "07", false),
            ("account", "77", false),
            ("tenants", "blue", true),
            ("tenants", "green", false),
            ("vip", "true", false),
            ("mail", "a%40b", true),
            ("absent", "a", false),
        ] {
            let route = owned(Place::Query("of".into()), Attribute::Claim(claim.into()));
            let decided = decided(&route, Some(&alice), &format!("/?of={value}"));
            assert_eq!(decided.is_none(), is_owner, "{claim} {value}");
        }
        let name = owned(Place::Query("of".into()), Attribute::Name);
        assert_eq!(decided(&name, Some(&alice), "/?of=Alice"), None);
    }

    /// A server that drops `;x` sees another path than one that does not.
    #[test]
    fn policies_permit_both_readings_of_a_path() {
        use crate::policy::{File, Policies, Set};
        use edge_policy::route::PolicySlice;
        let text = "permit(principal, action, resource);
            forbid(principal, action, resource) when { context.path like \"/secret*\" };
            forbid(principal, action, resource) when { context.path like \"*;no\" };";
        let file = File { name: "p.cedar", text };
        let (policies, _) = Policies::load(None, &[file], &words(&["/"])).unwrap();
        let set = Set::new("set".into(), false, &policies, std::iter::once((0, "/")));
        let rules = Rules { roles: roles(), sets: vec![set] };
        let route = route(Access::Needs(Box::new(Requirement {
            methods: Method::Jwt.into(),
            policies: vec![PolicySlice { set: 0, route: 0 }],
            ..Requirement::default()
        })));
        for (target, permitted) in [
            ("/open", true),
            ("/open;x", true),
            ("/secret", false),
            ("/secret;x", false),
            ("/;x/secret", false),
            ("/secre%3Bx/t", true),
            ("/open;no", false),
        ] {
            let (target, mut ruled) = (Target::parse(target, 99).unwrap(), Vec::new());
            let who = somebody(Method::Jwt, &[], &[]);
            let decided = authorize(&rules, &route, Some(&who), &facts(&target), &mut ruled);
            assert_eq!(decided.is_ok(), permitted, "{target:?}");
            assert_eq!(ruled.len(), 1, "one ruling a set");
        }
    }

    /// A token of another issuer gets what a bad one gets, and each the scheme that it came with.
    #[test]
    fn a_token_is_answered_under_its_own_scheme() {
        let needed = |requirement| {
            let methods = Methods::from_iter([Method::Key, Method::Jwt]);
            route(Access::Needs(Box::new(Requirement { methods, ..requirement })))
        };
        let others = needed(Requirement { issuers: words(&["other"]), ..Requirement::default() });
        let scoped = needed(Requirement { scopes: words(&["x"]), ..Requirement::default() });
        let any = needed(Requirement { any_scope: words(&["x"]), ..Requirement::default() });
        let (target, rules) = (Target::parse("/", 9).unwrap(), Rules::default());
        let bearer = somebody(Method::Jwt, &[], &[]);
        for scheme in [TokenScheme::Bearer, TokenScheme::Dpop] {
            let facts = Facts { token: Some(scheme), ..facts(&target) };
            for (route, reason, error) in [
                (&others, Reason::CredentialUnfit, TokenError::InvalidToken),
                (&scoped, Reason::NotPermitted, TokenError::InsufficientScope),
                (&any, Reason::NotPermitted, TokenError::InsufficientScope),
            ] {
                let refused = authorize(&rules, route, Some(&bearer), &facts, &mut Vec::new());
                let denied = refused.unwrap_err().denied;
                assert_eq!((denied.reason, denied.challenge.error), (reason, Some(error)));
                let token = denied.challenge.token.unwrap();
                assert_eq!(*token, PresentedToken { scheme, ..Default::default() });
            }
        }
    }

    #[test]
    fn a_refusal_asks_for_what_the_route_takes() {
        let route = needs(&[Method::Key, Method::Jwt], &["x"], &[], &[]);
        let target = Target::parse("/", 9).unwrap();
        let (facts, rules) = (facts(&target), Rules { roles: roles(), sets: Vec::new() });
        let refused = |who: Option<&Principal>| {
            authorize(&rules, &route, who, &facts, &mut Vec::new()).unwrap_err()
        };
        let missing = refused(None);
        assert_eq!(missing.denied.challenge, Challenge::of(route.access.methods()));
        assert_eq!(missing.rule.to_string(), "auth: needs key or jwt");
        let short = refused(Some(&somebody(Method::Jwt, &[], &[])));
        let challenge = short.denied.challenge;
        assert_eq!(challenge.methods, Methods::from(Method::Jwt));
        assert_eq!(challenge.error, Some(TokenError::InsufficientScope));
        assert_eq!((challenge.scopes, short.rule), (words(&["x"]), Rule::Scope("x".into())));
        assert_eq!(challenge.token, None);
        let silent = refused(Some(&somebody(Method::Key, &[], &[]))).denied.challenge;
        assert_eq!(silent, Challenge::default());
    }
}
