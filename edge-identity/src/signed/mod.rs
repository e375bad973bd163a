//! Signed requests: what a request's signature claims, and whether that holds.
//!
//! [`read`] looks at the head alone: which key signed, when, over what. The caller finds the key,
//! and [`Claimed::prove`] says whether the signature is the key's. What is proved may be used once:
//! the caller remembers [`Proven::once`] until it has gone stale by itself. The body is checked
//! while it streams, against the digest that the signature covers.
//!
//! `docs/signed-requests.md` specifies the schemes.

mod body;
mod component;
mod decoy;
mod fields;
mod headers;
mod key;
mod pem;
#[cfg(test)]
mod tests;

use edge_common::Reason;
use edge_policy::head::Host;
use edge_policy::target::Target;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

pub use self::body::{BodyCheck, CONTENT_DIGEST, X_CONTENT_SHA256, sha256_hex};
pub use self::fields::{SIGNATURE, SIGNATURE_INPUT, base};
pub use self::headers::{X_NONCE, X_SIGNATURE, X_TIMESTAMP, canonical};
pub use self::key::{Algorithm, KeyFault, Masters, PublicKey, Signing, Verifier};
pub use self::pem::pem;

/// What is signed of a request: the same normal parts that are routed and sent upstream.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The method.
    pub method: &'a Method,
    /// The host.
    pub host: &'a Host,
    /// Path and query.
    pub target: &'a Target,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// Whether a body follows.
    pub has_body: bool,
}

impl Message<'_> {
    /// The host in lower case, and its port unless it is that of HTTPS.
    #[must_use]
    pub fn authority(&self) -> String {
        let Host { name, port } = self.host;
        match port {
            None | Some(HTTPS_PORT) => name.clone(),
            Some(port) => format!("{name}:{port}"),
        }
    }
}

/// Which signatures are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether [RFC 9421](https://www.rfc-editor.org/rfc/rfc9421) signatures are taken.
    pub rfc9421: bool,
    /// Whether `X-Signature: v1=` is taken.
    pub v1: bool,
    /// Whether `X-Signature: v0=` is taken, which covers the body alone.
    pub v0: bool,
    /// How old a signature may be, in seconds.
    pub window_s: u64,
    /// How far ahead of ours a signer's clock may be, in seconds.
    pub leeway_s: u64,
    /// Whether an RFC 9421 signature must have a nonce.
    pub nonce: bool,
    /// The one label that is looked at; `None`: there must be one signature and no other.
    pub label: Option<String>,
    /// What the `tag` of a signature must be.
    pub tag: Option<String>,
    /// Headers that an RFC 9421 signature must cover where a request has them.
    pub cover: Vec<HeaderName>,
}

impl Policy {
    /// Whether a signature of this time is fresh now.
    ///
    /// # Errors
    /// [`Reason::StaleSignature`] if not.
    fn fresh(&self, signed_s: u64, now_s: u64) -> Result<Fresh, Reason> {
        let until_s = signed_s.saturating_add(self.window_s);
        if signed_s > now_s.saturating_add(self.leeway_s) || until_s < now_s {
            return Err(Reason::StaleSignature);
        }
        Ok(Fresh { signed_s, until_s })
    }
}

/// When something was signed, and until when it is fresh, in unix seconds.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    signed_s: u64,
    until_s: u64,
}

/// What must not come twice, and until when, in unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// Who signed it, by any name that nobody else has.
    pub by: String,
    /// What tells it from everything else that comes once.
    pub name: Vec<u8>,
    /// When it was signed, in unix seconds.
    pub signed_s: u64,
    /// When it is refused as stale anyway.
    pub until_s: u64,
}

impl Once {
    /// A DPoP proof of this caller, by the proof's identity; times in unix seconds.
    #[must_use]
    pub fn proof(by: String, id: &[u8; 32], signed_s: u64, until_s: u64) -> Self {
        Self { by, name: [&b"p"[..], id].concat(), signed_s, until_s }
    }

    /// `name` is unambiguous: the kind is one byte, and a key's id holds no zero.
    fn new(kind: u8, key_id: &str, what: &[u8], time: Fresh) -> Self {
        let name = [&[kind], key_id.as_bytes(), &[0], what].concat();
        Self { by: key_id.to_owned(), name, signed_s: time.signed_s, until_s: time.until_s }
    }
}

/// What a signature proved.
#[derive(Debug)]
pub struct Proven {
    /// What makes it good for one request.
    pub once: Once,
    /// What the body must be; `None` if there is none, or it was proved already.
    pub body: Option<BodyCheck>,
}

/// What a request's signature claims; nothing of it is proved.
#[derive(Debug)]
pub struct Claimed(Scheme);

#[derive(Debug)]
enum Scheme {
    Fields(fields::Claim),
    Headers(headers::Claim),
}

/// Reads the signature of a request that has one, and looks at whatever needs no key.
///
/// # Errors
/// [`Reason::StaleSignature`], or [`Reason::BadSignature`] if it is malformed, ambiguous, of a scheme
/// that is not taken or covers less than it must.
pub fn read(message: &Message<'_>, policy: &Policy, now_s: u64) -> Result<Claimed, Reason> {
    let has = |name: &HeaderName| message.headers.contains_key(name);
    let scheme = match (has(&X_SIGNATURE), has(&SIGNATURE) || has(&SIGNATURE_INPUT)) {
        (true, false) => Scheme::Headers(headers::Claim::read(message, policy, now_s)?),
        (false, true) if policy.rfc9421 => {
            Scheme::Fields(fields::Claim::read(message, policy, now_s)?)
        }
        _ => return Err(Reason::BadSignature),
    };
    Ok(Claimed(scheme))
}

impl Claimed {
    /// The id of the signing key, where the signature names it. Elsewhere `X-API-Key` does.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match &self.0 {
            Scheme::Fields(claim) => Some(claim.key_id()),
            Scheme::Headers(_) => None,
        }
    }

    /// What verifies nothing in the place of a key that is not there, and takes as long.
    #[must_use]
    pub fn decoy<'a>(&self, masters: &'a Masters, key_id: &str) -> Option<Verifier<'a>> {
        let (claimed, signature) = match &self.0 {
            Scheme::Fields(claim) => claim.by(),
            Scheme::Headers(claim) => (None, claim.signature()),
        };
        decoy::verifier(masters, key_id, claimed, signature)
    }

    /// Whether the signature is of the body, so that nothing is proved before all of it is there.
    #[must_use]
    pub fn needs_body(&self) -> bool {
        matches!(&self.0, Scheme::Headers(headers::Claim::V0 { .. }))
    }

    /// Proves the signature with the key of this id. `body` is all of it if [`Self::needs_body`].
    ///
    /// # Errors
    /// [`Reason::BadSignature`], or [`Reason::BodyDigest`] if there is no body and one was signed.
    pub fn prove(
        self,
        message: &Message<'_>,
        key_id: &str,
        verifier: &Verifier<'_>,
        body: &[u8],
    ) -> Result<Proven, Reason> {
        let mut proven = match self.0 {
            Scheme::Fields(claim) => claim.prove(key_id, verifier)?,
            Scheme::Headers(claim) => claim.prove(message, key_id, verifier, body)?,
        };
        // A body that never comes is known now.
        if !message.has_body && proven.body.take().is_some_and(|check| !check.holds()) {
            return Err(Reason::BodyDigest);
        }
        Ok(proven)
    }
}

/// The value of a header that must come once, be text and not be empty.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Reason> {
    optional(headers, name)?.ok_or(Reason::BadSignature)
}

/// As [`only`], of a header that may be missing.
fn optional<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Reason> {
    let mut values = headers.get_all(name).iter();
    let text =
        |value: &'a HeaderValue| value.to_str().ok().map(str::trim).filter(|v| !v.is_empty());
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => text(value).map(Some).ok_or(Reason::BadSignature),
        (Some(_), Some(_)) => Err(Reason::BadSignature),
    }
}

const HTTPS_PORT: u16 = 443;
