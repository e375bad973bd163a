//! Reads `[[route]]`: what is served, to whom, from where.

use edge_policy::{
    head::Host,
    route::{HeaderRule, HostPattern, Match, PathFault, PathPattern, Rewrite, RewriteFault, Test},
    shield::{Overrides, may_keep},
};
use http::{HeaderName, Method};

use super::{
    access,
    answers::{answers, header_name},
    login,
    reader::{Item, Table, suggest},
    sections::some_of,
    settings::{PolicySet, Route, Upstream},
};

/// A route; `upstreams` are the names it may use, `usual` the security headers that it has unless it says otherwise.
pub(super) fn route(
    table: &Table<'_>,
    upstreams: &[Upstream],
    policies: &[PolicySet],
    usual: &Overrides,
) -> Route {
    let exact = [("prefix", false), ("exact", true)];
    let exact = table.or("match", false, |item| item.choice(&exact));
    let path = table.need("path", "\"/\"", None, |item| path(item, exact).map(Some));
    let host = table.or("host", Some(HostPattern::Any), |item| host(item).map(Some));
    let methods = table.need("methods", "[\"GET\", \"HEAD\"]", Vec::new(), |item| {
        some_of(item, "an array of methods: [\"GET\", \"HEAD\"]", method)
    });
    let headers = table.or("if_headers", Vec::new(), |item| {
        item.list(
            "an array of rules: [\"x-beta\", \"x-version=2\", \"x-client=app-*\"]",
            header_rule,
        )
    });
    // A route whose place cannot be read takes nothing, so that it is the same as no other.
    let is_read = path.is_some() && host.is_some();
    let path = path.unwrap_or_default();
    Route {
        needs: access::needs(table, &path, policies),
        client_certificate: table.or("client_certificate", false, Item::flag),
        upstream: table.need("upstream", "\"api\"", 0, |item| known(item, upstreams)),
        cost: table.or("cost", 1, |item| item.number(0, 1_000_000)),
        rewrite: table.or("rewrite", None, |item| rewrite(item, &path, is_read).map(Some)),
        upgrades: table.or("upgrades", Vec::new(), |item| {
            item.list("an array of protocols: [\"websocket\"]", protocol)
        }),
        upstream_host: table.or("upstream_host", None, |item| told_host(item).map(Some)),
        keep_headers: table.or("keep_headers", Vec::new(), |item| {
            item.list("an array of names of headers: [\"x-user-id\"]", kept_header)
        }),
        login: table.or("login", None, login::login),
        answers: answers(table, usual),
        at: Match {
            host: host.unwrap_or_default(),
            path,
            methods: if is_read { methods } else { Vec::new() },
            headers,
        },
    }
}

/// A header that would be taken away, and may be left.
fn kept_header(item: &Item<'_>) -> Option<HeaderName> {
    let name = header_name(item)?;
    if may_keep(name.as_str()) {
        return Some(name);
    }
    item.wrong(
        format!("'{name}' passes in any case, or is the edge's own to say"),
        "headers that are taken away: docs/clients.md has them",
    )
}

/// A protocol that connections may change to. HTTP/2 is none: it would bear requests past the edge.
fn protocol(item: &Item<'_>) -> Option<String> {
    let word = item.word(64, "a token", |c| c.is_ascii_alphanumeric() || "-./".contains(c))?;
    let word = word.to_ascii_lowercase();
    if matches!(&*word, "h2c" | "h2" | "http" | "tls" | "http/2.0") {
        return item.wrong(
            format!("'{word}' would take requests past the edge"),
            "protocols that are not HTTP: [\"websocket\"]",
        );
    }
    Some(word)
}

fn path(item: &Item<'_>, exact: bool) -> Option<PathPattern> {
    let path = item.text("a path: \"/v1\"")?;
    let what = format!("'path' cannot be '{path}'");
    if !path.starts_with('/') {
        return item.wrong(what, format!("start it with a slash: \"/{path}\""));
    }
    if path.contains(['?', '#']) || !path.chars().all(|c| c.is_ascii_graphic()) {
        return item.wrong(what, "a path alone, of visible ASCII, without query or fragment");
    }
    if path.contains('*') {
        let help = "no stars: \"/v1\" is for all below it as well, and \"/users/{id}\" for any one segment";
        return item.wrong(what, help);
    }
    let short = path.trim_end_matches('/');
    if path != "/" && short.len() != path.len() {
        let short = if short.is_empty() { "/" } else { short };
        return item.wrong(what, format!("it is matched by whole segments: write \"{short}\""));
    }
    if path != "/" && path[1..].split('/').any(|s| matches!(s, "" | "." | "..")) {
        return item.wrong(what, "no segment may be empty, '.' or '..'");
    }
    let help = match PathPattern::parse(path, exact) {
        Ok(pattern) => return Some(pattern),
        Err(PathFault::Braces) => "a name in braces stands for a whole segment: \"/users/{id}\"",
        Err(PathFault::Twice) => "each name once: \"/users/{user}/orders/{order}\"",
        Err(PathFault::NotNormal) => {
            "as requests are compared: escapes in upper case and only of what needs them, no semicolons"
        }
    };
    item.wrong(what, help)
}

fn host(item: &Item<'_>) -> Option<HostPattern> {
    let host = item.text("a host name, \"*.example.com\", or \"*\"")?;
    if host == "*" {
        return Some(HostPattern::Any);
    }
    let zone = host.strip_prefix("*.");
    let name = zone.unwrap_or(host);
    let what = format!("'host' cannot be '{host}'");
    if name.contains('*') {
        return item.wrong(what, "a host name, \"*.example.com\" for all below, or \"*\" for any");
    }
    if !is_host(name, zone.is_none()) {
        let help = if host.contains(':') { "a host name without a port" } else { "a host name" };
        return item.wrong(what, help);
    }
    let name = name.to_ascii_lowercase();
    Some(if zone.is_some() { HostPattern::Under(name) } else { HostPattern::Exact(name) })
}

/// Whether a text is a host name, or an IPv6 address in brackets where that may be.
fn is_host(text: &str, or_address: bool) -> bool {
    let bare = text.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_v6 = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let letters = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let labels = || text.split('.').all(|l| !l.is_empty() && l.len() <= 63);
    or_address && is_v6 || (text.chars().all(letters) && labels() && text.len() <= 253)
}

/// The host that the upstream is told, with a port if need be.
fn told_host(item: &Item<'_>) -> Option<String> {
    let written = item.text("a host name: \"api.internal\"")?;
    match written.parse::<Host>() {
        Ok(host) => Some(host.to_string()),
        Err(fault) => item.wrong(format!("'{written}' {fault}"), "such as \"api.internal:8080\""),
    }
}

/// `"x-beta"`, `"x-version=2"` or `"x-client=app-*"`.
fn header_rule(item: &Item<'_>) -> Option<HeaderRule> {
    let written = item.text("a rule: \"x-version=2\"")?;
    let (name, value) = written.split_once('=').map_or((written, None), |(n, v)| (n, Some(v)));
    let what = format!("'if_headers' cannot hold '{written}'");
    let Ok(name) = name.parse::<HeaderName>() else {
        return item.wrong(what, "the name of a header, or \"name=value\", or \"name=begin*\"");
    };
    if name == http::header::HOST {
        return item.wrong(what, "'host' tells which hosts a route is for");
    }
    let test = match value {
        None => Test::Present,
        Some("" | "*") => return item.wrong(what, format!("\"{name}\" alone, for any value")),
        Some(value) => match value.strip_suffix('*') {
            Some(start) => Test::Prefix(start.to_owned()),
            None => Test::Equals(value.to_owned()),
        },
    };
    Some(HeaderRule { name, test })
}

fn rewrite(item: &Item<'_>, path: &PathPattern, is_read: bool) -> Option<Rewrite> {
    let written = item.text("a path: \"/\"")?;
    let what = format!("'rewrite' cannot be '{written}'");
    match Rewrite::parse(written, path) {
        Ok(rewrite) => Some(rewrite),
        Err(RewriteFault::Unknown(_)) if !is_read => None,
        Err(RewriteFault::Unknown(name)) => {
            item.wrong(what, format!("the path {path} has no segment {{{name}}}"))
        }
        Err(RewriteFault::NotAPath) => {
            item.wrong(what, "what takes the place of 'path': \"/\", \"/v2\", \"/of/{id}\"")
        }
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edge_policy::shield::Secured;

    use super::super::{Settings, parse};

    const HEAD: &str = "[kernel]\ninterfaces = [\"eth0\"]\n[server]\nhttps = [\"0.0.0.0:443\"]\n[tls]\n\
        certificate = \"c\"\nkey = \"k\"\n[[upstream]]\nname = \"api\"\n\
        servers = [\"127.0.0.1:81\"]\n";

    /// A file with these routes, each but for what is the same in all.
    fn read(routes: &[&str]) -> Result<Settings, String> {
        let same = "\nauth = \"none\"\nupstream = \"api\"\nmethods = [\"GET\"]\n";
        let routes = routes.iter().map(|keys| format!("[[route]]\n{keys}{same}"));
        let text = HEAD.to_owned() + &routes.collect::<String>();
        let read = parse(Path::new("edged.toml"), &text);
        read.map(|(settings, _)| settings).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn routes_are_read_as_they_are_written() {
        let settings = read(&[
            "path = \"/users/{id}\"\nhost = \"*.Example.com\"\nrewrite = \"/u/{id}\"",
            "path = \"/a\"\nmatch = \"exact\"\nif_headers = [\"x-b\", \"x-v=2\", \"x-c=app-*\"]",
            "path = \"/b\"\ncors = { origins = \"*\" }\ncsrf = false\nupstream_host = \"i:81\"\n\
             keep_headers = [\"X-User-Id\"]",
            "path = \"/c\"\ncors = { origins = [\"https://a.b\"], credentials = true }\n\
             csrf = { origins = [\"https://c.d\"], token_cookie = \"__Host-t\" }\n\
             security_headers = { x-frame-options = false, referrer-policy = \"origin\" }",
        ])
        .unwrap();
        let [pattern, exact, open, listed] = settings.routes.try_into().unwrap();
        assert_eq!(pattern.at.host.to_string(), "*.example.com");
        assert_eq!(pattern.at.path.to_string(), "/users/{id}");
        assert_eq!(pattern.rewrite.unwrap().apply(&pattern.at.path, "/users/7/x"), "/u/7/x");
        assert!(exact.at.path.exact);
        let rules: Vec<_> = exact.at.headers.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["x-b", "x-v=2", "x-c=app-*"]);
        assert_eq!(open.answers.cors.unwrap().origins, None);
        assert!(!open.answers.csrf.enabled);
        assert_eq!(open.upstream_host.as_deref(), Some("i:81"));
        assert_eq!(open.keep_headers, ["x-user-id"]);
        let csrf = listed.answers.csrf;
        assert_eq!(csrf.origins, ["https://c.d", "https://a.b"], "credentials are trust");
        assert_eq!(csrf.token.unwrap().header, "x-csrf-token");
        let own = [("x-frame-options", None), ("referrer-policy", Some("origin"))];
        let own =
            own.map(|(name, value)| (name.parse().unwrap(), value.map(|v| v.parse().unwrap())));
        assert_eq!(listed.answers.headers, Secured::new(&own.into()));
    }

    #[test]
    fn what_cannot_be_a_route_is_told_with_its_line() {
        for (routes, line, what) in [
            (&["path = \"/a{b}\""][..], 12, "a whole segment"),
            (&["path = \"/{a}/{a}\""], 12, "each name once"),
            (&["path = \"/v1/*\""], 12, "is for all below it"),
            (&["path = \"/%61\""], 12, "as requests are compared"),
            (&["path = \"/\"\nhost = \"a.*\""], 13, "for all below"),
            (&["path = \"/\"\nhost = \"*.[::1]\""], 13, "a host name"),
            (&["path = \"/\"\nmatch = \"exactly\""], 13, "did you mean 'exact'"),
            (&["path = \"/\"\nif_headers = [\"x y\"]"], 13, "the name of a header"),
            (&["path = \"/\"\nif_headers = [\"host=a\"]"], 13, "'host' tells"),
            (&["path = \"/\"\nif_headers = [\"x=1\", \"x=2\"]"], 13, "two values of 'x' at once"),
            (&["path = \"/\"\nrewrite = \"v2\""], 13, "what takes the place"),
            (&["path = \"/{a}\"\nrewrite = \"/{b}\""], 13, "has no segment {b}"),
            (&["path = \"/\"\nupstream_host = \"a/b\""], 13, "is not a host name"),
            (&["path = \"/\"\nkeep_headers = [\"x-edged-a\"]"], 13, "is the edge's own to say"),
            (&["path = \"/\"\nkeep_headers = [\"accept\"]"], 13, "passes in any case"),
            (&["path = \"/a/{x}\"", "path = \"/a/{y}\""], 17, "route 2 is the same as route 1"),
            (&["path = \"/\"\ncsrf = 1"], 13, "true, false, or a table"),
            (&["path = \"/\"\ncors = { origins = [\"*\"] }"], 13, "each origin in full"),
            (
                &["path = \"/\"\ncors = { origins = [\"https://a.b/\"] }"],
                13,
                "as a browser sends it",
            ),
            (&["path = \"/\"\ncors = { origins = \"*\", credentials = true }"], 13, "every site's"),
            (
                &["path = \"/\"\nsecurity_headers = { x-frame = \"DENY\" }"],
                13,
                "unknown key 'x-frame'",
            ),
            (&["path = \"/\"\nsecurity_headers = { x-frame-options = true }"], 13, "or false"),
        ] {
            let told = read(routes).unwrap_err();
            assert!(told.contains(&format!("edged.toml:{line}:")), "{routes:?}\n{told}");
            assert!(told.contains(what), "{routes:?}\n{told}");
            assert!(told.ends_with("1 mistake"), "{routes:?}\n{told}");
        }
        // Another method, another path, another header: another route.
        let four = [
            "path = \"/a\"",
            "path = \"/a\"\nmatch = \"exact\"",
            "path = \"/b\"",
            "path = \"/a\"\nif_headers = [\"x\"]",
        ];
        assert!(read(&four).is_ok());
    }
}
