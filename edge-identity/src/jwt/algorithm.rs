//! The signature algorithms of RFC 7518 and RFC 8037 that are taken, and what each asks of a key.

use aws_lc_rs::signature::{
    self, EcdsaVerificationAlgorithm, RsaParameters, VerificationAlgorithm,
};
use aws_lc_rs::{digest, hmac};

/// An algorithm for JWS. `none` is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of RFC 7518")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    /// Over Ed25519 alone; RFC 9864 calls it so.
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
}

/// What kind of key an algorithm needs. A key's kind is its own, so that a token cannot choose how
/// the key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `kty` RSA.
    Rsa,
    /// `kty` EC.
    Ec(Curve),
    /// `kty` OKP, Ed25519.
    Ed25519,
    /// `kty` oct: a shared secret.
    Secret,
}

/// The curves of RFC 7518 6.2.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

use Algorithm::{
    EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512,
};

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 13] =
        [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512, Es256, Es384, Es512, EdDsa, Hs256, Hs384, Hs512];

    /// The algorithm with this name in a header; `Ed25519` is another name of `EdDSA`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == "Ed25519" {
            return Some(EdDsa);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Its name in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Rs256 => "RS256",
            Rs384 => "RS384",
            Rs512 => "RS512",
            Ps256 => "PS256",
            Ps384 => "PS384",
            Ps512 => "PS512",
            Es256 => "ES256",
            Es384 => "ES384",
            Es512 => "ES512",
            EdDsa => "EdDSA",
            Hs256 => "HS256",
            Hs384 => "HS384",
            Hs512 => "HS512",
        }
    }

    /// The kind of key that it needs.
    pub(super) const fn kind(self) -> Kind {
        match self {
            Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512 => Kind::Rsa,
            Es256 => Kind::Ec(Curve::P256),
            Es384 => Kind::Ec(Curve::P384),
            Es512 => Kind::Ec(Curve::P521),
            EdDsa => Kind::Ed25519,
            Hs256 | Hs384 | Hs512 => Kind::Secret,
        }
    }

    /// Whether whoever can verify can sign as well.
    #[must_use]
    pub const fn is_symmetric(self) -> bool {
        matches!(self.kind(), Kind::Secret)
    }

    /// How RSA verifies under it; `None` for other kinds.
    pub(super) const fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    /// How shared secrets verify under it; `None` for other kinds.
    pub(super) const fn hmac(self) -> Option<hmac::Algorithm> {
        Some(match self {
            Hs256 => hmac::HMAC_SHA256,
            Hs384 => hmac::HMAC_SHA384,
            Hs512 => hmac::HMAC_SHA512,
            _ => return None,
        })
    }

    /// Bytes that a secret needs at the least: as many as the digest has (RFC 7518 3.2).
    pub(super) fn secret_bytes_min(self) -> usize {
        self.hmac().map_or(0, |hmac| hmac.digest_algorithm().output_len())
    }
}

impl Curve {
    /// The curve with this name in a key.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521].into_iter().find(|curve| curve.name() == name)
    }

    /// Its name in a key.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(super) const fn ecdsa(self) -> (Algorithm, &'static EcdsaVerificationAlgorithm) {
        match self {
            Self::P256 => (Es256, &signature::ECDSA_P256_SHA256_FIXED),
            Self::P384 => (Es384, &signature::ECDSA_P384_SHA384_FIXED),
            Self::P521 => (Es512, &signature::ECDSA_P521_SHA512_FIXED),
        }
    }
}

/// How Ed25519 verifies.
pub(super) fn ed25519() -> &'static dyn VerificationAlgorithm {
    &signature::ED25519
}

/// SHA-256 of bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
