//! Which credential a request presents. A credential in the URL is refused: logs and caches see it.

use edge_common::Reason;
use edge_policy::shield::{X_API_KEY, is_api_key};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::key::looks_like_key;

/// The one key that a request presents in `X-API-Key` or in `Authorization: ApiKey`, if any.
///
/// `Authorization` under another scheme is the upstream's affair and passes on. `url_parameters`
/// are the names of query parameters that carry credentials elsewhere.
///
/// # Errors
/// If a credential is in the query, or if the headers present several or an unreadable one.
pub fn present<'a>(
    headers: &'a HeaderMap,
    query: Option<&str>,
    url_parameters: &[String],
) -> Result<Option<&'a str>, Reason> {
    if query.is_some_and(|query| in_query(query, url_parameters)) {
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
    if key == Some("") {
        return Err(Reason::CredentialInvalid);
    }
    Ok(key)
}

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
    query.split(['&', ';']).any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name);
        let named = url_parameters.iter().any(|p| p.eq_ignore_ascii_case(name.trim()));
        // A key without a name is a key all the same.
        named || looks_like_key(&name) || looks_like_key(decode(value).trim())
    })
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
        present(&headers(fields), None, &[]).map(|key| key.map(str::to_owned))
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
            let found = present(&headers, Some(&query), &names);
            assert_eq!(found, Err(Reason::CredentialInUrl), "{query}");
        }
        for query in ["", "a=b", "tokens=1", "x=api_key", "x=edged_a_b"] {
            assert_eq!(present(&headers, Some(query), &names), Ok(None), "{query}");
        }
    }
}
