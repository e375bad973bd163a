//! With what a request is signed and verified: public keys, and secrets that are derived.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::{hkdf, hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::pem;
use crate::jwt::rsa;

/// How requests are signed, by the names of RFC 9421, 6.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Algorithm {
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    #[serde(rename = "ed25519")]
    Ed25519,
    #[serde(rename = "ecdsa-p256-sha256")]
    EcdsaP256Sha256,
    #[serde(rename = "ecdsa-p384-sha384")]
    EcdsaP384Sha384,
    #[serde(rename = "rsa-pss-sha512")]
    RsaPssSha512,
    #[serde(rename = "rsa-v1_5-sha256")]
    RsaV1_5Sha256,
}

impl Algorithm {
    /// Those of public keys.
    pub const PUBLIC: [Self; 5] = [
        Self::Ed25519,
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::RsaPssSha512,
        Self::RsaV1_5Sha256,
    ];

    /// The name in the registry.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV1_5Sha256 => "rsa-v1_5-sha256",
        }
    }

    /// How a signature of a public key is verified; a shared secret has another way.
    fn verification(self) -> Option<&'static dyn signature::VerificationAlgorithm> {
        Some(match self {
            Self::HmacSha256 => return None,
            Self::Ed25519 => &signature::ED25519,
            Self::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::RsaPssSha512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::RsaV1_5Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        })
    }
}

/// A public key, with the one algorithm that it is for. Wherever it is read from, it is a good one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct PublicKey {
    algorithm: Algorithm,
    /// Ed25519: 32 bytes; ECDSA: the uncompressed point; RSA: an `RSAPublicKey`.
    #[serde(serialize_with = "write_base64")]
    key: Vec<u8>,
}

/// A public key as it is written; nothing is known of it.
#[derive(Deserialize)]
struct Written {
    algorithm: Algorithm,
    #[serde(deserialize_with = "read_base64")]
    key: Vec<u8>,
}

impl TryFrom<Written> for PublicKey {
    type Error = String;

    fn try_from(Written { algorithm, key }: Written) -> Result<Self, String> {
        Self::new(algorithm, &key).map_err(|fault| format!("the public key {fault}"))
    }
}

/// Why a file is no public key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// There is no `PUBLIC KEY` in it.
    NotPem,
    /// What is in it is a private key.
    Private,
    /// It is of a kind that no algorithm here is for.
    Kind,
    /// It is of another kind than the algorithm that was asked for.
    Algorithm,
    /// It is an RSA key of less than 2048 or more than 8192 bits, with a weak exponent, or made by a
    /// broken generator.
    Weak,
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPem => "has no 'BEGIN PUBLIC KEY' block (openssl pkey -pubout makes one)",
            Self::Private => "is a private key: keep it, and give the public one",
            Self::Kind => "is neither Ed25519 nor ECDSA P-256 or P-384 nor RSA",
            Self::Algorithm => "is not a key for that algorithm",
            Self::Weak => {
                "is an RSA key of less than 2048 bits, of more than 8192, with a weak exponent or weakly \
                 made"
            }
        })
    }
}

impl std::error::Error for KeyFault {}

impl PublicKey {
    /// Reads a `PUBLIC KEY` block. An RSA key serves two algorithms, and is for RSA-PSS unless the
    /// other is asked for.
    ///
    /// # Errors
    /// If it cannot be used, or not for `algorithm`.
    pub fn from_pem(text: &str, algorithm: Option<Algorithm>) -> Result<Self, KeyFault> {
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyFault::Private);
        }
        let der = pem::pem(text, "PUBLIC KEY").ok_or(KeyFault::NotPem)?;
        let spki = pem::spki(&der).ok_or(KeyFault::Kind)?;
        let own = match (spki.algorithm, spki.parameters) {
            (ED25519, []) => Algorithm::Ed25519,
            (EC, P256) => Algorithm::EcdsaP256Sha256,
            (EC, P384) => Algorithm::EcdsaP384Sha384,
            (RSA, _) if algorithm == Some(Algorithm::RsaV1_5Sha256) => Algorithm::RsaV1_5Sha256,
            (RSA | RSA_PSS, _) => Algorithm::RsaPssSha512,
            _ => return Err(KeyFault::Kind),
        };
        if algorithm.is_some_and(|asked| asked != own) {
            return Err(KeyFault::Algorithm);
        }
        Self::new(own, spki.key)
    }

    /// A key as its algorithm has it, if that is a good one.
    fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyFault> {
        if matches!(algorithm, Algorithm::RsaPssSha512 | Algorithm::RsaV1_5Sha256) {
            let (modulus, exponent) = pem::rsa(key).ok_or(KeyFault::Kind)?;
            rsa::check(modulus, exponent).map_err(|_| KeyFault::Weak)?;
        }
        let verification = algorithm.verification().ok_or(KeyFault::Kind)?;
        signature::ParsedPublicKey::new(verification, key).map_err(|_| KeyFault::Kind)?;
        Ok(Self { algorithm, key: key.to_vec() })
    }

    /// The one algorithm that it is for.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// How the holder of a key signs. Such a key is good for signed requests only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signing {
    /// With a secret that is derived from the master secret of this name.
    Derived(String),
    /// With the private key of this public one.
    Public(PublicKey),
}

impl Signing {
    /// The one algorithm by which it signs.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Derived(_) => Algorithm::HmacSha256,
            Self::Public(key) => key.algorithm,
        }
    }

    /// What verifies the signatures of the key with this id; `None` if its master secret is gone.
    #[must_use]
    pub fn verifier(&self, masters: &Masters, key_id: &str) -> Option<Verifier<'_>> {
        match self {
            Self::Derived(master) => {
                masters.key(master, key_id).map(Box::new).map(Verifier::Secret)
            }
            Self::Public(key) => Some(Verifier::Public(key)),
        }
    }
}

/// What verifies signatures.
pub enum Verifier<'a> {
    /// A shared secret.
    Secret(Box<hmac::Key>),
    /// A public key.
    Public(&'a PublicKey),
}

impl Verifier<'_> {
    /// The one algorithm that the key is for.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Secret(_) => Algorithm::HmacSha256,
            Self::Public(key) => key.algorithm,
        }
    }

    /// Whether the signature is the key's, of these bytes. A shared secret's is compared in
    /// constant time.
    #[must_use]
    pub fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Secret(key) => hmac::verify(key, signed, signature).is_ok(),
            Self::Public(PublicKey { algorithm, key }) => {
                algorithm.verification().is_some_and(|v| {
                    signature::UnparsedPublicKey::new(v, key).verify(signed, signature).is_ok()
                })
            }
        }
    }
}

impl fmt::Debug for Verifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.algorithm().name())
    }
}

/// The master secrets, from which those of keys are derived: the one that new keys use, and those
/// before it. They lie outside the store, which therefore holds no secret.
#[derive(Default)]
pub struct Masters {
    current: Option<String>,
    /// By its name: the HKDF key that was extracted from it.
    known: BTreeMap<String, hkdf::Prk>,
}

impl Masters {
    /// The first is the current one.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let known: Vec<_> =
            secrets.into_iter().map(|secret| (name(secret), extract(secret))).collect();
        let current = known.first().map(|(name, _)| name.clone());
        Self { current, known: known.into_iter().collect() }
    }

    /// The name of the one that new keys use, which tells nothing of it.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// Whether the one of this name is known.
    #[must_use]
    pub fn knows(&self, master: &str) -> bool {
        self.known.contains_key(master)
    }

    /// The secret of a key that is not there.
    pub(super) fn decoy(&self, key_id: &str) -> Option<Verifier<'_>> {
        self.key(self.current()?, key_id).map(Box::new).map(Verifier::Secret)
    }

    /// The secret of a key, for its owner.
    #[must_use]
    pub fn secret(&self, master: &str, key_id: &str) -> Option<Zeroizing<[u8; 32]>> {
        let mut secret = Zeroizing::new([0; 32]);
        self.expand(master, &[LABEL, key_id.as_bytes()], |okm| okm.fill(&mut *secret).ok())?;
        Some(secret)
    }

    /// The same secret, as what verifies.
    fn key(&self, master: &str, key_id: &str) -> Option<hmac::Key> {
        self.expand(master, &[LABEL, key_id.as_bytes()], |okm| Some(okm.into()))
    }

    /// HKDF-Expand (RFC 5869, 2.3) of the master secret's key.
    fn expand<T>(
        &self,
        master: &str,
        info: &[&[u8]],
        take: impl FnOnce(hkdf::Okm<'_, hmac::Algorithm>) -> Option<T>,
    ) -> Option<T> {
        take(self.known.get(master)?.expand(info, hmac::HMAC_SHA256).ok()?)
    }
}

impl fmt::Debug for Masters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Masters({} masked)", self.known.len())
    }
}

/// HKDF-Extract (RFC 5869, 2.2), done once and not for every request.
fn extract(secret: &[u8]) -> hkdf::Prk {
    let salt = hmac::Key::new(hmac::HMAC_SHA256, SALT);
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, hmac::sign(&salt, secret).as_ref())
}

fn name(secret: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, NAME);
    tag.as_ref()[..NAME_BYTES]
        .iter()
        .fold(String::new(), |name, byte| name + &format!("{byte:02x}"))
}

fn write_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn read_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
}

/// Object identifiers without tag and length, but where they are parameters.
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

const SALT: &[u8] = b"edged request signing 1";
/// A key's id follows; it is the only part of variable length.
const LABEL: &[u8] = b"edged signing secret 1:";
const NAME: &[u8] = b"edged master secret name 1";
const NAME_BYTES: usize = 6;
