//! Against a second opinion: mutated tokens, and what another library makes of them.
//!
//! Nothing may be accepted here that `jsonwebtoken` refuses. Without further ado a few thousand are
//! tried; `EDGED_TOKEN_MUTATIONS=1000000` tries as many.

use std::collections::BTreeMap;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation};
use proptest::prelude::*;
use serde_json::json;

use super::super::denylist::Denylist;
use super::super::jws::{decode, encode};
use super::super::{Algorithm, Fault, Issuer, KeySet, Presented, Unverified};
use super::signer::{NOW_MS, Signer, claims, issuer};

/// xorshift64*: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn of<'l, T>(&mut self, list: &'l [T]) -> &'l T {
        &list[self.below(list.len())]
    }
}

const PIECES: &[&str] =
    &["", " ", "\n", "=", ".", "..", "A", "_", "-", "+", "/", "\u{e9}", "%2e", "\0", "eyJ", "e30"];
const JSON_PIECES: &[&str] = &[
    r#","alg":"none""#,
    r#","alg":"HS256""#,
    r#","crit":["exp"]"#,
    r#","exp":1"#,
    r#","exp":"9""#,
    r#","aud":[]"#,
    r#","nbf":9e15"#,
    r#","iss":null"#,
    r#","typ":"JWT""#,
    r#","b64":false"#,
    "}",
    "{",
    "[",
    "]",
    ",",
    r#""x":1e400"#,
    r#","a":{"b":1,"b":2}"#,
    " ",
    "\t",
    r"\u0061",
    "1.0",
    "-",
    r#","kid":"k""#,
];

/// Changes a token somewhere: its text, or the JSON of one of its parts.
fn mutate(token: &str, random: &mut Random) -> String {
    let mut token = token.to_owned();
    for _ in 0..=random.below(3) {
        token = if random.below(2) == 0 {
            spliced(&token, PIECES, random)
        } else {
            let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
            let at = random.below(parts.len());
            if let Ok(bytes) = decode(&parts[at]) {
                let changed = match String::from_utf8(bytes) {
                    Ok(text) => spliced(&text, JSON_PIECES, random).into_bytes(),
                    Err(error) => flipped(error.into_bytes(), random),
                };
                parts[at] = encode(&changed);
            }
            parts.join(".")
        };
    }
    token
}

fn spliced(text: &str, pieces: &[&str], random: &mut Random) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.is_empty() {
        return (*random.of(pieces)).to_owned();
    }
    let (at, to) = (random.below(chars.len()), random.below(chars.len()));
    let head: String = chars[..at].iter().collect();
    let tail: String = chars[at..].iter().collect();
    match random.below(5) {
        0 => format!("{head}{}{tail}", random.of(pieces)),
        1 => format!("{head}{}", tail.chars().skip(1).collect::<String>()),
        2 => format!("{head}{}{}", chars[to], tail.chars().skip(1).collect::<String>()),
        3 => format!("{head}{}", chars[at.min(to)..].iter().collect::<String>()),
        _ => head,
    }
}

fn flipped(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    if !bytes.is_empty() {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

fn ours(token: &str, issuer: &Issuer, keys: &KeySet) -> Result<(), Fault> {
    let verified = issuer.verify(Unverified::parse(token, 8192)?, keys)?;
    let denylist = &Denylist::default();
    issuer.admit(
        &verified,
        &Presented { now_ms: NOW_MS, denylist, audience: &[], proof_key: None, certificate: None },
    )
}

/// The peer, told to check all that it can; it reads the clock, so dates are left to us.
fn theirs(token: &str, set: &JwkSet, algorithms: &[Algorithm]) -> bool {
    let Ok(header) = jsonwebtoken::decode_header(token) else { return false };
    let key = match &header.kid {
        Some(kid) => set.find(kid),
        None => set.keys.first(),
    };
    let Some(key) = key.and_then(|jwk| DecodingKey::from_jwk(jwk).ok()) else { return false };
    if !algorithms.iter().any(|own| own.name() == format!("{:?}", header.alg)) {
        return false;
    }
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&["https://api.example"]);
    validation.set_issuer(&["https://issuer.example"]);
    validation.set_required_spec_claims(&["exp", "aud", "iss"]);
    validation.validate_exp = false;
    jsonwebtoken::decode::<serde_json::Map<String, serde_json::Value>>(token, &key, &validation)
        .is_ok()
}

#[test]
fn nothing_is_accepted_that_another_library_refuses() {
    let count = option_env!("EDGED_TOKEN_MUTATIONS").and_then(|n| n.parse().ok());
    let count: usize = count.unwrap_or(3_000);
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let issuer = issuer();
    let algorithms = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256, Algorithm::Ps384];
    let signers = algorithms.map(Signer::new);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut stricter) = (0, BTreeMap::<&str, usize>::new());
    for n in 0..count {
        let signer = &signers[n % signers.len()];
        let jwks = json!({"keys": [signer.named("k")]}).to_string();
        let keys = KeySet::from_jwks(jwks.as_bytes()).unwrap();
        let set: JwkSet = serde_json::from_str(&jwks).unwrap();
        // Half are changed after they were signed, half before.
        let token = if random.below(2) == 0 {
            mutate(&signer.token(&claims()), &mut random)
        } else {
            let alg = signer.algorithm.name();
            let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"k"}}"#);
            let payload = claims().to_string();
            match random.below(3) {
                0 => signer.seal(&spliced(&header, JSON_PIECES, &mut random), &payload),
                1 => signer.seal(&header, &spliced(&payload, JSON_PIECES, &mut random)),
                _ => signer.seal(&header, &payload),
            }
        };
        let (own, peer) = (ours(&token, &issuer, &keys), theirs(&token, &set, &issuer.algorithms));
        match own {
            Ok(()) => {
                accepted += 1;
                assert!(peer, "accepted here, refused there: {token}");
            }
            Err(fault) if peer => *stricter.entry(fault.name()).or_default() += 1,
            Err(_) => {}
        }
    }
    println!("{count} tokens, {accepted} accepted by both, refused by us alone: {stricter:?}");
    assert!(accepted > count / 20, "too few good ones to mean anything: {accepted}");
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in "\\PC{0,200}", bytes: Vec<u8>) {
        let _ = Unverified::parse(&text, 8192);
        let _ = KeySet::from_jwks(&bytes);
        let _ = KeySet::from_jwks(text.as_bytes());
        let _ = super::super::VerifyingKey::from_pem(&text);
        let parts = [text.as_bytes(), &bytes, b"x"].map(encode).join(".");
        let _ = Unverified::parse(&parts, 8192);
    }

    /// A signed token is good until one bit of it changes.
    #[test]
    fn every_bit_counts(at in 0_usize..400, bit in 0_u8..6) {
        let signer = Signer::new(Algorithm::EdDsa);
        let (keys, issuer) = (signer.set(), issuer());
        let token = signer.token(&claims());
        prop_assert_eq!(ours(&token, &issuer, &keys), Ok(()));
        let mut bytes = token.into_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(ours(&changed, &issuer, &keys).is_err());
    }

    #[test]
    fn times_are_judged_as_numbers(exp in 0_u64..4_000_000_000, now in 0_u64..4_000_000_000) {
        let signer = Signer::new(Algorithm::EdDsa);
        let (keys, issuer) = (signer.set(), Issuer { lifetime_max_ms: u64::MAX, ..issuer() });
        let mut body = claims();
        body["exp"] = exp.into();
        body["iat"] = 0.into();
        let token = signer.token(&body);
        let verified = issuer.verify(Unverified::parse(&token, 8192).unwrap(), &keys).unwrap();
        let denylist = &Denylist::default();
        let at = |now_ms| Presented { now_ms, denylist, audience: &[], proof_key: None, certificate: None };
        prop_assert_eq!(issuer.admit(&verified, &at(now * 1000)).is_ok(), now < exp + 5);
    }
}
