//! Which credential a request presents. A credential in the URL is refused: logs and caches see it.

use std::borrow::Cow;
use std::fmt;

use edge_common::Reason;
use edge_policy::shield::{X_API_KEY, X_API_SECRET, is_api_key};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::key::find_keys;

/// A key as a request shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// The key.
    pub key: &'a str,
    /// The secret that came with it in `X-API-Secret`.
    pub secret: Option<&'a str>,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(masked)")
    }
}

/// The one key that a request presents in `X-API-Key` or in `Authorization: ApiKey`, if any.
///
/// `Authorization` under another scheme is the upstream's affair and passes on. `url_parameters`
/// are the names of query parameters that carry credentials elsewhere.
///
/// # Errors
/// If a credential is in the target, if the headers present several or an unreadable one, or a
/// secret without its key.
pub fn present<'a>(
    headers: &'a HeaderMap,
    path: &str,
    query: Option<&str>,
    url_parameters: &[String],
) -> Result<Option<Shown<'a>>, Reason> {
    let in_query = query.is_some_and(|query| in_query(query, url_parameters));
    if in_query || has_key(path) {
        return Err(Reason::CredentialInUrl);
    }
    let plain = only(headers, &X_API_KEY)?.map(readable).transpose()?;
    let authorization = match only(headers, &AUTHORIZATION)? {
        Some(value) if is_api_key(value) => Some(after_scheme(readable(value)?)),
        _ => None,
    };
    let key = match (plain, authorization) {
        (Some(_), Some(_)) => return Err(Reason::CredentialInvalid),
        (plain, authorization) => plain.or(authorization),
    };
    let secret = only(headers, &X_API_SECRET)?.map(readable).transpose()?;
    match (key, secret) {
        (Some(""), _) | (_, Some("")) | (None, Some(_)) => Err(Reason::CredentialInvalid),
        (key, secret) => Ok(key.map(|key| Shown { key, secret })),
    }
}

/// Whether the headers hold a credential of any kind, ours or another's.
#[must_use]
pub fn is_any(headers: &HeaderMap) -> bool {
    [AUTHORIZATION, X_API_KEY, X_API_SECRET].iter().any(|name| headers.contains_key(name))
}

/// The words of the headers that carry credentials.
pub fn words(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(X_API_KEY).iter().chain(headers.get_all(AUTHORIZATION));
    values.filter_map(|value| value.to_str().ok()).flat_map(str::split_whitespace)
}

/// Whatever in the headers looks like a key of ours, however it is presented.
pub fn keys_in_headers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    words(headers).flat_map(find_keys).take(KEYS_MAX)
}

/// Whatever in a target looks like a key of ours.
#[must_use]
pub fn keys_in_target(path: &str, query: Option<&str>) -> Vec<String> {
    let query = decode(query.unwrap_or_default());
    find_keys(&query).chain(find_keys(path)).take(KEYS_MAX).map(str::to_owned).collect()
}

/// A path, an address or another text of a client as a log may have it: each part between slashes in which
/// something looks like a key of ours, escaped or not, is masked.
#[must_use]
pub fn masked(text: &str) -> Cow<'_, str> {
    let is_shown = |part: &str| has_key(part) || (part.contains('%') && has_key(&decode(part)));
    if !text.split('/').any(is_shown) {
        return Cow::Borrowed(text);
    }
    let parts: Vec<_> =
        text.split('/').map(|part| if is_shown(part) { MASK } else { part }).collect();
    Cow::Owned(parts.join("/"))
}

fn has_key(text: &str) -> bool {
    find_keys(text).next().is_some()
}

const MASK: &str = "***";

/// As many keys of one request are looked at.
const KEYS_MAX: usize = 4;

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Reason::CredentialInvalid),
    }
}

fn readable(value: &HeaderValue) -> Result<&str, Reason> {
    value.to_str().map(str::trim).map_err(|_| Reason::CredentialInvalid)
}

fn after_scheme(value: &str) -> &str {
    value.split_once(|c: char| c.is_ascii_whitespace()).map_or("", |(_, key)| key.trim_start())
}

/// Both separators are honoured, whichever the upstream goes by.
fn in_query(query: &str, url_parameters: &[String]) -> bool {
    let is_named = |pair: &str| {
        let name = decode(pair.split_once('=').map_or(pair, |(name, _)| name));
        url_parameters.iter().any(|p| p.eq_ignore_ascii_case(name.trim()))
    };
    // A key under another name, or none, is a key all the same.
    query.split(['&', ';']).any(is_named) || has_key(&decode(query))
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Secret;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect()
    }

    fn presented(fields: &[(&'static str, &'static str)]) -> Result<Option<String>, Reason> {
        present(&headers(fields), "/", None, &[]).map(|shown| shown.map(|shown| shown.key.into()))
    }

    #[test]
    fn one_key_in_one_header_is_presented() {
        assert_eq!(presented(&[]), Ok(None));
        assert_eq!(presented(&[("x-api-key", "k")]), Ok(Some("k".into())));
        assert_eq!(presented(&[("authorization", "apiKEY  k")]), Ok(Some("k".into())));
        assert_eq!(presented(&[("authorization", "Bearer t")]), Ok(None));
        let both = [("authorization", "Bearer t"), ("x-api-key", "k")];
        assert_eq!(presented(&both), Ok(Some("k".into())));
    }

    #[test]
    fn what_is_ambiguous_or_unreadable_is_invalid() {
        for fields in [
            &[("x-api-key", "k"), ("authorization", "ApiKey k")][..],
            &[("x-api-key", "k"), ("x-api-key", "k")],
            &[("authorization", "ApiKey k"), ("authorization", "Bearer t")],
            &[("x-api-key", "")],
            &[("authorization", "ApiKey")],
            &[("authorization", "ApiKey \u{e9}")],
            &[("x-api-key", "\u{e9}")],
        ] {
            assert_eq!(presented(fields), Err(Reason::CredentialInvalid), "{fields:?}");
        }
    }

    #[test]
    fn a_credential_in_the_url_is_refused_in_every_spelling() {
        let names = ["api_key".to_owned(), "token".to_owned()];
        let headers = HeaderMap::new();
        let key = Secret::mint("edged", &[5; 32]);
        let escaped = key.expose().replace('_', "%5f");
        for query in [
            "api_key=1".to_owned(),
            "a=b&TOKEN=".into(),
            "a=b;token=1".into(),
            "%61pi%5Fkey=1".into(),
            "+token=1".into(),
            "token".into(),
            format!("x={}", key.expose()),
            format!("x={escaped}"),
            key.expose().into(),
        ] {
            let found = present(&headers, "/", Some(&query), &names);
            assert_eq!(found, Err(Reason::CredentialInUrl), "{query}");
        }
        for query in ["", "a=b", "tokens=1", "x=api_key", "x=edged_a_b"] {
            assert_eq!(present(&headers, "/", Some(query), &names), Ok(None), "{query}");
        }
        let [key_alone, key_in_words] =
            ["ApiKey%20", "a,b:"].map(|before| format!("{before}{}.", key.expose()));
        for query in [format!("x={key_alone}"), format!("x[y]={key_in_words}")] {
            let found = present(&headers, "/", Some(&query), &names);
            assert_eq!(found, Err(Reason::CredentialInUrl), "{query}");
            assert_eq!(keys_in_target("/", Some(&query)), [key.expose()]);
        }
        for (before, after) in
            [("", "/x"), ("", ".json"), ("", ";v=1"), ("key=", ""), ("v1.", "-2")]
        {
            let path = format!("/v1/{before}{}{after}", key.expose());
            assert_eq!(
                present(&headers, &path, None, &names),
                Err(Reason::CredentialInUrl),
                "{path}"
            );
            assert_eq!(keys_in_target(&path, None), [key.expose()]);
            assert!(masked(&path).starts_with("/v1/***"), "{path}");
        }
        assert_eq!(masked(&format!("/a/x{escaped}.json/b")), "/a/***/b");
        assert_eq!(masked("/a/b_c"), "/a/b_c");
        assert_eq!(keys_in_target("/", Some(&format!("a=1;b={escaped}&c"))), [key.expose()]);
        assert_eq!(keys_in_target("/v1", Some("a=edged_a_b")), [""; 0]);
    }

    #[test]
    fn a_secret_comes_with_its_key_or_not_at_all() {
        let both = headers(&[("x-api-key", "k"), ("x-api-secret", "s")]);
        let shown = Shown { key: "k", secret: Some("s") };
        assert_eq!(present(&both, "/", None, &[]), Ok(Some(shown)));
        assert!(!format!("{shown:?}").contains('s') || format!("{shown:?}") == "Shown(masked)");
        for fields in [
            &[("x-api-secret", "s")][..],
            &[("x-api-key", "k"), ("x-api-secret", "")],
            &[("x-api-key", "k"), ("x-api-secret", "s"), ("x-api-secret", "s")],
        ] {
            assert_eq!(presented(fields), Err(Reason::CredentialInvalid), "{fields:?}");
        }
    }

    #[test]
    fn keys_are_found_wherever_headers_hold_them() {
        let (a, b) = (Secret::mint("edged", &[5; 32]), Secret::mint("edged", &[6; 32]));
        let mut given = HeaderMap::new();
        given.append(X_API_KEY, a.expose().parse().unwrap());
        given.append(AUTHORIZATION, format!("Bearer {}", b.expose()).parse().unwrap());
        assert_eq!(keys_in_headers(&given).collect::<Vec<_>>(), [a.expose(), b.expose()]);
        assert!(is_any(&given) && !is_any(&HeaderMap::new()));
    }
}
