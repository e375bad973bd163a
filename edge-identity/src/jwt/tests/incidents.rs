//! What happened to others must not happen here. Each test is named after the incident.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::super::cache::{Cache, Under};
use super::super::denylist::Denylist;
use super::super::jws::encode;
use super::super::{
    Algorithm, Fault, Issuer, KeySet, Presented, Unverified, Verified, VerifyingKey,
};
use super::signer::{NOW_MS, NOW_S, SECRET, Signer, claims, issuer};

const UNDER: Under = Under { policy: 1, issuer: 0, keys: 1 };

fn verified(token: &str, issuer: &Issuer, keys: &KeySet) -> Result<Verified, Fault> {
    issuer.verify(Unverified::parse(token, 8192)?, keys)
}

fn admit(issuer: &Issuer, token: &Verified, now_ms: u64) -> Result<(), Fault> {
    let denylist = &Denylist::default();
    issuer.admit(
        token,
        &Presented { now_ms, denylist, audience: &[], proof_key: None, certificate: None },
    )
}

/// lua-resty-openidc 399 (2021) and 569 (2026): a cache of verified tokens answered for another
/// audience.
#[test]
fn incident_cached_token_is_judged_again() {
    let signer = Signer::new(Algorithm::Es256);
    let first = issuer();
    let second = Issuer { audience: vec!["https://other.example".into()], ..issuer() };
    let token = signer.token(&claims());
    let mut cache = Cache::new([1; 32], 1 << 20);
    let digest = cache.digest(&token);
    let good = Arc::new(verified(&token, &first, &signer.set()).unwrap());
    cache.put(digest, UNDER, Arc::clone(&good), token.len(), NOW_MS + 60_000);
    let (_, found) = cache.find(digest, NOW_MS, |under| under == UNDER).unwrap();
    assert_eq!(admit(&first, &found, NOW_MS), Ok(()));
    assert_eq!(admit(&second, &found, NOW_MS), Err(Fault::Audience));
    assert_eq!(admit(&first, &found, NOW_MS + 400_000), Err(Fault::Expired));
    // Another policy, other keys, later: not from the cache at all.
    for under in [Under { policy: 2, ..UNDER }, Under { keys: 2, ..UNDER }] {
        cache.put(digest, UNDER, Arc::clone(&good), token.len(), NOW_MS + 60_000);
        assert!(cache.find(digest, NOW_MS, |found| found == under).is_none());
    }
    assert!(cache.find(digest, NOW_MS + 60_000, |_| true).is_none());
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
    let signer = Signer::new(Algorithm::Es256);
    let good = Arc::new(verified(&signer.token(&claims()), &issuer(), &signer.set()).unwrap());
    let mut cache = Cache::new([1; 32], 100_000);
    let hot = cache.digest("hot");
    cache.put(hot, UNDER, Arc::clone(&good), 400, u64::MAX);
    for n in 0..10_000 {
        let digest = cache.digest(&format!("token {n}"));
        cache.put(digest, UNDER, Arc::clone(&good), 400, u64::MAX);
        assert!(cache.bytes() <= 100_000);
        assert!(cache.find(hot, NOW_MS, |_| true).is_some(), "{n}");
    }
    assert!(cache.find(cache.digest("token 0"), NOW_MS, |_| true).is_none());
    cache.put(cache.digest("big"), UNDER, good, 100_000, u64::MAX);
    assert!(cache.find(cache.digest("big"), NOW_MS, |_| true).is_none());
}

/// Numbers that are near, so that two are often the same but for one.
fn under() -> impl Strategy<Value = Under> {
    (0_u64..3, 0_usize..3, 0_u64..3).prop_map(|(policy, issuer, keys)| Under {
        policy,
        issuer,
        keys,
    })
}

proptest! {
    /// fast-jwt GHSA-rp9m-7r4c-75qg (2026): colliding cache keys gave out another token's claims. Tokens
    /// that differ least, in one byte changed, left out or said twice, each find their own or nothing.
    #[test]
    fn incident_cache_names_all_bytes(
        token in "[!-~]{1,300}", at: prop::sample::Index, other in 1_u8..128, secret: [u8; 32],
        all_but: prop::sample::Index,
    ) {
        let at = at.index(token.len());
        let mut near = vec![token.clone()];
        let mut changed = token.clone().into_bytes();
        changed[at] ^= other;
        near.push(String::from_utf8(changed).unwrap());
        near.push(format!("{}{}", &token[..at], &token[at + 1..]));
        near.push(format!("{}{}", &token[..=at], &token[at..]));
        near.extend([format!("{token}\0"), format!(" {token}"), token.repeat(2)]);
        near.sort();
        near.dedup();
        let left_out = all_but.index(near.len());
        let mut cache = Cache::new(secret, 1 << 20);
        for (_, token) in near.iter().enumerate().filter(|(n, _)| *n != left_out) {
            cache.put(cache.digest(token), UNDER, Arc::new(token.clone()), token.len(), u64::MAX);
        }
        for (n, token) in near.iter().enumerate() {
            let found = cache.find(cache.digest(token), NOW_MS, |under| under == UNDER);
            let own = (n != left_out).then_some(token);
            prop_assert_eq!(found.as_ref().map(|(_, found)| &**found), own);
        }
    }

    /// What was verified under one policy, issuer and set of keys is not found under any other.
    #[test]
    fn incident_cache_names_what_it_was_verified_under(
        was in under(), asked in under(), again: bool, secret: [u8; 32],
    ) {
        let mut cache = Cache::new(secret, 1 << 20);
        let digest = cache.digest("token");
        cache.put(digest, was, Arc::new(()), 5, u64::MAX);
        if again {
            // Found once before, under what it was verified under.
            prop_assert!(cache.find(digest, NOW_MS, |under| under == was).is_some());
        }
        let found = cache.find(digest, NOW_MS, |under| under == asked);
        prop_assert_eq!(found.map(|(issuer, _)| issuer), (was == asked).then_some(was.issuer));
    }
}

/// fast-jwt GHSA-mvf2-f6gm-w987 (2026), CVE-2016-10555: a public key taken for a shared secret.
#[test]
fn incident_public_key_is_no_secret() {
    let signer = Signer::new(Algorithm::Rs256);
    let keys = signer.set();
    let everything = Issuer { algorithms: Algorithm::ALL.to_vec(), ..issuer() };
    let jwk = signer.jwk().to_string();
    let spki = signer.spki();
    for secret in [&b""[..], jwk.as_bytes(), &spki, b" \n-----BEGIN PUBLIC KEY-----"] {
        for (alg, hmac) in
            [("HS256", aws_lc_rs::hmac::HMAC_SHA256), ("HS512", aws_lc_rs::hmac::HMAC_SHA512)]
        {
            let header = format!(r#"{{"alg":"{alg}","kid":"k","typ":"at+jwt"}}"#);
            let input = format!(
                "{}.{}",
                encode(header.as_bytes()),
                encode(claims().to_string().as_bytes())
            );
            let key = aws_lc_rs::hmac::Key::new(hmac, secret);
            let tag = aws_lc_rs::hmac::sign(&key, input.as_bytes());
            let token = format!("{input}.{}", encode(tag.as_ref()));
            assert_eq!(verified(&token, &everything, &keys), Err(Fault::Algorithm));
        }
    }
}

/// CVE-2018-0114 (node-jose) and its like: the token brings its own key, or points to one.
#[test]
fn incident_embedded_key_is_never_used() {
    let (owner, thief) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
    let keys = owner.set();
    for header in [
        json!({"alg": "ES256", "typ": "at+jwt", "kid": "k", "jwk": thief.jwk()}),
        json!({"alg": "ES256", "typ": "at+jwt", "jwk": thief.jwk()}),
        json!({"alg": "ES256", "typ": "at+jwt", "kid": "k", "jku": "https://thief.example/jwks"}),
        json!({"alg": "ES256", "typ": "at+jwt", "kid": "k", "x5u": "https://thief.example/c"}),
        json!({"alg": "ES256", "typ": "at+jwt", "kid": "k", "x5c": [encode(&thief.spki())]}),
    ] {
        let forged = thief.seal(&header.to_string(), &claims().to_string());
        assert_eq!(verified(&forged, &issuer(), &keys), Err(Fault::Signature), "{header}");
        // The owner's own token with such a header is judged by the owner's key.
        let own = owner.seal(&header.to_string(), &claims().to_string());
        assert!(verified(&own, &issuer(), &keys).is_ok(), "{header}");
    }
}

/// CVE-2015-9235 and CVE-2020-28042: `none` in every spelling, and no signature at all.
#[test]
fn incident_unsigned_token_is_refused() {
    let signer = Signer::new(Algorithm::Es256);
    let keys = signer.set();
    let good = signer.token(&claims());
    let (input, _) = good.rsplit_once('.').unwrap();
    assert_eq!(verified(&format!("{input}."), &issuer(), &keys), Err(Fault::Form));
    assert_eq!(verified(input, &issuer(), &keys), Err(Fault::Form));
    for zeros in [1, 32, 63, 64, 65, 128] {
        let token = format!("{input}.{}", encode(&vec![0; zeros]));
        assert_eq!(verified(&token, &issuer(), &keys), Err(Fault::Signature), "{zeros} zeros");
    }
    for alg in ["none", "None", "NONE", "nOnE", "", "null"] {
        let header = json!({"alg": alg, "typ": "at+jwt", "kid": "k"}).to_string();
        let token = signer.seal(&header, &claims().to_string());
        assert_eq!(verified(&token, &issuer(), &keys), Err(Fault::Algorithm), "{alg}");
    }
}

/// CVE-2019-20933: a blank secret. And short ones, that lists of words hold.
#[test]
fn incident_weak_secret_is_no_key() {
    for n in [0, 1, 16, 31] {
        assert!(VerifyingKey::from_secret(&SECRET[..n], &[Algorithm::Hs256]).is_err(), "{n}");
    }
}

/// Found in jsonwebtoken 11.1: a token without `aud` passes a check for one, `nbf` is not looked
/// at, a DPoP proof is taken for an access token.
#[test]
fn incident_defaults_of_others_are_not_ours() {
    let signer = Signer::new(Algorithm::Es256);
    let keys = signer.set();
    let judged = |header: &str, claims: &serde_json::Value| {
        let token = verified(&signer.seal(header, &claims.to_string()), &issuer(), &keys)?;
        admit(&issuer(), &token, NOW_MS)
    };
    let header = r#"{"alg":"ES256","typ":"at+jwt","kid":"k"}"#;
    assert_eq!(judged(header, &claims()), Ok(()));
    let mut without = claims();
    without.as_object_mut().unwrap().remove("aud");
    assert_eq!(judged(header, &without), Err(Fault::Claims));
    let mut later = claims();
    later["nbf"] = (NOW_S + 2_000_000_000).into();
    assert_eq!(judged(header, &later), Err(Fault::NotYet));
    let proof = r#"{"alg":"ES256","typ":"dpop+jwt","kid":"k"}"#;
    assert_eq!(judged(proof, &claims()), Err(Fault::Type));
}
