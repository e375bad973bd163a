//! Logins as the edge sees them: who is claimed to be, and whether it failed.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_ENCODING},
};
use percent_encoding::percent_decode_str;

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

    /// The account that a request is for, in the one form under which it is counted: lower case, without
    /// blanks around it, and no longer than [`ACCOUNT_BYTES_MAX`]. What names none counts as one account,
    /// so that leaving it out wins nothing.
    #[must_use]
    pub fn account(&self, headers: &HeaderMap, body: &[u8]) -> String {
        let found = match &self.account {
            Place::Json(name) => json(body, name),
            Place::Form(name) => form(body, name),
            Place::Header(name) => headers.get(name).and_then(|v| v.to_str().ok()).map(Into::into),
            Place::Basic => headers.get(AUTHORIZATION).and_then(|v| basic(v.to_str().ok()?)),
        };
        let mut account = found.unwrap_or_default().trim().to_lowercase();
        account.retain(|c| !c.is_control());
        account.truncate(account.floor_char_boundary(ACCOUNT_BYTES_MAX));
        account
    }

    /// Whether an answer says that the login failed; `None`: its body would tell, and was not all seen
    /// or is in a coding.
    #[must_use]
    pub fn has_failed(&self, status: u16, headers: &HeaderMap, body: &Seen<'_>) -> Option<bool> {
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

/// How much of an answer's body was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its beginning.
    Part(&'a [u8]),
}

fn json(body: &[u8], name: &str) -> Option<String> {
    let object: serde_json::Value = serde_json::from_slice(body).ok()?;
    match object.get(name)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn form(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let decode = |part: &str| {
        let part = part.replace('+', " ");
        percent_decode_str(&part).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).find(|(key, _)| key == name).map(|p| p.1)
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
        assert_eq!(
            json.account(&none, br#"{"user":" Ann@Example.com ","password":"x"}"#),
            "ann@example.com"
        );
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
            "aladdin"
        );
        assert_eq!(basic.account(&headers("authorization", "Bearer QWxhZGRpbg"), b""), "");
        assert_eq!(
            json.account(&none, format!("{{\"user\":\"{}\"}}", "é".repeat(200)).as_bytes()).len(),
            128
        );
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
        let whole =
            |status, headers: &HeaderMap, body| all.has_failed(status, headers, &Seen::Whole(body));
        assert_eq!(whole(401, &none, b""), Some(true));
        assert_eq!(whole(200, &headers("x-login", "failed"), b""), Some(true));
        assert_eq!(whole(200, &none, b"<p>wrong password</p>"), Some(true));
        assert_eq!(whole(200, &headers("x-login", "ok"), b"<p>welcome</p>"), Some(false));
    }

    #[test]
    fn what_cannot_be_read_tells_nothing() {
        let none = HeaderMap::new();
        let by_body = Login { body: Some("wrong".into()), ..login(Place::Basic) };
        let part = |body| by_body.has_failed(200, &none, &Seen::Part(body));
        assert_eq!((part(b"wrong, and more"), part(b"welc")), (Some(true), None));
        for (coding, told) in [("gzip", None), ("identity", Some(false)), ("br", None)] {
            let coded = headers("content-encoding", coding);
            assert_eq!(by_body.has_failed(200, &coded, &Seen::Whole(b"x")), told, "{coding}");
            assert_eq!(by_body.has_failed(401, &coded, &Seen::Part(b"x")), Some(true));
        }
        let by_status = login(Place::Basic);
        assert_eq!(by_status.has_failed(200, &none, &Seen::Part(b"")), Some(false));
    }

    proptest::proptest! {
        #[test]
        fn no_body_is_too_strange(body: Vec<u8>, name in ".{0,8}") {
            for place in [Place::Json(name.clone()), Place::Form(name)] {
                let account = login(place).account(&HeaderMap::new(), &body);
                proptest::prop_assert!(account.len() <= ACCOUNT_BYTES_MAX);
            }
        }
    }
}
