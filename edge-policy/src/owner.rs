//! Ownership: which part of a request's target says whose it is.
//!
//! The value is read from the same normal form that the upstream gets, and decoded once.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

use crate::route::PathPattern;
use crate::target::{Target, has_parameter};

/// What a request must have in common with its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Where the request names the owner.
    pub place: Place,
    /// What of the caller it must equal.
    pub equals: Attribute,
    /// Who is any of these roles may act for every owner.
    pub unless: Vec<String>,
}

/// Where a request names the owner of what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a segment of its path.
    Path(Template),
    /// In the query parameter of this name.
    Query(String),
}

/// An attribute of a principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Who it is: a key's public id, a token's subject.
    Id,
    /// What people call it.
    Name,
    /// What its issuer says of it under this name.
    Claim(String),
}

/// The beginning of a path of which one segment is the owner: `/users/{id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The segments before the owner's.
    before: Vec<String>,
    /// Those after it.
    after: Vec<String>,
}

impl Template {
    /// Reads a template; what is in the braces is a name for people.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (before, rest) = text.split_once("/{")?;
        let (name, after) = rest.split_once('}')?;
        let named =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let (before, after) = (segments(before)?, segments(after)?);
        named.then_some(Self { before, after })
    }

    /// Whether a route with this pattern takes the paths that it is for.
    #[must_use]
    pub fn is_within(&self, pattern: &PathPattern) -> bool {
        let owner = std::iter::once("owner");
        let before = self.before.iter().map(String::as_str);
        let all = before.chain(owner).chain(self.after.iter().map(String::as_str));
        pattern.covers(&all.fold(String::new(), |path, segment| path + "/" + segment))
    }

    /// The owner's segment of a path in normal form, as it is written there.
    fn capture<'p>(&self, path: &'p str) -> Option<&'p str> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let mut next_is = |wanted: &String| segments.next() == Some(wanted.as_str());
        if !self.before.iter().all(&mut next_is) {
            return None;
        }
        // With a parameter it is another owner to servers that drop it.
        let is_one = |owner: &&str| !owner.is_empty() && !has_parameter(owner);
        let owner = segments.next().filter(is_one)?;
        let mut next_is = |wanted: &String| segments.next() == Some(wanted.as_str());
        self.after.iter().all(&mut next_is).then_some(owner)
    }
}

/// The segments of `/a/b`, or none of an empty text.
fn segments(path: &str) -> Option<Vec<String>> {
    if path.is_empty() {
        return Some(Vec::new());
    }
    let parsed = Target::parse(path, usize::MAX).ok()?;
    let is_normal = parsed.query.is_none() && parsed.path == path && !path.ends_with('/');
    is_normal.then(|| path[1..].split('/').map(str::to_owned).collect())
}

impl Owner {
    /// The owner whom a request names; `None` if it names none, or could be read as naming several.
    #[must_use]
    pub fn named<'t>(&self, target: &'t Target) -> Option<Cow<'t, str>> {
        match &self.place {
            Place::Path(template) => decode(template.capture(&target.path)?),
            Place::Query(name) => parameter(target.query.as_deref()?, name),
        }
    }
}

/// The value of the one query parameter of this name. Servers differ in case, in the other
/// separator and in how they write arrays, and PHP reads `a.b`, `a b` and `a[b` as `a_b`: what any of
/// them could take for a second one is refused.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    if query.contains(';') {
        return None;
    }
    let mut found = query.split('&').filter_map(|pair| {
        let (written, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plus = written.replace('+', " ");
        let written = percent_decode_str(&plus).decode_utf8_lossy();
        let whole = written.trim();
        let array = whole.split('[').next().unwrap_or_default();
        let is_it = is_alike(whole, name) || is_alike(array, name);
        is_it.then_some((written.into_owned(), value))
    });
    let (written, value) = found.next()?;
    if found.next().is_some() || written != name || value.is_empty() {
        return None;
    }
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        return Some(Cow::Owned(decode(&spaced)?.into_owned()));
    }
    decode(value)
}

/// Whether some server takes one name for the other.
fn is_alike(one: &str, other: &str) -> bool {
    let fold = |byte: u8| match byte {
        b' ' | b'.' | b'[' => b'_',
        byte => byte.to_ascii_lowercase(),
    };
    one.bytes().map(fold).eq(other.bytes().map(fold))
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Path(template) => {
                let before = template.before.iter().map(|s| format!("/{s}")).collect::<String>();
                let after = template.after.iter().map(|s| format!("/{s}")).collect::<String>();
                write!(f, "path {before}/{{owner}}{after}")?;
            }
            Place::Query(name) => write!(f, "query parameter {name}")?,
        }
        match &self.equals {
            Attribute::Id => f.write_str(" must be the caller"),
            Attribute::Name => f.write_str(" must be the caller's name"),
            Attribute::Claim(claim) => write!(f, " must be the caller's claim {claim}"),
        }
    }
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(place: Place) -> Owner {
        Owner { place, equals: Attribute::Id, unless: Vec::new() }
    }

    fn named(owner: &Owner, target: &str) -> Option<String> {
        let target = Target::parse(target, usize::MAX).unwrap();
        owner.named(&target).map(Cow::into_owned)
    }

    #[test]
    fn a_template_reads_one_segment() {
        let users = owner(Place::Path(Template::parse("/users/{id}").unwrap()));
        let orders = owner(Place::Path(Template::parse("/v1/{user}/orders").unwrap()));
        for (owner, target, expected) in [
            (&users, "/users/alice", Some("alice")),
            (&users, "/users/alice/", Some("alice")),
            (&users, "/users/alice/orders/7", Some("alice")),
            // One target for the decision and for the upstream, however it was spelt.
            (&users, "/users/x/../alice", Some("alice")),
            (&users, "//users//%61lice", Some("alice")),
            (&users, "/users/alice%20b", Some("alice b")),
            // Decoded once.
            (&users, "/users/%2561lice", Some("%61lice")),
            // One owner here, another to servers that drop what follows.
            (&users, "/users/alice;admin=1", None),
            (&users, "/users/alice%3Badmin", None),
            (&users, "/users/;x/alice", None),
            (&users, "/users/alice/orders;x", Some("alice")),
            (&users, "/users", None),
            (&users, "/users/", None),
            (&users, "/user/alice", None),
            (&users, "/Users/alice", None),
            (&orders, "/v1/alice/orders", Some("alice")),
            (&orders, "/v1/alice/orders/7", Some("alice")),
            (&orders, "/v1/alice/order", None),
            (&orders, "/v1/alice", None),
        ] {
            assert_eq!(named(owner, target).as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn a_parameter_counts_if_it_is_the_only_one() {
        let account = owner(Place::Query("account".into()));
        for (query, expected) in [
            ("account=alice", Some("alice")),
            ("a=b&account=alice&c", Some("alice")),
            ("account=a+b%2Bc", Some("a b+c")),
            ("account=%2561", Some("%61")),
            ("%61ccount=alice", Some("alice")),
            ("", None),
            ("account", None),
            ("account=", None),
            ("accounts=alice", None),
            ("account=alice&account=bob", None),
            ("account=alice&ACCOUNT=bob", None),
            ("account=alice&account[]=bob", None),
            ("account=alice&%61ccount=bob", None),
            ("account=alice&+account=bob", None),
            ("account=alice;account=bob", None),
            ("a=;account=alice", None),
            ("account[]=alice", None),
            ("Account=alice", None),
            ("account=%ff", None),
        ] {
            assert_eq!(named(&account, &format!("/?{query}")).as_deref(), expected, "{query}");
        }
        assert_eq!(named(&account, "/"), None);
    }

    /// PHP makes `_` of what its variables cannot be called.
    #[test]
    fn a_name_that_php_reads_as_another_counts_as_a_second_one() {
        for (name, query, expected) in [
            ("user_id", "user_id=alice", Some("alice")),
            ("user_id", "user_id=alice&userid=bob&user-id=bob", Some("alice")),
            ("user_id", "user_id=alice&user[id]=bob", Some("alice")),
            ("user_id", "user_id=alice&user.id=bob", None),
            ("user_id", "user_id=alice&user+id=bob", None),
            ("user_id", "user_id=alice&user%20id=bob", None),
            ("user_id", "user_id=alice&user[id=bob", None),
            ("user_id", "user_id=alice&user%5bid=bob", None),
            ("user_id", "user_id=alice&User.Id[]=bob", None),
            ("user_id", "user_id=alice&+user.id=bob", None),
            ("user_id", "user.id=alice", None),
            ("user.id", "user.id=alice", Some("alice")),
            ("user.id", "user.id=alice&user_id=bob", None),
        ] {
            let owner = owner(Place::Query(name.into()));
            assert_eq!(named(&owner, &format!("/?{query}")).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn templates_have_one_pair_of_braces_and_a_normal_path() {
        for text in [
            "",
            "/users",
            "users/{id}",
            "/users/{}",
            "/users/{id",
            "/{a}/{b}",
            "/a/../{id}",
            "/a//{id}",
            "/users/x{id}",
            "/users/{id}x",
            "/users/{id}/",
            "/users/{i-d}",
            "/a/{id}?q",
        ] {
            assert_eq!(Template::parse(text), None, "{text}");
        }
        let template = Template::parse("/v1/users/{id}/x").unwrap();
        let within = |path, exact| template.is_within(&PathPattern::parse(path, exact).unwrap());
        for path in ["/", "/v1", "/v1/users", "/v1/users/{user}", "/{version}/users"] {
            assert!(within(path, false), "{path}");
        }
        assert!(within("/v1/users/{id}/x", true) && !within("/v1/users/{id}", true));
        for path in ["/v2", "/v1/user", "/v1/users/x", "/v1/users/{id}/y"] {
            assert!(!within(path, false), "{path}");
        }
    }

    proptest! {
        /// What was written as a segment is what is read, and never a piece of another one.
        #[test]
        fn what_is_captured_is_what_was_written(owner in "[a-zA-Z0-9 ._~!é-]{1,12}") {
            prop_assume!(!matches!(owner.as_str(), "." | ".."));
            let users = super::tests::owner(Place::Path(Template::parse("/users/{id}").unwrap()));
            let escaped = percent_encoding::utf8_percent_encode(&owner, percent_encoding::NON_ALPHANUMERIC);
            let target = format!("/users/{escaped}/x");
            prop_assert_eq!(named(&users, &target), Some(owner));
        }
    }
}
