//! What is in force, told to an operator: the configuration as it was taken, and what came of it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use edge_identity::policy::label;
use edge_policy::{
    limit::meter::{Meter, Window},
    limit::{Part, Spec},
};

use crate::{
    config::{
        settings::{self, Settings},
        text::show_duration,
    },
    control::{
        overview::{
            Certificate, IssuerEntry, LimitEntry, Listener, Overview, PolicyEntry, RouteEntry,
        },
        protocol::Entries,
    },
    issuers::{Feed, Place},
    request::Edge,
};

/// What is in force now.
pub(super) fn overview(settings: &Settings, edge: &Edge) -> Overview {
    let policies = settings.policies.iter();
    let policies = policies.map(|set| PolicyEntry { name: set.name.clone(), shadow: set.shadow });
    let limits = settings.limits.iter().chain([&settings.handshakes]).chain(&settings.shared);
    Overview {
        listeners: listeners(settings),
        certificates: some(certificates(edge)),
        routes: some(settings.routes.iter().map(|one| route(one, settings)).collect()),
        policies: policies.collect(),
        issuers: settings.issuers.iter().map(|one| issuer(one, edge)).collect(),
        limits: limits.map(limit).collect(),
    }
}

/// As many as somebody may want to look over.
fn some<T>(mut all: Vec<T>) -> Entries<T> {
    let total = all.len() as u64;
    all.truncate(TOLD_MAX);
    Entries { entries: all, total }
}

fn listeners(settings: &Settings) -> Vec<Listener> {
    let one = |kind: &str, address: String| Listener { kind: kind.to_owned(), address };
    let server = &settings.server;
    let https = server.https.iter().map(|of| one("https", of.address.to_string()));
    let http = server.http.iter().map(|address| one("http", address.to_string()));
    let metrics = one("metrics", settings.metrics.listen.to_string());
    let control = one("control", settings.control.socket.display().to_string());
    https.chain(http).chain([metrics, control]).collect()
}

fn certificates(edge: &Edge) -> Vec<Certificate> {
    let mut all = edge.metrics.tls.load().state.expiries.clone();
    all.sort_by_key(|one| one.ends_s);
    let told = |one: crate::tls::Expiry| Certificate {
        name: one.name,
        used_for: one.used_for.to_owned(),
        ends_ms: u64::try_from(one.ends_s).unwrap_or(0).saturating_mul(1000),
    };
    all.into_iter().map(told).collect()
}

fn route(route: &settings::Route, settings: &Settings) -> RouteEntry {
    let upstream = settings.upstreams.get(route.upstream).map(|of| of.name.clone());
    let entry = RouteEntry {
        route: label(&route.at),
        methods: route.at.methods.iter().map(ToString::to_string).collect(),
        client_certificate: route.client_certificate,
        upstream: upstream.unwrap_or_default(),
        ..RouteEntry::default()
    };
    let Some(needs) = &route.needs else { return entry };
    let set = |slice: &edge_policy::route::PolicySlice| {
        Some(settings.policies.get(slice.set)?.name.clone())
    };
    RouteEntry {
        auth: needs.methods.iter().map(|method| method.name().to_owned()).collect(),
        issuers: needs.issuers.clone(),
        audience: needs.audience.clone(),
        scopes: needs.scopes.clone(),
        any_scope: needs.any_scope.clone(),
        roles: needs.roles.clone(),
        owner: needs.owner.as_ref().map(ToString::to_string),
        policies: needs.policies.iter().filter_map(set).collect(),
        ..entry
    }
}

fn issuer(issuer: &settings::Issuer, edge: &Edge) -> IssuerEntry {
    let name = &issuer.terms.name;
    let plan = edge.plan.load();
    let feed = plan.issuers.feed(name);
    let keys = feed.and_then(Feed::keys);
    let source = feed.and_then(|feed| feed.source.as_ref());
    IssuerEntry {
        name: name.clone(),
        issuer: issuer.terms.issuer.clone(),
        source: source.map_or_else(
            || "files".to_owned(),
            |source| match &source.place {
                Place::Jwks(url) | Place::Discovery(url, _) => url.to_string(),
            },
        ),
        keys: keys.as_ref().map_or(0, |keys| keys.set.keys().len() as u64),
        confirmed_ms: keys.map(|keys| keys.at_ms.load(Relaxed)),
        stale_ms: source.map(|source| whole_ms(source.stale)),
        failed: feed.map_or(0, |feed| feed.failed.load(Relaxed)),
    }
}

fn limit(spec: &Spec) -> LimitEntry {
    LimitEntry {
        name: spec.name.to_string(),
        by: spec.by.iter().map(part).collect(),
        admits: spec.meter.as_ref().map_or_else(|| "everything".to_owned(), admits),
        shadow: spec.shadow,
    }
}

fn part(part: &Part) -> String {
    match part {
        Part::Source => "source".into(),
        Part::User => "user".into(),
        Part::Key => "key".into(),
        Part::Tier => "tier".into(),
        Part::Claim(name) => format!("claim:{name}"),
        Part::Route => "route".into(),
        Part::Method => "method".into(),
        Part::Host => "host".into(),
        Part::Header(name) => format!("header:{name}"),
        Part::Ja4 => "ja4".into(),
        Part::Place(place) => place.name().into(),
    }
}

fn admits(meter: &Meter) -> String {
    let within = |ns: u64| show_duration(Duration::from_nanos(ns));
    match meter {
        Meter::FixedWindow { limit, window: Window::Ns(ns) } => {
            format!("{limit} each {}", within(*ns))
        }
        Meter::FixedWindow { limit, window: Window::Month } => format!("{limit} each month"),
        Meter::SlidingWindow { limit, window_ns } => {
            format!("{limit} within any {}", within(*window_ns))
        }
        Meter::TokenBucket(bucket) | Meter::LeakyBucket(bucket) => {
            let per_second = (1e12 / bucket.interval_ns()).round() / 1000.0;
            let word = if matches!(meter, Meter::LeakyBucket(_)) { "waiting" } else { "at once" };
            format!("{per_second}/s, {} {word}", bucket.size())
        }
        Meter::Concurrent { limit } => format!("{limit} in flight"),
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Routes, and certificates, that are told of.
const TOLD_MAX: usize = 1000;
