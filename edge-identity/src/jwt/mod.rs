//! JSON Web Tokens: strict parsing, verification by an issuer's keys, and judgement.
//!
//! A token passes in this order, and the first check that fails answers: form (401), signature
//! (401), times (401), denylist (401), what the sender must prove (401), audience (403). Scopes
//! (403) are the route's affair. The key's kind fixes the algorithm; nothing that a token brings
//! along chooses or replaces a key.

mod algorithm;
pub mod cache;
mod claims;
pub mod denylist;
pub mod dpop;
mod issuer;
mod json;
mod jwk;
mod jwks;
mod jws;
pub(crate) mod rsa;

#[cfg(test)]
mod tests;

use edge_common::Reason;

pub use algorithm::Algorithm;
pub use claims::{Claims, Confirmation};
pub use issuer::{Issuer, Presented, Profile, Unverified, Verified};
pub use jwk::{KeyFault, KeyName, VerifyingKey};
pub use jwks::{KEYS_MAX, KeySet, NAMELESS_MAX, SetFault};
pub use jws::{Header, Jws};

/// The digest of a certificate, as `x5t#S256` of a token has it (RFC 8705 3.1); `der` is the whole.
#[must_use]
pub fn certificate_digest(der: &[u8]) -> [u8; 32] {
    algorithm::sha256(der)
}

/// Why a token is refused. For counters and logs; the client learns no more than RFC 6750 demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Longer than the bound.
    Size,
    /// Not three parts.
    Form,
    /// Not base64url in its one spelling.
    Base64,
    /// Not one JSON object, a member twice, or nested too deeply.
    Json,
    /// A member of the header is missing or of a wrong type.
    Header,
    /// The header demands what is not understood: `crit`, `b64`, `enc`, `zip`.
    Critical,
    /// The algorithm is unknown, not taken of this issuer, or not for this key.
    Algorithm,
    /// `typ` says that it is something else.
    Type,
    /// No such issuer.
    Issuer,
    /// None of the issuer's keys is meant.
    Key,
    /// None of those is meant that are known, and the issuer was not asked since the token came.
    KeyUnasked,
    /// The signature is not the key's.
    Signature,
    /// A claim is missing or of a wrong type.
    Claims,
    /// `exp` is past.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYet,
    /// It is good for longer than may be.
    Lifetime,
    /// An operator denied it.
    Revoked,
    /// The sender did not prove what the token is bound to.
    Sender,
    /// The DPoP proof is not good for this request and token.
    Proof,
    /// The DPoP proof must have a fresh nonce of ours.
    ProofNonce,
    /// The DPoP proof was seen before, or there is no room to remember it.
    ProofReplayed,
    /// It is meant for somebody else.
    Audience,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 22] = [
        Self::Size,
        Self::Form,
        Self::Base64,
        Self::Json,
        Self::Header,
        Self::Critical,
        Self::Algorithm,
        Self::Type,
        Self::Issuer,
        Self::Key,
        Self::KeyUnasked,
        Self::Signature,
        Self::Claims,
        Self::Expired,
        Self::NotYet,
        Self::Lifetime,
        Self::Revoked,
        Self::Sender,
        Self::Proof,
        Self::ProofNonce,
        Self::ProofReplayed,
        Self::Audience,
    ];

    /// The word for it in metrics and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Form => "form",
            Self::Base64 => "base64",
            Self::Json => "json",
            Self::Header => "header",
            Self::Critical => "critical",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::Issuer => "issuer",
            Self::Key => "unknown_key",
            Self::KeyUnasked => "unasked_key",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Lifetime => "lifetime",
            Self::Revoked => "revoked",
            Self::Sender => "sender",
            Self::Proof => "proof",
            Self::ProofNonce => "proof_nonce",
            Self::ProofReplayed => "proof_replayed",
            Self::Audience => "audience",
        }
    }

    /// The reason that the request ends for.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::KeyUnasked => Reason::TokenKeyUnknown,
            Self::Expired => Reason::CredentialExpired,
            Self::Revoked => Reason::CredentialRevoked,
            Self::Sender | Self::Proof => Reason::TokenUnproved,
            Self::ProofNonce => Reason::ProofNonce,
            Self::ProofReplayed => Reason::Replayed,
            Self::Audience => Reason::TokenAudience,
            _ => Reason::CredentialInvalid,
        }
    }
}
