//! Keys that sign, for tests: the other half of what is tested, from the same library.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKey};
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding,
};
use serde_json::{Value, json};

use super::super::jws::encode;
use super::super::{Algorithm, Issuer, KeySet, Profile};

/// A key that signs under one algorithm.
pub(in crate::jwt) struct Signer {
    pub(in crate::jwt) algorithm: Algorithm,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair, &'static str),
    Ed25519(Ed25519KeyPair),
    Hmac(Box<hmac::Key>),
}

impl Signer {
    pub(in crate::jwt) fn new(algorithm: Algorithm) -> Self {
        let rsa = |encoding: &'static dyn RsaEncoding| {
            Key::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()), encoding)
        };
        let ecdsa = |algorithm: &'static EcdsaSigningAlgorithm, curve| {
            Key::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap(), curve)
        };
        let hmac = |algorithm| Key::Hmac(Box::new(hmac::Key::new(algorithm, SECRET)));
        let key = match algorithm {
            Algorithm::Rs256 => rsa(&signature::RSA_PKCS1_SHA256),
            Algorithm::Rs384 => rsa(&signature::RSA_PKCS1_SHA384),
            Algorithm::Rs512 => rsa(&signature::RSA_PKCS1_SHA512),
            Algorithm::Ps256 => rsa(&signature::RSA_PSS_SHA256),
            Algorithm::Ps384 => rsa(&signature::RSA_PSS_SHA384),
            Algorithm::Ps512 => rsa(&signature::RSA_PSS_SHA512),
            Algorithm::Es256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            Algorithm::Es384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            Algorithm::Es512 => ecdsa(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            Algorithm::EdDsa => Key::Ed25519(Ed25519KeyPair::generate().unwrap()),
            Algorithm::Hs256 => hmac(hmac::HMAC_SHA256),
            Algorithm::Hs384 => hmac(hmac::HMAC_SHA384),
            Algorithm::Hs512 => hmac(hmac::HMAC_SHA512),
        };
        Self { algorithm, key }
    }

    /// The public key; of a secret, nothing.
    pub(in crate::jwt) fn jwk(&self) -> Value {
        match &self.key {
            Key::Rsa(pair, _) => {
                let der = pair.public_key().as_ref();
                let public = PublicKey::from_der(der).unwrap();
                let n = encode(public.modulus().big_endian_without_leading_zero());
                let e = encode(public.exponent().big_endian_without_leading_zero());
                json!({"kty": "RSA", "n": n, "e": e})
            }
            Key::Ecdsa(pair, curve) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(match *curve {
                    "P-256" => 32,
                    "P-384" => 48,
                    _ => 66,
                });
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Key::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())})
            }
            Key::Hmac(_) => json!({}),
        }
    }

    /// The public key with a name.
    pub(in crate::jwt) fn named(&self, kid: &str) -> Value {
        let mut jwk = self.jwk();
        jwk["kid"] = kid.into();
        jwk
    }

    /// The public key as a `SubjectPublicKeyInfo`.
    pub(in crate::jwt) fn spki(&self) -> Vec<u8> {
        match &self.key {
            Key::Rsa(pair, _) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Key::Ecdsa(pair, _) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Key::Ed25519(pair) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Key::Hmac(_) => Vec::new(),
        }
    }

    /// A set of this key alone.
    pub(in crate::jwt) fn set(&self) -> KeySet {
        set(&[self.named("k")])
    }

    pub(crate) fn sign(&self, input: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, input, &mut signature).unwrap();
                signature
            }
            Key::Ecdsa(pair, _) => pair.sign(&random, input).unwrap().as_ref().to_vec(),
            Key::Ed25519(pair) => pair.sign(input).as_ref().to_vec(),
            Key::Hmac(key) => hmac::sign(key, input).as_ref().to_vec(),
        }
    }

    /// A token of this header and these claims, as they are.
    pub(in crate::jwt) fn seal(&self, header: &str, payload: &str) -> String {
        let input = format!("{}.{}", encode(header.as_bytes()), encode(payload.as_bytes()));
        let signature = encode(&self.sign(input.as_bytes()));
        format!("{input}.{signature}")
    }

    /// A token of these claims, with the header that is usual.
    pub(in crate::jwt) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm.name(), "kid": "k", "typ": "at+jwt"});
        self.seal(&header.to_string(), &claims.to_string())
    }
}

/// A secret that is long enough for every algorithm.
pub(in crate::jwt) const SECRET: &[u8] = &[0x5a; 64];

/// The moment at which tokens are judged, in seconds.
pub(in crate::jwt) const NOW_S: u64 = 1_800_000_000;
pub(in crate::jwt) const NOW_MS: u64 = NOW_S * 1000;

pub(in crate::jwt) fn set(jwks: &[Value]) -> KeySet {
    KeySet::from_jwks(json!({"keys": jwks}).to_string().as_bytes()).unwrap()
}

/// Claims that are good under [`issuer`].
pub(in crate::jwt) fn claims() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": "https://api.example", "sub": "alice",
        "client_id": "app", "jti": "t-1", "iat": NOW_S - 10, "exp": NOW_S + 300, "scope": "read write",
    })
}

pub(in crate::jwt) fn issuer() -> Issuer {
    Issuer {
        name: "main".into(),
        issuer: "https://issuer.example".into(),
        audience: vec!["https://api.example".into()],
        algorithms: Algorithm::ALL.into_iter().filter(|a| !a.is_symmetric()).collect(),
        profile: Profile::AccessToken,
        leeway_ms: 5_000,
        lifetime_max_ms: 3_600_000,
        scope_claims: vec!["scope".into(), "scp".into()],
        roles_claim: Some("realm.roles".into()),
        tier_claim: Some("tier".into()),
    }
}
