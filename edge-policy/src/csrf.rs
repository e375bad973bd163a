//! Protection of requests that bear cookies: a browser sends those along whoever made it ask.
//!
//! What the browser itself says of the request decides, the surest word first: Fetch Metadata
//! (`Sec-Fetch-Site`), then `Origin`, then `Referer`. A page cannot forge any of them.

use edge_common::Reason;
use http::Method;
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, ORIGIN, REFERER, UPGRADE};

use crate::{head::Host, led::is_kept};

/// What a request that bears cookies and may change something must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csrf {
    /// Whether it must prove anything.
    pub enabled: bool,
    /// Other origins whose pages may make such requests.
    pub origins: Vec<String>,
    /// The cookie and the header that must hold the same token, where one is asked for.
    pub token: Option<Token>,
}

/// A double-submitted token: a page of another site can have the cookie sent, but not read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The cookie that holds it.
    pub cookie: String,
    /// The header that repeats it.
    pub header: HeaderName,
}

impl Default for Csrf {
    fn default() -> Self {
        Self { enabled: true, origins: Vec::new(), token: None }
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Csrf {
    /// Checks a request for `host`. Whoever shows who he is by a header of his own need not be
    /// asked: no browser adds that for another site. A certificate or a password that browsers show
    /// unasked is as good as a cookie to who forges a request; but programs show them as well, who say
    /// nothing of where they stand.
    ///
    /// # Errors
    /// [`Reason::CrossSite`], [`Reason::OriginMismatch`] or [`Reason::CsrfToken`].
    pub fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        host: &Host,
        has_certificate: bool,
    ) -> Result<(), Reason> {
        let harmless = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
            && !headers.contains_key(UPGRADE);
        let has_cookies = headers.contains_key(COOKIE);
        let is_browser = headers.contains_key(SEC_FETCH_SITE) || headers.contains_key(ORIGIN);
        let has_password = headers.get_all(AUTHORIZATION).iter().any(is_kept);
        let is_borne = has_cookies || (has_certificate || has_password) && is_browser;
        if !self.enabled || harmless || !is_borne {
            return Ok(());
        }
        self.check_site(headers, host)?;
        self.token.as_ref().filter(|_| has_cookies).map_or(Ok(()), |token| token.check(headers))
    }

    fn check_site(&self, headers: &HeaderMap, host: &Host) -> Result<(), Reason> {
        let origin = one(headers, &ORIGIN, Reason::OriginMismatch)?;
        if origin.is_some_and(|origin| self.origins.iter().any(|own| own.as_str() == origin)) {
            return Ok(());
        }
        match one(headers, &SEC_FETCH_SITE, Reason::CrossSite)? {
            // `none`: the person typed it or chose a bookmark.
            Some("same-origin" | "none") => return Ok(()),
            Some(_) => return Err(Reason::CrossSite),
            None => {}
        }
        let from = match origin {
            Some(origin) => Some(origin),
            None => one(headers, &REFERER, Reason::OriginMismatch)?.and_then(origin_of),
        };
        // A browser that says nothing at all of where it stands is none that can be trusted.
        if from.is_some_and(|from| is_own(from, host)) {
            Ok(())
        } else {
            Err(Reason::OriginMismatch)
        }
    }
}

impl Token {
    fn check(&self, headers: &HeaderMap) -> Result<(), Reason> {
        let repeated = one(headers, &self.header, Reason::CsrfToken)?;
        let mut cookies = cookies(headers, &self.cookie);
        match (cookies.next(), cookies.next(), repeated) {
            (Some(held), None, Some(said))
                if !held.is_empty() && same(held.as_bytes(), said.as_bytes()) =>
            {
                Ok(())
            }
            _ => Err(Reason::CsrfToken),
        }
    }
}

/// Every value that the request's cookies give a name.
pub fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
    let pairs = fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(own, _)| own.trim() == name).map(|(_, value)| value.trim())
}

/// In a time that tells nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// The value of a header that may come once.
fn one<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    otherwise: Reason,
) -> Result<Option<&'a str>, Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| otherwise),
        (Some(_), Some(_)) => Err(otherwise),
    }
}

/// The origin of an address of a page.
fn origin_of(url: &str) -> Option<&str> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    Some(&url[..end])
}

/// Whether an origin is the edge's own, which is reached over TLS alone.
fn is_own(origin: &str, host: &Host) -> bool {
    let own = origin.strip_prefix("https://").and_then(|own| own.parse::<Host>().ok());
    let port = |host: &Host| host.port.unwrap_or(443);
    own.is_some_and(|own| own.name == host.name && port(&own) == port(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn post(given: &[(&str, &str)]) -> Result<(), Reason> {
        let csrf = Csrf { origins: vec!["https://app.example".into()], ..Csrf::default() };
        let mut given = given.to_vec();
        given.push(("cookie", "sid=1"));
        csrf.check(&Method::POST, &fields(&given), &"a.example".parse().unwrap(), false)
    }

    #[test]
    fn what_the_browser_says_decides() {
        let own = ("origin", "https://a.example");
        for (given, expected) in [
            (&[("sec-fetch-site", "same-origin")][..], Ok(())),
            (&[("sec-fetch-site", "none")], Ok(())),
            (&[("sec-fetch-site", "same-origin"), own], Ok(())),
            (&[("sec-fetch-site", "same-site")], Err(Reason::CrossSite)),
            (&[("sec-fetch-site", "cross-site")], Err(Reason::CrossSite)),
            (&[("sec-fetch-site", "cross-site"), own], Err(Reason::CrossSite)),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://app.example")], Ok(())),
            (&[("sec-fetch-site", "none"), ("sec-fetch-site", "none")], Err(Reason::CrossSite)),
            (&[own], Ok(())),
            (&[("origin", "https://a.example:443")], Ok(())),
            (&[("origin", "http://a.example")], Err(Reason::OriginMismatch)),
            (&[("origin", "https://a.example:8443")], Err(Reason::OriginMismatch)),
            (&[("origin", "https://evil.test")], Err(Reason::OriginMismatch)),
            (&[("origin", "null")], Err(Reason::OriginMismatch)),
            (&[own, own], Err(Reason::OriginMismatch)),
            (&[("referer", "https://a.example/page?q")], Ok(())),
            (&[("referer", "https://a.example")], Ok(())),
            (&[("referer", "https://a.example.evil.test/")], Err(Reason::OriginMismatch)),
            (&[("referer", "https://evil.test/https://a.example/")], Err(Reason::OriginMismatch)),
            (&[("origin", "null"), ("referer", "https://a.example/")], Err(Reason::OriginMismatch)),
            (&[], Err(Reason::OriginMismatch)),
        ] {
            assert_eq!(post(given), expected, "{given:?}");
        }
    }

    #[test]
    fn only_what_may_do_harm_is_asked() {
        let csrf = Csrf::default();
        let host = "a.example".parse().unwrap();
        let evil = ("origin", "https://evil.test");
        let cookie = ("cookie", "sid=1");
        let check = |method, given: &[_]| csrf.check(&method, &fields(given), &host, false);
        assert_eq!(check(Method::GET, &[evil, cookie]), Ok(()));
        assert_eq!(check(Method::POST, &[evil]), Ok(()));
        assert_eq!(check(Method::DELETE, &[evil, cookie]), Err(Reason::OriginMismatch));
        let upgrade = [evil, cookie, ("upgrade", "websocket")];
        assert_eq!(check(Method::GET, &upgrade), Err(Reason::OriginMismatch));
        let off = Csrf { enabled: false, ..Csrf::default() };
        assert_eq!(off.check(&Method::POST, &fields(&[evil, cookie]), &host, true), Ok(()));
    }

    #[test]
    fn a_certificate_is_as_good_as_a_cookie_where_a_browser_shows_it() {
        let header = HeaderName::from_static("x-csrf-token");
        let token = Some(Token { cookie: "__Host-csrf".into(), header });
        let csrf = Csrf { token, ..Csrf::default() };
        let host = "a.example".parse().unwrap();
        for (method, given, expected) in [
            (Method::POST, &[][..], Ok(())),
            (Method::POST, &[("referer", "https://evil.test/")], Ok(())),
            (Method::POST, &[("origin", "https://a.example")], Ok(())),
            (Method::POST, &[("sec-fetch-site", "same-origin")], Ok(())),
            (Method::POST, &[("origin", "https://evil.test")], Err(Reason::OriginMismatch)),
            (Method::POST, &[("sec-fetch-site", "cross-site")], Err(Reason::CrossSite)),
            (Method::GET, &[("sec-fetch-site", "cross-site")], Ok(())),
        ] {
            assert_eq!(csrf.check(&method, &fields(given), &host, true), expected, "{given:?}");
        }
    }

    #[test]
    fn so_is_a_password_that_a_browser_keeps() {
        let csrf = Csrf::default();
        let host = "a.example".parse().unwrap();
        let cross = ("sec-fetch-site", "cross-site");
        for (scheme, site, expected) in [
            ("Basic dTpw", cross, Err(Reason::CrossSite)),
            ("negotiate YII", cross, Err(Reason::CrossSite)),
            ("NTLM TlR", ("origin", "https://evil.test"), Err(Reason::OriginMismatch)),
            ("Basic dTpw", ("sec-fetch-site", "same-origin"), Ok(())),
            ("Basic dTpw", ("accept", "*/*"), Ok(())),
            ("Bearer abc", cross, Ok(())),
        ] {
            let given = fields(&[("authorization", scheme), site]);
            let checked = csrf.check(&Method::POST, &given, &host, false);
            assert_eq!(checked, expected, "{scheme} {site:?}");
        }
    }

    #[test]
    fn a_token_is_repeated_or_refused() {
        let header = HeaderName::from_static("x-csrf-token");
        let token = Some(Token { cookie: "__Host-csrf".into(), header });
        let csrf = Csrf { token, ..Csrf::default() };
        let host = "a.example".parse().unwrap();
        for (cookie, said, good) in [
            ("__Host-csrf=abc", "abc", true),
            ("sid=1; __Host-csrf=abc", "abc", true),
            ("__Host-csrf=abc", "abd", false),
            ("__Host-csrf=abc", "ab", false),
            ("__Host-csrf=", "", false),
            ("csrf=abc", "abc", false),
            ("__Host-csrf=abc; __Host-csrf=abc", "abc", false),
        ] {
            let own = ("sec-fetch-site", "same-origin");
            let given = fields(&[own, ("cookie", cookie), ("x-csrf-token", said)]);
            let expected = if good { Ok(()) } else { Err(Reason::CsrfToken) };
            assert_eq!(
                csrf.check(&Method::POST, &given, &host, false),
                expected,
                "{cookie} {said}"
            );
        }
    }
}
