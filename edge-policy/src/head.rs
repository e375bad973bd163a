//! The strict check of a request's head: one meaning, or a refusal.
//!
//! It asks again what the HTTP library may have let pass, so that nothing behind the edge can
//! read the same bytes as another request.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use edge_common::Reason;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{Method, Uri, Version};

/// How large a request's head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the request target.
    pub uri_bytes_max: usize,
    /// Header fields.
    pub headers_max: usize,
    /// Bytes of all header fields, names and separators included.
    pub header_bytes_max: usize,
}

/// The host that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// In lower case, without a trailing dot; an IPv6 address in its brackets.
    pub name: String,
    /// The port, if it was named.
    pub port: Option<u16>,
}

/// Checks a request's head and tells which host it is for.
///
/// # Errors
/// The reason to refuse the request for.
pub fn check(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
    bounds: &Bounds,
) -> Result<Host, Reason> {
    check_size(uri, headers, bounds)?;
    // A tunnel, and a way to have our own headers read back.
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(Reason::MethodNotAllowed);
    }
    // Servers that turn headers into variables take `x_user` for `x-user`.
    if headers.keys().any(|name| name.as_str().contains('_')) {
        return Err(Reason::MalformedRequest);
    }
    // The library reads HTTP/2, and lets values pass that HTTP/1 trims (RFC 9113, 8.2.1).
    let is_padded = |value: &http::HeaderValue| {
        let bytes = value.as_bytes();
        matches!(bytes.first(), Some(b' ' | b'\t')) || matches!(bytes.last(), Some(b' ' | b'\t'))
    };
    if version == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(Reason::MalformedRequest);
    }
    // Nobody can meet an expectation that nobody knows (RFC 9110, 10.1.1).
    let is_unknown =
        |value: &http::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().any(is_unknown) {
        return Err(Reason::MalformedRequest);
    }
    check_framing(version, headers)?;
    host(uri, version, headers)
}

fn check_size(uri: &Uri, headers: &HeaderMap, bounds: &Bounds) -> Result<(), Reason> {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    if target + authority > bounds.uri_bytes_max {
        return Err(Reason::UriTooLong);
    }
    // Four bytes for the colon, the space and the line end.
    let bytes: usize = headers.iter().map(|(name, v)| name.as_str().len() + v.len() + 4).sum();
    if headers.len() > bounds.headers_max || bytes > bounds.header_bytes_max {
        return Err(Reason::HeadersTooLarge);
    }
    Ok(())
}

/// Where the body ends must be said once, in one way.
fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), Reason> {
    let length = one_text(headers, &CONTENT_LENGTH)?;
    let encoding = one_text(headers, &TRANSFER_ENCODING)?;
    if length.is_some_and(|text| text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit())) {
        return Err(Reason::MalformedRequest);
    }
    let framed = match version {
        Version::HTTP_11 => encoding.is_none_or(|text| text.eq_ignore_ascii_case("chunked")),
        Version::HTTP_10 => encoding.is_none(),
        Version::HTTP_2 => {
            encoding.is_none() && !BETWEEN_HOPS.iter().any(|n| headers.contains_key(*n))
        }
        _ => false,
    };
    if !framed || length.is_some() && encoding.is_some() {
        return Err(Reason::MalformedRequest);
    }
    Ok(())
}

/// The authority of the target and the `Host` header; if there are both, they must agree, be the
/// scheme's own port named or not (RFC 9110, 4.2.3). HTTP/1 never goes without the header (RFC 9112, 3.2).
fn host(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<Host, Reason> {
    let usual = match uri.scheme_str() {
        None => None,
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Some(443),
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => Some(80),
        Some(_) => return Err(Reason::MalformedRequest),
    };
    let agree = |a: &Host, b: &Host| a.name == b.name && a.port.or(usual) == b.port.or(usual);
    let parse = |text: &str| text.parse::<Host>().map_err(|_| Reason::MalformedRequest);
    let header = one_text(headers, &HOST)?.map(parse).transpose()?;
    let authority = uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (authority, header) {
        (Some(authority), Some(header)) if agree(&authority, &header) => Ok(authority),
        (Some(authority), None) if version == Version::HTTP_2 => Ok(authority),
        (None, Some(header)) => Ok(header),
        _ => Err(Reason::MalformedRequest),
    }
}

/// The value of a header that may come once and must be text.
fn one_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Reason::MalformedRequest),
        (Some(_), Some(_)) => Err(Reason::MalformedRequest),
    }
}

/// Headers of one connection, which HTTP/2 does not know (RFC 9113, 8.2.2).
const BETWEEN_HOPS: [&str; 4] = ["connection", "keep-alive", "proxy-connection", "upgrade"];

/// The longest name in the DNS.
const NAME_MAX: usize = 253;

/// A text is no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHost;

impl fmt::Display for NotAHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is not a host name or address with an optional port")
    }
}

impl std::error::Error for NotAHost {}

impl FromStr for Host {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        // The colons of an IPv6 address are inside its brackets.
        let colon = text.rfind(':').filter(|at| !text[*at..].contains(']'));
        let (name, port) = match colon {
            Some(at) => (&text[..at], Some(port(&text[at + 1..]).ok_or(NotAHost)?)),
            None => (text, None),
        };
        Ok(Self { name: name_of(name).ok_or(NotAHost)?, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn port(text: &str) -> Option<u16> {
    // `parse` would also take a plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

fn name_of(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let labels = text.split('.').all(|label| !label.is_empty() && label.bytes().all(allowed));
    (labels && text.len() <= NAME_MAX).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { uri_bytes_max: 100, headers_max: 8, header_bytes_max: 400 };

    fn checked(version: Version, uri: &str, fields: &[(&str, &str)]) -> Result<String, Reason> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let uri: Uri = uri.parse().unwrap();
        check(&Method::GET, &uri, version, &headers, &BOUNDS).map(|host| host.to_string())
    }

    fn h1(fields: &[(&str, &str)]) -> Result<String, Reason> {
        checked(Version::HTTP_11, "/", fields)
    }

    #[test]
    fn a_plain_request_names_its_host() {
        assert_eq!(h1(&[("host", "API.example.")]).as_deref(), Ok("api.example"));
        assert_eq!(h1(&[("host", "a.example:8443")]).as_deref(), Ok("a.example:8443"));
        assert_eq!(h1(&[("host", "[2001:DB8:0::1]:8443")]).as_deref(), Ok("[2001:db8::1]:8443"));
        let absolute = checked(Version::HTTP_11, "https://a.example/x", &[("host", "A.example")]);
        assert_eq!(absolute.as_deref(), Ok("a.example"));
        let h2 = checked(Version::HTTP_2, "https://a.example/x", &[]);
        assert_eq!(h2.as_deref(), Ok("a.example"));
        let body = h1(&[("host", "a"), ("transfer-encoding", "Chunked")]);
        assert_eq!(body.as_deref(), Ok("a"));
        assert_eq!(h1(&[("host", "a"), ("content-length", "12")]).as_deref(), Ok("a"));
    }

    #[test]
    fn what_has_no_single_meaning_is_refused() {
        let host = ("host", "a");
        for fields in [
            &[][..],
            &[host, host],
            &[host, ("host", "b")],
            &[host, ("content-length", "1"), ("transfer-encoding", "chunked")],
            &[host, ("content-length", "1"), ("content-length", "1")],
            &[host, ("content-length", "1, 1")],
            &[host, ("content-length", "+1")],
            &[host, ("content-length", "")],
            &[host, ("transfer-encoding", "gzip, chunked")],
            &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[host, ("transfer-encoding", "xchunked")],
            &[host, ("x_api_key", "k")],
        ] {
            assert_eq!(h1(fields), Err(Reason::MalformedRequest), "{fields:?}");
        }
        for name in [
            "", "a b", "u@a", "a/b", "a:", "a:0", "a:+1", "a:99999", "[::1", "::1", "a..b", ".",
            "[a]", "a%2e",
        ] {
            assert_eq!(h1(&[("host", name)]), Err(Reason::MalformedRequest), "{name}");
        }
    }

    #[test]
    fn the_target_and_the_host_must_agree() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for uri in ["https://a.example/", "https://u@b.example/", "ftp://b.example/"] {
                let refused = checked(version, uri, &[("host", "b.example")]);
                assert_eq!(refused, Err(Reason::MalformedRequest), "{uri}");
            }
        }
    }

    #[test]
    fn the_schemes_own_port_may_be_named_or_not() {
        let at = |uri, host| checked(Version::HTTP_11, uri, &[("host", host)]);
        assert_eq!(at("https://a.example/", "a.example:443").as_deref(), Ok("a.example"));
        assert_eq!(at("HTTPS://a.example:443/", "a.example").as_deref(), Ok("a.example:443"));
        assert_eq!(at("http://a.example:80/", "a.example").as_deref(), Ok("a.example:80"));
        for (uri, host) in [
            ("http://a.example/", "a.example:443"),
            ("https://a.example:444/", "a.example"),
            ("https://a.example/", "a.example:80"),
        ] {
            assert_eq!(at(uri, host), Err(Reason::MalformedRequest), "{uri} {host}");
        }
    }

    #[test]
    fn only_http2_names_its_host_in_the_target_alone() {
        for version in [Version::HTTP_10, Version::HTTP_11] {
            let refused = checked(version, "https://a.example/", &[]);
            assert_eq!(refused, Err(Reason::MalformedRequest), "{version:?}");
        }
    }

    #[test]
    fn each_version_has_its_framing() {
        let host = ("host", "a");
        let chunked = ("transfer-encoding", "chunked");
        for (version, fields) in [
            (Version::HTTP_10, &[host, chunked][..]),
            (Version::HTTP_2, &[host, chunked]),
            (Version::HTTP_2, &[host, ("connection", "close")]),
            (Version::HTTP_09, &[host]),
            (Version::HTTP_3, &[host]),
        ] {
            assert_eq!(checked(version, "/", fields), Err(Reason::MalformedRequest));
        }
        assert_eq!(checked(Version::HTTP_10, "/", &[host]).as_deref(), Ok("a"));
    }

    #[test]
    fn bounds_are_kept() {
        let long = format!("/{}", "a".repeat(100));
        assert_eq!(checked(Version::HTTP_11, &long, &[("host", "a")]), Err(Reason::UriTooLong));
        assert_eq!(h1(&[("host", "a"); 9]), Err(Reason::HeadersTooLarge));
        let big = "v".repeat(390);
        assert_eq!(h1(&[("host", "a"), ("x", &big)]), Err(Reason::HeadersTooLarge));
    }

    #[test]
    fn tunnels_and_echoes_are_refused() {
        let headers: HeaderMap = [(HOST, HeaderValue::from_static("a"))].into_iter().collect();
        for method in [Method::CONNECT, Method::TRACE] {
            let uri = Uri::from_static("/");
            let refused = check(&method, &uri, Version::HTTP_11, &headers, &BOUNDS);
            assert_eq!(refused, Err(Reason::MethodNotAllowed));
        }
    }

    #[test]
    fn spaces_around_a_value_are_refused_where_nobody_has_trimmed_them() {
        let host = ("host", "a.example");
        for value in [" a", "a ", "\ta", "a\t", " "] {
            let fields = [host, ("x", value)];
            let refused = checked(Version::HTTP_2, "/", &fields);
            assert_eq!(refused, Err(Reason::MalformedRequest), "{value:?}");
        }
        assert!(checked(Version::HTTP_2, "/", &[host, ("x", "a b"), ("y", "")]).is_ok());
    }

    proptest! {
        #[test]
        fn a_host_prints_as_it_reads(text in "[a-zA-Z0-9.:\\[\\]@_-]{0,30}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse(), Ok(host));
            }
        }
    }
}
