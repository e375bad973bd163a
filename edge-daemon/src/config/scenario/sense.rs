//! What no single key of a scenario can tell: whether it can ever speak, and against whom.

use std::time::Duration;

use edge_common::{Plane, Reason};
use edge_policy::{
    denied,
    limit::Spec,
    place::Place,
    verdict::{By, DISTINCT_MAX, Distinct, Filter, Kind, Scenario, Step},
};
use toml::de::{DeArray, DeTable};

use super::{PLACES, SECOND_NS, ns};
use crate::config::{
    reader::Notes,
    settings::{Route, Settings},
    text, whole,
};

/// What no single key can tell: scenarios that can never speak, or that speak against everybody.
pub(in crate::config) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let verdicts = &settings.verdicts;
    let tables = document.get("scenario").and_then(|tables| tables.get_ref().as_array());
    let mut before = Vec::new();
    for n in 0..tables.map_or(0, |tables| tables.len()) {
        let name =
            tables.and_then(|tables| tables.get(n)?.get_ref().get("name")?.get_ref().as_str());
        let Some(name) = name else { continue };
        let place = |key: &str| whole::place_nth(document, "scenario", n, key);
        if before.contains(&name) {
            let what = format!("two scenarios are called '{name}'");
            notes.wrong(place("name"), what, "rename one");
        }
        before.push(name);
        let own = verdicts.scenarios.iter().find(|scenario| &*scenario.name == name);
        let Some(own) = own.filter(|_| notes.is_clean_at(&place("name"))) else { continue };
        for (key, fault) in faults(own, verdicts.longest, &settings.routes) {
            if notes.is_clean_at(&place(key)) {
                notes.wrong(place(key), fault.what, fault.help);
            }
        }
        let lacking = own.filter.kinds().map(|kind| lack(settings, own, kind));
        let lacking: Option<Vec<_>> = lacking.collect();
        if let Some((key, what, help)) = lacking.and_then(|all| all.first().copied()) {
            notes.doubt(place(key), format!("'{name}' never speaks: {what}"), help);
        }
        for (key, what, help) in idle(own, &settings.routes) {
            notes.doubt(place(key), what, help);
        }
        if let Some(kind) = careless(own) {
            let what = format!("a single '{}' is a verdict: '{name}'", kind.name());
            let help = "everybody makes one now and then: a capacity above its weight";
            notes.doubt(place("capacity"), what, help);
        }
        if is_hasty(own, &settings.routes) {
            let what =
                format!("'{name}' speaks against whoever makes {ORDINARY} requests in a minute");
            notes.doubt(place("capacity"), what, "a larger capacity, or a faster leak");
        }
        let is_own = |other: &Scenario| tables.is_some_and(|tables| names(tables, &other.name));
        let hidden = |other: &&Scenario| !is_own(other) && own.shadows(other);
        if let Some(other) = verdicts.scenarios.iter().find(hidden) {
            let what = format!("'{}' never speaks: '{name}' does before it", other.name);
            notes.doubt(place("name"), what, "change the one that is shipped, or let them differ");
        }
        let shadows = |other: &&Scenario| other.name != own.name && other.shadows(own);
        if let Some(other) = verdicts.scenarios.iter().find(shadows) {
            let what = format!("'{name}' never speaks: '{}' does before it", other.name);
            notes.doubt(place("name"), what, "leave one out, or let them differ");
        }
    }
    let all = ["0.0.0.0/0", "::/0"].map(|all| all.parse().ok());
    if verdicts.never_ban.iter().any(|net| all.contains(&Some(*net))) {
        let span = whole::place(document, "verdicts", "never_ban");
        notes.doubt(span, "nobody is ever banned", "leave it out, or set the steps to \"observe\"");
    }
}

/// What a scenario asks of where its signals are from, and under which key.
pub(in crate::config) fn places(own: &Scenario) -> Vec<(&'static str, Place)> {
    let by = match own.by {
        By::Place(place) => Some(("by", place)),
        _ => None,
    };
    let distinct = match own.distinct {
        Some(Distinct::Place(place)) => Some(("distinct", place)),
        _ => None,
    };
    let asks = |(_, place, is_elsewhere): &&(&str, Place, bool)| {
        own.filter.places.iter().any(|a| (a.place, a.is_elsewhere) == (*place, *is_elsewhere))
    };
    let among = PLACES.iter().filter(asks).map(|(key, place, _)| (*key, *place));
    by.into_iter().chain(distinct).chain(among).collect()
}

/// What is wrong under which key.
pub(super) struct Fault {
    pub(super) what: String,
    help: String,
}

pub(super) fn faults(
    own: &Scenario,
    longest: Duration,
    routes: &[Route],
) -> Vec<(&'static str, Fault)> {
    let name = &own.name;
    let fault = |what: String, help: &str| Fault { what, help: help.to_owned() };
    let never = |help| fault(format!("'{name}' can never speak"), help);
    let mut faults = Vec::new();
    let kinds = || own.filter.kinds();
    if kinds().next().is_none() {
        faults.push(("signals", never("it is about no signal: [\"no_route\"]")));
        return faults;
    }
    let by_account = own.by == By::Account || own.distinct == Some(Distinct::Account);
    if by_account && !kinds().any(|kind| kind == Kind::LoginFailed) {
        faults.push(("signals", never("only \"login_failed\" tells an account")));
    }
    if own.by == By::Principal && own.filter.proven == Some(false) {
        faults.push(("proven", never("whom it is held against must have proved who it is")));
    }
    let is_request = |kind: Kind| kind.reason().plane() == Plane::Request;
    let asks = !(own.filter.paths.is_empty() && own.filter.methods.is_empty())
        || own.filter.proven == Some(true)
        || own.by == By::Principal;
    if asks && !kinds().any(is_request) {
        faults.push(("signals", never("these come without a request")));
    }
    let can_be = |kind: Kind| match kind {
        Kind::Refused(reason) => {
            is_request(kind) && own.filter.statuses.contains(&denied::status(reason).as_u16())
        }
        Kind::NotFound => own.filter.statuses.contains(&404),
        Kind::Served | Kind::LoginFailed => true,
    };
    if !own.filter.statuses.is_empty() && !kinds().any(can_be) {
        faults.push(("statuses", never("none of its signals has such a status")));
    }
    for (elsewhere, place, _) in PLACES.iter().filter(|(.., is_elsewhere)| *is_elsewhere) {
        let has_both = own.filter.places.iter().filter(|among| among.place == *place).count() > 1;
        if has_both {
            let what = format!("'{}' says already which", place.name());
            faults.push((elsewhere, fault(what, "one of the two")));
        }
    }
    if own.distinct.is_some() && own.capacity > DISTINCT_MAX {
        let what = format!("what differs is counted up to {DISTINCT_MAX}");
        faults.push(("capacity", fault(what, "a smaller capacity")));
    }
    if own.capacity.checked_mul(own.interval_ns).is_none_or(|ns| ns > 400 * 24 * 3_600 * SECOND_NS)
    {
        let what = "the bucket takes more than 400 days to drain".to_owned();
        faults.push(("leak", fault(what, "a smaller capacity, or a faster leak")));
    }
    let served = u64::from(own.filter.weights[Kind::Served.index()]);
    if served > own.capacity && takes_ordinary(own, routes) && own.step > Step::Observe {
        let what = format!("'{name}' speaks against every client at its first request");
        faults.push(("capacity", fault(what, "a capacity well above what clients do")));
    }
    if own.step > Step::Observe && own.duration_ns > ns(longest) {
        let what = format!("the first verdict of '{name}' is longer than the longest");
        let help = format!("'longest' of [verdicts] is {}", text::show_duration(longest));
        faults.push(("duration", fault(what, &help)));
    }
    faults
}

/// What it does nothing about, under which key, and what would help.
fn idle(own: &Scenario, routes: &[Route]) -> Vec<(&'static str, String, &'static str)> {
    let name = &own.name;
    let mut doubts = Vec::new();
    let (is_by, is_proven) = (own.by == By::Principal, own.filter.proven == Some(true));
    // A key tells on any route, but nobody has to show it.
    if (is_by || is_proven) && routes.iter().all(|route| route.needs.is_none()) {
        let what = format!(
            "'{name}' is about nobody but who shows a key unasked: no route asks who it is"
        );
        let help = "an 'auth' of the routes, or by \"source\"";
        doubts.push((if is_by { "by" } else { "proven" }, what, help));
    }
    let other = own.filter.kinds().find(|kind| *kind != Kind::LoginFailed);
    if let Some(kind) = other.filter(|_| own.by == By::Ja4 && own.step > Step::Observe) {
        let what = format!(
            "'{name}' refuses no '{}': a verdict on a library holds for logins alone",
            kind.name()
        );
        doubts.push(("by", what, "\"fingerprint\", or \"login_failed\" alone"));
    }
    doubts
}

/// Why there is no signal of a kind, under which key, and what would make one.
fn lack(
    settings: &Settings,
    own: &Scenario,
    kind: Kind,
) -> Option<(&'static str, &'static str, &'static str)> {
    let verdicts = &settings.verdicts;
    let limited = |reason| {
        let refuses = |spec: &&Spec| spec.reason == reason && !spec.shadow;
        let mut all = settings.limits.iter().chain([&settings.handshakes]).filter(refuses);
        all.any(|spec| spec.meter.is_some() || spec.tiers.iter().any(|(_, meter)| meter.is_some()))
    };
    let paths = &own.filter.paths;
    let meets =
        |route: &&Route| paths.is_empty() || paths.iter().any(|top| route.at.path.meets(top));
    let is_login = |route: &&Route| route.login.is_some();
    let (is_told, what, help) = match kind {
        Kind::LoginFailed if !settings.routes.iter().any(|route| is_login(&route)) => {
            (false, "no route is a login", "'login' of a [[route]] says how a failure is told")
        }
        Kind::Served | Kind::NotFound | Kind::LoginFailed => {
            let mut there = settings.routes.iter().filter(meets);
            let is_there = there.any(|route| kind != Kind::LoginFailed || is_login(&route));
            let what = "no route that makes its signals is at these paths";
            return (!is_there).then_some(("paths", what, "the paths of your routes"));
        }
        Kind::Refused(Reason::CanaryKey) => (
            !verdicts.canaries.is_empty(),
            "no canary is laid out",
            "'canary_keys' of [verdicts] names them",
        ),
        Kind::Refused(Reason::DecoyPath) => {
            (!verdicts.decoys.is_empty(), "no path is a decoy", "'decoys' of [verdicts] names them")
        }
        Kind::Refused(
            reason @ (Reason::SourceRate
            | Reason::KeyRate
            | Reason::RequestLimit
            | Reason::HandshakeRate),
        ) => (
            limited(reason),
            "no limit refuses so",
            "[limits] or a [[limit]] by \"source\", \"user\" or \"key\"",
        ),
        _ => return None,
    };
    (!is_told).then_some(("signals", what, help))
}

/// Whether its paths are those of all requests, or of all that these routes are for.
fn is_for_all(own: &Scenario, routes: &[Route]) -> bool {
    let takes = |route: &Route| own.filter.takes(route.at.path.as_str());
    own.filter.takes("/") || (!routes.is_empty() && routes.iter().all(takes))
}

/// Whether it takes what an ordinary client does, wherever it is from: a `GET` that is answered.
fn takes_ordinary(own: &Scenario, routes: &[Route]) -> bool {
    let Filter { methods, statuses, places, .. } = &own.filter;
    (methods.is_empty() || methods.contains(&http::Method::GET))
        && (statuses.is_empty() || statuses.contains(&200))
        && places.is_empty()
        && is_for_all(own, routes)
}

/// Whether one of the operator's tables has this name.
fn names(tables: &DeArray<'_>, name: &str) -> bool {
    tables.iter().any(|table| {
        table.get_ref().get("name").is_some_and(|own| own.get_ref().as_str() == Some(name))
    })
}

/// Whether what an ordinary client does within a minute, again and again, gets it refused or banned in the end.
pub(super) fn is_hasty(own: &Scenario, routes: &[Route]) -> bool {
    let served = u64::from(own.filter.weights[Kind::Served.index()]);
    let drained = 60 * SECOND_NS / own.interval_ns.max(1);
    let room = own.capacity.saturating_add(drained);
    let is_each = matches!(own.distinct, None | Some(Distinct::Path));
    let is_any = takes_ordinary(own, routes);
    served * ORDINARY > room && is_any && is_each && own.up_to >= Step::Refuse
}

/// Requests that a browser makes for a page or two, each for something else.
const ORDINARY: u64 = 60;

/// A common mistake that alone overflows the bucket.
pub(super) fn careless(own: &Scenario) -> Option<Kind> {
    let common = [
        "no_route",
        "not_found",
        "login_failed",
        "credential_missing",
        "credential_expired",
        "source_rate",
        "key_rate",
        "request_limit",
        "handshake_failed",
    ];
    let is_over = |kind: &Kind| u64::from(own.filter.weights[kind.index()]) > own.capacity;
    let kinds = own.filter.kinds().filter(|kind| common.contains(&kind.name())).find(is_over);
    kinds.filter(|_| is_for_all(own, &[]) && own.step > Step::Observe)
}
