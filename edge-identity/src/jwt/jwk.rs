//! One key that verifies tokens: from a JWK (RFC 7517), a PEM block or a secret, with what must
//! hold of a key before anything is believed that it signed.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKey;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::algorithm::{Curve, Kind, ed25519, sha256};
use super::jws::{decode, encode};
use super::{Algorithm, Fault, json, rsa};

/// Why a key is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// A kind that is not known here; it may be for others.
    #[error("a kind of key that is not used here")]
    Unknown,
    /// It says that it is for something else: `use`, `key_ops`.
    #[error("not for verifying signatures")]
    Purpose,
    /// A shared secret where public keys belong.
    #[error("a shared secret among public keys")]
    Symmetric,
    /// It holds the private part.
    #[error("the private part of the key is in it")]
    Private,
    /// A member is missing, of a wrong type or not spelt as RFC 7518 has it.
    #[error("a member is missing or misspelt")]
    Malformed,
    /// `alg` does not belong to the kind of key.
    #[error("'alg' does not fit the kind of key")]
    Algorithm,
    /// The modulus is below 2048 or above 8192 bits, or even.
    #[error("the RSA modulus is not an odd number of 2048 to 8192 bits")]
    Modulus,
    /// The exponent is even, below 65537 or above 33 bits.
    #[error("the RSA exponent is not an odd number from 65537 on")]
    Exponent,
    /// The modulus was made by a broken generator (CVE-2017-15361).
    #[error("the RSA key was made by a broken generator (ROCA)")]
    Roca,
    /// The point is not on the curve.
    #[error("the point is not on the curve")]
    Point,
    /// The secret is shorter than the digest.
    #[error("the secret is shorter than the digest of the algorithm, or than 32 bytes")]
    Secret,
}

impl KeyFault {
    /// Whether the key may be good and is for somebody else.
    #[must_use]
    pub const fn is_of_others(self) -> bool {
        matches!(self, Self::Unknown | Self::Purpose)
    }
}

/// The name that tokens know a key by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// Tokens with this `kid`.
    Is(String),
    /// Tokens without a `kid`.
    Absent,
    /// Any token: the key is from a file that knows no names.
    Any,
}

/// A key, and the algorithms that its kind and its own word allow.
pub struct VerifyingKey {
    /// The name that tokens know it by.
    pub name: KeyName,
    kind: Kind,
    verifiers: Vec<(Algorithm, Verifier)>,
    thumbprint: [u8; 32],
}

enum Verifier {
    Public(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl VerifyingKey {
    /// Reads a public key from a JWK.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, KeyFault> {
        let text = |name| json::text(jwk, name, Fault::Json).map_err(|_| KeyFault::Malformed);
        let kty = text("kty")?.ok_or(KeyFault::Malformed)?;
        let curve = text("crv")?;
        let name = match text("kid")? {
            Some(kid) => KeyName::Is(kid.to_owned()),
            None => KeyName::Absent,
        };
        if kty == "oct" {
            return Err(KeyFault::Symmetric);
        }
        if PRIVATE.iter().any(|member| jwk.contains_key(*member)) {
            return Err(KeyFault::Private);
        }
        check_purpose(jwk)?;
        let bytes = |name| -> Result<Vec<u8>, KeyFault> {
            decode(text(name)?.ok_or(KeyFault::Malformed)?).map_err(|_| KeyFault::Malformed)
        };
        let mut key = match (kty, curve) {
            ("RSA", _) => Self::rsa(name, &bytes("n")?, &bytes("e")?)?,
            ("EC", Some(curve)) => {
                let curve = Curve::named(curve).ok_or(KeyFault::Unknown)?;
                Self::ec(name, curve, &bytes("x")?, &bytes("y")?)?
            }
            ("OKP", Some("Ed25519")) => Self::ed25519(name, &bytes("x")?)?,
            ("EC" | "OKP", None) => return Err(KeyFault::Malformed),
            _ => return Err(KeyFault::Unknown),
        };
        if let Some(named) = text("alg")? {
            let named = Algorithm::named(named).ok_or(KeyFault::Algorithm)?;
            key.restrict(|algorithm| algorithm == named);
            if key.verifiers.is_empty() {
                return Err(KeyFault::Algorithm);
            }
        }
        Ok(key)
    }

    /// Reads the public keys of a PEM file (`BEGIN PUBLIC KEY`, RFC 7468 section 13).
    ///
    /// # Errors
    /// If a block is something else or not a key that is good, or if there is none.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, KeyFault> {
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("-----BEGIN ") {
            let (label, after) = after.split_once("-----").ok_or(KeyFault::Malformed)?;
            if label.ends_with("PRIVATE KEY") {
                return Err(KeyFault::Private);
            }
            let end = format!("-----END {label}-----");
            let (body, after) = after.split_once(&end).ok_or(KeyFault::Malformed)?;
            if label != "PUBLIC KEY" {
                return Err(KeyFault::Unknown);
            }
            let body: String = body.split_ascii_whitespace().collect();
            let der = STANDARD.decode(body).map_err(|_| KeyFault::Malformed)?;
            keys.push(Self::from_spki(&der)?);
            rest = after;
        }
        if keys.is_empty() { Err(KeyFault::Malformed) } else { Ok(keys) }
    }

    /// Reads a `SubjectPublicKeyInfo` (RFC 5280 4.1).
    fn from_spki(der: &[u8]) -> Result<Self, KeyFault> {
        if let Ok(key) = PublicKey::from_der(der) {
            let (n, e) = (key.modulus(), key.exponent());
            let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
            return Self::rsa(KeyName::Any, n, e);
        }
        for curve in [Curve::P256, Curve::P384, Curve::P521] {
            // What precedes the point has a length of its own for each curve; the parser below
            // knows the point alone.
            let Some(at) = der.len().checked_sub(2 * curve.bytes() + 1) else { continue };
            let (x, y) = der[at + 1..].split_at(curve.bytes());
            if ParsedPublicKey::new(curve.ecdsa().1, der).is_ok() && der[at] == 4 {
                return Self::ec(KeyName::Any, curve, x, y);
            }
        }
        let x = der.strip_prefix(&ED25519_SPKI).ok_or(KeyFault::Unknown)?;
        Self::ed25519(KeyName::Any, x)
    }

    /// A shared secret, for those of the algorithms that it is long enough for.
    ///
    /// # Errors
    /// [`KeyFault::Secret`] if it is for none of them.
    pub fn from_secret(secret: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyFault> {
        let verifier = |algorithm: &Algorithm| {
            let hmac = algorithm.hmac()?;
            let long = secret.len() >= algorithm.secret_bytes_min();
            long.then(|| (*algorithm, Verifier::Secret(Box::new(hmac::Key::new(hmac, secret)))))
        };
        let verifiers: Vec<_> = algorithms.iter().filter_map(verifier).collect();
        let wanted = algorithms.iter().filter(|algorithm| algorithm.is_symmetric()).count();
        if verifiers.is_empty() || verifiers.len() < wanted {
            return Err(KeyFault::Secret);
        }
        // It helps to guess the secret no more than any token does that the secret signs, and no
        // token's signature is this: it would be of a text without a dot.
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let mut thumbprint = [0; 32];
        thumbprint.copy_from_slice(hmac::sign(&key, SECRET_NAME).as_ref());
        Ok(Self { name: KeyName::Any, kind: Kind::Secret, verifiers, thumbprint })
    }

    fn rsa(name: KeyName, n: &[u8], e: &[u8]) -> Result<Self, KeyFault> {
        rsa::check(n, e)?;
        let components = RsaPublicKeyComponents { n, e };
        let verifiers = Algorithm::ALL.iter().filter_map(|algorithm| {
            let key = components.to_parsed_public_key(algorithm.rsa()?);
            Some(key.map(|key| (*algorithm, Verifier::Public(key))))
        });
        let verifiers = verifiers.collect::<Result<_, _>>().map_err(|_| KeyFault::Modulus)?;
        let canonical = format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(e), encode(n));
        Ok(Self::public(name, Kind::Rsa, verifiers, &canonical))
    }

    fn ec(name: KeyName, curve: Curve, x: &[u8], y: &[u8]) -> Result<Self, KeyFault> {
        if x.len() != curve.bytes() || y.len() != curve.bytes() {
            return Err(KeyFault::Malformed);
        }
        let (algorithm, ecdsa) = curve.ecdsa();
        let point = [&[4], x, y].concat();
        let key = ParsedPublicKey::new(ecdsa, point).map_err(|_| KeyFault::Point)?;
        let canonical = format!(
            r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
            curve.name(),
            encode(x),
            encode(y)
        );
        let verifiers = vec![(algorithm, Verifier::Public(key))];
        Ok(Self::public(name, Kind::Ec(curve), verifiers, &canonical))
    }

    fn ed25519(name: KeyName, x: &[u8]) -> Result<Self, KeyFault> {
        if x.len() != 32 {
            return Err(KeyFault::Malformed);
        }
        let key = ParsedPublicKey::new(ed25519(), x).map_err(|_| KeyFault::Point)?;
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, encode(x));
        let verifiers = vec![(Algorithm::EdDsa, Verifier::Public(key))];
        Ok(Self::public(name, Kind::Ed25519, verifiers, &canonical))
    }

    fn public(
        name: KeyName,
        kind: Kind,
        verifiers: Vec<(Algorithm, Verifier)>,
        canonical: &str,
    ) -> Self {
        Self { name, kind, verifiers, thumbprint: sha256(canonical.as_bytes()) }
    }

    /// Whether the other is this key under the same name and for the same algorithms.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.thumbprint == other.thumbprint
            && self.algorithms().eq(other.algorithms())
    }

    /// Leaves only the algorithms for which this holds.
    pub(super) fn restrict(&mut self, keep: impl Fn(Algorithm) -> bool) {
        self.verifiers.retain(|(algorithm, _)| keep(*algorithm));
    }

    /// Whether it verifies signatures of this algorithm.
    #[must_use]
    pub fn takes(&self, algorithm: Algorithm) -> bool {
        self.verifiers.iter().any(|(own, _)| *own == algorithm)
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// [`Fault::Algorithm`] if the key is not for this algorithm, or [`Fault::Signature`].
    pub fn verify(
        &self,
        algorithm: Algorithm,
        input: &[u8],
        signature: &[u8],
    ) -> Result<(), Fault> {
        let own = self.verifiers.iter().find(|(own, _)| *own == algorithm);
        let verified = match &own.ok_or(Fault::Algorithm)?.1 {
            Verifier::Public(key) => key.verify_sig(input, signature),
            Verifier::Secret(key) => hmac::verify(key, input, signature),
        };
        verified.map_err(|_| Fault::Signature)
    }

    /// The SHA-256 thumbprint of RFC 7638; of a secret, an HMAC by it that does not tell it.
    #[must_use]
    pub const fn thumbprint(&self) -> &[u8; 32] {
        &self.thumbprint
    }

    /// What operators know it by: its `kid`, or its thumbprint.
    #[must_use]
    pub fn called(&self) -> String {
        match &self.name {
            KeyName::Is(kid) => kid.clone(),
            KeyName::Absent | KeyName::Any => encode(&self.thumbprint),
        }
    }

    /// The algorithms whose signatures it verifies.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.verifiers.iter().map(|(algorithm, _)| *algorithm)
    }
}

/// Neither key material nor anything derived from a secret.
impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({:?}, {:?})", self.name, self.kind)
    }
}

/// `use` and `key_ops` (RFC 7517 4.2, 4.3).
fn check_purpose(jwk: &Map<String, Value>) -> Result<(), KeyFault> {
    match jwk.get("use") {
        None => {}
        Some(Value::String(purpose)) if purpose == "sig" => {}
        Some(Value::String(_)) => return Err(KeyFault::Purpose),
        Some(_) => return Err(KeyFault::Malformed),
    }
    match jwk.get("key_ops") {
        None => Ok(()),
        Some(Value::Array(operations)) => {
            let all_text = operations.iter().all(Value::is_string);
            let twice = (1..operations.len()).any(|n| operations[..n].contains(&operations[n]));
            if !all_text || twice {
                return Err(KeyFault::Malformed);
            }
            let verifies = operations.iter().any(|operation| operation == "verify");
            if verifies { Ok(()) } else { Err(KeyFault::Purpose) }
        }
        Some(_) => Err(KeyFault::Malformed),
    }
}

/// Members that only the owner of a key may have (RFC 7518 6.2.2, 6.3.2, 6.4; RFC 8037 2).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// What a secret seals to be known by.
const SECRET_NAME: &[u8] = b"edged: the name of a secret";

/// What precedes the 32 bytes of a key (RFC 8410 4).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
