//! Reads `[[route]]`: what is served, to whom, from where.

use edge_policy::auth::{self, Methods};
use http::Method;

use super::{
    reader::{Item, Table, suggest},
    sections::some_of,
    settings::{Requirement, Route, Upstream},
};

/// A route; `upstreams` are the names it may use.
pub(super) fn route(table: &Table<'_>, upstreams: &[Upstream]) -> Route {
    Route {
        path: table.need("path", "\"/\"", String::new(), path),
        host: table.or("host", None, host),
        methods: table.need("methods", "[\"GET\", \"HEAD\"]", Vec::new(), |item| {
            some_of(item, "an array of methods: [\"GET\", \"HEAD\"]", method)
        }),
        client_certificate: table.or("client_certificate", false, Item::flag),
        needs: needs(table),
        upstream: table.need("upstream", "\"api\"", 0, |item| known(item, upstreams)),
        cost: table.or("cost", 1, |item| item.number(0, 1_000_000)),
    }
}

/// What a caller must prove and hold; `None` is nothing.
fn needs(table: &Table<'_>) -> Option<Requirement> {
    let missing = "\"key\" (or \"none\"): a route without it would refuse all";
    let methods = table.need("auth", missing, Some(Methods::NONE), |item| auth(item));
    let held = |key| table.or(key, Vec::new(), |item| held(item, methods.is_some()));
    let scopes = held("scopes");
    let (any_scope, roles) = (held("any_scope"), held("roles"));
    methods.map(|methods| Requirement { methods, scopes, any_scope, roles })
}

/// `"none"`, one method of authentication, or an array of those that will do.
fn auth(item: &Item<'_>) -> Option<Option<Methods>> {
    if item.is_text() {
        let one = |method: auth::Method| (method.name(), Some(Methods::from(method)));
        let mut words: Vec<_> = METHODS_OF_PROOF.into_iter().map(one).collect();
        words.push(("none", None));
        return item.choice(&words);
    }
    let words = METHODS_OF_PROOF.map(|method| (method.name(), method));
    let wanted = "\"key\" or \"none\", or an array of what will do: [\"key\"]";
    let methods = some_of(item, wanted, |item| item.choice(&words))?;
    Some(Some(methods.into_iter().collect()))
}

/// The ways of proof that a route may take.
const METHODS_OF_PROOF: [auth::Method; 1] = [auth::Method::Key];

fn path(item: &Item<'_>) -> Option<String> {
    let path = item.text("a path prefix: \"/v1\"")?;
    let what = format!("'path' cannot be '{path}'");
    if !path.starts_with('/') {
        return item.wrong(what, format!("start it with a slash: \"/{path}\""));
    }
    if path.contains(['?', '#']) || !path.chars().all(|c| c.is_ascii_graphic()) {
        return item.wrong(what, "a path alone, of visible ASCII, without query or fragment");
    }
    let short = path.trim_end_matches('/');
    if path != "/" && short.len() != path.len() {
        let short = if short.is_empty() { "/" } else { short };
        return item.wrong(what, format!("it is matched by whole segments: write \"{short}\""));
    }
    if path != "/" && path[1..].split('/').any(|s| matches!(s, "" | "." | "..")) {
        return item.wrong(what, "no segment may be empty, '.' or '..'");
    }
    Some(path.to_owned())
}

fn host(item: &Item<'_>) -> Option<Option<String>> {
    let host = item.text("a host name, or \"*\"")?;
    if host == "*" {
        return Some(None);
    }
    let what = format!("'host' cannot be '{host}'");
    if host.contains('*') {
        return item.wrong(what, "an exact host name, or \"*\" alone for any");
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_v6 = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let letters = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let labels = || host.split('.').all(|l| !l.is_empty() && l.len() <= 63);
    if is_v6 || (host.chars().all(letters) && labels() && host.len() <= 253) {
        return Some(Some(host.to_ascii_lowercase()));
    }
    let help = if host.contains(':') { "a host name without a port" } else { "a host name" };
    item.wrong(what, help)
}

/// Methods that a route may take without a word of doubt.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

pub(super) fn method(item: &Item<'_>) -> Option<Method> {
    let written = item.text("a method: \"GET\"")?;
    let what = format!("not a method: '{written}'");
    if METHODS.contains(&written) {
        return Method::from_bytes(written.as_bytes()).ok();
    }
    if METHODS.contains(&written.to_ascii_uppercase().as_str()) {
        let upper = written.to_ascii_uppercase();
        return item.wrong(what, format!("methods are upper case: \"{upper}\""));
    }
    if matches!(written, "CONNECT" | "TRACE") {
        return item.wrong(format!("'{written}' is never passed on"), "leave it out");
    }
    let Ok(method) = Method::from_bytes(written.as_bytes()) else {
        return item.wrong(what, suggest(written, METHODS.into_iter()));
    };
    let doubt = format!("'{written}' is not a common method");
    item.notes.doubt(item.span.clone(), doubt, suggest(written, METHODS.into_iter()));
    Some(method)
}

/// Names of scopes or roles, which only somebody can hold.
fn held(item: &Item<'_>, somebody: bool) -> Option<Vec<String>> {
    let name = |item: &Item<'_>| {
        item.word(64, "letters, digits and '-_.:/'", |c| {
            c.is_ascii_alphanumeric() || "-_.:/".contains(c)
        })
    };
    let names = item.list("an array of names: [\"orders:read\"]", name)?;
    if !names.is_empty() && !somebody {
        let what = format!("'{}' without a caller to hold them", item.key);
        return item.wrong(what, "set auth = \"key\"");
    }
    Some(names)
}

fn known(item: &Item<'_>, upstreams: &[Upstream]) -> Option<usize> {
    let name = item.text("the name of an upstream")?;
    let names = upstreams.iter().map(|upstream| upstream.name.as_str()).filter(|n| !n.is_empty());
    if let Some(index) = upstreams.iter().position(|upstream| upstream.name == name) {
        return Some(index);
    }
    let help = match names.clone().next() {
        Some(_) => suggest(name, names),
        None => format!("define it: [[upstream]] with name = \"{name}\""),
    };
    item.wrong(format!("no upstream is called '{name}'"), help)
}
