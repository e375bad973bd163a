//! What the edge takes from and adds to the headers of requests and answers that pass.

use std::net::IpAddr;

use crate::auth::Method;
use http::HeaderMap;
use http::header::{
    self, AUTHORIZATION, CACHE_CONTROL, CONNECTION, COOKIE, HeaderName, HeaderValue,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The header that carries a key of ours.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The header that carries the secret bound to a key of ours.
pub const X_API_SECRET: HeaderName = HeaderName::from_static("x-api-secret");

/// What the upstream is told of the client.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The host it asked for, with the port if it named one.
    pub host: &'a str,
    /// The port it came in by.
    pub port: u16,
    /// Names the request in our logs and the upstream's.
    pub request_id: &'a str,
    /// Who it is, if that was proved.
    pub principal: Option<Principal<'a>>,
}

/// Who a request is from.
#[derive(Clone, Copy, Debug)]
pub struct Principal<'a> {
    /// Who it is, told apart from everybody else.
    pub identity: &'a str,
    /// The name of the issuer of its token.
    pub issuer: Option<&'a str>,
    /// Who it is with that issuer.
    pub id: &'a str,
    /// What people call it; may be empty.
    pub name: &'a str,
    /// How it was proved.
    pub method: Method,
    /// Every scope that it holds.
    pub scopes: &'a [&'a str],
    /// Every role that it is.
    pub roles: &'a [&'a str],
    /// The public id of the key of ours by which it came.
    pub key: Option<&'a str>,
    /// All of that as a signed token.
    pub token: Option<&'a str>,
}

/// Takes from a request what is for this hop only, our credentials, and all that could make the
/// upstream believe another client, host, target or method than the edge checked.
pub fn strip_request(headers: &mut HeaderMap) {
    strip_hop(headers);
    headers.remove(header::EXPECT);
    headers.remove(&X_API_KEY);
    headers.remove(&X_API_SECRET);
    if headers.get_all(AUTHORIZATION).iter().any(is_api_key) {
        headers.remove(AUTHORIZATION);
    }
    strip(headers, is_claim);
    join_cookies(headers);
}

/// Whether this value of `Authorization` is under our scheme.
#[must_use]
pub fn is_api_key(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(u8::is_ascii_whitespace).next();
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"apikey"))
}

/// HTTP/2 may split the cookies over several fields; HTTP/1 knows one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Tells the upstream whom the request is from. Comes after [`strip_request`].
pub fn forward(headers: &mut HeaderMap, facts: &Forward<'_>) {
    let mut set = |name: &'static str, value: &str| {
        // What a header cannot hold is left out: the upstream sees no claim rather than a false one.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let client = facts.client.to_canonical();
    let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
    set("forwarded", &format!("for={node};host=\"{}\";proto=https", facts.host));
    set("x-forwarded-for", &client.to_string());
    set("x-forwarded-host", facts.host);
    set("x-forwarded-port", &facts.port.to_string());
    set("x-forwarded-proto", "https");
    set("x-real-ip", &client.to_string());
    set("x-request-id", facts.request_id);
    if let Some(principal) = facts.principal {
        identify(&mut set, &principal);
    }
}

/// Names the principal. What a header cannot hold as it is, is percent-encoded; so is the comma
/// in a role, since commas part roles.
fn identify(set: &mut impl FnMut(&'static str, &str), principal: &Principal<'_>) {
    let escaped = |text: &str| utf8_percent_encode(text, WORD_ESCAPES).to_string();
    let mut list = |name, words: &[&str], between: &str| {
        if !words.is_empty() {
            let words: Vec<_> = words.iter().map(|word| escaped(word)).collect();
            set(name, &words.join(between));
        }
    };
    list("x-edged-scopes", principal.scopes, " ");
    list("x-edged-roles", principal.roles, ",");
    set("x-edged-principal", &escaped(principal.identity));
    if let Some(issuer) = principal.issuer {
        set("x-edged-issuer", issuer);
        set("x-edged-subject", &escaped(principal.id));
    }
    set("x-edged-method", principal.method.name());
    let name = utf8_percent_encode(principal.name, NAME_ESCAPES).to_string();
    match principal.key {
        Some(id) => {
            set("x-edged-key-id", id);
            set("x-edged-key-name", &name);
        }
        None if name.is_empty() => {}
        None => set("x-edged-name", &name),
    }
    if let Some(token) = principal.token {
        set("x-edged-token", token);
    }
}

/// Takes from an answer what is for this hop only, and what tells an attacker of the software.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_hop(headers);
    strip(headers, |name| TELLTALES.contains(&name) || name.starts_with("x-edged-"));
}

/// A route's own word on security headers, each one of [`secured`]: a value is set whatever the
/// upstream says, `None` leaves the header to the upstream.
pub type Overrides = Vec<(HeaderName, Option<HeaderValue>)>;

/// The headers that the edge sets by itself and a route may set otherwise.
pub fn secured() -> impl Iterator<Item = &'static str> + Clone {
    let names = ALWAYS.iter().chain(&UNLESS_SET).map(|(name, _)| *name);
    names.chain(["cache-control"])
}

/// Adds the security headers to an answer. An upstream knows its own pages and may set its own
/// policies, but not do without HSTS, `nosniff`, or `no-store` on an authenticated answer, unless
/// the route says so.
pub fn secure(headers: &mut HeaderMap, authenticated: bool, overrides: &Overrides) {
    let usual = |name: &str| !overrides.iter().any(|(own, _)| own.as_str() == name);
    for (name, value) in ALWAYS.into_iter().filter(|(name, _)| usual(name)) {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    for (name, value) in UNLESS_SET.into_iter().filter(|(name, _)| usual(name)) {
        let name = HeaderName::from_static(name);
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if authenticated && usual(CACHE_CONTROL.as_str()) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    for (name, value) in overrides {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    }
}

/// Removes the headers of one connection: the known ones and those that `Connection` names.
fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Nobody may have the edge drop what says where a message ends and whom it is for.
        .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
}

fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    // Servers that turn headers into variables make one sign of all that is no letter or digit.
    let other = |c: char| !c.is_ascii_alphanumeric();
    let spelled = |name: &HeaderName| name.as_str().replace(other, "-");
    let gone: Vec<_> = headers.keys().filter(|n| unwanted(&spelled(n))).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Whether a request header claims what only the edge may say.
fn is_claim(name: &str) -> bool {
    name == X_API_KEY.as_str()
        || name == X_API_SECRET.as_str()
        || CLAIMS.contains(&name)
        || name.starts_with("x-forwarded-")
        || name.starts_with("x-edged-")
        || name.starts_with("ssl-client-")
        || name.starts_with("x-ssl-")
        || name.starts_with("x-client-")
        || name.starts_with("x-amzn-mtls-")
}

const HOP: [&str; 11] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

const CLAIMS: [&str; 35] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "front-end-https",
    "remote-addr",
    "true-client-ip",
    "via",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-remote-addr",
    "x-original-url",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-id",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

const TELLTALES: [&str; 12] = [
    "alt-svc",
    "server",
    "via",
    "x-aspnet-version",
    "x-aspnetmvc-version",
    "x-backend-server",
    "x-drupal-cache",
    "x-generator",
    "x-powered-by",
    "x-runtime",
    "x-served-by",
    "x-version",
];

const ALWAYS: [(&str, &str); 2] = [
    ("strict-transport-security", "max-age=63072000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
];

const UNLESS_SET: [(&str, &str); 6] = [
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
];

/// Ids, scopes and roles keep what they are commonly made of: `orders:read`, `spiffe://a/b`.
const WORD_ESCAPES: &AsciiSet = &NAME_ESCAPES.remove(b':').remove(b'/').remove(b'@');

const NAME_ESCAPES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_request_loses_its_hop_its_key_and_its_claims() {
        let mut given = headers(&[
            ("host", "a"),
            ("content-length", "3"),
            ("cookie", "c"),
            ("connection", "close, X-Hop, content-length, host"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("x-api-key", "k"),
            ("x_api_key", "k"),
            ("x-api-secret", "s"),
            ("x_api_secret", "s"),
            ("authorization", "APIKEY k"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded_proto", "http"),
            ("x-real-ip", "1.2.3.4"),
            ("x_real_ip", "1.2.3.4"),
            ("True-Client-IP", "1.2.3.4"),
            ("CF-Connecting_IP", "1.2.3.4"),
            ("x-client-ip", "1.2.3.4"),
            ("ssl_client_verify", "SUCCESS"),
            ("client-cert", ":MIIB:"),
            ("x-request-id", "1"),
            ("x-edged-key-id", "root"),
            ("x_edged_key_id", "root"),
            ("x-original-url", "/admin"),
            ("x-http-method-override", "DELETE"),
        ]);
        strip_request(&mut given);
        assert_eq!(names(&given), ["content-length", "cookie", "host"]);
    }

    #[test]
    fn a_credential_for_the_upstream_passes_on() {
        let mut given = headers(&[("authorization", "Bearer t")]);
        strip_request(&mut given);
        assert_eq!(given["authorization"], "Bearer t");
    }

    #[test]
    fn the_upstream_is_told_of_the_client() {
        let mut told = HeaderMap::new();
        let principal = Some(Principal {
            identity: "main:k1",
            issuer: Some("main"),
            id: "k1",
            name: "B\u{fc}ro 7\r\n",
            method: Method::Key,
            scopes: &["orders:read", "a b"],
            roles: &["ops", "a,b"],
            key: Some("k1"),
            token: Some("t.t.t"),
        });
        let client = "::ffff:192.0.2.7".parse().unwrap();
        forward(
            &mut told,
            &Forward { client, host: "a:8443", port: 8443, request_id: "r1", principal },
        );
        assert_eq!(told["x-forwarded-for"], "192.0.2.7");
        assert_eq!(told["x-forwarded-proto"], "https");
        assert_eq!(told["x-forwarded-port"], "8443");
        assert_eq!(told["x-real-ip"], "192.0.2.7");
        assert_eq!(told["forwarded"], "for=192.0.2.7;host=\"a:8443\";proto=https");
        assert_eq!(told["x-forwarded-host"], "a:8443");
        assert_eq!(told["x-request-id"], "r1");
        assert_eq!(told["x-edged-key-id"], "k1");
        assert_eq!(told["x-edged-key-name"], "B%C3%BCro%207%0D%0A");
        assert_eq!(told["x-edged-principal"], "main:k1");
        assert_eq!(told["x-edged-issuer"], "main");
        assert_eq!(told["x-edged-subject"], "k1");
        assert_eq!(told["x-edged-method"], "key");
        assert_eq!(told["x-edged-scopes"], "orders:read a%20b");
        assert_eq!(told["x-edged-roles"], "ops,a%2Cb");
        assert_eq!(told["x-edged-token"], "t.t.t");
        let mut told = HeaderMap::new();
        forward(
            &mut told,
            &Forward { client, host: "a", port: 443, request_id: "r1", principal: None },
        );
        assert!(!told.contains_key("x-edged-key-id"));
    }

    #[test]
    fn an_answer_does_not_tell_of_the_software() {
        let mut given = headers(&[
            ("server", "nginx/1.2"),
            ("x-powered-by", "PHP"),
            ("x_powered_by", "PHP"),
            ("x-aspnet-version", "4"),
            ("via", "1.1 inner"),
            ("connection", "x-inner"),
            ("x-inner", "1"),
            ("keep-alive", "timeout=5"),
            ("x-edged-key-id", "k"),
            ("etag", "e"),
            ("set-cookie", "a=b"),
        ]);
        strip_response(&mut given);
        assert_eq!(names(&given), ["etag", "set-cookie"]);
    }

    #[test]
    fn security_headers_are_on_by_default() {
        let mut given = HeaderMap::new();
        secure(&mut given, true, &Vec::new());
        assert_eq!(given.len(), ALWAYS.len() + UNLESS_SET.len() + 1);
        assert_eq!(given["cache-control"], "no-store");
        assert_eq!(given["x-frame-options"], "DENY");
        let mut open = headers(&[("cache-control", "max-age=60")]);
        secure(&mut open, false, &Vec::new());
        assert_eq!(open["cache-control"], "max-age=60");
    }

    #[test]
    fn a_route_has_the_last_word_on_security_headers() {
        let overrides = vec![
            (HeaderName::from_static("x-frame-options"), None),
            (
                HeaderName::from_static("content-security-policy"),
                Some("default-src 'self'".parse().unwrap()),
            ),
            (CACHE_CONTROL, Some("private".parse().unwrap())),
        ];
        let mut given = headers(&[("content-security-policy", "x"), ("cache-control", "public")]);
        secure(&mut given, true, &overrides);
        assert!(!given.contains_key("x-frame-options"));
        assert_eq!(given["content-security-policy"], "default-src 'self'");
        assert_eq!(given["cache-control"], "private");
        assert!(overrides.iter().all(|(name, _)| secured().any(|own| own == name.as_str())));
    }

    #[test]
    fn cookies_reach_the_upstream_in_one_field() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2", "c=3; d=4"] {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        strip_request(&mut headers);
        let joined: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(joined, ["a=1; b=2; c=3; d=4"]);
    }

    #[test]
    fn an_upstream_sets_its_own_policies_but_not_without_ours() {
        let mut given = headers(&[
            ("content-security-policy", "default-src 'self'"),
            ("strict-transport-security", "max-age=0"),
            ("x-content-type-options", "x"),
            ("cache-control", "public, max-age=60"),
        ]);
        secure(&mut given, true, &Vec::new());
        assert_eq!(given["content-security-policy"], "default-src 'self'");
        assert_eq!(given["strict-transport-security"], ALWAYS[0].1);
        assert_eq!(given["x-content-type-options"], "nosniff");
        assert_eq!(given["cache-control"], "no-store");
    }
}
