//! Cross-origin sharing (the Fetch standard, 3.2): which other sites' scripts may read a route.

use edge_common::Reason;
use http::Method;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, VARY,
};

/// Which other sites' scripts may ask for a route and read its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may, each as a browser writes it; `None`: every one, without credentials.
    pub origins: Option<Vec<String>>,
    /// Request headers that they may set, beyond those that every script may.
    pub headers: Vec<HeaderName>,
    /// Answer headers that they may read, beyond those that every script may.
    pub expose: Vec<HeaderName>,
    /// Whether the browser may send cookies along. Never for every origin.
    pub credentials: bool,
    /// For how long a browser need not ask again, in seconds.
    pub max_age_s: u64,
}

/// The method that a browser asks about ahead of a request, if this is such a question.
///
/// # Errors
/// [`Reason::MalformedRequest`] for a method that is none, or several.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Result<Option<Method>, Reason> {
    let mut asked = headers.get_all(ACCESS_CONTROL_REQUEST_METHOD).iter();
    if *method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return Ok(None);
    }
    match (asked.next(), asked.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => {
            Method::from_bytes(one.as_bytes()).map(Some).map_err(|_| Reason::MalformedRequest)
        }
        (Some(_), Some(_)) => Err(Reason::MalformedRequest),
    }
}

impl Cors {
    /// Answers a browser's question whether it may send a request with `methods` among those that
    /// are taken.
    ///
    /// # Errors
    /// [`Reason::PreflightRefused`] for an origin or a header that is not on the list.
    pub fn answer(&self, asked: &HeaderMap, methods: &[Method]) -> Result<HeaderMap, Reason> {
        let origin = self.origin(asked).ok_or(Reason::PreflightRefused)?;
        let wanted = asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
        let mut wanted = wanted.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let may = |name: &[u8]| {
            let name = name.trim_ascii();
            name.is_empty()
                || self.headers.iter().any(|own| name.eq_ignore_ascii_case(own.as_str().as_bytes()))
        };
        if !wanted.all(may) {
            return Err(Reason::PreflightRefused);
        }
        let mut headers = HeaderMap::new();
        self.allow(&mut headers, origin);
        let methods = methods.iter().map(Method::as_str);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, list(methods));
        if !self.headers.is_empty() {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names(&self.headers));
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age_s.into());
        for name in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
            headers.append(VARY, name.into());
        }
        Ok(headers)
    }

    /// The value that allows the origin of a request, if it may be allowed.
    #[must_use]
    pub fn origin(&self, asked: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = asked.get_all(ORIGIN).iter();
        let (origin, None) = (origins.next()?, origins.next()) else { return None };
        match &self.origins {
            None => Some(HeaderValue::from_static("*")),
            Some(own) => {
                own.iter().any(|own| own.as_bytes() == origin.as_bytes()).then(|| origin.clone())
            }
        }
    }

    /// Puts the edge's word in the place of whatever the upstream said to other sites' scripts;
    /// `origin` is what [`Self::origin`] gave for the request.
    pub fn stamp(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        let theirs = |name: &&HeaderName| name.as_str().starts_with("access-control-");
        let gone: Vec<_> = headers.keys().filter(theirs).cloned().collect();
        for name in gone {
            headers.remove(name);
        }
        match origin {
            Some(origin) => {
                self.allow(headers, origin.clone());
                if !self.expose.is_empty() {
                    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names(&self.expose));
                }
            }
            // An answer without the word is another answer: no cache may give it to who may read.
            None => self.vary(headers),
        }
    }

    fn allow(&self, headers: &mut HeaderMap, origin: HeaderValue) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        self.vary(headers);
    }

    fn vary(&self, headers: &mut HeaderMap) {
        if self.origins.is_some() {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// Whether a text is an origin as browsers write one: scheme, host in lower case, and a port that
/// is not the scheme's own.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    let (rest, usual) = match text.split_once("://") {
        Some(("https", rest)) => (rest, 443),
        Some(("http", rest)) => (rest, 80),
        _ => return false,
    };
    let host = rest.parse::<crate::head::Host>();
    host.is_ok_and(|host| host.port != Some(usual) && host.to_string() == rest)
}

fn names(names: &[HeaderName]) -> HeaderValue {
    list(names.iter().map(HeaderName::as_str))
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> HeaderValue {
    let text = words.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).expect("names of headers and methods are tokens")
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

    fn cors(origins: Option<&[&str]>) -> Cors {
        Cors {
            origins: origins.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
            headers: vec![HeaderName::from_static("x-app")],
            expose: vec![HeaderName::from_static("etag")],
            credentials: origins.is_some(),
            max_age_s: 600,
        }
    }

    const APP: &str = "https://app.example";

    #[test]
    fn only_a_question_is_one() {
        let ask = [("origin", APP), ("access-control-request-method", "PUT")];
        assert_eq!(preflight(&Method::OPTIONS, &fields(&ask)), Ok(Some(Method::PUT)));
        assert_eq!(preflight(&Method::GET, &fields(&ask)), Ok(None));
        assert_eq!(preflight(&Method::OPTIONS, &fields(&ask[..1])), Ok(None));
        assert_eq!(preflight(&Method::OPTIONS, &fields(&ask[1..])), Ok(None));
        let bad = [ask[0], ("access-control-request-method", "P T")];
        assert_eq!(preflight(&Method::OPTIONS, &fields(&bad)), Err(Reason::MalformedRequest));
        let twice = [ask[0], ask[1], ask[1]];
        assert_eq!(preflight(&Method::OPTIONS, &fields(&twice)), Err(Reason::MalformedRequest));
    }

    #[test]
    fn a_listed_origin_is_told_what_it_may() {
        let answer = cors(Some(&[APP]))
            .answer(
                &fields(&[("origin", APP), ("access-control-request-headers", "X-App, x-app")]),
                &[Method::GET, Method::PUT],
            )
            .unwrap();
        for (name, value) in [
            ("access-control-allow-origin", APP),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-allow-headers", "x-app"),
            ("access-control-max-age", "600"),
            ("vary", "Origin"),
        ] {
            assert_eq!(answer[name], value, "{name}");
        }
    }

    #[test]
    fn whoever_is_not_listed_is_refused() {
        let listed = cors(Some(&[APP]));
        for asked in [
            &[("origin", "https://app.example.evil.test")][..],
            &[("origin", "http://app.example")],
            &[("origin", "https://app.example:8443")],
            &[("origin", "https://APP.example")],
            &[("origin", "null")],
            &[("origin", APP), ("origin", APP)],
            &[("origin", APP), ("access-control-request-headers", "x-other")],
            &[("origin", APP), ("access-control-request-headers", "x-app,x-other")],
            &[],
        ] {
            let refused = listed.answer(&fields(asked), &[Method::GET]);
            assert_eq!(refused, Err(Reason::PreflightRefused), "{asked:?}");
        }
    }

    #[test]
    fn the_upstreams_word_to_other_sites_is_replaced() {
        let given = fields(&[
            ("access-control-allow-origin", "*"),
            ("access-control-allow-private-network", "true"),
            ("vary", "accept"),
        ]);
        let listed = cors(Some(&[APP]));
        let mut headers = given.clone();
        let asked = fields(&[("origin", APP)]);
        listed.stamp(&mut headers, listed.origin(&asked).as_ref());
        assert_eq!(headers["access-control-allow-origin"], APP);
        assert_eq!(headers["access-control-expose-headers"], "etag");
        assert!(!headers.contains_key("access-control-allow-private-network"));
        let vary: Vec<_> = headers.get_all(VARY).iter().collect();
        assert_eq!(vary, ["accept", "Origin"]);
        let mut headers = given;
        listed.stamp(&mut headers, None);
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert_eq!(headers.get_all(VARY).iter().count(), 2);
        let open = cors(None);
        let mut headers = HeaderMap::new();
        open.stamp(&mut headers, open.origin(&asked).as_ref());
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert!(!headers.contains_key("access-control-allow-credentials"));
        assert!(!headers.contains_key(VARY));
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for good in [APP, "http://localhost:3000", "https://[::1]:8443"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "*",
            "null",
            "app.example",
            "https://app.example/",
            "https://APP.example",
            "https://app.example:443",
            "http://a:80",
            "ftp://a",
            "https://",
            "https://u@a",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
