//! The request target in its one normal form, by which routing, policy and the upstream all go.
//!
//! Only the origin form (`/path?query`) is taken. In the path, escapes of unreserved characters
//! are decoded, the hex of all others is in upper case, characters that should have been escaped
//! are, repeated slashes are merged and then dot segments removed. What different servers would
//! read differently is refused, and so are escapes that have the form of a character of UTF-8 and are none. The query is
//! checked, and passed on as it came, but that quotes and angle brackets are escaped.

use std::fmt::Write;

use edge_common::Reason;

/// A request target in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The path; begins with a slash.
    pub path: String,
    /// What follows the question mark, if there is one.
    pub query: Option<String>,
}

impl Target {
    /// Parses and normalises a target of at most `uri_bytes_max` bytes.
    ///
    /// # Errors
    /// [`Reason::UriTooLong`], or [`Reason::MalformedRequest`] if it has no single meaning.
    pub fn parse(path_and_query: &str, uri_bytes_max: usize) -> Result<Self, Reason> {
        if path_and_query.len() > uri_bytes_max {
            return Err(Reason::UriTooLong);
        }
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        if !path.starts_with('/') {
            return Err(Reason::MalformedRequest);
        }
        let path = if is_normal(path) { path.to_owned() } else { resolve(&unescape(path)?)? };
        let query = query.map(check_query).transpose()?;
        Ok(Self { path, query })
    }

    /// The whole target, for the upstream.
    #[must_use]
    pub fn path_and_query(&self) -> String {
        self.query.as_ref().map_or_else(|| self.path.clone(), |q| format!("{}?{q}", self.path))
    }

    /// It as servers read it that drop parameters of segments, if it has any.
    #[must_use]
    pub fn bare(&self) -> Option<Self> {
        Some(Self { path: bare(&self.path)?, query: self.query.clone() })
    }
}

/// Whether a target has signs that are none of a URI though their meaning is plain, as clients do send them.
#[must_use]
pub fn has_bare_signs(target: &[u8]) -> bool {
    target.starts_with(b"/") && signs(target).any(|(_, is_bare)| is_bare)
}

/// The target with such signs escaped; `None` if it has none.
#[must_use]
pub fn escaped(target: &[u8]) -> Option<String> {
    has_bare_signs(target).then(|| {
        signs(target).fold(String::new(), |mut out, (byte, is_bare)| {
            if is_bare {
                escape(byte, &mut out);
            } else {
                out.push(char::from(byte));
            }
            out
        })
    })
}

/// The bytes of a target, and of each whether the library of URIs misses its escape.
fn signs(target: &[u8]) -> impl Iterator<Item = (u8, bool)> {
    let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    target.iter().enumerate().map(move |(at, byte)| {
        let is_bare = match byte {
            b'<' | b'>' => true,
            b'"' => at > query,
            b'`' => at < query,
            _ => false,
        };
        (*byte, is_bare)
    })
}

/// A path in normal form as servers read it that drop the parameters of its segments
/// (`/admin;x` is `/admin` to them); `None` if it has none.
pub(crate) fn bare(path: &str) -> Option<String> {
    let may_have = path.contains([';', '%']);
    (may_have && path.split('/').any(has_parameter)).then(|| {
        let kept = path.split('/').map(without_parameter).filter(|segment| !segment.is_empty());
        let bare = kept.fold(String::new(), |path, segment| path + "/" + segment);
        let is_open = path.rsplit('/').next().is_none_or(|last| without_parameter(last).is_empty());
        bare + if is_open { "/" } else { "" }
    })
}

/// Whether a segment has a parameter, be its semicolon escaped or not.
pub(crate) fn has_parameter(segment: &str) -> bool {
    without_parameter(segment).len() < segment.len()
}

fn without_parameter(segment: &str) -> &str {
    let name = segment.split(';').next().unwrap_or_default();
    name.split("%3B").next().unwrap_or_default()
}

/// Whether a path is as it would become: letters, digits and few signs, no empty segment and none that
/// begins with a dot.
fn is_normal(path: &str) -> bool {
    let mut last = b' ';
    let is_plain = |byte: u8| {
        let fits = match byte {
            b'/' | b'.' => last != b'/',
            byte => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~'),
        };
        last = byte;
        fits
    };
    path.bytes().all(is_plain)
}

/// Brings the escapes of a path into their one form.
fn unescape(path: &str) -> Result<String, Reason> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    let mut is_ascii = true;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            plain(*byte, &mut out)?;
            continue;
        }
        let escaped = hex_pair(rest).ok_or(Reason::MalformedRequest)?;
        rest = &rest[2..];
        match escaped {
            // An encoded slash, backslash or NUL is a separator or an end to some, data to others.
            0 | b'/' | b'\\' => return Err(Reason::MalformedRequest),
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            byte => {
                is_ascii &= byte.is_ascii();
                escape(byte, &mut out);
            }
        }
    }
    if !is_ascii {
        let octets: Vec<u8> = percent_encoding::percent_decode_str(&out).collect();
        if (0..octets.len()).any(|at| is_sham(&octets[at..])) {
            return Err(Reason::MalformedRequest);
        }
    }
    Ok(out)
}

/// Whether octets begin with one character too long, half a surrogate pair or what is beyond the last one,
/// in the form that UTF-8 once had for all numbers: there are servers that go by the form, to which
/// `%C0%AE` is a dot. Other octets are a text of another charset.
fn is_sham(octets: &[u8]) -> bool {
    let length = octets[0].leading_ones() as usize;
    let (2.., Some(rest)) = (length, octets.get(1..length)) else { return false };
    let first = u64::from(octets[0] & 0x7f_u8.checked_shr(length as u32).unwrap_or(0));
    let number = rest.iter().fold(first, |number, octet| number << 6 | u64::from(octet & 0x3f));
    let character = u32::try_from(number).ok().and_then(char::from_u32);
    let is_whole = rest.iter().all(|octet| octet & 0xc0 == 0x80);
    is_whole && character.is_none_or(|character| character.len_utf8() != length)
}

/// One byte of a path that is not part of an escape.
fn plain(byte: u8, out: &mut String) -> Result<(), Reason> {
    match byte {
        b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
        | b';' | b'=' => out.push(char::from(byte)),
        byte if is_unreserved(byte) => out.push(char::from(byte)),
        // Clients do send these as they are; escaped they mean the same.
        b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => escape(byte, out),
        _ => return Err(Reason::MalformedRequest),
    }
    Ok(())
}

/// Merges slashes and removes dot segments; a path that climbs above its root is refused.
fn resolve(path: &str) -> Result<String, Reason> {
    let mut kept: Vec<&str> = Vec::new();
    let mut open = true;
    for segment in path.split('/') {
        // The last segment decides whether the path ends in a slash.
        open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop().ok_or(Reason::MalformedRequest)?;
            }
            // Some servers drop what follows the semicolon and then climb.
            _ if matches!(without_parameter(segment), "." | "..") => {
                return Err(Reason::MalformedRequest);
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if open {
        out.push('/');
    }
    Ok(out)
}

fn check_query(query: &str) -> Result<String, Reason> {
    let mut rest = query.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'%' if matches!(hex_pair(after), Some(1..)) => &after[2..],
            b'%' | b'#' | b'\\' => return Err(Reason::MalformedRequest),
            0x21..=0x7e => after,
            _ => return Err(Reason::MalformedRequest),
        };
    }
    Ok(query.to_owned())
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low, ..] = bytes else { return None };
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

fn escape(byte: u8, out: &mut String) {
    write!(out, "%{byte:02X}").expect("writing to a string does not fail");
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(text: &str) -> Result<String, Reason> {
        Target::parse(text, 1000).map(|target| target.path_and_query())
    }

    #[test]
    fn signs_that_are_none_of_a_uri_are_escaped_where_it_misses_that() {
        for (given, expected) in [
            ("/a<b>`c\"d?e=\"<f>`", Some("/a%3Cb%3E%60c\"d?e=%22%3Cf%3E`")),
            ("/?\"", Some("/?%22")),
            ("/a\"{b}?`'[]", None),
            ("http://a/<", None),
            ("*", None),
        ] {
            assert_eq!(escaped(given.as_bytes()).as_deref(), expected, "{given}");
            let taken = escaped(given.as_bytes()).unwrap_or_else(|| given.to_owned());
            assert!(taken.parse::<http::Uri>().is_ok() || !given.starts_with('/'), "{given}");
        }
    }

    #[test]
    fn a_target_has_one_form() {
        for (given, expected) in [
            ("/", "/"),
            ("/a/b?c=d", "/a/b?c=d"),
            ("/a?", "/a?"),
            ("/%61%2D%7e%c3%a9", "/a-~%C3%A9"),
            ("/a/./b/../c", "/a/c"),
            ("/stra%dfe", "/stra%DFe"),
            ("/%c0-propos", "/%C0-propos"),
            ("/%83%65%83%58%83%67", "/%83e%83X%83g"),
            ("/%ce%c4%bc%fe", "/%CE%C4%BC%FE"),
            ("/%c3/%a9", "/%C3/%A9"),
            ("/%c0/%ae", "/%C0/%AE"),
            ("/%ed%9f%bf%f4%8f%bf%bf", "/%ED%9F%BF%F4%8F%BF%BF"),
            ("/a/%2e%2E/c", "/c"),
            ("/a/.%2e/c", "/c"),
            ("//a///b", "/a/b"),
            ("/a//../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/b/", "/a/b/"),
            ("/.a/..b/...", "/.a/..b/..."),
            ("/a|b{c}", "/a%7Cb%7Bc%7D"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a?b=/../%2f", "/a?b=/../%2f"),
        ] {
            assert_eq!(normal(given).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_has_no_single_meaning_is_refused() {
        for text in [
            "",
            "*",
            "a",
            "?a",
            "http://h/",
            "/..",
            "/a/../..",
            "/%2e%2e",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/%00",
            "/a b",
            "/a\tb",
            "/\u{e9}",
            "/%",
            "/%4",
            "/%4g",
            "/%+1",
            "/a#b",
            "/..;/a",
            "/.;x/a",
            "/..%3b/a",
            "/a?b c",
            "/a?%zz",
            "/a?%0",
            "/a?%00",
            "/a?\u{e9}",
            "/a?b#c",
            "/a?\u{7f}",
            "/a?\\",
            "/\u{7f}",
            "/%2%65",
            "/%c0%ae%c0%ae/",
            "/%e0%80%af",
            "/%e0%9f%bf",
            "/%c1%a1dmin",
            "/%ed%a0%80",
            "/%f4%90%80%80",
            "/%f0%8f%bf%bf",
            "/%f8%80%80%80%af",
            "/%fe%80%80%80%80%80%af",
            "/%ff%80%80%80%80%80%80%af",
            "/%ff%e9%c0%ae",
        ] {
            assert_eq!(normal(text), Err(Reason::MalformedRequest), "{text:?}");
        }
    }

    #[test]
    fn some_servers_drop_what_follows_a_semicolon() {
        for (path, expected) in [
            ("/", None),
            ("/a/b", None),
            ("/a?b;c", None),
            ("/a;x", Some("/a")),
            ("/a;x/b;y=1;z/", Some("/a/b/")),
            ("/a%3bx/b%3B", Some("/a/b")),
            ("/a%3Bx;y", Some("/a")),
            ("/;x/a", Some("/a")),
            ("/a/;x", Some("/a/")),
            ("/;x", Some("/")),
            // Decoded once.
            ("/a%253Bx", None),
        ] {
            let target = Target::parse(path, 1000).unwrap();
            let bare = target.bare().map(|target| target.path);
            assert_eq!(bare.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_long_target_is_told_from_a_bad_one() {
        assert_eq!(Target::parse("/abc", 3), Err(Reason::UriTooLong));
        assert!(Target::parse("/abc", 4).is_ok());
    }

    proptest! {
        #[test]
        fn normalising_twice_is_normalising_once(text in "/[a./%25eEfF0-9;|~/]{0,40}(\\?[a%23=]{0,8})?") {
            if let Ok(once) = normal(&text) {
                prop_assert_eq!(normal(&once), Ok(once));
            }
        }

        #[test]
        fn the_normal_form_hides_nothing(text in "/[ab./%25eE2fF3bBcC5;]{0,40}") {
            if let Ok(target) = Target::parse(&text, 1000) {
                let decoded = percent_encoding::percent_decode_str(&target.path).decode_utf8_lossy();
                prop_assert!(target.path.starts_with('/'));
                prop_assert!(!target.path.contains("//") && !decoded.contains(['\\', '\0']));
                prop_assert!(target.path.split('/').all(|s| s != "." && s != ".."));
                prop_assert_eq!(decoded.matches('/').count(), target.path.matches('/').count());
            }
        }

        #[test]
        fn a_path_that_is_normal_stays_as_it_is(path in "/[a-c./_~%-]{0,12}") {
            if is_normal(&path) {
                prop_assert_eq!(unescape(&path).and_then(|path| resolve(&path)), Ok(path));
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,60}") {
            let _ = normal(&text);
        }
    }
}
