//! What policies decide, what is wrong with them, and that slicing and plain tests change nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{Authorizer, Decision, Entities, Entity, PolicySet};
use edge_policy::target::Target;
use http::Method;
use proptest::prelude::*;

use super::condition::Uses;
use super::load::{ACTION_UIDS, action};
use super::*;
use crate::access::Tls;
use crate::principal::tests::{somebody, words};
use crate::principal::{Claim, Method as Proof, Named};
use crate::roles::Role;

const CLAIMS: &str = "type Claims = { tenant?: String, level?: Long, groups?: Set<String> };\n";

fn labels() -> Vec<String> {
    words(&["/a", "h/b"])
}

fn load(text: &str) -> Result<Policies, Vec<Fault>> {
    let file = File { name: "p.cedar", text };
    Policies::load(Some(CLAIMS), &[file], &labels()).map(|(policies, _)| policies)
}

fn set(text: &str) -> Set {
    let policies = load(text).unwrap_or_else(|faults| panic!("{faults:#?}"));
    let labels = labels();
    Set::new("set".into(), false, &policies, labels.iter().map(String::as_str).enumerate())
}

fn roles() -> Roles {
    let role = |name: &str, inherits: &[&str], scopes: &[&str]| Role {
        name: name.into(),
        inherits: words(inherits),
        scopes: words(scopes),
    };
    Roles::new(&[role("boss", &["ops"], &["all"]), role("ops", &[], &["some"])]).unwrap()
}

fn alice(scopes: &[&str], roles: &[&str], claims: &[(&str, Claim)]) -> Principal {
    let Principal::Named(named) = somebody(Proof::Jwt, scopes, roles) else { panic!("named") };
    let claims: BTreeMap<_, _> =
        claims.iter().map(|(name, claim)| ((*name).to_owned(), claim.clone())).collect();
    Principal::Named(Arc::new(Named { claims, ..(*named).clone() }))
}

/// A request to a route, by its number.
#[derive(Clone, Debug)]
struct Sent {
    route: usize,
    method: Method,
    target: &'static str,
    client: IpAddr,
    now_ms: u64,
}

const NOON: u64 = 1_795_262_400_000;

fn sent(method: &str, target: &'static str) -> Sent {
    let client = IpAddr::from([192, 0, 2, 7]);
    Sent { route: 0, method: method.parse().unwrap(), target, client, now_ms: NOON }
}

fn with_facts<T>(sent: &Sent, then: impl FnOnce(&Facts<'_>) -> T) -> T {
    let target = Target::parse(sent.target, usize::MAX).unwrap();
    then(&Facts {
        method: &sent.method,
        host: "h",
        target: &target,
        client: sent.client,
        tls: Some(Tls { version: "TLSv1.3", server_name: Some("h"), ja4: None }),
        now_ms: sent.now_ms,
    })
}

fn ruled(set: &Set, who: &Principal, sent: &Sent) -> String {
    with_facts(sent, |facts| set.decide(sent.route, who, &roles(), facts)).to_string()
}

#[test]
fn a_policy_may_look_at_all_that_is_known() {
    let somebody = alice(
        &["own"],
        &["boss"],
        &[
            ("tenant", Claim::Text("red".into())),
            ("level", Claim::Number(3)),
            ("groups", Claim::List(words(&["g1"]))),
        ],
    );
    let get = sent("GET", "/a/x?q=1");
    for (condition, met) in [
        ("true", true),
        ("principal.id == \"alice\"", true),
        ("principal.id == \"bob\"", false),
        ("principal == Caller::\"main:alice\"", true),
        ("principal == Caller::\"other:alice\"", false),
        ("principal has issuer && principal.issuer == \"main\"", true),
        ("principal.method == \"jwt\" && context.method == \"GET\"", true),
        ("principal.scopes.contains(\"own\")", true),
        ("principal.scopes.containsAll([\"own\", \"all\", \"some\"])", true),
        ("principal.scopes.containsAny([\"x\", \"y\"])", false),
        ("principal.roles.contains(\"ops\")", true),
        ("principal in Role::\"ops\"", true),
        ("principal in Role::\"guest\"", false),
        ("!(principal in Role::\"guest\")", true),
        ("principal has tier && principal.tier == \"gold\"", false),
        ("principal.claims has tenant && principal.claims.tenant == \"red\"", true),
        ("principal.claims has level && principal.claims.level > 3", false),
        ("principal.claims has groups && principal.claims.groups.contains(\"g1\")", true),
        ("context.ip.isInRange(ip(\"192.0.2.0/24\"))", true),
        ("context.ip.isInRange(ip(\"10.0.0.0/8\"))", false),
        ("context.path like \"/a/*\"", true),
        ("context has query && context.query == \"q=1\"", true),
        ("context.host == \"h\"", true),
        ("context.time < datetime(\"2026-11-21T12:00:00.001Z\")", true),
        ("context.time.toTime() >= duration(\"12h1m\")", false),
        ("context has tls && context.tls.version == \"TLSv1.3\"", true),
        ("context has tls && context.tls has ja4", false),
        ("action in Action::\"read\"", true),
        ("action in Action::\"write\"", false),
        ("resource == Route::\"/a\"", true),
        ("resource == Route::\"h/b\"", false),
        ("{\"Value\": principal.id}.Value == \"alice\"", true),
    ] {
        let expected = if met { "p.cedar#1 permits" } else { "no policy permits" };
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        assert_eq!(ruled(&set(&text), &somebody, &get), expected, "{condition}");
        let text = format!("permit(principal, action, resource) unless {{ {condition} }};");
        let expected = if met { "no policy permits" } else { "p.cedar#1 permits" };
        assert_eq!(ruled(&set(&text), &somebody, &get), expected, "unless {condition}");
    }
}

#[test]
fn a_scope_says_whom_a_policy_is_about() {
    let boss = alice(&[], &["boss"], &[]);
    for (scope, method, expected) in [
        ("principal, action, resource", "GET", true),
        ("principal is Caller, action, resource is Route", "GET", true),
        ("principal == Caller::\"main:alice\", action, resource", "GET", true),
        ("principal == Caller::\"main:bob\", action, resource", "GET", false),
        ("principal in Role::\"ops\", action, resource", "GET", true),
        ("principal is Caller in Role::\"boss\", action, resource", "GET", true),
        ("principal in Role::\"guest\", action, resource", "GET", false),
        ("principal, action == Action::\"GET\", resource", "GET", true),
        ("principal, action == Action::\"GET\", resource", "HEAD", false),
        ("principal, action in Action::\"read\", resource", "HEAD", true),
        ("principal, action in [Action::\"write\", Action::\"GET\"], resource", "GET", true),
        ("principal, action in Action::\"write\", resource", "PROPFIND", true),
        ("principal, action == Action::\"other\", resource", "PROPFIND", true),
        ("principal, action in Action::\"read\", resource", "PROPFIND", false),
        ("principal, action, resource == Route::\"/a\"", "GET", true),
        ("principal, action, resource == Route::\"h/b\"", "GET", false),
    ] {
        // With a plain test, and with a condition that needs the engine.
        for condition in ["", "when { context.path like \"/a*\" }"] {
            let set = set(&format!("@id(\"it\") permit({scope}) {condition};"));
            let expected = if expected { "it permits" } else { "no policy permits" };
            let found = ruled(&set, &boss, &sent(method, "/a"));
            assert_eq!(found, expected, "{scope} {condition} {method}");
        }
    }
}

#[test]
fn one_forbid_refuses_and_a_failure_refuses() {
    let plain = "permit(principal, action, resource);";
    let deep = "permit(principal, action, resource) when { context.path like \"*\" };";
    let no = "@id(\"no\") forbid(principal, action, resource) when { principal.id == \"alice\" };";
    let deep_no =
        "@id(\"no\") forbid(principal, action, resource) when { context.path like \"*\" };";
    // Valid, and beyond the largest number when it is evaluated.
    let broken = "@id(\"broken\") forbid(principal, action, resource)
        when { principal.claims has level && principal.claims.level + 1 > 0 };";
    let who = alice(&[], &[], &[("level", Claim::Number(i64::MAX))]);
    for (text, expected) in [
        (String::new(), "no policy permits"),
        (format!("{plain}{no}"), "no forbids"),
        (format!("{plain}{deep_no}"), "no forbids"),
        (format!("{deep}{no}"), "no forbids"),
        (format!("{deep}{deep_no}"), "no forbids"),
        (format!("{plain}{broken}"), "broken failed"),
        (format!("{deep}{broken}"), "broken failed"),
        (format!("{deep}{broken}{deep_no}"), "no forbids"),
        (broken.to_owned(), "broken failed"),
    ] {
        assert_eq!(ruled(&set(&text), &who, &sent("GET", "/a")), expected, "{text}");
    }
    // A claim that is not of the type that the schema says.
    let who = alice(&[], &[], &[("level", Claim::Text("x".into()))]);
    assert_eq!(ruled(&set(&format!("{plain}{broken}")), &who, &sent("GET", "/a")), "broken failed");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (text, at, words) in [
        ("permit(principal, action, resource)", "", "unexpected"),
        (
            "permit(principal, action, resource) when { principal.nme == \"a\" };",
            "principal.nme",
            "nme",
        ),
        ("permit(principal, action, resource) when { context.ip > 3 };", "context.ip", "type"),
        ("permit(principal, action == Action::\"GETT\", resource);", "Action::\"GETT\"", "GETT"),
        ("permit(principal, action, resource == Route::\"/c\");", "Route::\"/c\"", "no route"),
        ("permit(principal == User::\"a\", action, resource);", "User::\"a\"", "User"),
        (
            "permit(principal, action, resource) when { principal.tier == \"a\" };",
            "principal.tier",
            "tier",
        ),
        ("permit(principal == ?principal, action, resource);", "?principal", "template"),
        (
            "@id(\"x\") permit(principal, action, resource);\n@id(\"x\") permit(principal, action, resource);",
            "\"x\"",
            "two policies",
        ),
    ] {
        let Err(faults) = load(text) else { panic!("{text}") };
        let fault = faults.iter().find(|fault| !fault.is_doubt).unwrap();
        assert!(fault.what.contains(words), "{text}: {faults:#?}");
        assert_eq!(fault.file, Some(0));
        if !at.is_empty() {
            assert!(
                text[fault.span.clone()].contains(at)
                    || at.contains(&text[fault.span.clone()]) && !fault.span.is_empty(),
                "{text}: {faults:#?}"
            );
        }
    }
    let wrong = Policies::load(Some("type Claims = { tenant: Strin };"), &[], &[]).err().unwrap();
    assert_eq!((wrong[0].file, wrong.len()), (None, 1));
    assert!(wrong[0].what.contains("Strin"), "{wrong:?}");
    let none = Policies::load(Some("type Other = {};"), &[], &[]).err().unwrap();
    assert!(none[0].what.contains("Claims"), "{none:?}");
}

/// Policies of which some need the engine and some do not, about various callers and requests.
const SCOPES: [&str; 8] = [
    "principal, action, resource",
    "principal == Caller::\"main:alice\", action, resource",
    "principal == Caller::\"main:bob\", action, resource",
    "principal in Role::\"ops\", action in Action::\"read\", resource",
    "principal in Role::\"boss\", action == Action::\"POST\", resource == Route::\"/a\"",
    "principal, action in Action::\"write\", resource == Route::\"h/b\"",
    "principal is Caller in Role::\"guest\", action, resource is Route",
    "principal, action, resource == Route::\"/a\"",
];

const CONDITIONS: [&str; 14] = [
    "",
    "when { true }",
    "unless { principal.scopes.contains(\"own\") }",
    "when { principal.scopes.containsAny([\"own\", \"all\"]) && context.host == \"h\" }",
    "when { principal in Role::\"ops\" || principal.id == \"bob\" }",
    "unless { principal.roles.containsAll([\"ops\", \"boss\"]) } when { context.method == \"GET\" }",
    "when { context.ip.isInRange(ip(\"192.0.2.0/24\")) }",
    "when { context.ip.isInRange(ip(\"192.0.2.7\")) || context.ip.isInRange(ip(\"2001:db8::/32\")) }",
    "unless { context.ip.isInRange(ip(\"192.0.200.9/16\")) }",
    "when { principal.claims has tenant && principal.claims.tenant == \"red\" }",
    "when { context.path like \"/a/*\" }",
    "unless { context.time < datetime(\"2026-11-21T12:00:00Z\") }",
    "when { action in Action::\"read\" && principal in Role::\"ops\" }",
    "when { principal.claims has level && principal.claims.level + 1 > 4 }",
];

/// The engine with everything at once: no slices, no plain tests, all facts.
fn whole(text: &str, who: &Principal, sent: &Sent) -> (Decision, bool) {
    let (roles, label) = (roles(), &labels()[sent.route]);
    let all = PolicySet::from_str(text).unwrap();
    with_facts(sent, |facts| {
        let held = roles.of(who);
        let asked = Asked { principal: who, roles: &roles, held: &held, facts };
        let uses = Uses { caller: u8::MAX, context: u8::MAX, hierarchy: true, action: true };
        let bucket = Bucket { uses, ..Bucket::default() };
        let resource = load::route_uid(label);
        let (request, entities) =
            asked.request(&[&bucket], action(facts.method), &resource).unwrap();
        let groups = ACTION_UIDS.iter().map(|(_, group)| group.clone());
        let groups: std::collections::HashSet<_> = groups.collect();
        let groups = groups.into_iter().map(|uid| Entity::new_no_attrs(uid, Default::default()));
        let entities: Entities = entities.add_entities(groups, None).unwrap();
        let response = Authorizer::new().is_authorized(&request, &all, &entities);
        (response.decision(), response.diagnostics().errors().next().is_some())
    })
}

proptest! {
    /// Slices and plain tests decide as the engine does with all policies at once.
    #[test]
    fn slicing_changes_no_decision(
        drawn in proptest::collection::vec((any::<bool>(), 0..SCOPES.len(), 0..CONDITIONS.len()), 0..8),
        method in prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("PROPFIND")],
        target in prop_oneof![Just("/a"), Just("/a/x?y=1"), Just("/b")],
        route in 0_usize..2,
        bob in any::<bool>(),
        scope in prop_oneof![Just(""), Just("own")],
        role in prop_oneof![Just("none"), Just("ops"), Just("boss"), Just("guest")],
        level in prop_oneof![Just(0_i64), Just(9), Just(i64::MAX)],
        near in any::<bool>(),
        later in 0_u64..2,
    ) {
        let text = drawn.iter().fold(String::new(), |text, (permit, scope, condition)| {
            let effect = if *permit { "permit" } else { "forbid" };
            format!("{text}{effect}({}) {};\n", SCOPES[*scope], CONDITIONS[*condition])
        });
        let claims = [("tenant", Claim::Text("red".into())), ("level", Claim::Number(level))];
        let Principal::Named(named) = alice(&[scope], &[role], &claims) else { panic!("named") };
        let id = if bob { "bob" } else { "alice" }.to_owned();
        let who = Principal::Named(Arc::new(Named { id, ..(*named).clone() }));
        let client = IpAddr::from(if near { [192, 0, 2, 7] } else { [198, 51, 100, 7] });
        let sent = Sent { route, client, now_ms: NOON - 1 + later, ..sent(method, target) };
        let ours = with_facts(&sent, |facts| set(&text).decide(route, &who, &roles(), facts));
        let (theirs, failed) = whole(&text, &who, &sent);
        match (&ours, theirs, failed) {
            (Ruling::Permit(_), theirs, _) => prop_assert_eq!(theirs, Decision::Allow, "{}", text),
            (Ruling::Failed(_), _, failed) => prop_assert!(failed, "{}", text),
            (_, theirs, _) => prop_assert_eq!(theirs, Decision::Deny, "{}", text),
        }
    }
}
