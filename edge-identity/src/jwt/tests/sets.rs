//! Which keys and sets of keys are believed.

use aws_lc_rs::hmac;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::jws::{Jws, encode};
use super::super::{Algorithm, Fault, KeyFault, KeySet, SetFault, VerifyingKey};
use super::signer::{SECRET, Signer, set};

fn key(jwk: &Value) -> Result<VerifyingKey, KeyFault> {
    VerifyingKey::from_jwk(jwk.as_object().unwrap())
}

fn read(jwks: &[Value]) -> Result<KeySet, SetFault> {
    KeySet::from_jwks(json!({"keys": jwks}).to_string().as_bytes())
}

fn with(mut jwk: Value, name: &str, value: Value) -> Value {
    jwk[name] = value;
    jwk
}

#[test]
fn a_key_is_for_what_it_says() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256, Algorithm::EdDsa] {
        let jwk = &Signer::new(algorithm).jwk();
        assert!(key(jwk).is_ok());
        assert!(key(&with(jwk.clone(), "use", "sig".into())).is_ok());
        assert!(key(&with(jwk.clone(), "key_ops", json!(["verify"]))).is_ok());
        for (name, value, fault) in [
            ("use", json!("enc"), KeyFault::Purpose),
            ("use", json!("SIG"), KeyFault::Purpose),
            ("use", json!(["sig"]), KeyFault::Malformed),
            ("key_ops", json!(["sign"]), KeyFault::Purpose),
            ("key_ops", json!([]), KeyFault::Purpose),
            ("key_ops", json!("verify"), KeyFault::Malformed),
            ("key_ops", json!(["verify", "verify"]), KeyFault::Malformed),
            ("key_ops", json!(["verify", 1]), KeyFault::Malformed),
            ("alg", json!("HS256"), KeyFault::Algorithm),
            ("alg", json!("none"), KeyFault::Algorithm),
            ("alg", json!("ES384"), KeyFault::Algorithm),
            ("alg", json!(1), KeyFault::Malformed),
            ("kid", json!(1), KeyFault::Malformed),
            ("d", json!("AA"), KeyFault::Private),
            ("kty", json!("oct"), KeyFault::Symmetric),
            ("kty", json!("rsa"), KeyFault::Unknown),
            ("kty", json!(null), KeyFault::Malformed),
        ] {
            let found = key(&with(jwk.clone(), name, value.clone())).unwrap_err();
            assert_eq!(found, fault, "{name} {value} in {jwk}");
        }
    }
}

#[test]
fn points_lie_on_their_curve_and_have_its_size() {
    let p256 = Signer::new(Algorithm::Es256).jwk();
    let p384 = Signer::new(Algorithm::Es384).jwk();
    for (jwk, fault) in [
        (with(p256.clone(), "crv", "P-384".into()), KeyFault::Malformed),
        (with(p256.clone(), "crv", "secp256k1".into()), KeyFault::Unknown),
        (with(p256.clone(), "x", p256["y"].clone()), KeyFault::Point),
        (with(p256.clone(), "x", p384["x"].clone()), KeyFault::Malformed),
        (with(p256.clone(), "x", encode(&[0; 32]).into()), KeyFault::Point),
        (with(p256.clone(), "x", encode(&[0xff; 32]).into()), KeyFault::Point),
        (with(p256.clone(), "y", json!(null)), KeyFault::Malformed),
        (
            with(p256.clone(), "x", format!("{}=", p256["x"].as_str().unwrap()).into()),
            KeyFault::Malformed,
        ),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&[1; 31])}), KeyFault::Malformed),
        (json!({"kty": "OKP", "crv": "Ed448", "x": encode(&[1; 57])}), KeyFault::Unknown),
        (json!({"kty": "OKP", "crv": "X25519", "x": encode(&[1; 32])}), KeyFault::Unknown),
        (json!({"kty": "EC"}), KeyFault::Malformed),
        (json!({"kty": "RSA"}), KeyFault::Malformed),
        (json!({}), KeyFault::Malformed),
    ] {
        assert_eq!(key(&jwk).unwrap_err(), fault, "{jwk}");
    }
}

/// Wycheproof's kinds: a set with two of one name, with secrets, with what nobody knows.
#[test]
fn a_set_is_refused_or_loses_what_is_no_good() {
    let (a, b) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::EdDsa));
    let unknown = json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"});
    let weak = json!({"kty": "RSA", "kid": "w", "n": encode(&[0xff; 128]), "e": "AQAB"});
    let mixed = read(&[a.named("a"), unknown.clone(), weak.clone(), b.named("b")]).unwrap();
    assert_eq!(mixed.keys().len(), 2);
    assert_eq!(mixed.left_out, [(1, KeyFault::Unknown), (2, KeyFault::Modulus)]);

    let oct = json!({"kty": "oct", "k": encode(SECRET), "kid": "s"});
    for (jwks, fault) in [
        (vec![a.named("a"), b.named("a")], SetFault::DuplicateKid),
        (vec![a.named("a"), oct.clone()], SetFault::Secret),
        (vec![oct.clone()], SetFault::Secret),
        (vec![with(oct, "use", "enc".into())], SetFault::Secret),
        (vec![a.named("a"), with(b.named("b"), "d", "AA".into())], SetFault::Secret),
        (vec![], SetFault::Empty),
        (vec![unknown, weak], SetFault::Empty),
        (vec![json!("x")], SetFault::Form),
        (vec![a.jwk(); 65], SetFault::Count),
    ] {
        assert_eq!(read(&jwks).unwrap_err(), fault);
    }
    for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, r#"{"keys":null}"#] {
        assert_eq!(KeySet::from_jwks(text.as_bytes()).unwrap_err(), SetFault::Form, "{text}");
    }
}

#[test]
fn the_header_means_one_key_or_none() {
    let (a, b) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::EdDsa));
    let one = set(&[a.named("a"), b.named("b")]);
    let (es, ed) = (Algorithm::Es256, Algorithm::EdDsa);
    assert!(one.find(Some("a"), es).is_ok() && one.find(None, es).is_ok());
    assert_eq!(one.find(Some("a"), ed).unwrap_err(), Fault::Algorithm);
    assert_eq!(one.find(Some("c"), es).unwrap_err(), Fault::Key);
    assert_eq!(one.find(Some("A"), es).unwrap_err(), Fault::Key);
    assert_eq!(one.find(None, Algorithm::Rs256).unwrap_err(), Fault::Key);
    let other = Signer::new(es);
    let two = set(&[a.named("a"), other.named("b")]);
    assert_eq!(two.find(None, es).unwrap_err(), Fault::Key, "which of them?");
    let nameless = set(&[a.jwk()]);
    assert!(nameless.find(None, es).is_ok());
    assert_eq!(nameless.find(Some("a"), es).unwrap_err(), Fault::Key);
}

#[test]
fn keys_from_pem_answer_for_any_name() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let all =
        [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::EdDsa];
    let signers = all.map(Signer::new);
    let pem = |signer: &Signer| {
        let body = STANDARD.encode(signer.spki());
        let lines: Vec<_> =
            body.as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    };
    let file: String = signers.iter().map(pem).collect();
    let keys = KeySet::new(VerifyingKey::from_pem(&file).unwrap()).unwrap();
    assert_eq!(keys.keys().len(), all.len());
    for (signer, key) in signers.iter().zip(keys.keys()) {
        let named = VerifyingKey::from_jwk(signer.jwk().as_object().unwrap()).unwrap();
        assert_eq!(key.thumbprint(), named.thumbprint());
        assert!(keys.find(Some("whatever"), signer.algorithm).is_ok());
    }
    let private = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n";
    assert_eq!(VerifyingKey::from_pem(private).unwrap_err(), KeyFault::Private);
    let certificate = private.replace("PRIVATE KEY", "CERTIFICATE");
    assert_eq!(VerifyingKey::from_pem(&certificate).unwrap_err(), KeyFault::Unknown);
    for text in ["", "x", "-----BEGIN ", "-----BEGIN PUBLIC KEY-----\nAA=="] {
        assert_eq!(VerifyingKey::from_pem(text).unwrap_err(), KeyFault::Malformed, "{text}");
    }
}

/// A rotation with an overlap: several keys of one kind that have no names.
#[test]
fn every_key_without_a_name_is_tried() {
    let secrets = [[1_u8; 32], [2; 32], [3; 32]];
    let hs256 = [Algorithm::Hs256];
    let key = |secret: &[u8; 32]| VerifyingKey::from_secret(secret, &hs256).unwrap();
    let set = KeySet::new(secrets[..2].iter().map(key).collect()).unwrap();
    let signed = |secret: &[u8; 32]| {
        let input = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(b"{}"));
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let text = format!("{input}.{}", encode(hmac::sign(&hmac, input.as_bytes()).as_ref()));
        set.verify(&Jws::parse(&text, 8192).unwrap()).map(VerifyingKey::called)
    };
    assert_eq!(signed(&secrets[0]), Ok(key(&secrets[0]).called()));
    assert_eq!(signed(&secrets[1]), Ok(key(&secrets[1]).called()));
    assert_eq!(signed(&secrets[2]), Err(Fault::Signature));
    // Each has a name of its own, the same wherever it stands, and not the secret.
    assert_ne!(key(&secrets[0]).called(), key(&secrets[1]).called());
    assert_eq!(key(&secrets[0]).called().len(), 43);
    assert_ne!(key(&secrets[0]).called(), encode(&secrets[0]));

    let twice = KeySet::new(vec![key(&secrets[0]), key(&secrets[0])]);
    assert_eq!(twice.unwrap_err(), SetFault::Twice);
    let many = |n: u8| KeySet::new((0..n).map(|n| key(&[n; 32])).collect()).map(drop);
    assert_eq!((many(8), many(9)), (Ok(()), Err(SetFault::Nameless)));
}

#[test]
fn secrets_are_as_long_as_their_digest() {
    let key = |n: usize, algorithms: &[Algorithm]| {
        VerifyingKey::from_secret(&SECRET[..n], algorithms).map(|_| ())
    };
    let (hs256, hs512) = (Algorithm::Hs256, Algorithm::Hs512);
    assert_eq!(key(32, &[hs256]), Ok(()));
    assert_eq!(key(31, &[hs256]), Err(KeyFault::Secret));
    assert_eq!(key(63, &[hs512]), Err(KeyFault::Secret));
    assert_eq!(key(63, &[hs256, hs512]), Err(KeyFault::Secret));
    assert_eq!(key(64, &[hs256, hs512]), Ok(()));
    assert_eq!(key(64, &[Algorithm::Rs256]), Err(KeyFault::Secret));
    let shown = format!("{:?}", VerifyingKey::from_secret(SECRET, &[hs256]).unwrap());
    assert!(!shown.contains('Z') && !shown.contains("90"), "{shown}");
}

proptest! {
    /// Whatever a set's bytes become, its reader ends, and no key of somebody else is found in it.
    #[test]
    fn a_changed_set_believes_nobody_else(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let (ours, thief) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
        let both = json!({"keys": [ours.named("a"), Signer::new(Algorithm::EdDsa).named("b")]});
        let mut bytes = both.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(set) = KeySet::from_jwks(&bytes) {
            let input = b"signed";
            let signature = thief.sign(input);
            for key in set.keys() {
                prop_assert!(key.verify(Algorithm::Es256, input, &signature).is_err());
            }
        }
    }
}
