//! The security headers of answers.
//!
//! An upstream knows its own pages and may set its own policies, but not do without HSTS and `nosniff`, nor let
//! shared caches keep an authenticated answer, unless the route says so.

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue};

use crate::lines::Lines;

/// A route's own word on security headers, each one of [`secured`]: a value is set whatever the
/// upstream says, `None` leaves the header to the upstream.
pub type Overrides = Vec<(HeaderName, Option<HeaderValue>)>;

/// The headers that the edge sets by itself and a route may set otherwise.
pub fn secured() -> impl Iterator<Item = &'static str> + Clone {
    let names = ALWAYS.iter().chain(&UNLESS_SET).map(|(name, _)| *name);
    names.chain(["cache-control"])
}

/// The security headers of a route's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// In the place of what the upstream says.
    always: Vec<(HeaderName, Lines)>,
    /// Where the upstream says nothing.
    unless_set: Vec<(HeaderName, Lines)>,
    /// All of them: most upstreams say nothing of any.
    all: Lines,
    /// Whether the edge keeps authenticated answers out of shared caches.
    no_store: bool,
}

impl Default for Secured {
    fn default() -> Self {
        Self::new(&Vec::new())
    }
}

impl Secured {
    /// The usual ones, but for what a route says otherwise.
    #[must_use]
    pub fn new(overrides: &Overrides) -> Self {
        let is_usual = |name: &str| !overrides.iter().any(|(own, _)| own.as_str() == name);
        let usual = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter().filter(|(name, _)| is_usual(name));
            pairs.map(|(name, value)| field(HeaderName::from_static(name), value)).collect()
        };
        let mut always: Vec<_> = usual(&ALWAYS);
        always.extend(
            overrides.iter().filter_map(|(name, value)| {
                Some(field(name.clone(), value.as_ref()?.to_str().ok()?))
            }),
        );
        let unless_set: Vec<_> = usual(&UNLESS_SET);
        let mut all = Lines::default();
        always.iter().chain(&unless_set).for_each(|(_, line)| all.extend(line));
        Self { always, unless_set, all, no_store: is_usual(CACHE_CONTROL.as_str()) }
    }

    /// Adds them to the `lines` of an answer that has these headers already.
    pub fn stamp(&self, headers: &mut HeaderMap, lines: &mut Lines, is_authenticated: bool) {
        let is_ours = |name| self.always.iter().chain(&self.unless_set).any(|(own, _)| own == name);
        if headers.keys().any(is_ours) {
            self.always.iter().for_each(|(name, line)| {
                headers.remove(name);
                lines.extend(line);
            });
            let unset = self.unless_set.iter().filter(|(name, _)| !headers.contains_key(name));
            unset.for_each(|(_, line)| lines.extend(line));
        } else {
            lines.extend(&self.all);
        }
        if is_authenticated && self.no_store {
            let targeted: Vec<_> =
                headers.keys().filter(|name| is_targeted(name)).cloned().collect();
            for name in targeted {
                headers.remove(name);
            }
            if !is_private(headers) {
                headers.remove(CACHE_CONTROL);
                lines.add(CACHE_CONTROL.as_str(), "no-store");
            }
        }
    }
}

/// Whether a header is a word to some shared caches alone, which they take before `Cache-Control` (RFC 9213).
fn is_targeted(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.ends_with("cdn-cache-control") || matches!(name, "surrogate-control" | "x-accel-expires")
}

/// Whether the upstream itself keeps an answer out of shared caches (RFC 9111, 5.2.2). What is private in part alone,
/// or public as well, is not.
fn is_private(headers: &HeaderMap) -> bool {
    let values = || headers.get_all(CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
    let words = || values().flat_map(|value| value.split(|byte| *byte == b','));
    let has = |name: &[u8]| words().any(|word| word.trim_ascii().eq_ignore_ascii_case(name));
    let is_quoted = || values().any(|value| value.contains(&b'"'));
    // Caches that know `must-understand` pass over a `no-store` beside it.
    let is_not_stored = || has(b"no-store") && !has(b"must-understand");
    (has(b"private") || is_not_stored()) && !has(b"public") && !is_quoted()
}

fn field(name: HeaderName, value: &str) -> (HeaderName, Lines) {
    let mut line = Lines::default();
    line.add(name.as_str(), value);
    (name, line)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer's headers, as a client sees them.
    fn stamped(
        fields: &[(&str, &str)],
        is_authenticated: bool,
        overrides: &Overrides,
    ) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let mut lines = Lines::default();
        Secured::new(overrides).stamp(&mut headers, &mut lines, is_authenticated);
        for (name, _) in lines.iter() {
            assert!(!headers.contains_key(name), "{name} would be there twice");
        }
        lines.set(&mut headers);
        headers
    }

    #[test]
    fn security_headers_are_on_by_default() {
        let given = stamped(&[], true, &Vec::new());
        assert_eq!(given.len(), ALWAYS.len() + UNLESS_SET.len() + 1);
        assert_eq!(given["cache-control"], "no-store");
        assert_eq!(given["x-frame-options"], "DENY");
        let open = stamped(&[("cache-control", "max-age=60")], false, &Vec::new());
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
        let own = [("content-security-policy", "x"), ("cache-control", "public")];
        let given = stamped(&own, true, &overrides);
        assert!(!given.contains_key("x-frame-options"));
        assert_eq!(given["content-security-policy"], "default-src 'self'");
        assert_eq!(given["cache-control"], "private");
        assert!(overrides.iter().all(|(name, _)| secured().any(|own| own == name.as_str())));
        let framed = stamped(&[("x-frame-options", "SAMEORIGIN")], true, &overrides);
        assert_eq!(framed["x-frame-options"], "SAMEORIGIN");
    }

    #[test]
    fn an_upstream_keeps_shared_caches_out_itself_or_nobody_stores_the_answer() {
        for (own, is_kept) in [
            ("private, max-age=60", true),
            ("max-age=0, Private", true),
            ("no-store", true),
            ("must-understand, no-store", false),
            ("must-understand, no-store, private", true),
            ("no-cache", false),
            ("max-age=60", false),
            ("public, private", false),
            ("private=\"set-cookie\"", false),
            ("x=\"a, private, b\", max-age=60", false),
        ] {
            let given = stamped(&[("cache-control", own)], true, &Vec::new());
            assert_eq!(given["cache-control"], if is_kept { own } else { "no-store" });
        }
        let targeted =
            ["cdn-cache-control", "a-cdn-cache-control", "surrogate-control", "x-accel-expires"];
        for name in targeted {
            let own = [("cache-control", "private"), (name, "max-age=60")];
            let given = stamped(&own, true, &Vec::new());
            assert_eq!(
                (&given["cache-control"], given.get(name)),
                (&"private".parse().unwrap(), None)
            );
            assert!(stamped(&own, false, &Vec::new()).contains_key(name));
        }
        let both = [("cache-control", "private"), ("cache-control", "public")];
        assert_eq!(stamped(&both, true, &Vec::new())["cache-control"], "no-store");
    }

    #[test]
    fn an_upstream_sets_its_own_policies_but_not_without_ours() {
        let given = stamped(
            &[
                ("content-security-policy", "default-src 'self'"),
                ("strict-transport-security", "max-age=0"),
                ("x-content-type-options", "x"),
                ("cache-control", "public, max-age=60"),
            ],
            true,
            &Vec::new(),
        );
        assert_eq!(given["content-security-policy"], "default-src 'self'");
        assert_eq!(given["strict-transport-security"], ALWAYS[0].1);
        assert_eq!(given["x-content-type-options"], "nosniff");
        assert_eq!(given["cache-control"], "no-store");
        assert_eq!(given["x-frame-options"], "DENY");
    }
}
