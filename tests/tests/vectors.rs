//! Project Wycheproof's vectors through what verifies tokens and signed requests. They are about
//! signatures of plain messages, not of tokens, so they go where both kinds of key are asked.

use edge_identity::{
    jwt::{Algorithm, KeyFault, VerifyingKey},
    signed::{self, Masters, PublicKey, Signing},
};
use wycheproof::{TestResult, ecdsa, eddsa, mac, rsa_pkcs1_verify, rsa_pss_verify};

/// A signature, and whether it is good.
struct Vector {
    name: String,
    pem: String,
    message: Vec<u8>,
    signature: Vec<u8>,
    result: TestResult,
}

/// The vectors of a set that has public keys.
macro_rules! vectors {
    ($module:ident, $name:ident) => {{
        let set = $module::TestSet::load($module::TestName::$name).expect("a set");
        let groups = set.test_groups.into_iter();
        let of_group = groups.flat_map(|group| {
            let pem = group.pem.clone();
            group.tests.into_iter().map(move |test| Vector {
                name: format!("{} {}: {}", stringify!($name), test.tc_id, test.comment),
                pem: pem.clone(),
                message: test.msg.to_vec(),
                signature: test.sig.to_vec(),
                result: test.result,
            })
        });
        of_group.collect::<Vec<_>>()
    }};
}

/// What a way of verification makes of a vector: `None` is a key that is refused.
type Judge = fn(&Vector) -> Option<bool>;

fn token<const ALGORITHM: usize>(vector: &Vector) -> Option<bool> {
    let keys = VerifyingKey::from_pem(&vector.pem).ok()?;
    let key = keys.first().filter(|key| key.takes(Algorithm::ALL[ALGORITHM]))?;
    Some(key.verify(Algorithm::ALL[ALGORITHM], &vector.message, &vector.signature).is_ok())
}

fn request<const ALGORITHM: usize>(vector: &Vector) -> Option<bool> {
    let algorithm = signed::Algorithm::PUBLIC[ALGORITHM];
    let signing = Signing::Public(PublicKey::from_pem(&vector.pem, Some(algorithm)).ok()?);
    let masters = Masters::default();
    let verifier = signing.verifier(&masters, "0123456789ab")?;
    Some(verifier.verifies(&vector.message, &vector.signature))
}

/// The place of an algorithm of tokens.
const fn jws(name: &str) -> usize {
    let mut at = 0;
    while !is_same(Algorithm::ALL[at].name(), name) {
        at += 1;
    }
    at
}

/// The place of an algorithm of signed requests.
const fn rfc9421(name: &str) -> usize {
    let mut at = 0;
    while !is_same(signed::Algorithm::PUBLIC[at].name(), name) {
        at += 1;
    }
    at
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Nothing that is invalid is accepted, and nothing refused that is valid, but for RSA keys with an
/// exponent below 65 537, which are refused as such; how many there were.
fn hold(vectors: &[Vector], judge: Judge) -> usize {
    for vector in vectors {
        let is_good = judge(vector);
        if is_good.is_none()
            && matches!(VerifyingKey::from_pem(&vector.pem), Err(KeyFault::Exponent))
        {
            continue;
        }
        match vector.result {
            TestResult::Valid => assert_eq!(is_good, Some(true), "{}", vector.name),
            TestResult::Invalid => assert_eq!(is_good, Some(false), "{}", vector.name),
            TestResult::Acceptable => {}
        }
    }
    vectors.len()
}

#[test]
fn curves_hold() {
    let p256 = vectors!(ecdsa, EcdsaSecp256r1Sha256P1363);
    let p384 = vectors!(ecdsa, EcdsaSecp384r1Sha384P1363);
    let p521 = vectors!(ecdsa, EcdsaSecp521r1Sha512P1363);
    let ed25519 = vectors!(eddsa, Ed25519);
    for (vectors, judge) in [
        (&p256, token::<{ jws("ES256") }> as Judge),
        (&p384, token::<{ jws("ES384") }>),
        (&p521, token::<{ jws("ES512") }>),
        (&ed25519, token::<{ jws("EdDSA") }>),
        (&p256, request::<{ rfc9421("ecdsa-p256-sha256") }>),
        (&p384, request::<{ rfc9421("ecdsa-p384-sha384") }>),
        (&ed25519, request::<{ rfc9421("ed25519") }>),
    ] {
        assert!(hold(vectors, judge) > 100);
    }
    // DER is another spelling of the same signature, and no token's or request's.
    for vector in vectors!(ecdsa, EcdsaSecp256r1Sha256) {
        assert_eq!(token::<{ jws("ES256") }>(&vector), Some(false), "{}", vector.name);
    }
}

#[test]
fn rsa_with_pkcs1_holds() {
    for (vectors, judge) in [
        (vectors!(rsa_pkcs1_verify, Rsa2048Sha256), token::<{ jws("RS256") }> as Judge),
        (vectors!(rsa_pkcs1_verify, Rsa3072Sha256), token::<{ jws("RS256") }>),
        (vectors!(rsa_pkcs1_verify, Rsa4096Sha256), token::<{ jws("RS256") }>),
        (vectors!(rsa_pkcs1_verify, Rsa8192Sha256), token::<{ jws("RS256") }>),
        (vectors!(rsa_pkcs1_verify, Rsa2048Sha384), token::<{ jws("RS384") }>),
        (vectors!(rsa_pkcs1_verify, Rsa4096Sha512), token::<{ jws("RS512") }>),
        (vectors!(rsa_pkcs1_verify, Rsa2048Sha256), request::<{ rfc9421("rsa-v1_5-sha256") }>),
        (vectors!(rsa_pkcs1_verify, Rsa4096Sha256), request::<{ rfc9421("rsa-v1_5-sha256") }>),
    ] {
        assert!(hold(&vectors, judge) > 100);
    }
}

#[test]
fn rsa_with_pss_holds() {
    for (vectors, judge) in [
        (
            vectors!(rsa_pss_verify, RsaPss2048Sha256Mgf1SaltLen32),
            token::<{ jws("PS256") }> as Judge,
        ),
        (vectors!(rsa_pss_verify, RsaPss3072Sha256Mgf1SaltLen32), token::<{ jws("PS256") }>),
        (vectors!(rsa_pss_verify, RsaPss4096Sha256Mgf1SaltLen32), token::<{ jws("PS256") }>),
        (vectors!(rsa_pss_verify, RsaPss2048Sha384Mgf1SaltLen48), token::<{ jws("PS384") }>),
        (vectors!(rsa_pss_verify, RsaPss4096Sha512Mgf1SaltLen64), token::<{ jws("PS512") }>),
        (
            vectors!(rsa_pss_verify, RsaPss4096Sha512Mgf1SaltLen64),
            request::<{ rfc9421("rsa-pss-sha512") }>,
        ),
    ] {
        assert!(hold(&vectors, judge) > 50);
    }
    // The salt is as long as the digest (RFC 7518, 3.5; RFC 9421, 3.3.1): what is good with another one is
    // none of ours.
    let is_valid = |vector: &Vector| vector.result == TestResult::Valid;
    for vector in
        vectors!(rsa_pss_verify, RsaPss2048Sha256Mgf1SaltLen0).into_iter().filter(is_valid)
    {
        assert_eq!(token::<{ jws("PS256") }>(&vector), Some(false), "{}", vector.name);
    }
    for vector in
        vectors!(rsa_pss_verify, RsaPss4096Sha512Mgf1SaltLen32).into_iter().filter(is_valid)
    {
        assert_eq!(token::<{ jws("PS512") }>(&vector), Some(false), "{}", vector.name);
        assert_eq!(
            request::<{ rfc9421("rsa-pss-sha512") }>(&vector),
            Some(false),
            "{}",
            vector.name
        );
    }
}

#[test]
fn hmac_holds() {
    for (name, algorithm, digest, secret_min) in [
        (mac::TestName::HmacSha256, Algorithm::Hs256, 256, 32),
        (mac::TestName::HmacSha384, Algorithm::Hs384, 384, 48),
        (mac::TestName::HmacSha512, Algorithm::Hs512, 512, 64),
    ] {
        let (mut judged, mut short) = (0, 0);
        for group in mac::TestSet::load(name).expect("a set").test_groups {
            for test in &group.tests {
                let Ok(key) = VerifyingKey::from_secret(&test.key, &[algorithm]) else {
                    // RFC 7518, 3.2: no shorter than the digest.
                    assert!(test.key.len() < secret_min, "{name:?} {}", test.tc_id);
                    short += 1;
                    continue;
                };
                let is_good = key.verify(algorithm, &test.msg, &test.tag).is_ok();
                // A tag that was cut is none of a token's.
                let is_valid = test.result == TestResult::Valid && group.tag_size == digest;
                assert_eq!(is_good, is_valid, "{name:?} {}: {}", test.tc_id, test.comment);
                judged += 1;
            }
        }
        assert!(judged > 20 && short > 0, "{name:?}: {judged} judged, {short} short");
    }
}
