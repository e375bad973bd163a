//! Logins as the edge sees them: who is claimed to be, and whether it failed.

use std::fmt;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_ENCODING},
};
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// What a route that is a login says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Where the request names the account.
    pub account: Place,
    /// Statuses of an answer that is a failure.
    pub statuses: Vec<u16>,
    /// A field of such an answer, and its value.
    pub header: Option<(HeaderName, String)>,
    /// A text in its body.
    pub body: Option<String>,
}

/// Where a request names the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A member of the JSON object that is the body.
    Json(String),
    /// A field of the form that is the body.
    Form(String),
    /// A header field.
    Header(HeaderName),
    /// The user of HTTP's Basic scheme.
    Basic,
}

impl Login {
    /// Whether the account is named in the request's body.
    #[must_use]
    pub const fn reads_request(&self) -> bool {
        matches!(self.account, Place::Json(_) | Place::Form(_))
    }

    /// Whether the answer's body tells a failure.
    #[must_use]
    pub const fn reads_answer(&self) -> bool {
        self.body.is_some()
    }

    /// The account that a request is for, as it is named: an upstream may tell apart what [`folded`] does
    /// not. What names none counts as one account, so that leaving it out wins nothing; and so does what
    /// names several, of which the upstream may take any.
    #[must_use]
    pub fn account(&self, headers: &HeaderMap, body: &[u8]) -> String {
        let found = match &self.account {
            Place::Json(name) => json(body, name),
            Place::Form(name) => form(body, name),
            Place::Header(name) => value(headers, name).map(Into::into),
            Place::Basic => value(headers, &AUTHORIZATION).and_then(basic),
        };
        found.unwrap_or_default()
    }

    /// Whether an answer says that the login failed; `None`: its body would tell, and was not all seen
    /// or is in a coding, or it may be the form itself that was asked for.
    #[must_use]
    pub fn has_failed(
        &self,
        method: &Method,
        (status, headers): (u16, &HeaderMap),
        body: &Seen<'_>,
    ) -> Option<bool> {
        let failed = self.is_failure(status, headers, body);
        failed.filter(|failed| *failed || !method.is_safe() || !self.reads_request())
    }

    fn is_failure(&self, status: u16, headers: &HeaderMap, body: &Seen<'_>) -> Option<bool> {
        let told = |(name, value): &(HeaderName, String)| {
            headers.get_all(name).iter().any(|found| found.as_bytes() == value.as_bytes())
        };
        if self.statuses.contains(&status) || self.header.as_ref().is_some_and(told) {
            return Some(true);
        }
        let Some(text) = self.body.as_ref().map(String::as_bytes) else { return Some(false) };
        let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        let is_plain = headers.get_all(CONTENT_ENCODING).iter().all(plain);
        let has = |body: &[u8]| body.windows(text.len().max(1)).any(|part| part == text);
        match body {
            _ if !is_plain => None,
            Seen::Whole(body) => Some(has(body)),
            Seen::Part(body) => has(body).then_some(true),
        }
    }
}

/// The one form under which an account is counted: lower case, without blanks around it, and no longer than
/// [`ACCOUNT_BYTES_MAX`].
#[must_use]
pub fn folded(account: &str) -> String {
    let mut account = account.trim().to_lowercase();
    account.retain(|c| !c.is_control());
    account.truncate(account.floor_char_boundary(ACCOUNT_BYTES_MAX));
    account
}

/// How much of an answer's body was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its beginning.
    Part(&'a [u8]),
}

/// The one of its kind, if there is one.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    all.next().filter(|_| all.next().is_none())
}

fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    only(headers.get_all(name).iter())?.to_str().ok()
}

fn json(body: &[u8], name: &str) -> Option<String> {
    let Members(members) = serde_json::from_slice(body).ok()?;
    // Go takes a member whatever the case of its name.
    match only(members.into_iter().filter(|(found, _)| is_same(found, name)))?.1 {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The members of an object, those that repeat a name with the others.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Whether two names of fields are one to some upstream: ASP.NET goes by no case, PHP has `_` for what its
/// variables cannot be called.
fn is_same(a: &str, b: &str) -> bool {
    let fold = |c: char| if " .[".contains(c) { '_' } else { c.to_ascii_lowercase() };
    a.trim_start().chars().map(fold).eq(b.trim_start().chars().map(fold))
}

fn form(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let decode = |part: &str| {
        let part = part.replace('+', " ");
        percent_decode_str(&part).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    only(pairs.filter(|(key, _)| is_same(&decode(key), name))).map(|(_, value)| decode(value))
}

/// The user of `Basic dXNlcjpwYXNz`; the password is not looked at.
fn basic(value: &str) -> Option<String> {
    let (scheme, encoded) = value.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| base64(encoded.trim()))??;
    let text = String::from_utf8_lossy(&decoded).into_owned();
    text.split_once(':').map(|(user, _)| user.to_owned())
}

/// RFC 4648, section 4; padding may be left out.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

/// The longest name of an account that is told apart, in bytes.
pub const ACCOUNT_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn login(account: Place) -> Login {
        Login { account, statuses: vec![401], header: None, body: None }
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        [(HeaderName::from_static(name), value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn the_account_is_found_where_it_is_named() {
        let none = HeaderMap::new();
        let json = login(Place::Json("user".into()));
        let ann = json.account(&none, br#"{"user":" Ann@Example.com ","password":"x"}"#);
        assert_eq!((&*ann, &*folded(&ann)), (" Ann@Example.com ", "ann@example.com"));
        assert_eq!(json.account(&none, br#"{"user":7}"#), "7");
        for other in [&b"{\"name\":\"ann\"}"[..], b"[]", b"user=ann", b"{\"user\":{}}", b""] {
            assert_eq!(json.account(&none, other), "");
        }
        let form = login(Place::Form("e-mail".into()));
        assert_eq!(form.account(&none, b"x=1&e%2Dmail=a%40b+c&password=y"), "a@b c");
        let header = login(Place::Header(HeaderName::from_static("x-user")));
        assert_eq!(header.account(&headers("x-user", "ann"), b""), "ann");
        let basic = login(Place::Basic);
        assert_eq!(
            basic.account(&headers("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), b""),
            "Aladdin"
        );
        assert_eq!(basic.account(&headers("authorization", "Bearer QWxhZGRpbg"), b""), "");
        assert_eq!(folded(&"é".repeat(200)).len(), 128);
    }

    #[test]
    fn who_names_two_accounts_names_none() {
        let none = HeaderMap::new();
        let json = login(Place::Json("user".into()));
        for body in [r#"{"user":"a","user":"b"}"#, r#"{"user":"a","User":"b"}"#] {
            assert_eq!(json.account(&none, body.as_bytes()), "", "{body}");
        }
        assert_eq!(json.account(&none, br#"{"USER":"a","users":"b"}"#), "a");
        let form = login(Place::Form("user.name".into()));
        for body in
            ["user.name=a&user.name=b", "user.name=a&user_name=b", "user%5Bname=a&USER.name"]
        {
            assert_eq!(form.account(&none, body.as_bytes()), "", "{body}");
        }
        assert_eq!(form.account(&none, b"user_name=a&name=b"), "a");
        let mut twice = headers("x-user", "a");
        twice.append("x-user", HeaderValue::from_static("b"));
        let header = login(Place::Header(HeaderName::from_static("x-user")));
        assert_eq!(header.account(&twice, b""), "");
    }

    #[test]
    fn a_failure_is_told_by_status_field_or_body() {
        let none = HeaderMap::new();
        let field = (HeaderName::from_static("x-login"), "failed".to_owned());
        let all = Login {
            header: Some(field),
            body: Some("wrong password".into()),
            ..login(Place::Basic)
        };
        let whole = |status, headers: &HeaderMap, body| {
            all.has_failed(&Method::POST, (status, headers), &Seen::Whole(body))
        };
        assert_eq!(whole(401, &none, b""), Some(true));
        assert_eq!(whole(200, &headers("x-login", "failed"), b""), Some(true));
        assert_eq!(whole(200, &none, b"<p>wrong password</p>"), Some(true));
        assert_eq!(whole(200, &headers("x-login", "ok"), b"<p>welcome</p>"), Some(false));
    }

    #[test]
    fn what_cannot_be_read_tells_nothing() {
        let none = HeaderMap::new();
        let by_body = Login { body: Some("wrong".into()), ..login(Place::Basic) };
        let post = &Method::POST;
        let part = |body| by_body.has_failed(post, (200, &none), &Seen::Part(body));
        assert_eq!((part(b"wrong, and more"), part(b"welc")), (Some(true), None));
        for (coding, told) in [("gzip", None), ("identity", Some(false)), ("br", None)] {
            let coded = headers("content-encoding", coding);
            assert_eq!(
                by_body.has_failed(post, (200, &coded), &Seen::Whole(b"x")),
                told,
                "{coding}"
            );
            assert_eq!(by_body.has_failed(post, (401, &coded), &Seen::Part(b"x")), Some(true));
        }
        let by_status = login(Place::Basic);
        assert_eq!(by_status.has_failed(&Method::GET, (200, &none), &Seen::Part(b"")), Some(false));
        // A form that is shown lets nobody in.
        let form = login(Place::Form("user".into()));
        for (method, status, told) in [
            (Method::GET, 200, None),
            (Method::HEAD, 200, None),
            (Method::GET, 401, Some(true)),
            (Method::POST, 200, Some(false)),
        ] {
            assert_eq!(
                form.has_failed(&method, (status, &none), &Seen::Part(b"")),
                told,
                "{method}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_is_too_strange(body: Vec<u8>, name in ".{0,8}") {
            for place in [Place::Json(name.clone()), Place::Form(name)] {
                let account = login(place).account(&HeaderMap::new(), &body);
                proptest::prop_assert!(folded(&account).len() <= ACCOUNT_BYTES_MAX);
            }
        }
    }
}
