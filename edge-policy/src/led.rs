//! Whether another site's page had a browser ask for something.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

/// Whether a request is one that any page can have any visitor's browser make, so that it proves nothing
/// about who sits before it. Who shows a credential that browsers keep for nobody is not led: only a page that
/// the server itself trusts can add one.
#[must_use]
pub fn is_led(headers: &HeaderMap) -> bool {
    let is_others = |site: &HeaderValue| matches!(site.as_bytes(), b"cross-site" | b"same-site");
    headers.get(SEC_FETCH_SITE).is_some_and(is_others) && !shows_credential(headers)
}

/// Whether a request shows a credential that browsers keep for nobody.
#[must_use]
pub fn shows_credential(headers: &HeaderMap) -> bool {
    let is_own = |name: &HeaderName| OWN.contains(&name.as_str());
    headers.keys().any(is_own) || headers.get(AUTHORIZATION).is_some_and(|own| !is_kept(own))
}

/// Whether browsers keep what this value of `Authorization` shows, and show it unasked.
pub(crate) fn is_kept(value: &HeaderValue) -> bool {
    let scheme = value.to_str().ok().and_then(|text| text.split_whitespace().next());
    scheme.is_none_or(|scheme| KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(scheme)))
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Where credentials are shown that are not kept, in fields that no page adds to what it has others ask.
const OWN: [&str; 6] =
    ["x-api-key", "x-api-secret", "x-signature", "signature", "signature-input", "dpop"];
/// What a browser adds by itself, whoever makes it ask.
const KEPT: [&str; 4] = ["basic", "digest", "negotiate", "ntlm"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_leads_whom_it_cannot_speak_for() {
        let led = |fields: &[(&'static str, &'static str)]| {
            let field = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            is_led(&fields.iter().map(field).collect())
        };
        let cross = ("sec-fetch-site", "cross-site");
        assert!(led(&[cross]) && led(&[("sec-fetch-site", "same-site")]));
        assert!(led(&[cross, ("authorization", "basic dTpw"), ("cookie", "a=b")]));
        assert!(
            led(&[cross, ("authorization", "Negotiate x")]) && led(&[cross, ("authorization", "")])
        );
        let own = OWN.map(|name| (name, "k"));
        for own in own.into_iter().chain(["Bearer t", "ApiKey k"].map(|k| ("authorization", k))) {
            assert!(!led(&[cross, own]), "{own:?}");
        }
        for site in ["same-origin", "none", "", "CROSS-SITE"] {
            assert!(!led(&[("sec-fetch-site", site)]), "{site}");
        }
        assert!(!led(&[]) && !led(&[("origin", "https://evil.test")]));
    }
}
