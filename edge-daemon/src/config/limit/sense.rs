//! What no single key of a limit can tell: whether it changes anything, whom it binds, and what can never be
//! paid.

use edge_common::Reason;
use edge_identity::principal::Method;
use edge_policy::limit::{Only, Part, Spec, lease, meter::Meter};
use toml::de::DeTable;

use crate::config::{
    reader::Notes,
    settings::{Route, Settings},
    whole,
};

/// Doubts about the n-th of the operator's limits.
pub(super) fn check_limit(
    (settings, spec): (&Settings, &Spec),
    n: usize,
    document: &DeTable<'_>,
    notes: &Notes<'_>,
) {
    let (name, place) = (&spec.name, |key| whole::place_nth(document, "limit", n, key));
    let before = settings.limits.iter().take_while(|other| other.name != spec.name);
    let after = settings.limits.iter().skip_while(|other| other.name != spec.name).skip(1);
    let is_moot = |other: &&Spec| is_as_strict(other, spec);
    // Of two that are the same the later one is moot.
    let stricter = before.clone().find(is_moot);
    let stricter =
        stricter.or_else(|| after.clone().find(|o| is_moot(o) && !is_as_strict(spec, o)));
    if let Some(other) = stricter {
        let what = format!("'{name}' changes nothing: '{}' is never less strict", other.name);
        notes.doubt(place("name"), what, "leave one out, or let them differ");
    }
    let mut routes = settings.routes.iter().filter(|route| covers(spec, route)).peekable();
    if routes.peek().is_none() || routes.any(|route| tells(spec, route)) {
        return;
    }
    let is_bound = |part: &Part| matches!(part, Part::User | Part::Key);
    let (what, help) = if spec.by.iter().any(is_bound) {
        (
            "binds nobody",
            "who shows nothing is not counted: by \"source\", or an 'auth' of the routes",
        )
    } else {
        ("counts all who show nothing together", "an 'auth' of the routes that tells who it is")
    };
    notes.doubt(place("by"), format!("'{name}' {what}: none of its routes asks who it is"), help);
}

/// Doubts about what routes cost. Of a limit that a fleet shares, an edge has its even part for certain.
pub(super) fn check_costs(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let nodes = settings.fleet.as_ref().map_or(1, |fleet| fleet.nodes);
    for (n, route) in settings.routes.iter().enumerate() {
        for spec in settings.limits.iter().filter(|spec| !spec.shadow) {
            let nodes = if spec.fleet { nodes } else { 1 };
            let is_beyond = |meter: &Meter| {
                !meter.is_concurrent() && route.cost > meter.part(lease::alone(nodes)).most()
            };
            let mut meters =
                spec.meter.iter().chain(spec.tiers.iter().filter_map(|(_, m)| m.as_ref()));
            if !covers(spec, route) || !tells(spec, route) || !meters.any(is_beyond) {
                continue;
            }
            let what = match nodes {
                1 => format!("'{}' can never admit what costs {}", spec.name, route.cost),
                _ => format!(
                    "'{}' may never admit what costs {}: each of {nodes} edges has its part of it",
                    spec.name, route.cost
                ),
            };
            let help = "a larger 'burst' or rate of the limit, for each tier, or a smaller cost";
            notes.doubt(whole::place_nth(document, "route", n, "cost"), what, help);
        }
    }
}

/// Whether a limit speaks of some request of a route.
fn covers(spec: &Spec, route: &Route) -> bool {
    let (routes, methods) = (&spec.only.routes, &spec.only.methods);
    (routes.is_empty() || routes.iter().any(|path| path == route.at.path.as_str()))
        && (methods.is_empty() || route.at.methods.iter().any(|m| methods.contains(m)))
}

/// Whether a route's callers have what a limit counts by. A key tells on any route, but nobody has to show it.
fn tells(spec: &Spec, route: &Route) -> bool {
    let methods = route.needs.as_ref().map(|needs| needs.methods);
    spec.by.iter().all(|part| match part {
        Part::Key => {
            methods.is_some_and(|m| m.contains(Method::Key) || m.contains(Method::Signature))
        }
        Part::User | Part::Tier | Part::Claim(_) => methods.is_some(),
        _ => true,
    })
}

/// Whether a limit refuses whatever another one would, and holds it against the caller if the other does.
fn is_as_strict(spec: &Spec, other: &Spec) -> bool {
    let is_alike = is_wider(spec, other) && is_wider(other, spec);
    let (is_shared, is_nobody) =
        (spec.fleet || other.fleet, |s: &Spec| s.reason == Reason::GlobalRate);
    let meter = |spec: &Spec, tier: Option<&str>| {
        let own = spec.tiers.iter().find(|(name, _)| Some(name.as_str()) == tier);
        own.map_or(spec.meter, |(_, meter)| *meter)
    };
    let has_tier = |spec: &Spec, tier: &str| spec.tiers.iter().any(|(name, _)| name == tier);
    // A source whose callers are of several tiers has a meter for each.
    let is_of_one_tier =
        spec.by.iter().any(|part| matches!(part, Part::User | Part::Key | Part::Tier));
    let tiers = spec.tiers.iter().chain(&other.tiers).map(|(name, _)| Some(name.as_str()));
    is_wider(spec, other)
        // What fails to authenticate is counted early alone.
        && (spec.is_early() || !other.is_early())
        && (is_of_one_tier || spec.tiers.iter().all(|(tier, _)| has_tier(other, tier)))
        // An edge may have all of one limit and a part of another.
        && (!is_shared || (spec.fleet == other.fleet && is_alike))
        && (is_nobody(other) || !is_nobody(spec))
        && (spec.persist || !other.persist)
        && !spec.shadow
        && !other.shadow
        && tiers.chain([None]).all(|tier| match (meter(spec, tier), meter(other, tier)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(other)) => own.is_as_strict_as(&other),
        })
}

/// Whether a limit counts with each request all that another one counts with it. Whom it counts by nothing, as they
/// lack a part of its key, the other one does not count either.
fn is_wider(spec: &Spec, other: &Spec) -> bool {
    let (own, its) = (&spec.only, &other.only);
    let routes = |only: &Only| -> Vec<_> {
        only.routes.iter().map(|path| path.trim_end_matches('/').to_owned()).collect()
    };
    has_all(&routes(own), &routes(its))
        && has_all(&own.methods, &its.methods)
        && spec.by.iter().all(|part| other.by.contains(part))
}

/// Whether a choice takes in another one; an empty one is all there is.
fn has_all<T: PartialEq>(own: &[T], its: &[T]) -> bool {
    own.is_empty() || (!its.is_empty() && its.iter().all(|one| own.contains(one)))
}
