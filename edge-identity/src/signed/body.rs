//! The digest of a body that a signature covers, and the check of the body as it streams by:
//! `Content-Digest` (RFC 9530) and `X-Content-SHA256`.

use std::fmt;

use aws_lc_rs::digest::{self, Context};
use edge_common::Reason;
use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};
use subtle::ConstantTimeEq;

use super::component::combined;
use super::optional;
use crate::hex;

/// The body's digests (RFC 9530, 2).
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// The body's SHA-256 in hex.
pub const X_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-content-sha256");

/// A running comparison of a body with the digests that were declared for it.
pub struct BodyCheck(Vec<(Context, Vec<u8>)>);

impl BodyCheck {
    /// Takes the next part of the body.
    pub fn see(&mut self, part: &[u8]) {
        for (context, _) in &mut self.0 {
            context.update(part);
        }
    }

    /// Whether what was seen is the body that was declared, by every digest.
    #[must_use]
    pub fn holds(self) -> bool {
        self.0
            .into_iter()
            .all(|(context, declared)| context.finish().as_ref().ct_eq(&declared).into())
    }

    fn of(algorithm: &'static digest::Algorithm, declared: Vec<u8>) -> (Context, Vec<u8>) {
        (Context::new(algorithm), declared)
    }

    /// By this SHA-256 alone.
    pub(super) fn sha256(declared: [u8; 32]) -> Self {
        Self(vec![Self::of(&digest::SHA256, declared.to_vec())])
    }

    /// By the `Content-Digest` of these headers; `None` if there is none.
    ///
    /// Digests by other algorithms than SHA-256 and SHA-512 are passed over, as RFC 9530 demands,
    /// but one that is known must be there.
    ///
    /// # Errors
    /// [`Reason::BadSignature`] if it cannot be read or has no digest that is known.
    pub(super) fn content_digest(headers: &HeaderMap) -> Result<Option<Self>, Reason> {
        let Some(text) = combined(headers, &CONTENT_DIGEST) else { return Ok(None) };
        let digests: Dictionary = Parser::new(&text).parse().map_err(|_| Reason::BadSignature)?;
        let mut known = Vec::new();
        for (name, value) in digests {
            let algorithm = match name.as_str() {
                "sha-256" => &digest::SHA256,
                "sha-512" => &digest::SHA512,
                _ => continue,
            };
            let ListEntry::Item(item) = value else { return Err(Reason::BadSignature) };
            let BareItem::ByteSequence(declared) = item.bare_item else {
                return Err(Reason::BadSignature);
            };
            if declared.len() != algorithm.output_len() {
                return Err(Reason::BadSignature);
            }
            known.push(Self::of(algorithm, declared));
        }
        if known.is_empty() { Err(Reason::BadSignature) } else { Ok(Some(Self(known))) }
    }

    /// The SHA-256 that it compares with, if it has one.
    fn declared_sha256(&self) -> Option<[u8; 32]> {
        let sha256 = self.0.iter().find(|(context, _)| *context.algorithm() == digest::SHA256);
        sha256.and_then(|(_, declared)| declared.as_slice().try_into().ok())
    }
}

impl fmt::Debug for BodyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyCheck({})", self.0.len())
    }
}

/// The SHA-256 of the body, as `X-Content-SHA256` or `Content-Digest` declares it; `None` if
/// neither does.
///
/// # Errors
/// [`Reason::BadSignature`] if one cannot be read, or they differ.
pub(super) fn declared_sha256(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Reason> {
    let plain = optional(headers, &X_CONTENT_SHA256)?;
    let plain = plain.map(|text| hex::read_any(text).and_then(|bytes| bytes.try_into().ok()));
    let field = BodyCheck::content_digest(headers)?.map(|check| check.declared_sha256());
    match (plain, field) {
        (None, None) => Ok(None),
        (Some(Some(sha256)), None) | (None, Some(Some(sha256))) => Ok(Some(sha256)),
        (Some(Some(plain)), Some(Some(field))) if plain == field => Ok(Some(plain)),
        _ => Err(Reason::BadSignature),
    }
}

/// The SHA-256 of a whole body, as `X-Content-SHA256` has it.
#[must_use]
pub fn sha256_hex(body: &[u8]) -> String {
    hex::text(digest::digest(&digest::SHA256, body).as_ref())
}
