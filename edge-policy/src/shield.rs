//! What the edge takes from and adds to the headers of requests and answers that pass.

mod names;
mod secured;

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{self, AUTHORIZATION, CONNECTION, COOKIE, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub use self::names::may_keep;
use self::names::{has_signs, is_claim, is_for_heads, is_hop, is_telltale, spelled};
pub use self::secured::{Overrides, Secured, secured};
use crate::auth::Method;
use crate::head::Host;
use crate::lines::Lines;

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
    pub host: &'a Host,
    /// The port it came in by.
    pub port: u16,
    /// Names the request in our logs and the upstream's.
    pub request_id: &'a str,
    /// Who it is, if that was proved, in the words of [`identify`].
    pub principal: Option<&'a Lines>,
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
/// upstream believe another client, host, target or method than the edge checked, but for claims of
/// these names.
pub fn strip_request(headers: &mut HeaderMap, kept: &[HeaderName]) {
    strip_named(headers);
    // Of what is stripped, nearly all that honest clients send.
    headers.remove(X_API_KEY);
    if headers.get_all(AUTHORIZATION).iter().any(is_api_key) {
        headers.remove(AUTHORIZATION);
    }
    let is_kept = |name: &str| kept.iter().any(|kept| kept == name);
    let unwanted = |name: &str| is_hop(name) || is_claim(name) && !is_kept(name);
    remove(headers, |name| has_signs(name) || unwanted(&spelled(name)));
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

/// What the upstream is told of the request by the edge, and as which host it is asked: the one that
/// the client asked for, or another. Of what
/// [`strip_request`] leaves, only `Host` has such a name.
#[must_use]
pub fn forward(asked: Option<&str>, facts: &Forward<'_>) -> Lines {
    let mut lines = Lines::with_capacity(512);
    let host = facts.host.to_string();
    lines.add("host", asked.unwrap_or(&host));
    let client = facts.client.to_canonical();
    let address = client.to_string();
    let quote = if client.is_ipv6() { ["\"[", "]\""] } else { [""; 2] };
    let forwarded = ["for=", quote[0], &address, quote[1], ";host=\"", &host, "\";proto=https"];
    lines.add("forwarded", &forwarded.concat());
    lines.add("x-forwarded-for", &address);
    lines.add("x-forwarded-host", &host);
    lines.write("x-forwarded-port", facts.port);
    lines.add("x-forwarded-proto", "https");
    lines.add("x-real-ip", &address);
    lines.add("x-request-id", facts.request_id);
    if let Some(principal) = facts.principal {
        lines.extend(principal);
    }
    lines
}

fn escaped(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, WORD_ESCAPES).into()
}

/// Names the principal. What a header cannot hold as it is, is percent-encoded; so is the comma
/// in a role, since commas part roles.
#[must_use]
pub fn identify(principal: &Principal<'_>) -> Lines {
    let mut lines = Lines::with_capacity(256);
    let mut list = |name, words: &[&str], between: &str| {
        if !words.is_empty() {
            let words: Vec<_> = words.iter().map(|word| escaped(word)).collect();
            lines.add(name, &words.join(between));
        }
    };
    list("x-edged-scopes", principal.scopes, " ");
    list("x-edged-roles", principal.roles, ",");
    lines.add("x-edged-principal", &escaped(principal.identity));
    if let Some(issuer) = principal.issuer {
        lines.add("x-edged-issuer", issuer);
        lines.add("x-edged-subject", &escaped(principal.id));
    }
    lines.add("x-edged-method", principal.method.name());
    let name: Cow<'_, str> = utf8_percent_encode(principal.name, NAME_ESCAPES).into();
    match principal.key {
        Some(id) => {
            lines.add("x-edged-key-id", id);
            lines.add("x-edged-key-name", &name);
        }
        None if principal.name.is_empty() => {}
        None => lines.add("x-edged-name", &name),
    }
    if let Some(token) = principal.token {
        lines.add("x-edged-token", token);
    }
    lines
}

/// Takes from an answer what is for this hop only, and what tells an attacker of the software.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_named(headers);
    strip(headers, |name| is_hop(name) || is_telltale(name));
}

/// Takes from an answer's trailers what its head loses, and what may stand in no trailers: a client
/// that merges them would be told what the edge had taken away, or another word than the edge's.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_response(trailers);
    strip(trailers, is_for_heads);
}

/// Removes what `Connection` names.
fn strip_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        // These are what nearly all say: the one is no field, the other is for this hop in any case.
        .filter(|name| {
            !["close", "keep-alive"].iter().any(|usual| name.eq_ignore_ascii_case(usual))
        })
        .filter_map(|name| name.parse().ok())
        // Nobody may have the edge drop what says where a message ends and whom it is for.
        .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    remove(headers, |name| unwanted(&spelled(name)));
}

fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let gone: Vec<_> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

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

    fn host(text: &str) -> Host {
        text.parse().unwrap()
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
            ("x-role", "admin"),
            ("X_Roles", "admin"),
            ("x.user", "root"),
            ("x_user_id", "1"),
            ("x-user-role", "admin"),
            ("x-auth_user", "root"),
            ("remote_user", "root"),
            ("remote-groups", "admins"),
            ("x-remote-user", "root"),
            ("x_remote_extra_scopes", "all"),
            ("x-auth-request-email", "root@a"),
            ("x-authenticated-userid", "1"),
            ("x-consumer-username", "root"),
            ("x-webauth-user", "root"),
            ("x-goog-authenticated-user-email", "root@a"),
            ("x-ms-client-principal", "e30="),
            ("x-amzn-oidc-identity", "root"),
            ("x-is-admin", "1"),
            ("proxy", "http://a"),
            ("http-x-forwarded-for", "1.2.3.4"),
            ("http_client_ip", "1.2.3.4"),
            ("ali-cdn-real-ip", "1.2.3.4"),
            ("x-userinfo", "e30="),
            ("x.auth.email", "root@a"),
        ]);
        strip_request(&mut given, &[]);
        assert_eq!(names(&given), ["content-length", "cookie", "host"]);
    }

    #[test]
    fn what_is_for_the_upstream_passes_on() {
        let all = [
            ("authorization", "Bearer t"),
            ("x-auth-key", "k"),
            ("x-auth-token", "t"),
            ("x-csrf-token", "t"),
            ("x-tenant-id", "7"),
            ("x-user-agent", "grpc-web-javascript/0.1"),
            ("x-auth-signature", "s"),
            ("x-user-locale", "de"),
            ("http-referer", "https://a/"),
            ("max-forwards", "7"),
            ("cdn-loop", "a"),
            ("x-access-token", "t"),
            ("x-scope-orgid", "tenant-1"),
            ("x-subject-token", "t"),
            ("x-auth-client", "c"),
            ("cf-webhook-auth", "s"),
            ("x-vercel-signature", "s"),
            ("x-user-token", "t"),
            ("x_admin_key", "k"),
            ("x-sso-token", "t"),
            ("x-client-secret", "s"),
            ("x-auth-api-key", "k"),
        ];
        let mut given = headers(&all);
        strip_request(&mut given, &[]);
        assert_eq!(given, headers(&all));
    }

    #[test]
    fn a_claim_passes_where_it_is_to_be_kept() {
        let kept = ["x-user-id".parse().unwrap()];
        let mut given = headers(&[("x-user-id", "7"), ("x-user-idx", "7"), ("x-role", "admin")]);
        strip_request(&mut given, &kept);
        assert_eq!(given, headers(&[("x-user-id", "7")]));
        for (name, may) in [
            ("x-user-id", true),
            ("cf-ray", true),
            ("accept", false),
            ("x.user", false),
            ("x-edged-principal", false),
            ("x-forwarded-for", false),
            ("forwarded", false),
            ("x-real-ip", false),
            ("http-x-real-ip", false),
            ("x-request-id", false),
            ("x-api-key", false),
            ("proxy", false),
            ("connection", false),
        ] {
            assert_eq!(may_keep(name), may, "{name}");
        }
    }

    #[test]
    fn the_upstream_is_told_of_the_client() {
        let principal = identify(&Principal {
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
        let mut told = HeaderMap::new();
        forward(
            None,
            &Forward {
                client,
                host: &host("a:8443"),
                port: 8443,
                request_id: "r1",
                principal: Some(&principal),
            },
        )
        .set(&mut told);
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
        let told = forward(
            None,
            &Forward { client, host: &host("a"), port: 443, request_id: "r1", principal: None },
        );
        assert_eq!(told.get("x-edged-key-id"), None);
    }

    #[test]
    fn an_answer_does_not_tell_of_the_software() {
        let mut given = headers(&[
            ("server", "nginx/1.2"),
            ("x-powered-by", "PHP"),
            ("x_powered_by", "PHP"),
            ("x-aspnet-version", "4"),
            ("x-powered-cms", "a"),
            ("x-debug-token", "a"),
            ("sourcemap", "/a.map"),
            ("x-backend", "b7"),
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
    fn trailers_say_nothing_that_belongs_in_a_head() {
        let mut given = headers(&[
            ("grpc-status", "0"),
            ("content-digest", "sha-256=:a:"),
            ("server-timing", "db;dur=5"),
            ("set-cookie", "a=b"),
            ("cache_control", "public"),
            ("access-control-allow-origin", "*"),
            ("www-authenticate", "Basic"),
            ("content-length", "1"),
            ("strict-transport-security", "max-age=0"),
            ("x-powered-by", "PHP"),
        ]);
        strip_trailers(&mut given);
        assert_eq!(names(&given), ["content-digest", "grpc-status", "server-timing"]);
    }

    #[test]
    fn nothing_that_a_client_says_is_named_like_what_the_edge_says() {
        let client = "::1".parse().unwrap();
        let principal = identify(&Principal {
            identity: "i",
            issuer: Some("i"),
            id: "i",
            name: "n",
            method: Method::Key,
            scopes: &["s"],
            roles: &["r"],
            key: None,
            token: Some("t"),
        });
        let told = forward(
            None,
            &Forward {
                client,
                host: &host("a"),
                port: 1,
                request_id: "r",
                principal: Some(&principal),
            },
        );
        let mut given = HeaderMap::new();
        told.set(&mut given);
        strip_request(&mut given, &[]);
        assert_eq!(names(&given), ["host"]);
    }

    #[test]
    fn cookies_reach_the_upstream_in_one_field() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2", "c=3; d=4"] {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        strip_request(&mut headers, &[]);
        let joined: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(joined, ["a=1; b=2; c=3; d=4"]);
    }
}
