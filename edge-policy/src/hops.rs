//! How much further an `OPTIONS` request may go (RFC 9110, 7.6.2).

use edge_common::Reason;
use http::Method;
use http::header::{ALLOW, HeaderMap, HeaderValue, MAX_FORWARDS};

/// Counts the edge in. The head of the answer, if the request may go no further: the route's methods.
///
/// # Errors
/// [`Reason::MalformedRequest`] for a count that is none, or several.
pub fn count(
    method: &Method,
    headers: &mut HeaderMap,
    methods: &[Method],
) -> Result<Option<HeaderMap>, Reason> {
    if *method != Method::OPTIONS {
        return Ok(None);
    }
    let mut counts = headers.get_all(MAX_FORWARDS).iter();
    let count = match (counts.next(), counts.next()) {
        (None, _) => return Ok(None),
        (Some(count), None) => count.as_bytes(),
        (Some(_), Some(_)) => return Err(Reason::MalformedRequest),
    };
    if count.is_empty() || !count.iter().all(u8::is_ascii_digit) {
        return Err(Reason::MalformedRequest);
    }
    // More than anybody can count is no less a bound.
    let count = count
        .iter()
        .fold(0_u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    match count.checked_sub(1) {
        Some(left) => {
            headers.insert(MAX_FORWARDS, left.into());
            Ok(None)
        }
        None => {
            let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
            let allowed = HeaderValue::try_from(methods.join(", "));
            let allowed = allowed.expect("methods are tokens");
            Ok(Some(HeaderMap::from_iter([(ALLOW, allowed)])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an upstream gets of the field; `Err` has what the client gets.
    fn hop(method: &Method, counts: &[&str]) -> Result<Option<String>, Result<String, Reason>> {
        let mut headers = HeaderMap::new();
        for count in counts {
            headers.append(MAX_FORWARDS, count.parse().unwrap());
        }
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        match count(method, &mut headers, &[Method::GET, Method::OPTIONS]) {
            Ok(None) => Ok(headers.get(MAX_FORWARDS).map(text)),
            Ok(Some(answer)) => Err(Ok(text(&answer[ALLOW]))),
            Err(reason) => Err(Err(reason)),
        }
    }

    #[test]
    fn a_question_goes_as_far_as_it_may() {
        let ask = |counts: &[&str]| hop(&Method::OPTIONS, counts);
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&["7"]), Ok(Some("6".into())));
        assert_eq!(ask(&["1"]), Ok(Some("0".into())));
        assert_eq!(ask(&["99999999999"]), Ok(Some((u32::MAX - 1).to_string())));
        assert_eq!(ask(&["0"]), Err(Ok("GET, OPTIONS".into())));
        for counts in [&[""][..], &["-1"], &["+1"], &["1, 2"], &["1 "], &["a"], &["1", "1"]] {
            assert_eq!(ask(counts), Err(Err(Reason::MalformedRequest)), "{counts:?}");
        }
        // It is nobody else's matter.
        assert_eq!(hop(&Method::GET, &["0"]), Ok(Some("0".into())));
    }
}
