//! A change of protocol that a request asks for (RFC 9110, 7.8).

use http::{HeaderMap, HeaderValue, Method, Version, header};

/// The protocol that a request asks for and that its route allows, by its name in lower case. What is
/// not allowed is not asked of the upstream: the request goes on as one over HTTP. So does one with a
/// body, which would have to go before what the new protocol says.
#[must_use]
pub fn asked(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    allowed: &[String],
) -> Option<HeaderValue> {
    if *method != Method::GET || version != Version::HTTP_11 || !names_upgrade(headers) {
        return None;
    }
    let has_length = headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length != "0");
    if has_length || headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    let asked = one(headers)?;
    let known = allowed.iter().find(|name| name.as_bytes().eq_ignore_ascii_case(asked))?;
    HeaderValue::from_str(known).ok()
}

/// Whether an answer agrees to the change that was asked for.
#[must_use]
pub fn agreed(headers: &HeaderMap, asked: &HeaderValue) -> bool {
    names_upgrade(headers)
        && one(headers).is_some_and(|agreed| agreed.eq_ignore_ascii_case(asked.as_bytes()))
}

fn one(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::UPGRADE).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    Some(value.as_bytes())
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (name.parse::<http::HeaderName>().unwrap(), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn only_what_the_route_allows_is_asked_for() {
        let allowed = ["websocket".to_owned()];
        let (get, v11) = (Method::GET, Version::HTTP_11);
        let good = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert_eq!(asked(&get, v11, &good, &allowed).unwrap(), "websocket");
        let empty = [("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "0")];
        assert_eq!(asked(&get, v11, &headers(&empty), &allowed).unwrap(), "websocket");
        assert_eq!(asked(&get, v11, &good, &[]), None);
        assert_eq!(asked(&Method::POST, v11, &good, &allowed), None);
        assert_eq!(asked(&get, Version::HTTP_10, &good, &allowed), None);
        for fields in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "websocket")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "5")],
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("transfer-encoding", "chunked"),
            ],
        ] {
            assert_eq!(asked(&get, v11, &headers(fields), &allowed), None, "{fields:?}");
        }
    }

    #[test]
    fn an_answer_agrees_to_what_was_asked_for_alone() {
        let websocket = HeaderValue::from_static("websocket");
        let answer = |name| headers(&[("connection", "Upgrade"), ("upgrade", name)]);
        assert!(agreed(&answer("WebSocket"), &websocket));
        assert!(!agreed(&answer("h2c"), &websocket));
        assert!(!agreed(&headers(&[("upgrade", "websocket")]), &websocket));
    }
}
