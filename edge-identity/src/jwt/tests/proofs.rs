//! DPoP proofs, and tokens that are bound to keys and certificates.

use serde_json::{Value, json};

use super::super::denylist::Denylist;
use super::super::dpop::{Expected, Nonces, Proof};
use super::super::jws::{decode, encode};
use super::super::{Algorithm, Fault, Issuer, Presented, Unverified};
use super::signer::{NOW_MS, NOW_S, SECRET, Signer, claims, issuer};

const TOKEN: &str = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
const ATH: &str = "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo";

fn expected() -> Expected<'static> {
    Expected {
        method: "GET",
        authority: "resource.example.org",
        path: "/protectedresource",
        token: TOKEN,
        now_ms: NOW_MS,
        age_max_ms: 60_000,
        leeway_ms: 5_000,
        nonces: None,
    }
}

fn proof_claims() -> Value {
    json!({
        "jti": "e1j3V_bKic8-LAEB", "htm": "GET", "ath": ATH, "iat": NOW_S,
        "htu": "https://resource.example.org/protectedresource",
    })
}

fn header(signer: &Signer) -> Value {
    json!({"typ": "dpop+jwt", "alg": signer.algorithm.name(), "jwk": signer.jwk()})
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    object[name] = value;
    object
}

/// The proof of RFC 9449 section 7.1, figures 12 and 13.
#[test]
fn the_proof_of_the_rfc_is_good_for_its_request_alone() {
    let proof = concat!(
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik",
        "VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR",
        "nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE",
        "QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIj",
        "oiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0Z",
        "WRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNF",
        "c05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71E",
        "OptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA",
    );
    let then = Expected { now_ms: 1_562_262_618_000, ..expected() };
    let good = Proof::check(proof, &then).unwrap();
    assert_eq!(encode(&good.key), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
    assert_eq!(good.issued_ms, then.now_ms);
    for other in [
        Expected { method: "POST", ..then },
        Expected { method: "get", ..then },
        Expected { path: "/protectedresource/", ..then },
        Expected { path: "/", ..then },
        Expected { authority: "resource.example.org:8443", ..then },
        Expected { authority: "other.example.org", ..then },
        Expected { token: "another", ..then },
        Expected { now_ms: then.now_ms + 60_001, ..then },
        Expected { now_ms: then.now_ms - 5_001, ..then },
    ] {
        assert_eq!(Proof::check(proof, &other), Err(Fault::Proof), "{other:?}");
    }
}

#[test]
fn proofs_are_made_with_any_public_key_and_no_secret() {
    for algorithm in super::super::dpop::ALGORITHMS {
        let signer = Signer::new(algorithm);
        let proof = signer.seal(&header(&signer).to_string(), &proof_claims().to_string());
        let good = Proof::check(&proof, &expected()).unwrap();
        let key = super::super::VerifyingKey::from_jwk(signer.jwk().as_object().unwrap()).unwrap();
        assert_eq!(&good.key, key.thumbprint());
    }
    let hmac = Signer::new(Algorithm::Hs256);
    let oct = json!({"kty": "oct", "k": encode(SECRET)});
    let header = json!({"typ": "dpop+jwt", "alg": "HS256", "jwk": oct});
    let proof = hmac.seal(&header.to_string(), &proof_claims().to_string());
    assert_eq!(Proof::check(&proof, &expected()), Err(Fault::Proof));
}

#[test]
fn every_part_of_a_proof_is_demanded() {
    let signer = Signer::new(Algorithm::Es256);
    let other = Signer::new(Algorithm::Es256);
    let check = |header: &Value, claims: &Value| {
        Proof::check(&signer.seal(&header.to_string(), &claims.to_string()), &expected())
    };
    let (good_header, good_claims) = (header(&signer), proof_claims());
    assert!(check(&good_header, &good_claims).is_ok());
    for (name, value) in [
        ("typ", json!("JWT")),
        ("typ", json!("at+jwt")),
        ("typ", Value::Null),
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("ES384")),
        ("jwk", Value::Null),
        ("jwk", json!("x")),
        ("jwk", other.jwk()),
        ("jwk", with(signer.jwk(), "d", json!("AA"))),
        ("jwk", with(signer.jwk(), "use", json!("enc"))),
        ("crit", json!(["x"])),
    ] {
        let header = with(good_header.clone(), name, value);
        assert_eq!(check(&header, &good_claims), Err(Fault::Proof), "{header}");
    }
    for (name, value) in [
        ("jti", Value::Null),
        ("jti", json!("")),
        ("jti", json!("x".repeat(257))),
        ("jti", json!(1)),
        ("htm", Value::Null),
        ("htm", json!("POST")),
        ("htu", json!("http://resource.example.org/protectedresource")),
        ("htu", json!("resource.example.org/protectedresource")),
        ("htu", json!("/protectedresource")),
        ("htu", json!("https://user@resource.example.org/protectedresource")),
        ("htu", json!("https://resource.example.org:444/protectedresource")),
        ("htu", json!("https://resource.example.org/protectedresource/x")),
        ("ath", Value::Null),
        ("ath", json!("")),
        ("ath", json!(encode(&[0; 32]))),
        ("iat", Value::Null),
        ("iat", json!("1800000000")),
        ("iat", json!(NOW_S - 61)),
        ("iat", json!(NOW_S + 6)),
    ] {
        let claims = with(good_claims.clone(), name, value);
        assert_eq!(check(&good_header, &claims), Err(Fault::Proof), "{claims}");
    }
    // One URI has several spellings; query and fragment are no part of it (RFC 9449 4.3, 9).
    for htu in [
        "HTTPS://Resource.Example.ORG:443/protectedresource",
        "https://resource.example.org/x/../protectedresource?a=b#c",
        "https://resource.example.org/%70rotectedresource",
    ] {
        assert!(
            check(&good_header, &with(good_claims.clone(), "htu", json!(htu))).is_ok(),
            "{htu}"
        );
    }
}

#[test]
fn a_proof_has_one_name_for_each_key_and_id() {
    let (a, b) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
    let id = |signer: &Signer, jti: &str| {
        let claims = with(proof_claims(), "jti", json!(jti));
        let proof = signer.seal(&header(signer).to_string(), &claims.to_string());
        Proof::check(&proof, &expected()).unwrap().id
    };
    assert_eq!(id(&a, "1"), id(&a, "1"), "signed twice, and yet the same proof");
    assert_ne!(id(&a, "1"), id(&a, "2"));
    assert_ne!(id(&a, "1"), id(&b, "1"));
}

#[test]
fn nonces_are_ours_and_fresh() {
    let nonces = Nonces::new([7; 32], 30_000);
    let signer = Signer::new(Algorithm::Es256);
    let check = |nonce: Value, now_ms: u64, nonces: &Nonces| {
        let claims = with(with(proof_claims(), "nonce", nonce), "iat", json!(now_ms / 1000));
        let proof = signer.seal(&header(&signer).to_string(), &claims.to_string());
        Proof::check(&proof, &Expected { nonces: Some(nonces), now_ms, ..expected() })
    };
    let nonce = nonces.current(NOW_MS);
    assert!(check(json!(nonce), NOW_MS, &nonces).is_ok());
    assert!(check(json!(nonce), NOW_MS + 30_000, &nonces).is_ok());
    assert_eq!(check(json!(nonce), NOW_MS + 60_000, &nonces), Err(Fault::ProofNonce));
    assert_eq!(check(json!(nonce), NOW_MS - 30_000, &nonces), Err(Fault::ProofNonce));
    let others = Nonces::new([8; 32], 30_000);
    assert_eq!(check(json!(nonce), NOW_MS, &others), Err(Fault::ProofNonce));
    assert_eq!(check(Value::Null, NOW_MS, &nonces), Err(Fault::Proof));
    assert_eq!(check(json!("x"), NOW_MS, &nonces), Err(Fault::ProofNonce));
    assert!(!format!("{nonces:?}").contains('7'));
}

/// RFC 8705 and RFC 9449 7.1: what a token is bound to must be shown, and nothing else helps.
#[test]
fn a_bound_token_is_good_with_what_it_is_bound_to() {
    let signer = Signer::new(Algorithm::Es256);
    let (issuer, keys, denylist) = (issuer(), signer.set(), Denylist::default());
    let (key, certificate, other) = ([1; 32], [2; 32], [3; 32]);
    let judge = |cnf: Value, proof_key: Option<&[u8; 32]>, certificate: Option<&[u8; 32]>| {
        let issuer: &Issuer = &issuer;
        let token = signer.token(&match cnf {
            Value::Null => claims(),
            cnf => with(claims(), "cnf", cnf),
        });
        let token = issuer.verify(Unverified::parse(&token, 8192).unwrap(), &keys).unwrap();
        let denylist = &denylist;
        issuer.admit(
            &token,
            &Presented { now_ms: NOW_MS, denylist, audience: &[], proof_key, certificate },
        )
    };
    let (jkt, x5t) = (encode(&key), encode(&certificate));
    let (to_key, to_certificate) = (json!({"jkt": jkt}), json!({"x5t#S256": x5t}));
    let to_both = json!({"jkt": jkt, "x5t#S256": x5t});
    let refused = Err(Fault::Sender);
    for (cnf, proof, shown, outcome) in [
        (Value::Null, None, None, Ok(())),
        (Value::Null, None, Some(&other), Ok(())),
        (Value::Null, Some(&key), None, refused),
        (to_key.clone(), Some(&key), None, Ok(())),
        (to_key.clone(), None, None, refused),
        (to_key.clone(), Some(&other), None, refused),
        (to_key, None, Some(&certificate), refused),
        (to_certificate.clone(), None, Some(&certificate), Ok(())),
        (to_certificate.clone(), None, Some(&other), refused),
        (to_certificate, None, None, refused),
        (to_both.clone(), Some(&key), Some(&certificate), Ok(())),
        (to_both.clone(), Some(&key), None, refused),
        (to_both, None, Some(&certificate), refused),
    ] {
        assert_eq!(judge(cnf.clone(), proof, shown), outcome, "{cnf} {proof:?} {shown:?}");
    }
    assert_eq!(decode(ATH).unwrap(), super::super::algorithm::sha256(TOKEN.as_bytes()));
}
