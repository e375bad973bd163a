//! DPoP (RFC 9449): the sender of a token proves, for each request, that the key is his which the
//! token is bound to.

use serde_json::Value;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::algorithm::sha256;
use super::claims::date_ms;
use super::jwk::VerifyingKey;
use super::jws::{Jws, decode, encode};
use super::{Algorithm, Fault, json};

/// Algorithms of proofs that are taken: all that need no shared secret.
pub const ALGORITHMS: [Algorithm; 10] = [
    Algorithm::Es256,
    Algorithm::Es384,
    Algorithm::Es512,
    Algorithm::EdDsa,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
];

/// The largest proof, in bytes; one with an RSA key of 4096 bits and its signature is near 2 KiB.
pub const PROOF_BYTES_MAX: usize = 4096;

/// The longest `jti`, in bytes: whoever makes it fills the memory of those seen.
const JTI_BYTES_MAX: usize = 256;

/// What a proof must be for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'e> {
    /// The request's method.
    pub method: &'e str,
    /// The host that was asked for, in lower case, with its port if that is not 443.
    pub authority: &'e str,
    /// The path in normal form.
    pub path: &'e str,
    /// The access token that comes along.
    pub token: &'e str,
    /// The time, in unix milliseconds.
    pub now_ms: u64,
    /// How old a proof may be, in milliseconds.
    pub age_max_ms: u64,
    /// By how much clocks may differ, in milliseconds.
    pub leeway_ms: u64,
    /// The nonces that proofs must carry, if they must.
    pub nonces: Option<&'e Nonces>,
}

/// A proof that is good, but for having been seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The thumbprint of its key.
    pub key: [u8; 32],
    /// Names this proof among all of all keys.
    pub id: [u8; 32],
    /// When it was made, as it says, in unix milliseconds.
    pub issued_ms: u64,
}

impl Proof {
    /// Checks a proof by RFC 9449 section 4.3, in its order.
    ///
    /// # Errors
    /// [`Fault::Proof`] whatever is wrong with it, but [`Fault::ProofNonce`] if all but the nonce
    /// is good.
    pub fn check(text: &str, expected: &Expected<'_>) -> Result<Self, Fault> {
        let jws = Jws::parse(text, PROOF_BYTES_MAX).map_err(|_| Fault::Proof)?;
        let jwk = jws.header.members.get("jwk").and_then(Value::as_object).ok_or(Fault::Proof)?;
        if !jws.header.is_type(&["dpop+jwt"]) || !ALGORITHMS.contains(&jws.header.algorithm) {
            return Err(Fault::Proof);
        }
        let key = VerifyingKey::from_jwk(jwk).map_err(|_| Fault::Proof)?;
        key.verify(jws.header.algorithm, jws.input, &jws.signature).map_err(|_| Fault::Proof)?;
        let key = *key.thumbprint();

        let claims = json::object(&jws.payload).map_err(|_| Fault::Proof)?;
        let text = |name| json::text(&claims, name, Fault::Proof);
        let need = |name| text(name)?.ok_or(Fault::Proof);
        let jti = need("jti")?;
        if jti.is_empty() || jti.len() > JTI_BYTES_MAX {
            return Err(Fault::Proof);
        }
        let is_target = target_matches(need("htu")?, expected);
        let hash = decode(need("ath")?).map_err(|_| Fault::Proof)?;
        if need("htm")? != expected.method
            || !is_target
            || !bool::from(hash.ct_eq(&sha256(expected.token.as_bytes())))
        {
            return Err(Fault::Proof);
        }
        let issued_ms = date_ms(&claims, "iat").ok().flatten().ok_or(Fault::Proof)?;
        if issued_ms > expected.now_ms.saturating_add(expected.leeway_ms)
            || expected.now_ms > issued_ms.saturating_add(expected.age_max_ms)
        {
            return Err(Fault::Proof);
        }
        if let Some(nonces) = expected.nonces {
            let fresh = text("nonce")?.is_some_and(|n| nonces.is_fresh(n, expected.now_ms));
            if !fresh {
                return Err(Fault::ProofNonce);
            }
        }
        let id = sha256(&[&key[..], jti.as_bytes()].concat());
        Ok(Self { key, id, issued_ms })
    }
}

/// Whether `htu` is the request's URI, query and fragment aside; both normalised (RFC 3986 6.2.2
/// and 6.2.3) by the one function that routes go by.
fn target_matches(htu: &str, expected: &Expected<'_>) -> bool {
    let Some((scheme, rest)) = htu.split_once("://") else { return false };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let authority = authority.to_ascii_lowercase();
    let authority = authority.strip_suffix(":443").unwrap_or(&authority);
    let Ok(target) = edge_policy::target::Target::parse(path, PROOF_BYTES_MAX) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("https")
        && authority == expected.authority
        && target.path == expected.path
}

/// Nonces of ours (RFC 9449 section 9): a proof that carries one was made a short while ago,
/// whatever the clock of its maker says.
#[derive(Clone)]
pub struct Nonces {
    secret: Zeroizing<[u8; 32]>,
    period_ms: u64,
}

impl Nonces {
    /// Nonces that are good for one to two periods. `secret` is random and dies with the process.
    #[must_use]
    pub fn new(secret: impl Into<Zeroizing<[u8; 32]>>, period_ms: u64) -> Self {
        Self { secret: secret.into(), period_ms }
    }

    /// The nonce of this time.
    #[must_use]
    pub fn current(&self, now_ms: u64) -> String {
        self.of(now_ms / self.period_ms)
    }

    fn of(&self, period: u64) -> String {
        encode(&blake3::keyed_hash(&self.secret, &period.to_le_bytes()).as_bytes()[..16])
    }

    fn is_fresh(&self, nonce: &str, now_ms: u64) -> bool {
        let period = now_ms / self.period_ms;
        let is = |period| bool::from(self.of(period).as_bytes().ct_eq(nonce.as_bytes()));
        is(period) || period.checked_sub(1).is_some_and(is)
    }
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nonces(masked, {} ms)", self.period_ms)
    }
}
