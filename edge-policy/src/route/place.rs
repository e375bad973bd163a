//! What a route matches: a host, a path by whole segments, methods and header fields.

use std::fmt;

use http::Method;
use http::header::{HeaderMap, HeaderName};

use crate::target::Target;

/// The requests that a route is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The host they are for.
    pub host: HostPattern,
    /// Their path.
    pub path: PathPattern,
    /// Their methods.
    pub methods: Vec<Method>,
    /// Header fields that they must have, all of them.
    pub headers: Vec<HeaderRule>,
}

impl Match {
    /// How narrow the rules about headers are; the narrower is asked first.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let kind = |rule: &HeaderRule| match &rule.test {
            Test::Present => (1, 0),
            Test::Prefix(text) => (2, text.len()),
            Test::Equals(text) => (3, text.len()),
        };
        let kinds = self.headers.iter().map(kind);
        kinds.fold((0, 0), |(sum, length), (kind, len)| (sum + kind, length + len))
    }
}

/// Which hosts a route is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostPattern {
    /// This one, in lower case.
    Exact(String),
    /// Every name that ends in a dot and this: `*.example.com`, at any depth.
    Under(String),
    /// Every one.
    #[default]
    Any,
}

impl HostPattern {
    /// Whether it covers a host name in lower case.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(own) => own == host,
            Self::Under(zone) => {
                let labels = host.strip_suffix(zone.as_str()).and_then(|l| l.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
            }
            Self::Any => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Under(zone) => write!(f, "*.{zone}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Which paths a route is for: its own and, unless it is exact, all below, by whole segments. A
/// trailing slash means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    pub(super) segments: Vec<Segment>,
    /// Whether what lies below is left out.
    pub exact: bool,
}

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// This one, in normal form.
    Literal(String),
    /// Any one, under a name.
    Any(String),
}

/// Why a text is no pattern of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// It is not the normal form that requests are compared with, or has a query.
    NotNormal,
    /// Braces that are not a whole segment, such as `/{id}/`.
    Braces,
    /// The same name twice.
    Twice,
}

impl PathPattern {
    /// Reads `/users/{id}/orders`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, exact: bool) -> Result<Self, PathFault> {
        let mut segments = Vec::new();
        let mut plain = String::new();
        let inner = text.strip_prefix('/').filter(|inner| !inner.starts_with('/'));
        for part in parts(inner.ok_or(PathFault::NotNormal)?) {
            let name = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            plain.push('/');
            match name {
                Some(name) if is_name(name) => {
                    let any = Segment::Any(name.to_owned());
                    if segments.contains(&any) {
                        return Err(PathFault::Twice);
                    }
                    segments.push(any);
                    plain.push('x');
                }
                _ if part.contains(['{', '}']) => return Err(PathFault::Braces),
                _ => {
                    segments.push(Segment::Literal(part.to_owned()));
                    plain.push_str(part);
                }
            }
        }
        if plain.is_empty() {
            plain.push('/');
        }
        let normal = Target::parse(&plain, usize::MAX);
        let is_whole = |target: &Target| target.query.is_none() && target.bare().is_none();
        if normal.is_ok_and(|target| target.path == plain && is_whole(&target)) {
            let text = text.strip_suffix('/').unwrap_or(text).to_owned();
            Ok(Self { text, segments, exact })
        } else {
            Err(PathFault::NotNormal)
        }
    }

    /// It as it is written, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if self.text.is_empty() { "/" } else { &self.text }
    }

    /// Whether it covers a path in normal form.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let mut asked = parts(path.strip_prefix('/').unwrap_or(path));
        let all = self.segments.iter().all(|own| match (own, asked.next()) {
            (_, None) => false,
            (Segment::Any(_), Some(_)) => true,
            (Segment::Literal(own), Some(asked)) => own == asked,
        });
        all && !(self.exact && asked.next().is_some())
    }

    /// Whether it covers some path that is `top` or lies below it.
    #[must_use]
    pub fn meets(&self, top: &str) -> bool {
        let mut asked = parts(top.strip_prefix('/').unwrap_or(top));
        let alike = |(own, asked): (&Segment, &str)| match own {
            Segment::Any(_) => true,
            Segment::Literal(own) => own == asked,
        };
        self.segments.iter().zip(&mut asked).all(alike) && !(self.exact && asked.next().is_some())
    }

    /// Whether it names a part of the site, and is no place for whatever is asked for: `/` and `/{a}` are.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// The same text for all patterns that cover the same paths, whatever segments are called.
    pub(super) fn anonymous(&self) -> String {
        let begin = if self.exact { "=".to_owned() } else { String::new() };
        self.segments.iter().fold(begin, |text, segment| match segment {
            Segment::Literal(own) => text + "/" + own,
            Segment::Any(_) => text + "/{}",
        })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a header field must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRule {
    /// Its name.
    pub name: HeaderName,
    /// Its value; of several fields one will do.
    pub test: Test,
}

/// What the value of a header field must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Anything.
    Present,
    /// This.
    Equals(String),
    /// Anything that begins with this.
    Prefix(String),
}

impl HeaderRule {
    /// Whether a request with these fields keeps the rule.
    #[must_use]
    pub fn holds(&self, headers: &HeaderMap) -> bool {
        headers.get_all(&self.name).iter().any(|value| match &self.test {
            Test::Present => true,
            Test::Equals(text) => value.as_bytes() == text.as_bytes(),
            Test::Prefix(text) => value.as_bytes().starts_with(text.as_bytes()),
        })
    }
}

impl fmt::Display for HeaderRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Test::Present => write!(f, "{}", self.name),
            Test::Equals(text) => write!(f, "{}={text}", self.name),
            Test::Prefix(text) => write!(f, "{}={text}*", self.name),
        }
    }
}

/// The segments of a path without its first slash; a slash at its end is none.
pub(super) fn parts(path: &str) -> impl Iterator<Item = &str> + Clone {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').skip(usize::from(path.is_empty()))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_read_or_told_what_is_wrong() {
        for text in ["/", "/a", "/users/{id}/orders", "/{a}/{b}", "/a%2Cb"] {
            assert!(PathPattern::parse(text, false).is_ok(), "{text}");
        }
        assert_eq!(PathPattern::parse("/a/", false).unwrap().to_string(), "/a");
        for (text, fault) in [
            ("", PathFault::NotNormal),
            ("a", PathFault::NotNormal),
            ("//", PathFault::NotNormal),
            ("/a//b", PathFault::NotNormal),
            ("/a/../b", PathFault::NotNormal),
            ("/a?b", PathFault::NotNormal),
            ("/%61", PathFault::NotNormal),
            ("/a;b", PathFault::NotNormal),
            ("/a{b}", PathFault::Braces),
            ("/{}", PathFault::Braces),
            ("/{a-b}", PathFault::Braces),
            ("/{a}/{a}", PathFault::Twice),
        ] {
            assert_eq!(PathPattern::parse(text, false), Err(fault), "{text}");
        }
    }

    #[test]
    fn hosts_are_covered_by_whole_labels() {
        let under = HostPattern::Under("example.com".into());
        for (host, covered) in [
            ("a.example.com", true),
            ("b.a.example.com", true),
            ("example.com", false),
            ("aexample.com", false),
            (".example.com", false),
            ("a.example.com.evil.test", false),
        ] {
            assert_eq!(under.covers(host), covered, "{host}");
        }
    }

    #[test]
    fn a_header_rule_looks_at_every_field() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", "one".parse().unwrap());
        headers.append("x-a", "two".parse().unwrap());
        let rule = |test| HeaderRule { name: HeaderName::from_static("x-a"), test };
        assert!(rule(Test::Present).holds(&headers));
        assert!(rule(Test::Equals("two".into())).holds(&headers));
        assert!(rule(Test::Prefix("on".into())).holds(&headers));
        assert!(!rule(Test::Equals("tw".into())).holds(&headers));
        assert!(!rule(Test::Present).holds(&HeaderMap::new()));
    }
}
