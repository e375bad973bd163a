//! Reads `[tls]` and the listeners, and looks at the files that `[tls]` names.

use std::{
    cell::RefCell, fs, net::SocketAddr, ops::Range, os::unix::fs::MetadataExt as _, path::Path,
    time::Duration,
};

use edge_policy::{ja4::Ja4, route::HostPattern, sni};
use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    sections::some_of,
    settings::{Acme, Certificate, ClientAuth, Clients, Listener, Settings, Tls, UnknownName},
    whole::place,
};
use crate::{
    clock,
    tls::{self, Pair, Part},
};

/// The listeners under `https`, each an address, or a table with what it does differently.
pub(super) fn listeners(item: &Item<'_>) -> Option<Vec<Listener>> {
    let seen = RefCell::new(Vec::new());
    let once = |item: &Item<'_>, address: SocketAddr| {
        if seen.borrow().contains(&address) {
            return item.wrong(format!("'{}' names this twice", item.key), "leave one out");
        }
        seen.borrow_mut().push(address);
        Some(address)
    };
    let listener = |item: &Item<'_>| {
        if item.is_text() {
            let address = item.address().and_then(|address| once(item, address))?;
            return Some(Listener { address, client_auth: None, proxy_protocol: false });
        }
        let read = item.inline(|table| Listener {
            address: table.need("address", "\"0.0.0.0:443\"", NOWHERE, |item| {
                item.address().and_then(|address| once(item, address))
            }),
            client_auth: table.or("client_auth", None, |item| item.choice(&AUTH).map(Some)),
            proxy_protocol: table.or("proxy_protocol", false, Item::flag),
        });
        read.or_else(|| item.wrong_kind("an address, or { address = \"0.0.0.0:443\" }"))
    };
    let wanted = "an array of addresses with ports: [\"0.0.0.0:443\"]";
    let listeners = item.list(wanted, listener)?;
    if listeners.is_empty() && item.notes.is_clean_at(&item.span) {
        return item.wrong(format!("'{}' is empty", item.key), format!("should be {wanted}"));
    }
    Some(listeners)
}

pub(super) fn tls(table: &Table<'_>) -> Tls {
    let is_array = table.item("certificate").is_some_and(|item| !item.is_text());
    let acme = table.is_there("acme").then(|| table.table("acme", acme));
    let certificates = if is_array {
        table.tables("certificate", |table| certificate(table, "chain"))
    } else if acme.is_some() && !table.is_there("certificate") {
        Vec::new()
    } else {
        vec![certificate(table, "certificate")]
    };
    let unknown = [("default", UnknownName::Default), ("refuse", UnknownName::Refuse)];
    Tls {
        certificates,
        is_array,
        unknown_name: table.or("unknown_name", UnknownName::Default, |item| item.choice(&unknown)),
        ticket_rotation: table.or("ticket_rotation", Some(6 * HOUR), |item| {
            match item.text("a duration, or \"off\"")? {
                "off" => Some(None),
                // So much is left of forward secrecy, and not more.
                _ => item.duration(7 * 24 * HOUR).map(Some),
            }
        }),
        ja4_deny: table
            .or("ja4_deny", Vec::new(), |item| item.list("an array of fingerprints", ja4)),
        clients: table.table("clients", clients),
        acme,
    }
}

fn certificate(table: &Table<'_>, chain: &'static str) -> Certificate {
    let names = |item: &Item<'_>| some_of(item, "an array of names: [\"api.example.com\"]", name);
    let is_own = chain == "certificate";
    Certificate {
        chain: table.need(chain, "\"/etc/edged/tls/cert.pem\"", Default::default(), Item::path),
        key: table.need("key", "\"/etc/edged/tls/key.pem\"", Default::default(), Item::path),
        ocsp: table.or("ocsp", None, |item| item.path().map(Some)),
        names: if is_own { Vec::new() } else { table.or("names", Vec::new(), names) },
    }
}

fn name(item: &Item<'_>) -> Option<String> {
    match item.text("a name")? {
        name if sni::is_name(name) => Some(name.to_ascii_lowercase()),
        name => item.wrong(
            format!("not a name: '{name}'"),
            "a host name, or \"*.example.com\"; others than ASCII as \"xn--...\"",
        ),
    }
}

fn ja4(item: &Item<'_>) -> Option<Ja4> {
    let written = item.text("a fingerprint")?;
    Ja4::parse(written).or_else(|| {
        item.wrong(
            format!("not a JA4 fingerprint: '{written}'"),
            "36 characters: \"t13d1516h2_8daaf6152771_e5627efa2ab1\"",
        )
    })
}

fn clients(table: &Table<'_>) -> Clients {
    Clients {
        auth: table.or("auth", ClientAuth::Off, |item| item.choice(&AUTH)),
        ca: table.or("ca", None, |item| item.path().map(Some)),
        crl: table.or("crl", Vec::new(), |item| item.list("an array of paths", Item::path)),
        expired_crl_accepted: table
            .or("crl_expired", false, |item| item.choice(&[("refuse", false), ("accept", true)])),
        pins: table.or("pins", Vec::new(), |item| item.list("an array of pins", pin)),
    }
}

fn pin(item: &Item<'_>) -> Option<[u8; 32]> {
    let written = item.text("a pin")?;
    let digits = written.strip_prefix("sha256:").unwrap_or_default().as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
    match bytes.and_then(|bytes| bytes.try_into().ok()).filter(|_| is_hex) {
        Some(pin) => Some(pin),
        None => item.wrong(
            format!("not a pin: '{written}'"),
            "\"sha256:\" and 64 hexadecimal digits: the digest of a public key",
        ),
    }
}

fn acme(table: &Table<'_>) -> Acme {
    let url = |item: &Item<'_>| match item.text("the URL of a directory")? {
        url if url.starts_with("https://") => Some(url.to_owned()),
        url => item.wrong(format!("'directory' cannot be '{url}'"), "a URL with https://"),
    };
    let contact = |item: &Item<'_>| match item.text("a mailto: address")? {
        contact if contact.starts_with("mailto:") => Some(contact.to_owned()),
        contact => {
            item.wrong(format!("'contact' cannot be '{contact}'"), "\"mailto:you@example.com\"")
        }
    };
    let exact = |item: &Item<'_>| match name(item)? {
        name if name.starts_with("*.") => {
            item.wrong("a wildcard cannot be proved over TLS", "name each host")
        }
        name => Some(name),
    };
    let names = |item: &Item<'_>| some_of(item, "an array of names: [\"api.example.com\"]", exact);
    Acme {
        directory: table.need(
            "directory",
            "\"https://acme-v02.api.letsencrypt.org/directory\"",
            String::new(),
            url,
        ),
        ca: table.or("ca", None, |item| item.path().map(Some)),
        contact: table
            .or("contact", Vec::new(), |item| item.list("an array of addresses", contact)),
        names: table.need("names", "[\"api.example.com\"]", Vec::new(), names),
        dir: Default::default(),
    }
}

/// Where a key of the n-th certificate stands.
fn place_of(document: &DeTable<'_>, settings: &Tls, n: usize, key: &str) -> Range<usize> {
    if !settings.is_array {
        let key = if key == "chain" { "certificate" } else { key };
        return place(document, "tls", key);
    }
    let table = document.get("tls").and_then(|tls| tls.get_ref().as_table());
    let array = table.and_then(|tls| tls.get("certificate")).and_then(|a| a.get_ref().as_array());
    let entry = array.and_then(|array| array.get(n));
    let value = entry.and_then(|entry| entry.get_ref().as_table()?.get(key).or(Some(entry)));
    value.map_or(0..0, toml::Spanned::span)
}

/// Where a key of a table within `[tls]` stands.
fn place_in_tls(document: &DeTable<'_>, section: &str, key: &str) -> Range<usize> {
    let table = document.get("tls").and_then(|tls| tls.get_ref().as_table());
    let inner = table.and_then(|tls| tls.get(section)).and_then(|s| s.get_ref().as_table());
    inner
        .and_then(|inner| inner.get(key))
        .map_or_else(|| place(document, "tls", section), toml::Spanned::span)
}

/// Reads every certificate and what else `[tls]` names once, to tell now what would fail later.
pub(super) fn inspect(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let mut pairs = Vec::new();
    for (n, certificate) in settings.tls.certificates.iter().enumerate() {
        if certificate.chain.as_os_str().is_empty() || certificate.key.as_os_str().is_empty() {
            continue;
        }
        let place = |key| place_of(document, &settings.tls, n, key);
        let place = |part| match part {
            Part::Chain => place("chain"),
            Part::Key => place("key"),
            Part::Ocsp => place("ocsp"),
        };
        let Some(pair) = inspect_pair(certificate, "clients", place, notes) else { continue };
        for name in pair.uncovered() {
            let what = format!("{} is not for '{name}'", certificate.chain.display());
            let span = place_of(document, &settings.tls, n, "names");
            notes.wrong(span, what, format!("it is for {}", pair.own.join(", ")));
        }
        pairs.push((n, pair));
    }
    note_duplicates(&pairs, &settings.tls, document, notes);
    note_uncovered(&pairs, settings, document, notes);
    let clients = &settings.tls.clients;
    let at = |key| place_in_tls(document, "clients", key);
    match tls::read_trust(clients, clock::unix_s()) {
        Ok(overdue) => {
            let help = match clients.expired_crl_accepted {
                true => "what was revoked since is not known",
                false => "every client with a certificate of this authority will be refused",
            };
            overdue.into_iter().for_each(|what| notes.doubt(at("crl"), what, help));
        }
        Err(fault) => {
            let (key, what) = if fault.is_crl() {
                ("crl", "lists of what they revoked")
            } else {
                ("ca", "certificates of authorities")
            };
            notes.wrong(at(key), fault.to_string(), format!("PEM files with {what}"));
        }
    }
}

/// Reads a certificate and its key, which will be shown to these; `None` if they are no pair.
pub(super) fn inspect_pair(
    certificate: &Certificate,
    whom: &str,
    place: impl Fn(Part) -> Range<usize>,
    notes: &Notes<'_>,
) -> Option<Pair> {
    if is_public(&certificate.key) {
        let path = certificate.key.display();
        let what = format!("everyone can read the private key {path}");
        notes.wrong(place(Part::Key), what, format!("chmod o= {path}"));
    }
    match Pair::read(certificate) {
        Ok(pair) => {
            let now_s = clock::unix_s();
            if let Some(doubt) = pair.doubt(now_s) {
                let what = format!("{} {doubt}", certificate.chain.display());
                notes.doubt(place(Part::Chain), what, format!("{whom} will refuse it"));
            }
            if let Some(doubt) = pair.unstapled(now_s) {
                notes.doubt(place(Part::Ocsp), doubt, "nothing will be stapled");
            }
            Some(pair)
        }
        Err(fault) => {
            let help = match fault.part {
                Part::Chain => "a PEM file with the certificate, leaf first",
                Part::Key => "a PEM file with the key of the certificate",
                Part::Ocsp => "a DER file with a good OCSP response",
            };
            notes.wrong(place(fault.part), fault.to_string(), help);
            None
        }
    }
}

/// Two certificates for one name are fine if their keys differ in kind; else only one is ever served.
fn note_duplicates(
    pairs: &[(usize, Pair)],
    settings: &Tls,
    document: &DeTable<'_>,
    notes: &Notes<'_>,
) {
    for (i, (n, pair)) in pairs.iter().enumerate() {
        let earlier = pairs[..i].iter().filter(|(_, other)| other.kind() == pair.kind());
        let mut shared = earlier.flat_map(|(first, other)| {
            pair.names()
                .iter()
                .filter(|name| other.names().contains(name))
                .map(move |name| (first, name))
        });
        if let Some((first, name)) = shared.next() {
            let what = format!("certificates {} and {} are both for '{name}'", first + 1, n + 1);
            let help = "their keys are of one kind, so the second would never be served";
            notes.wrong(place_of(document, settings, *n, "chain"), what, help);
        }
    }
}

/// A route's host without a certificate serves nobody who checks.
fn note_uncovered(
    pairs: &[(usize, Pair)],
    settings: &Settings,
    document: &DeTable<'_>,
    notes: &Notes<'_>,
) {
    let mut names = sni::Names::default();
    for (n, pair) in pairs {
        pair.names().iter().for_each(|name| names.add(name, *n));
    }
    let acme = settings.tls.acme.iter().flat_map(|acme| &acme.names);
    acme.for_each(|name| names.add(name, usize::MAX));
    if !notes.is_clean() || names.is_empty() {
        return;
    }
    let is_address = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    let mut told = Vec::new();
    for (n, route) in settings.routes.iter().enumerate() {
        let HostPattern::Exact(host) = &route.at.host else { continue };
        if is_address(host) {
            continue;
        }
        if names.find(host).is_empty() && !told.contains(&host) {
            told.push(host);
            let span = super::whole::place_nth(document, "route", n, "host");
            notes.doubt(span, format!("no certificate is for '{host}'"), "clients will refuse it");
        }
    }
}

/// What the sections say together.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let (server, tls) = (&settings.server, &settings.tls);
    let asks =
        |listener: &Listener| listener.client_auth.unwrap_or(tls.clients.auth) != ClientAuth::Off;
    let https = place(document, "server", "https");
    if tls.clients.ca.is_none() {
        let span = place_in_tls(document, "clients", "auth");
        let help = "set [tls.clients] ca";
        if tls.clients.auth != ClientAuth::Off {
            notes.wrong(span, "client certificates without an authority to trust", help);
        } else if server.https.iter().any(asks) {
            notes.wrong(https.clone(), "client certificates without an authority to trust", help);
        } else if !tls.clients.pins.is_empty() || !tls.clients.crl.is_empty() {
            notes.wrong(place(document, "tls", "clients"), "no authority to trust", help);
        }
    }
    if server.trusted_proxies.is_empty() {
        let help = "list the proxies in [server] trusted_proxies";
        if server.https.iter().any(|listener| listener.proxy_protocol) {
            notes.wrong(https.clone(), "PROXY headers, but no proxy to take them from", help);
        }
        if server.forwarded_header != edge_policy::forwarded::Naming::Off {
            let span = place(document, "server", "forwarded_header");
            notes.wrong(span, "a header to name clients in, but no proxy to take it from", help);
        }
    }
    for (n, _) in settings.routes.iter().enumerate().filter(|(_, r)| r.client_certificate) {
        if !server.https.iter().any(asks) && notes.is_clean() {
            let span = super::whole::place_nth(document, "route", n, "client_certificate");
            notes.wrong(span, "no listener asks for client certificates", "set [tls.clients] auth");
        }
    }
}

fn is_public(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0)
}

/// Stands in for an address that was wrong, which is noted.
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
const AUTH: [(&str, ClientAuth); 3] = [
    ("off", ClientAuth::Off),
    ("optional", ClientAuth::Optional),
    ("required", ClientAuth::Required),
];
const HOUR: Duration = Duration::from_secs(3_600);
