//! What the edge asserts to upstreams of a request's sender, as a signed token (JWS, EdDSA).
//!
//! Keys follow from one secret and the calendar: each period has its own, and the set that verifiers
//! fetch holds that of the period before and after as well. So keys rotate by themselves, without
//! state, and whoever holds the set is told of the next key before it is used.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::principal::Principal;
use crate::roles::Roles;

/// Signs what the edge asserts.
pub struct Signer {
    secret: Zeroizing<[u8; 32]>,
    /// Who asserts: `iss`.
    issuer: String,
    /// For whom: `aud`.
    audience: String,
    /// How long an assertion holds, in seconds.
    life_s: u64,
    /// How long a key is used, in seconds.
    period_s: u64,
}

/// A key and its name.
struct Key {
    pair: Ed25519KeyPair,
    id: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    /// How it was proved (RFC 8176 has the name, these words are ours).
    amr: [&'a str; 1],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
}

impl Signer {
    /// A signer whose keys follow from this secret.
    #[must_use]
    pub fn new(
        secret: &[u8],
        issuer: String,
        audience: String,
        life_s: u64,
        period_s: u64,
    ) -> Self {
        let secret = Zeroizing::new(blake3::derive_key("edged 2026 upstream identity", secret));
        Self { secret, issuer, audience, life_s: life_s.max(1), period_s: period_s.max(1) }
    }

    /// An assertion of who a request is from, and until when it may be used again, in unix
    /// milliseconds: for half its life, so that it never arrives expired. `None` if it cannot be signed.
    #[must_use]
    pub fn sign(&self, principal: &Principal, roles: &Roles, now_ms: u64) -> Option<(String, u64)> {
        let now_s = now_ms / 1000;
        let key = self.key(now_s / self.period_s)?;
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": key.id });
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            sub: &principal.identity(),
            iat: now_s,
            nbf: now_s,
            exp: now_s + self.life_s,
            amr: [principal.method().name()],
            name: principal.name(),
            scope: roles.scopes_of(principal).join(" "),
            roles: roles.of(principal),
            key_id: principal.key().map(|key| key.id().as_str()),
        };
        let header = BASE64.encode(header.to_string());
        let signed = format!("{header}.{}", BASE64.encode(serde_json::to_vec(&claims).ok()?));
        let signature = BASE64.encode(key.pair.sign(signed.as_bytes()));
        Some((format!("{signed}.{signature}"), now_ms + self.life_s * 500))
    }

    /// The keys by which assertions are verified (RFC 7517): of this period and the two beside it.
    #[must_use]
    pub fn key_set(&self, now_ms: u64) -> Value {
        let period = now_ms / 1000 / self.period_s;
        let keys = (period.saturating_sub(1)..=period + 1).filter_map(|period| {
            let key = self.key(period)?;
            let x = BASE64.encode(key.pair.public_key());
            Some(json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
                         "kid": key.id, "x": x }))
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }

    fn key(&self, period: u64) -> Option<Key> {
        let seed = blake3::keyed_hash(&self.secret, &period.to_le_bytes());
        let seed = Zeroizing::new(<[u8; 32]>::from(seed));
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).ok()?;
        let id = BASE64.encode(&blake3::hash(pair.public_key().as_ref()).as_bytes()[..12]);
        Some(Key { pair, id })
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} for {})", self.issuer, self.audience)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

    use super::*;
    use crate::principal::Method;
    use crate::principal::tests::{somebody, words};
    use crate::roles::Role;

    const NOW_MS: u64 = 1_795_262_400_000;

    fn signer(secret: &[u8]) -> Signer {
        Signer::new(secret, "edge".into(), "api".into(), 60, 3600)
    }

    /// The claims, as another's library verifies them by a key set.
    fn verified(token: &str, set: &Value) -> Option<Value> {
        let set: JwkSet = serde_json::from_value(set.clone()).unwrap();
        let jwk = set.find(&decode_header(token).unwrap().kid.unwrap())?.clone();
        let mut asked = Validation::new(Algorithm::EdDSA);
        asked.set_audience(&["api"]);
        asked.set_issuer(&["edge"]);
        asked.validate_exp = false;
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        decode::<Value>(token, &key, &asked).ok().map(|token| token.claims)
    }

    #[test]
    fn the_secret_is_wiped() {
        fn wiped(_: &impl zeroize::ZeroizeOnDrop) {}
        wiped(&signer(&[7; 32]).secret);
    }

    #[test]
    fn another_library_verifies_what_is_asserted() {
        let scopes = words(&["orders:write"]);
        let roles = [Role { name: "boss".into(), inherits: vec![], scopes }];
        let roles = Roles::new(&roles).unwrap();
        let alice = somebody(Method::Mtls, &["orders:read"], &["boss"]);
        let signer = signer(&[7; 32]);
        let (token, until_ms) = signer.sign(&alice, &roles, NOW_MS).unwrap();
        assert_eq!(until_ms, NOW_MS + 30_000);
        let claims = verified(&token, &signer.key_set(NOW_MS)).unwrap();
        let expected = json!({
            "iss": "edge", "aud": "api", "sub": "mtls:alice", "name": "Alice", "amr": ["mtls"],
            "iat": NOW_MS / 1000, "nbf": NOW_MS / 1000, "exp": NOW_MS / 1000 + 60,
            "scope": "orders:read orders:write", "roles": ["boss"],
        });
        assert_eq!(claims, expected);
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged =
            BASE64.encode(json!({ "sub": "root", "iss": "edge", "aud": "api" }).to_string());
        assert!(
            verified(&format!("{head}.{forged}.{signature}"), &signer.key_set(NOW_MS)).is_none()
        );
    }

    #[test]
    fn keys_rotate_and_are_told_before_they_are_used() {
        let (signer, roles) = (signer(&[7; 32]), Roles::default());
        let alice = somebody(Method::Jwt, &[], &[]);
        let hour = 3_600_000;
        let token = |now_ms| signer.sign(&alice, &roles, now_ms).unwrap().0;
        let kid = |token: &str| decode_header(token).unwrap().kid.unwrap();
        assert_ne!(kid(&token(NOW_MS)), kid(&token(NOW_MS + hour)));
        assert_eq!(kid(&token(NOW_MS)), kid(&token(NOW_MS + hour - 1)));
        let set = signer.key_set(NOW_MS);
        for (at, known) in [(0, true), (hour, true), (2 * hour, false)] {
            assert_eq!(verified(&token(NOW_MS + at), &set).is_some(), known, "{at}");
        }
        assert!(verified(&token(NOW_MS), &signer.key_set(NOW_MS + hour)).is_some());
        assert!(verified(&token(NOW_MS), &self::signer(&[8; 32]).key_set(NOW_MS)).is_none());
        assert!(!format!("{signer:?}").contains('7'));
    }
}
