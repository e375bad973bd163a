//! What no single key can tell: names that clash, addresses that collide, lists that cut off.

use std::{net::IpAddr, ops::Range};

use edge_identity::jwt::Issuer as Terms;
use edge_policy::{
    auth::Method,
    owner::Attribute,
    route::{self, Match, Requirement, RouteFault},
};
use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::{
    access, feed, fleet, geo, limit,
    reader::Notes,
    scenario,
    settings::{List, Offer, Settings},
    text, webhook,
};

pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    check_names(settings, document, notes);
    check_routes(settings, document, notes);
    check_issuers(settings, document, notes);
    access::check_roles(settings, document, notes);
    check_listeners(settings, document, notes);
    check_denied_upstreams(settings, document, notes);
    check_services(settings, document, notes);
    feed::check(settings, document, notes);
    webhook::check(settings, document, notes);
    fleet::check(settings, document, notes);
    geo::check(settings, document, notes);
    limit::check(settings, document, notes);
    scenario::check(settings, document, notes);
    super::tls::check(settings, document, notes);
    if !settings.metrics.listen.ip().is_loopback() {
        let span = place(document, "metrics", "listen");
        notes.doubt(span, "the metrics are reachable from outside", "\"127.0.0.1:9464\" is not");
    }
}

/// Where the value of a key in a section stands; the start of the file if nowhere.
pub(super) fn place(document: &DeTable<'_>, section: &str, key: &str) -> Range<usize> {
    let table = document.get(section).and_then(|section| section.get_ref().as_table());
    table.and_then(|table| table.get(key)).map_or(0..0, toml::Spanned::span)
}

/// Where the string in an array under a key stands that `is_it` knows.
pub(super) fn place_in(
    document: &DeTable<'_>,
    section: &str,
    key: &str,
    is_it: impl Fn(&str) -> bool,
) -> Range<usize> {
    let table = document.get(section).and_then(|section| section.get_ref().as_table());
    let array = table.and_then(|table| table.get(key)).and_then(|value| value.get_ref().as_array());
    array
        .and_then(|array| array.iter().find(|value| value.get_ref().as_str().is_some_and(&is_it)))
        .map_or_else(|| place(document, section, key), toml::Spanned::span)
}

/// Where the first string of the document stands that `is_it` knows, however deep.
pub(super) fn place_of_text(document: &DeTable<'_>, is_it: impl Fn(&str) -> bool) -> Range<usize> {
    let mut ahead: Vec<_> = document.values().collect();
    while let Some(value) = ahead.pop() {
        match value.get_ref() {
            DeValue::String(text) if is_it(text) => return value.span(),
            DeValue::Array(values) => ahead.extend(values.iter()),
            DeValue::Table(table) => ahead.extend(table.values()),
            _ => {}
        }
    }
    0..0
}

/// Where a key of the n-th table of an array of tables stands.
pub(super) fn place_nth(document: &DeTable<'_>, array: &str, n: usize, key: &str) -> Range<usize> {
    let tables = document.get(array).and_then(|tables| tables.get_ref().as_array());
    let table = tables.and_then(|tables| tables.get(n));
    let value = table.and_then(|table| match table.get_ref() {
        DeValue::Table(keys) => keys.get(key).or(Some(table)),
        _ => None,
    });
    value.map_or(0..0, toml::Spanned::span)
}

/// Where a server of an upstream stands, each by its place in its array.
pub(super) fn place_of_server(document: &DeTable<'_>, upstream: usize, n: usize) -> Range<usize> {
    let tables = document.get("upstream").and_then(|tables| tables.get_ref().as_array());
    let table = tables.and_then(|tables| tables.get(upstream)?.get_ref().as_table());
    let servers = table.and_then(|table| table.get("servers")?.get_ref().as_array());
    servers.and_then(|servers| servers.get(n)).map_or(0..0, toml::Spanned::span)
}

fn check_names(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (n, upstream) in settings.upstreams.iter().enumerate() {
        let earlier = || settings.upstreams[..n].iter().any(|u| u.name == upstream.name);
        let span = place_nth(document, "upstream", n, "name");
        if !upstream.name.is_empty() && earlier() {
            let what = format!("two upstreams are called '{}'", upstream.name);
            notes.wrong(span, what, "rename one, or list its servers in the other");
        } else if notes.is_clean() && !settings.routes.iter().any(|route| route.upstream == n) {
            notes.doubt(span, format!("no route uses '{}'", upstream.name), "is a route missing?");
        }
    }
}

fn check_routes(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    if settings.routes.is_empty() && notes.is_clean() {
        notes.doubt(0..0, "there is no [[route]]", "every request will be refused");
    }
    for fault in route::faults(settings.routes.iter().map(|route| &route.at)) {
        match fault {
            RouteFault::Duplicate { first, second, method } => {
                let Match { host, path, .. } = &settings.routes[second].at;
                let what = format!("route {} is the same as route {}", second + 1, first + 1);
                let help = format!("one route serves {path} of host {host} for {method}");
                notes.wrong(place_nth(document, "route", second, "path"), what, help);
            }
            RouteFault::Never { index, name } => {
                let what = format!("no request has two values of '{name}' at once");
                let help = "it would never be asked: a route for each value";
                notes.wrong(place_nth(document, "route", index, "if_headers"), what, help);
            }
            // The reader has told of it.
            RouteFault::Methods { .. } => {}
        }
    }
}

fn check_issuers(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let issuers = || settings.issuers.iter().map(|issuer| &issuer.terms);
    for (n, terms) in issuers().enumerate() {
        let same = |field: fn(&Terms) -> &String| {
            !field(terms).is_empty() && issuers().take(n).any(|e| field(e) == field(terms))
        };
        if same(|terms| &terms.name) {
            let what = format!("two issuers are called '{}'", terms.name);
            notes.wrong(place_nth(document, "issuer", n, "name"), what, "rename one");
        }
        if same(|terms| &terms.issuer) {
            let what = format!("two [[issuer]] are '{}'", terms.issuer);
            let help = "a token names one issuer; a route's 'audience' tells its uses apart";
            notes.wrong(place_nth(document, "issuer", n, "issuer"), what, help);
        }
    }
    for (n, route) in settings.routes.iter().enumerate() {
        let Some(needs) = &route.needs else { continue };
        for name in needs.issuers.iter().filter(|name| issuers().all(|terms| terms.name != **name))
        {
            let what = format!("no [[issuer]] is called '{name}'");
            notes.wrong(place_nth(document, "route", n, "issuers"), what, "one that there is");
        }
        check_owner(needs, settings.issuers.len(), place_nth(document, "route", n, "owner"), notes);
    }
    let takes = |needs: &Requirement| needs.methods.contains(Method::Jwt);
    let takers = settings.routes.iter().map(|route| route.needs.as_ref().is_some_and(takes));
    if settings.issuers.is_empty() {
        for (n, _) in takers.enumerate().filter(|(_, takes)| *takes) {
            let span = place_nth(document, "route", n, "auth");
            notes.wrong(span, "the route takes tokens, and there is no [[issuer]]", "add one");
        }
    } else if notes.is_clean() && !takers.into_iter().any(|takes| takes) {
        let span = place_nth(document, "issuer", 0, "name");
        notes.doubt(span, "no route takes tokens", "is an 'auth' of \"jwt\" missing?");
    }
}

/// Who proves himself in another way, or to another issuer, may have the same name as the owner. Keys
/// and certificates have no claims, and tokens no name, by which anybody could own.
fn check_owner(needs: &Requirement, issuers: usize, span: Range<usize>, notes: &Notes<'_>) {
    let Some(owner) = &needs.owner else { return };
    let takes = |way| needs.methods.contains(way);
    let has_claims = matches!(owner.equals, Attribute::Claim(_));
    let has_name = matches!(owner.equals, Attribute::Name);
    let issuers = match needs.issuers.len() {
        _ if !takes(Method::Jwt) || has_name => 0,
        0 => issuers,
        named => named,
    };
    let keys = !has_claims && (takes(Method::Key) || takes(Method::Signature));
    let certificates = !has_claims && takes(Method::Mtls);
    if issuers + usize::from(keys) + usize::from(certificates) < 2 {
        return;
    }
    let (what, help) = if issuers > 1 {
        (
            "owners by the tokens of several issuers, who may call different people the same",
            "name one by 'issuers'; a second route can take the other's",
        )
    } else {
        (
            "owners by several ways of proof, each of which may call somebody else the same",
            "leave one way in 'auth' (\"key\" and \"signature\" are one); a route with another \
             'path' or 'if_headers' can take the other's",
        )
    };
    notes.wrong(span, what, help);
}

fn check_listeners(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let of = |key, addresses: &[_]| addresses.iter().map(|a| (key, *a)).collect::<Vec<_>>();
    let https: Vec<_> = settings.server.https.iter().map(|l| l.address).collect();
    let mut listeners = of("https", &https);
    listeners.extend(of("http", &settings.server.http));
    listeners.push(("listen", settings.metrics.listen));
    for (n, (key, address)) in listeners.iter().enumerate().filter(|(_, l)| l.1.port() != 0) {
        let collides = |other: &std::net::SocketAddr| {
            let (a, b) = (address.ip(), other.ip());
            let any = a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified());
            address.port() == other.port() && (a == b || any)
        };
        if let Some((with, other)) = listeners[..n].iter().find(|(_, other)| collides(other)) {
            let span = match *key {
                "listen" => place(document, "metrics", "listen"),
                key => place_in(document, "server", key, |text| text.parse() == Ok(*address)),
            };
            let help = format!("'{with}' listens on {other} already");
            notes.wrong(span, format!("two listeners on one address: {address}"), help);
        }
    }
}

/// An edge that drops its own upstream's answers serves nobody.
fn check_denied_upstreams(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let on_loopback = settings.kernel.interfaces.iter().any(|interface| interface.name == "lo");
    let servers = settings.upstreams.iter().flat_map(|u| u.addresses().map(move |s| (u, s.ip())));
    for (upstream, server) in servers {
        if server.is_loopback() && !on_loopback || covering(&settings.lists.allow, server).is_some()
        {
            continue;
        }
        let Some((net, file)) = covering(&settings.lists.deny, server) else { continue };
        let span = match file {
            None => place_in(document, "lists", "deny", |text| {
                text::net(text).is_ok_and(|(written, _)| written == net)
            }),
            Some(_) => place(document, "lists", "deny_files"),
        };
        let from = file.map_or_else(String::new, |file| format!(" (in {})", file.display()));
        let what = format!("{net}{from} denies the upstream '{}' at {server}", upstream.name);
        notes.wrong(span, what, format!("remove it, or put {server} into 'allow'"));
    }
}

/// Who switches the service policy on had better still reach the host.
fn check_services(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let Some(offers) = &settings.kernel.services else { return };
    let offers = |port| {
        let covers = |o: &Offer| matches!(o, Offer::Tcp(from, to) if (*from..=*to).contains(&port));
        offers.iter().any(covers)
    };
    let span = place(document, "kernel", "services");
    if !offers(22) {
        let help = "list where it listens, or no new session will come in";
        notes.doubt(span.clone(), "SSH on \"tcp/22\" is not offered", help);
    }
    let listen = settings.metrics.listen;
    if !listen.ip().is_loopback() && !offers(listen.port()) {
        let what = format!("the metrics on \"tcp/{}\" are not offered", listen.port());
        notes.doubt(span, what, "list it, if Prometheus comes from outside");
    }
}

fn covering(list: &List, address: IpAddr) -> Option<(IpNet, Option<&std::path::Path>)> {
    list.iter().find(|(net, _)| net.contains(&address))
}
