//! A refusal, and the one place that turns it into an answer.

use std::sync::Arc;

use edge_common::Reason;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use serde::Serialize;

use crate::auth::{Challenge, Methods};
use crate::limit::{Standing, retry_after_s};

/// Why a request is not served, and what its sender may know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Why; for the counters and the log, never for the client.
    pub reason: Reason,
    /// When to try again, from now; of a limit that was hit, `None` is never.
    pub wait_ns: Option<u64>,
    /// The limit that it hit.
    pub hit: Option<Box<Hit>>,
    /// What the route takes instead, for [`Reason::MethodNotAllowed`].
    pub allow: Vec<Method>,
    /// How the caller may prove who it is, for a 401; what its token lacks, for a 403.
    pub challenge: Challenge,
}

/// A limit that was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its name; for the log, never for the client.
    pub limit: Arc<str>,
    /// Where the caller stands within it.
    pub standing: Standing,
}

impl Denied {
    /// A refusal that tells no more than its status.
    #[must_use]
    pub const fn new(reason: Reason) -> Self {
        let challenge = Challenge::of(Methods::NONE);
        Self { reason, wait_ns: None, hit: None, allow: Vec::new(), challenge }
    }
}

impl From<Reason> for Denied {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

/// The status of the answer to a request that ended for this reason.
#[must_use]
pub const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::Serve => StatusCode::OK,
        Reason::Redirect => StatusCode::PERMANENT_REDIRECT,
        Reason::MalformedRequest
        | Reason::CredentialInUrl
        | Reason::ForwardingInvalid
        | Reason::CredentialInClear => StatusCode::BAD_REQUEST,
        Reason::Preflight => StatusCode::NO_CONTENT,
        Reason::CredentialMissing
        | Reason::CredentialInvalid
        | Reason::CredentialExpired
        | Reason::CredentialRevoked
        | Reason::CredentialUnfit
        | Reason::BadSignature
        | Reason::StaleSignature
        | Reason::Replayed
        | Reason::BodyDigest
        | Reason::CredentialExposed
        | Reason::TokenUnproved
        | Reason::TokenKeyUnknown
        | Reason::CanaryKey
        | Reason::ProofNonce => StatusCode::UNAUTHORIZED,
        Reason::NotPermitted
        | Reason::BannedRequest
        | Reason::CertificateRequired
        | Reason::PreflightRefused
        | Reason::CrossSite
        | Reason::OriginMismatch
        | Reason::CsrfToken
        | Reason::KeyNetwork
        | Reason::KeyPlace
        | Reason::TokenAudience => StatusCode::FORBIDDEN,
        Reason::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
        Reason::NoRoute | Reason::DecoyPath => StatusCode::NOT_FOUND,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        // A client that went away gets no answer; this is what the access log shows for it.
        Reason::RequestTimeout
        | Reason::BodyTooSlow
        | Reason::AnswerNotTaken
        | Reason::ClientGone => StatusCode::REQUEST_TIMEOUT,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::UriTooLong => StatusCode::URI_TOO_LONG,
        Reason::SourceRate
        | Reason::KeyRate
        | Reason::GlobalRate
        | Reason::RequestLimit
        | Reason::Throttled => StatusCode::TOO_MANY_REQUESTS,
        Reason::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::UpstreamUnreachable | Reason::UpstreamInvalid => StatusCode::BAD_GATEWAY,
        Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::Overload
        | Reason::ConnectionsFull
        | Reason::StreamsFull
        | Reason::MemoryFull
        | Reason::NoncesFull
        | Reason::UpstreamUnhealthy
        | Reason::UpstreamBusy
        | Reason::CircuitOpen
        | Reason::IssuerUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        // Reasons of the packet and connection planes never end a request.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer to a refused request: a problem document (RFC 9457) that tells the status, the
/// request id and nothing of the reason behind it.
#[must_use]
pub fn problem(denied: &Denied, request_id: &str) -> Response<Vec<u8>> {
    let status = status(denied.reason);
    let mut answer = page(status, request_id);
    let headers = answer.headers_mut();
    for challenge in denied.challenge.values().flatten() {
        headers.append(WWW_AUTHENTICATE, challenge);
    }
    let nonce = denied.challenge.token.as_ref().and_then(|token| token.nonce.as_deref());
    if let Some(Ok(nonce)) = nonce.map(HeaderValue::from_str) {
        headers.insert(DPOP_NONCE, nonce);
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, allow(&denied.allow));
    }
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        // What costs more than the limit ever has is not told to come again.
        let soon = denied.hit.is_none().then_some(0);
        if let Some(wait_ns) = denied.wait_ns.or(soon) {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s(wait_ns)));
        }
    }
    answer
}

/// A problem document that tells a status and the request id, and nothing else.
#[must_use]
pub fn page(status: StatusCode, request_id: &str) -> Response<Vec<u8>> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = Problem { kind: "about:blank", title, status: status.as_u16(), request_id };
    let body = serde_json::to_vec(&body).expect("strings and a number always serialize");
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/problem+json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    request_id: &'a str,
}

fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).expect("a method is a token")
}

#[cfg(test)]
mod tests {
    use edge_common::{Blame, Plane};

    use super::*;
    use crate::auth::{Method as AuthMethod, PresentedToken, TokenError};
    use crate::limit::standing::Left;

    fn shown(reason: Reason) -> (u16, String) {
        let answer = problem(&Denied::new(reason), "r-1");
        (answer.status().as_u16(), String::from_utf8(answer.into_body()).unwrap())
    }

    #[test]
    fn every_refusal_of_a_request_has_a_fitting_status() {
        for reason in Reason::ALL.iter().filter(|r| r.plane() == Plane::Request) {
            let status = status(*reason);
            match reason.blame() {
                Blame::Client => assert!(status.is_client_error(), "{reason:?}"),
                Blame::Upstream => assert!(status.is_server_error(), "{reason:?}"),
                Blame::Edge | Blame::Nobody => {}
            }
        }
        assert_eq!(status(Reason::InternalError), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(status(Reason::GlobalRate), StatusCode::TOO_MANY_REQUESTS);
    }

    /// With what the route takes and, where a token came, that it is no good: all that there is to say.
    fn failed(reason: Reason, error: Option<TokenError>) -> (u16, Vec<String>, Vec<u8>) {
        let methods = Methods::from_iter([AuthMethod::Key, AuthMethod::Jwt]);
        let token = error.map(|_| Box::new(PresentedToken::default()));
        let challenge = Challenge { error, token, ..Challenge::of(methods) };
        let answer = problem(&Denied { challenge, ..Denied::new(reason) }, "r-1");
        let headers = answer.headers().iter().map(|(name, value)| format!("{name}: {value:?}"));
        (answer.status().as_u16(), headers.collect(), answer.into_body())
    }

    #[test]
    fn all_failed_credentials_look_the_same() {
        let missing = shown(Reason::CredentialMissing);
        assert_eq!(missing.0, 401);
        let document =
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"request_id":"r-1"}"#;
        assert_eq!(missing.1, document);
        let failures: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| reason.plane() == Plane::Request)
            .filter(|reason| status(**reason) == StatusCode::UNAUTHORIZED)
            .collect();
        assert_eq!(failures.len(), 14, "{failures:?}");
        for error in [None, Some(TokenError::InvalidToken)] {
            let expected = failed(Reason::CredentialInvalid, error);
            for reason in &failures {
                assert_eq!(shown(**reason), missing);
                assert_eq!(failed(**reason, error), expected, "{reason:?}");
            }
        }
    }

    #[test]
    fn no_answer_names_its_reason() {
        for reason in Reason::ALL.iter().filter(|r| r.plane() == Plane::Request) {
            let body = shown(*reason).1;
            assert!(!body.contains(reason.name()) && !body.contains(reason.meaning()), "{body}");
        }
    }

    #[test]
    fn each_status_carries_the_headers_it_needs() {
        let denied = |reason| problem(&Denied::new(reason), "r");
        let challenge = Challenge::of(Methods::from_iter(AuthMethod::ALL));
        let missing = Denied { challenge, ..Denied::new(Reason::CredentialMissing) };
        let missing = problem(&missing, "r");
        assert_eq!(missing.headers()["www-authenticate"], r#"ApiKey realm="edged""#);
        assert_eq!(missing.headers().get_all("www-authenticate").iter().count(), 4);
        assert_eq!(missing.headers()["content-type"], "application/problem+json");
        assert_eq!(denied(Reason::Overload).headers()["retry-after"], "1");
        assert!(!denied(Reason::NoRoute).headers().contains_key("retry-after"));
        let allow = vec![Method::GET, Method::HEAD];
        let wrong = Denied { allow, ..Denied::new(Reason::MethodNotAllowed) };
        assert_eq!(problem(&wrong, "r").headers()["allow"], "GET, HEAD");
        let wait_ns = Some(1_500_000_000);
        let limited = Denied { wait_ns, ..Denied::new(Reason::KeyRate) };
        let answer = problem(&limited, "r");
        assert_eq!(answer.headers()["retry-after"], "2");
        let left = Left { limit: 3, remaining: 3, reset_ns: 0 };
        let standing = Standing { left, window_s: Some(1) };
        let hit = Some(Box::new(Hit { limit: "a".into(), standing }));
        let never = Denied { hit, ..Denied::new(Reason::RequestLimit) };
        assert!(!problem(&never, "r").headers().contains_key("retry-after"));
    }

    #[test]
    fn a_request_id_cannot_break_out_of_the_document() {
        let answer = problem(&Denied::new(Reason::NoRoute), "a\"},{\"");
        let read: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(read["request_id"], "a\"},{\"");
    }
}
