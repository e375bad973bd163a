//! A set of keys (RFC 7517 section 5): what an issuer signs with.

use serde_json::Value;

use super::jwk::{KeyFault, KeyName, VerifyingKey};
use super::jws::Jws;
use super::{Algorithm, Fault, json};

/// Keys that a set may hold; issuers publish two to six.
pub const KEYS_MAX: usize = 64;

/// Keys without a name that may be for one algorithm: each token has all of them tried.
pub const NAMELESS_MAX: usize = 8;

/// Keys by which an issuer's tokens are verified.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<VerifyingKey>,
    /// Keys that were left out, by their place, and why.
    pub left_out: Vec<(usize, KeyFault)>,
}

/// Why a set as a whole is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetFault {
    /// Not a strict JSON object with an array `keys` of objects.
    #[error("not a JSON object with an array 'keys' of keys, no member twice")]
    Form,
    /// Too many keys.
    #[error("more than {KEYS_MAX} keys")]
    Count,
    /// Two keys have one `kid`.
    #[error("two keys have the same 'kid'")]
    DuplicateKid,
    /// A key without a name is there twice.
    #[error("a key is there twice")]
    Twice,
    /// Too many keys without a name.
    #[error("more than {NAMELESS_MAX} keys without a name are for one algorithm")]
    Nameless,
    /// Secrets among public keys: whoever reads the set could sign.
    #[error("it holds a shared secret, or the private part of a key")]
    Secret,
    /// No key that can be used.
    #[error("it holds no key that can be used")]
    Empty,
}

impl KeySet {
    /// Reads a set of public keys. A key of an unknown kind, for another purpose, or too weak is
    /// left out; a set that is ambiguous or gives secrets away is refused as a whole.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn from_jwks(bytes: &[u8]) -> Result<Self, SetFault> {
        let set = json::object(bytes).map_err(|_| SetFault::Form)?;
        let Some(Value::Array(jwks)) = set.get("keys") else { return Err(SetFault::Form) };
        if jwks.len() > KEYS_MAX {
            return Err(SetFault::Count);
        }
        let (mut keys, mut left_out) = (Vec::new(), Vec::new());
        for (place, jwk) in jwks.iter().enumerate() {
            let jwk = jwk.as_object().ok_or(SetFault::Form)?;
            match VerifyingKey::from_jwk(jwk) {
                Ok(key) => keys.push(key),
                Err(KeyFault::Symmetric | KeyFault::Private) => return Err(SetFault::Secret),
                Err(fault) => left_out.push((place, fault)),
            }
        }
        Ok(Self { left_out, ..Self::new(keys)? })
    }

    /// A set of these keys.
    ///
    /// # Errors
    /// What is wrong with them together.
    pub fn new(keys: Vec<VerifyingKey>) -> Result<Self, SetFault> {
        for (n, key) in keys.iter().enumerate() {
            let mut former = keys[..n].iter().filter(|former| former.name == key.name);
            match &key.name {
                KeyName::Is(_) if former.next().is_some() => return Err(SetFault::DuplicateKid),
                KeyName::Any if former.any(|former| former.thumbprint() == key.thumbprint()) => {
                    return Err(SetFault::Twice);
                }
                _ => {}
            }
        }
        let nameless = |algorithm| {
            keys.iter().filter(|key| key.name == KeyName::Any && key.takes(algorithm)).count()
        };
        if Algorithm::ALL.into_iter().any(|algorithm| nameless(algorithm) > NAMELESS_MAX) {
            return Err(SetFault::Nameless);
        }
        if keys.is_empty() {
            return Err(SetFault::Empty);
        }
        Ok(Self { keys, left_out: Vec::new() })
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// The keys themselves.
    #[must_use]
    pub fn into_keys(self) -> Vec<VerifyingKey> {
        self.keys
    }

    /// Whether the other set verifies the same tokens under the same names.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let mut pairs = self.keys.iter().zip(&other.keys);
        self.keys.len() == other.keys.len() && pairs.all(|(a, b)| a.is_same(b))
    }

    /// The keys that a token's header may mean: the one that it names or the only one there is, and
    /// all that answer for any name.
    ///
    /// # Errors
    /// [`Fault::Key`] if there is none, or more than one that has a name or might have,
    /// [`Fault::Algorithm`] if the key named is not for that algorithm.
    pub fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<&VerifyingKey>, Fault> {
        if let Some(kid) = kid {
            let named = |key: &&VerifyingKey| matches!(&key.name, KeyName::Is(own) if own == kid);
            if let Some(key) = self.keys.iter().find(named) {
                return if key.takes(algorithm) { Ok(vec![key]) } else { Err(Fault::Algorithm) };
            }
        }
        let fits = |key: &&VerifyingKey| {
            key.takes(algorithm) && (kid.is_none() || key.name == KeyName::Any)
        };
        let fitting: Vec<_> = self.keys.iter().filter(fits).collect();
        let own_names = fitting.iter().filter(|key| key.name != KeyName::Any).count();
        if fitting.is_empty() || own_names > 1 { Err(Fault::Key) } else { Ok(fitting) }
    }

    /// Checks a token's signature; the key that made it.
    ///
    /// # Errors
    /// As [`Self::find`], or [`Fault::Signature`].
    pub fn verify(&self, jws: &Jws<'_>) -> Result<&VerifyingKey, Fault> {
        let header = &jws.header;
        let mut signed_by = Err(Fault::Signature);
        // All are tried, whichever it was: a token that is refused for something else afterwards is
        // refused no sooner than one that nobody signed.
        for key in self.find(header.kid.as_deref(), header.algorithm)? {
            let checked = key.verify(header.algorithm, jws.input, &jws.signature);
            if checked.is_ok() && signed_by.is_err() {
                signed_by = Ok(key);
            }
        }
        signed_by
    }
}
