//! What policies decide, what is wrong with them, and that slicing and plain tests change nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Effect, Entities, Entity, EvalResult, PolicySet,
};
use edge_policy::target::Target;
use http::Method;
use proptest::prelude::*;

use super::load::{ACTION_UIDS, action};
use super::*;
use crate::access::Tls;
use crate::principal::tests::{somebody, words};
use crate::principal::{Claim, Method as Proof, Named};
use crate::roles::Role;

const CLAIMS: &str = "
    type Access = { roles: Set<String>, verified?: Bool };
    type Claims = {
        tenant?: String, level?: Long, groups?: Set<String>, staff?: Bool,
        risk?: decimal, ports?: Set<Long>, realm_access?: Access,
    };
";

const CLAIM_NAMES: [&str; 7] =
    ["tenant", "level", "groups", "staff", "risk", "ports", "realm_access"];

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

/// A claim as a token says it.
fn said(json: &str) -> Claim {
    Claim::of(&serde_json::from_str(json).unwrap())
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
        token: None,
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
        for condition in ["", "when { [context.path].contains(context.path) }"] {
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
    // Only the engine can decide these.
    let deep =
        "permit(principal, action, resource) when { [context.path].contains(context.path) };";
    let no = "@id(\"no\") forbid(principal, action, resource) when { principal.id == \"alice\" };";
    let deep_no = "@id(\"no\") forbid(principal, action, resource) when { [context.path].contains(context.path) };";
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
    // A claim that is not of the type that the schema says, in a plain test and in the engine.
    let who = alice(&[], &[], &[("level", Claim::Text("x".into()))]);
    for more in ["", "+ 1"] {
        let fails = format!(
            "(principal, action, resource) when {{ principal.claims has level && principal.claims.level {more} > 0 }};"
        );
        let (forbid, permit) =
            (format!("@id(\"f\") forbid{fails}"), format!("@id(\"p\") permit{fails}"));
        for (text, expected) in [
            (format!("{plain}{forbid}"), "f failed"),
            (format!("{deep}{forbid}"), "f failed"),
            (format!("{forbid}{deep_no}"), "no forbids"),
            (permit.clone(), "p failed"),
            (format!("{permit}{plain}"), "p.cedar#2 permits"),
            (format!("{permit}{deep}"), "p.cedar#2 permits"),
            (format!("{permit}{no}"), "no forbids"),
        ] {
            assert_eq!(ruled(&set(&text), &who, &sent("GET", "/a")), expected, "{text}");
        }
    }
}

/// What a schema says of claims beyond words and whole numbers is there to be read.
#[test]
fn objects_fractions_and_sets_of_numbers_are_claims_too() {
    let who = alice(
        &[],
        &[],
        &[
            ("risk", said("7.5")),
            ("level", said("9.0")),
            ("ports", said("[80, 443.0]")),
            ("realm_access", said(r#"{"roles": ["admin"], "other": null}"#)),
        ],
    );
    for (condition, met) in [
        ("principal.claims has risk && principal.claims.risk.greaterThan(decimal(\"5.0\"))", true),
        ("principal.claims has risk && principal.claims.risk == decimal(\"7.5\")", true),
        ("principal.claims has level && principal.claims.level > 5", true),
        ("principal.claims has ports && principal.claims.ports.contains(443)", true),
        ("principal.claims has ports && principal.claims.ports == [443, 80]", true),
        ("principal.claims has ports && principal.claims.ports.contains(22)", false),
        (
            "principal.claims has realm_access && principal.claims.realm_access.roles.contains(\"admin\")",
            true,
        ),
        (
            "principal.claims has realm_access.roles && principal.claims.realm_access.roles.contains(\"boss\")",
            false,
        ),
        ("principal.claims has realm_access.verified", false),
        ("principal has claims.realm_access.roles", true),
    ] {
        let text =
            format!("@id(\"it\") permit(principal, action, resource) when {{ {condition} }};");
        let expected = if met { "it permits" } else { "no policy permits" };
        assert_eq!(ruled(&set(&text), &who, &sent("GET", "/a")), expected, "{condition}");
    }
}

/// The engine is told of no claim that no policy names, and of each that is asked for, even where the schema
/// does not have it.
#[test]
fn claims_that_policies_name_are_told_alone() {
    let text = "
        permit(principal, action, resource);
        forbid(principal, action, resource)
        when { principal.claims has risk && principal.claims.risk.greaterThan(decimal(\"5.0\")) };
        @id(\"plain\") forbid(principal, action, resource) when { principal.claims has suspended };
        @id(\"deep\") forbid(principal, action, resource)
        when { principal.claims has barred && [principal.id].contains(principal.id) };
    ";
    let policies = load(text).unwrap();
    let told = |who: &Principal| {
        with_facts(&sent("GET", "/a"), |facts| {
            let (caller, action) = (&who.identity(), action(facts.method));
            let (roles, held, types) = (&roles(), &[][..], &*policies.types);
            let asked = Asked { principal: who, caller, action, roles, held, facts, types };
            let uses = Uses { caller: u8::MAX, ..Uses::default() };
            let (_, entities) = asked.request(uses, &load::route_uid("/a")).unwrap();
            let entity = entities.iter().next().unwrap();
            let EvalResult::Record(claims) = entity.attr("claims").unwrap().unwrap() else {
                panic!("a record");
            };
            claims.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        })
    };
    let mut many: Vec<_> = (0..1000).map(|n| format!("c{n}")).collect();
    many.extend(words(&["tenant", "risk", "suspended", "barred"]));
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), said("7.5"))).collect();
    assert_eq!(told(&alice(&[], &[], &many)), ["barred", "risk", "suspended"]);
    for (claim, ruling) in [
        ("c1", "p.cedar#1 permits"),
        ("suspended", "plain forbids"),
        ("barred", "deep forbids"),
        ("risk", "p.cedar#2 forbids"),
    ] {
        let who = alice(&[], &[], &[(claim, said("7.5"))]);
        assert_eq!(ruled(&set(text), &who, &sent("GET", "/a")), ruling, "{claim}");
    }
}

/// A claim that Cedar cannot hold, or that is of another type than the schema says, is there, and
/// whatever reads it fails: no `forbid` passes it by.
#[test]
fn a_claim_that_cannot_be_held_is_never_absent() {
    const PLAIN: [(&str, &str); 4] = [
        ("tenant", "== \"red\""),
        ("level", "> 5"),
        ("groups", ".contains(\"g1\")"),
        ("staff", "== true"),
    ];
    const DEEP: [(&str, &str); 6] = [
        ("level", "+ 1 == 5"),
        ("risk", ".greaterThan(decimal(\"5.0\"))"),
        ("risk", "== decimal(\"5.0\")"),
        ("ports", ".contains(22)"),
        ("realm_access", ".roles.contains(\"x\")"),
        ("realm_access", " has verified"),
    ];
    let others = [
        "null",
        "{}",
        "[null]",
        "[1, \"a\"]",
        "[[]]",
        "1e30",
        "0.12345",
        "18446744073709551615",
        r#"{"roles": "x"}"#,
        r#"{"roles": [1]}"#,
        r#"{"roles": [], "verified": 1}"#,
        "\"9\"",
    ];
    for (name, condition) in PLAIN.iter().chain(&DEEP) {
        for other in others.iter().filter(|other| (*name, **other) != ("tenant", "\"9\"")) {
            let who = alice(&[], &[], &[(name, said(other))]);
            let read = format!("principal.claims has {name} && principal.claims.{name}{condition}");
            for (text, expected) in [
                (
                    format!("@id(\"f\") forbid(principal, action, resource) when {{ {read} }};"),
                    "f failed",
                ),
                (
                    format!(
                        "@id(\"f\") forbid(principal, action, resource) when {{ principal.claims has {name} }};"
                    ),
                    "f forbids",
                ),
                (
                    format!("@id(\"f\") forbid(principal, action, resource) unless {{ {read} }};"),
                    "f failed",
                ),
                (
                    format!(
                        "@id(\"f\") forbid(principal, action, resource) when {{ false && ({read}) }};"
                    ),
                    "p permits",
                ),
            ] {
                let text = format!("@id(\"p\") permit(principal, action, resource);\n{text}");
                let found = ruled(&set(&text), &who, &sent("GET", "/a"));
                assert_eq!(found, expected, "{name}: {other}\n{text}");
            }
        }
    }
}

#[test]
fn a_schema_gives_claims_only_types_that_they_can_have() {
    for (schema, word) in [
        ("type Claims = { from?: ipaddr };", "ipaddr"),
        ("type Claims = { at?: Set<datetime> };", "datetime"),
        ("type Claims = { by?: { who: Caller } };", "Caller"),
        ("type Claims = String;", "Claims"),
    ] {
        let faults = Policies::load(Some(schema), &[], &[]).err().unwrap_or_default();
        let told = faults.first().map_or("", |fault| &schema[fault.span.clone()]);
        assert_eq!(told, word, "{schema}: {faults:?}");
    }
}

#[test]
fn ordinary_conditions_need_no_engine() {
    for condition in ORDINARY {
        let policies =
            load(&format!("permit(principal, action, resource) when {{ {condition} }};"));
        let policies = policies.unwrap_or_else(|faults| panic!("{condition}: {faults:#?}"));
        let mut all = policies.for_route("/a", 0);
        assert!(all.next().is_some_and(|policy| policy.test.is_some()), "{condition}");
    }
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
            "permit(principal, action, resource) when { {\"c\": principal.claims}.c has tenant };",
            "principal.claims",
            "more than to read one",
        ),
        (
            "permit(principal, action, resource) when { (if true then principal else principal).claims has tenant };",
            "",
            "more than to read one",
        ),
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

/// Conditions that are compiled into plain tests.
const ORDINARY: [&str; 48] = [
    "true",
    "principal.scopes.contains(\"own\")",
    "principal.scopes.containsAny([\"own\", \"all\"])",
    "principal.roles.containsAll([\"ops\", \"boss\"])",
    "principal in Role::\"ops\"",
    "principal in [Role::\"guest\", Role::\"boss\"]",
    "principal == Caller::\"main:bob\"",
    "principal != Caller::\"main:alice\"",
    "principal in Caller::\"main:alice\"",
    "principal.id == \"bob\"",
    "principal.name != \"Alice\"",
    "principal.method == \"jwt\"",
    "principal has tier && principal.tier == \"gold\"",
    "principal has issuer && principal.issuer like \"m*n\"",
    "principal.claims has tenant",
    "principal.claims has tenant && principal.claims.tenant == \"red\"",
    "principal.claims has tenant && \"red\" == principal.claims.tenant",
    "principal.claims has tenant && principal.claims.tenant like \"r*d\"",
    "principal.claims has tenant && principal.claims.tenant == principal.id",
    "principal.claims has level && principal.claims.level > 4",
    "principal.claims has level && principal.claims.level <= 0",
    "principal.claims has level && principal.claims.level != -9",
    "principal.claims has level && (if principal.claims.level < 4 then principal.id == \"bob\" else true)",
    "principal.claims has groups && principal.claims.groups.contains(\"g1\")",
    "principal.claims has groups && principal.claims.groups.containsAll([\"g1\", \"g2\"])",
    "principal.claims has groups && principal.claims.groups.containsAny([\"g1\", \"g9\"])",
    "principal.claims has staff && principal.claims.staff",
    "principal.claims has staff && !principal.claims.staff",
    "principal.claims has staff && principal.claims.staff == true",
    "context.method == \"GET\"",
    "[\"GET\", \"POST\"].contains(context.method)",
    "context.host == \"h\"",
    "context.path like \"/a/*\"",
    "context.path like \"/*/x\"",
    "context has query && context.query like \"*y=1*\"",
    "context.ip.isInRange(ip(\"192.0.2.0/24\"))",
    "context.ip.isInRange(ip(\"192.0.2.7\")) || context.ip.isInRange(ip(\"2001:db8::/32\"))",
    "context.ip.isInRange(ip(\"192.0.200.9/16\"))",
    "context.ip == ip(\"192.0.2.7\")",
    "context.ip != ip(\"192.0.2.0/24\")",
    "context.ip.isIpv4() && !context.ip.isLoopback()",
    "context.ip.isIpv6() || context.ip.isMulticast()",
    "context.time < datetime(\"2026-11-21T12:00:00Z\")",
    "context.time.toTime() >= duration(\"12h\")",
    "context.time.toDate() == datetime(\"2026-11-21\")",
    "context has tls && context.tls.version == \"TLSv1.3\"",
    "context has tls && context.tls has ja4 && context.tls.ja4 like \"t13*\"",
    "action in Action::\"read\" && action != Action::\"HEAD\"",
];

/// Conditions that are left to the engine.
const DEEP: [&str; 10] = [
    "principal.claims has level && principal.claims.level + 1 > 4",
    "principal.claims has risk && principal.claims.risk.lessThan(decimal(\"1.5\"))",
    "principal.claims has ports && principal.claims.ports.contains(9)",
    "principal.claims has realm_access",
    "principal has claims.realm_access.verified",
    "principal.claims has realm_access && principal.claims.realm_access.roles.contains(\"g1\")",
    "principal.claims has realm_access.verified && principal.claims.realm_access.verified",
    "[context.path].contains(context.path)",
    "{\"a\": principal.id}.a == \"alice\"",
    "context.time.offset(duration(\"1h\")) > datetime(\"2026-11-21T12:59:59.999Z\")",
];

/// A condition made of others.
fn conditions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        8 => proptest::sample::select(&ORDINARY[..]),
        1 => proptest::sample::select(&DEEP[..]),
    ];
    leaf.prop_map(|leaf| format!("({leaf})")).prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("!{one}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

/// A policy, some of which have no condition and some of which have two.
fn policies() -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("forbid")];
    let word = || prop_oneof![Just("when"), Just("unless")];
    let clauses = proptest::collection::vec((word(), conditions()), 0..3);
    (effect, proptest::sample::select(&SCOPES[..]), clauses).prop_map(|(effect, scope, clauses)| {
        let clauses = clauses.iter().map(|(word, condition)| format!(" {word} {{ {condition} }}"));
        format!("{effect}({scope}){};\n", clauses.collect::<String>())
    })
}

/// Claims, of the types that the schema says and of others.
fn claims() -> impl Strategy<Value = Vec<(&'static str, Claim)>> {
    let claim = prop_oneof![
        proptest::sample::select(&["red", "alice", "rd"][..])
            .prop_map(|word| Claim::Text(word.into())),
        proptest::sample::select(&[0, 9, -9, i64::MAX][..]).prop_map(Claim::Number),
        any::<bool>().prop_map(Claim::Flag),
        proptest::sample::subsequence(vec!["g1", "g2", "g3"], 0..=3)
            .prop_map(|groups| Claim::List(words(&groups))),
        // What Cedar can hold, in part, and what it cannot.
        proptest::sample::select(
            &[
                "null",
                "{}",
                "9.0",
                "0.5",
                "0.123456",
                "1e30",
                "-18446744073709551615",
                "[9]",
                "[9.5]",
                "[\"g1\", 9]",
                "[null]",
                r#"{"roles": ["g1"]}"#,
                r#"{"roles": []}"#,
                r#"{"roles": 9}"#,
                r#"{"roles": ["g1"], "verified": true}"#,
                r#"{"roles": ["g1"], "verified": null}"#,
            ][..]
        )
        .prop_map(said),
    ];
    let names = ["tenant", "level", "groups", "staff", "risk", "ports", "realm_access"];
    proptest::collection::vec((proptest::sample::select(names.to_vec()), claim), 0..8)
}

/// The engine with everything at once: no slices, no plain tests, all facts. Each claim is a record
/// there, whose one member is missing where it is not what the schema says.
fn whole(text: &str, who: &Principal, sent: &Sent) -> &'static str {
    let (roles, label) = (roles(), &labels()[sent.route]);
    let mut text = text.to_owned();
    for name in CLAIM_NAMES {
        let read = format!("principal.claims.{name}");
        text = text.replace(&read, &format!("{read}.value"));
        // A member of a claim is asked for by reading the claim.
        let has = format!("principal.claims has {name}.verified");
        let both = format!("(principal.claims has {name} && {read}.value has verified)");
        text = text.replace(&has, &both);
        text = text.replace(&format!("principal has claims.{name}.verified"), &both);
    }
    let all = PolicySet::from_str(&text).unwrap();
    let mut types = claims::Types::read(CLAIMS).unwrap();
    types.named = CLAIM_NAMES.map(str::to_owned).into();
    let response = with_facts(sent, |facts| {
        let held = roles.of(who);
        let (caller, action) = (&who.identity(), action(facts.method));
        let (roles, held, types) = (&roles, &held, &types);
        let asked = Asked { principal: who, caller, action, roles, held, facts, types };
        let uses = Uses { caller: u8::MAX, context: u8::MAX, hierarchy: true, action: true };
        let resource = load::route_uid(label);
        let (request, entities) = asked.request(uses, &resource).unwrap();
        let groups = ACTION_UIDS.iter().map(|(_, group)| group.clone());
        let groups: std::collections::HashSet<_> = groups.collect();
        let groups = groups.into_iter().map(|uid| Entity::new_no_attrs(uid, Default::default()));
        let entities: Entities = entities.add_entities(groups, None).unwrap();
        Authorizer::new().is_authorized(&request, &all, &entities)
    });
    let diagnostics = response.diagnostics();
    let failed = |effect| {
        diagnostics.errors().any(|error| {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            all.policy(error.policy_id()).unwrap().effect() == effect
        })
    };
    match response.decision() {
        Decision::Deny if diagnostics.reason().next().is_some() => "forbid",
        _ if failed(Effect::Forbid) => "failed",
        Decision::Allow => "permit",
        Decision::Deny if failed(Effect::Permit) => "failed",
        Decision::Deny => "nothing",
    }
}

proptest! {
    /// Slices and plain tests decide as the engine does with all policies at once.
    #[test]
    fn slicing_changes_no_decision(
        drawn in proptest::collection::vec(policies(), 0..8),
        method in prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("PROPFIND")],
        target in prop_oneof![Just("/a"), Just("/a/x?y=1"), Just("/b")],
        route in 0_usize..2,
        bob in any::<bool>(),
        scope in prop_oneof![Just(""), Just("own")],
        role in prop_oneof![Just("none"), Just("ops"), Just("boss"), Just("guest")],
        claims in claims(),
        client in prop_oneof![Just("192.0.2.7"), Just("198.51.100.7"), Just("2001:db8::7"), Just("::1")],
        later in 0_u64..2,
    ) {
        let text = drawn.concat();
        let Principal::Named(named) = alice(&[scope], &[role], &claims) else { panic!("named") };
        let id = if bob { "bob" } else { "alice" }.to_owned();
        let who = Principal::Named(Arc::new(Named { id, ..(*named).clone() }));
        let client = client.parse().unwrap();
        let sent = Sent { route, client, now_ms: NOON - 1 + later, ..sent(method, target) };
        let ours = match with_facts(&sent, |facts| set(&text).decide(route, &who, &roles(), facts)) {
            Ruling::Permit(_) => "permit",
            Ruling::Forbid(_) => "forbid",
            Ruling::Failed(_) => "failed",
            Ruling::NoPermit => "nothing",
        };
        prop_assert_eq!(ours, whole(&text, &who, &sent), "{}", text);
    }
}
