//! The edge's own scheme, in headers: `X-Signature: v1=...` over the whole request, and `v0=...`
//! over the body alone, as simple clients compute it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge_common::Reason;
use http::HeaderName;
use percent_encoding::percent_decode_str;

use super::body::{BodyCheck, declared_sha256, sha256_hex};
use super::{Fresh, Message, Once, Policy, Proven, Verifier, only};
use crate::hex;

/// The scheme and the signature.
pub const X_SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// When the request was signed, in unix seconds.
pub const X_TIMESTAMP: HeaderName = HeaderName::from_static("x-timestamp");

/// What tells a request from all others of its key.
pub const X_NONCE: HeaderName = HeaderName::from_static("x-nonce");

/// What such a signature claims.
#[derive(Debug)]
pub(super) enum Claim {
    V1 {
        signature: Vec<u8>,
        timestamp: String,
        nonce: String,
        sha256: Option<[u8; 32]>,
        time: Fresh,
    },
    V0 {
        signature: Vec<u8>,
        time: Fresh,
    },
}

impl Claim {
    pub(super) fn signature(&self) -> &[u8] {
        match self {
            Self::V1 { signature, .. } | Self::V0 { signature, .. } => signature,
        }
    }

    pub(super) fn read(message: &Message<'_>, policy: &Policy, now_s: u64) -> Result<Self, Reason> {
        let headers = message.headers;
        let value = only(headers, &X_SIGNATURE)?;
        let (version, value) = value.split_once('=').unwrap_or(("v0", value));
        let signature = decode(value).ok_or(Reason::BadSignature)?;
        let timestamp = only(headers, &X_TIMESTAMP)?;
        let time = policy.fresh(seconds(timestamp)?, now_s)?;
        match version {
            "v0" if policy.v0 => Ok(Self::V0 { signature, time }),
            "v1" if policy.v1 => {
                let (nonce, sha256) = (only(headers, &X_NONCE)?, declared_sha256(headers)?);
                if !is_nonce(nonce) || message.has_body && sha256.is_none() {
                    return Err(Reason::BadSignature);
                }
                let (timestamp, nonce) = (timestamp.to_owned(), nonce.to_owned());
                Ok(Self::V1 { signature, timestamp, nonce, sha256, time })
            }
            _ => Err(Reason::BadSignature),
        }
    }

    pub(super) fn prove(
        self,
        message: &Message<'_>,
        key_id: &str,
        verifier: &Verifier<'_>,
        body: &[u8],
    ) -> Result<Proven, Reason> {
        match self {
            Self::V0 { signature, time } => {
                if !verifier.verifies(body, &signature) {
                    return Err(Reason::BadSignature);
                }
                let once = Once::new(b'0', key_id, body_name(body).as_bytes(), time);
                Ok(Proven { once, body: None })
            }
            Self::V1 { signature, timestamp, nonce, sha256, time } => {
                let digest = sha256.map_or_else(|| sha256_hex(b""), |sha256| hex::text(&sha256));
                let signed = canonical(message, &timestamp, &nonce, &digest, key_id);
                if !verifier.verifies(signed.as_bytes(), &signature) {
                    return Err(Reason::BadSignature);
                }
                let once = Once::new(b'n', key_id, nonce.as_bytes(), time);
                Ok(Proven { once, body: sha256.map(BodyCheck::sha256) })
            }
        }
    }
}

/// The text that a `v1` signature signs, a part a line; `sha256` is that of the body in hex.
///
/// No part can hold a line feed, so the parts can be told from the text: what differs in any of
/// them signs differently.
#[must_use]
pub fn canonical(
    message: &Message<'_>,
    timestamp: &str,
    nonce: &str,
    sha256: &str,
    key_id: &str,
) -> String {
    let (method, authority, target) = (message.method, message.authority(), message.target);
    let query = target.query.as_deref().map(sorted).unwrap_or_default();
    let mut text = String::with_capacity(256 + target.path.len() + query.len());
    let path = &target.path;
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "v1\n{method}\n{authority}\n{path}\n{query}\n{timestamp}\n{nonce}\n{sha256}\n{key_id}"
    );
    text
}

/// The pairs of a query in the order of their names; those of one name stay in theirs, because
/// that order has a meaning.
fn sorted(query: &str) -> String {
    let name = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default().replace('+', " ");
        percent_decode_str(&name).collect::<Vec<u8>>()
    };
    let mut pairs: Vec<_> = query.split('&').collect();
    if pairs.len() > 1 {
        pairs.sort_by_cached_key(name);
    }
    pairs.join("&")
}

/// Hex, or base64url without padding. A signature in base64url is never hex throughout: the
/// shortest has 43 characters, which is odd, and the next 86.
fn decode(text: &str) -> Option<Vec<u8>> {
    hex::read_any(text).or_else(|| URL_SAFE_NO_PAD.decode(text).ok())
}

fn seconds(text: &str) -> Result<u64, Reason> {
    let digits = text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(Reason::BadSignature)
}

fn is_nonce(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (16..=128).contains(&text.len()) && text.bytes().all(fits)
}

/// An algorithm may make many signatures of one body: it is the body that comes once.
fn body_name(body: &[u8]) -> String {
    sha256_hex(body)
}
