//! Against a second opinion: changed tokens, and what another library makes of them.
//!
//! Nothing may be accepted here that `jsonwebtoken` refuses. A few thousand are tried without further
//! ado, a million by `cargo xtask differential`.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Mutex;
use std::thread;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, get_current_timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::denylist::Denylist;
use super::super::jws::{decode, encode};
use super::super::{Algorithm, Fault, Issuer, KeySet, Presented, Unverified, VerifyingKey};
use super::signer::{NOW_MS, SECRET, Signer, claims, issuer};

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

/// Claims that another issuer, another client or a thief might write: some good, some not.
fn altered(random: &mut Random, now_s: u64) -> Value {
    let mut body = claims();
    body["iat"] = (now_s - 10).into();
    body["exp"] = (now_s + 300).into();
    let good = body.clone();
    let mut more = random.below(3);
    while more > 0 || body == good {
        more = more.saturating_sub(1);
        let name =
            *random.of(&["iss", "aud", "sub", "exp", "exp", "nbf", "nbf", "iat", "jti", "scope"]);
        // Near the leeway, where a second decides, and anywhere.
        let near = (now_s + 10 - random.below(21) as u64).into();
        let value = match (name, random.below(6)) {
            (_, 0) => random.of(&values()).clone(),
            ("exp" | "nbf" | "iat", 1) => near,
            ("exp" | "nbf" | "iat", _) => (now_s + 2_000 - random.below(4_000) as u64).into(),
            ("iss", _) => "https://issuer.example".into(),
            ("aud", 1) => json!("https://api.example"),
            ("aud", _) => json!([format!("x{}", random.below(1000)), "https://api.example"]),
            _ => format!("{name} {}", random.below(1_000_000)).into(),
        };
        body[name] = value;
    }
    body
}

fn values() -> [Value; 12] {
    [
        json!(null),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(9e15),
        json!(""),
        json!("9999999999"),
        json!([]),
        json!({}),
        json!(true),
        json!(["https://api.example"]),
        json!("https://other.example"),
    ]
}

/// Keys that sign under one algorithm, and the set of them as both sides hold it.
struct World {
    signers: [(&'static str, Signer); 2],
    issuer: Issuer,
    ours: KeySet,
    theirs: Vec<(Option<String>, DecodingKey)>,
}

impl World {
    fn new(algorithm: Algorithm) -> Self {
        let signers = ["k", "other"].map(|kid| (kid, Signer::new(algorithm)));
        let issuer = Issuer { algorithms: Algorithm::ALL.to_vec(), ..issuer() };
        if algorithm.is_symmetric() {
            let secret = VerifyingKey::from_secret(SECRET, &[algorithm]).unwrap();
            let ours = KeySet::new(vec![secret]).unwrap();
            return Self {
                signers,
                issuer,
                ours,
                theirs: vec![(None, DecodingKey::from_secret(SECRET))],
            };
        }
        let jwks = json!({"keys": signers.each_ref().map(|(kid, key)| key.named(kid))}).to_string();
        let set: JwkSet = serde_json::from_str(&jwks).unwrap();
        let theirs = set
            .keys
            .iter()
            .map(|jwk| (jwk.common.key_id.clone(), DecodingKey::from_jwk(jwk).unwrap()));
        Self {
            signers,
            issuer,
            ours: KeySet::from_jwks(jwks.as_bytes()).unwrap(),
            theirs: theirs.collect(),
        }
    }

    /// A token that is not as its issuer would have made it, and by what it differs.
    fn token(&self, random: &mut Random, now_s: u64) -> (String, Changed) {
        let (own, signer) = random.of(&self.signers);
        let alg = signer.algorithm.name();
        let kid = match random.below(16) {
            0 => *random.of(&["k", "other", "nobody's", ""]),
            _ => own,
        };
        let header = format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"{kid}"}}"#);
        let payload = altered(random, now_s).to_string();
        let (header, payload) = match random.below(4) {
            0 => (spliced(&header, JSON_PIECES, random), payload),
            1 => (header, spliced(&payload, JSON_PIECES, random)),
            _ => (header, payload),
        };
        let token = signer.seal(&header, &payload);
        (token, Changed::Before(header + &payload))
    }
}

/// By what a token differs from a good one.
#[derive(Hash)]
enum Changed {
    /// By what was signed.
    Before(String),
    /// By what was done to it afterwards.
    After(String),
}

fn ours(token: &str, issuer: &Issuer, keys: &KeySet, now_ms: u64) -> Result<(), Fault> {
    let verified = issuer.verify(Unverified::parse(token, 8192)?, keys)?;
    let denylist = &Denylist::default();
    issuer.admit(
        &verified,
        &Presented { now_ms, denylist, audience: &[], proof_key: None, certificate: None },
    )
}

/// The peer, told to check all that it can: with the key that the token names, or any of the set.
fn theirs(token: &str, world: &World) -> bool {
    let Ok(header) = jsonwebtoken::decode_header(token) else { return false };
    if !world.issuer.algorithms.iter().any(|own| own.name() == format!("{:?}", header.alg)) {
        return false;
    }
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&["https://api.example"]);
    validation.set_issuer(&["https://issuer.example"]);
    validation.set_required_spec_claims(&["exp", "aud", "iss"]);
    (validation.validate_exp, validation.validate_nbf, validation.leeway) = (true, true, 5);
    let meant = |own: &Option<String>| header.kid.is_none() || own.is_none() || *own == header.kid;
    world.theirs.iter().filter(|(kid, _)| meant(kid)).any(|(_, key)| {
        type Claims = serde_json::Map<String, Value>;
        jsonwebtoken::decode::<Claims>(token, key, &validation).is_ok()
    })
}

/// What became of the tokens of a run.
#[derive(Default)]
struct Tally {
    /// Each change but once.
    seen: HashSet<u64>,
    /// Changed after they were signed.
    after: usize,
    accepted: usize,
    stricter: BTreeMap<&'static str, usize>,
}

/// Judges changed tokens of one seed until `wanted` different ones are in the tally.
fn judge(seed: u64, wanted: usize, worlds: &[World], tally: &Mutex<Tally>) {
    let mut random = Random(seed);
    loop {
        let world = random.of(worlds);
        let now_s = get_current_timestamp();
        let (signed, before) = world.token(&mut random, now_s);
        // Signing is slow, damaging is not: one signed token is damaged several times.
        let mut tokens = vec![(signed, before)];
        for _ in 0..3 {
            let changed = mutate(&tokens[0].0, &mut random);
            if changed != tokens[0].0 {
                tokens.push((changed.clone(), Changed::After(changed)));
            }
        }
        for (token, changed) in tokens {
            let mut hasher = DefaultHasher::new();
            changed.hash(&mut hasher);
            // The peer reads the clock itself. Ours is read before: in a second that turns between
            // them, the peer is the one that lets in.
            let now_ms = get_current_timestamp() * 1000;
            let own = ours(&token, &world.issuer, &world.ours, now_ms);
            let peer = theirs(&token, world);
            let mut tally = tally.lock().unwrap();
            if tally.seen.len() >= wanted {
                return;
            }
            if !tally.seen.insert(hasher.finish()) {
                continue;
            }
            tally.after += usize::from(matches!(changed, Changed::After(_)));
            match own {
                Ok(()) => {
                    assert!(peer, "accepted here, refused there: {token}");
                    tally.accepted += 1;
                }
                Err(fault) if peer => *tally.stricter.entry(fault.name()).or_default() += 1,
                Err(_) => {}
            }
        }
    }
}

#[test]
fn nothing_is_accepted_that_another_library_refuses() {
    let wanted = option_env!("EDGED_TOKEN_MUTATIONS").and_then(|n| n.parse().ok());
    let wanted: usize = wanted.unwrap_or(3_000);
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    // ES512 the peer does not have.
    let worlds =
        [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256, Algorithm::Ps384, Algorithm::Hs256]
            .map(World::new);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for seed in [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03] {
            let (worlds, tally) = (&worlds, &tally);
            scope.spawn(move || judge(seed, wanted, worlds, tally));
        }
    });
    let Tally { seen, after, accepted, stricter } = tally.into_inner().unwrap();
    println!(
        "jsonwebtoken: {} different tokens, {after} changed after they were signed, {accepted} \
         accepted by both, refused by us alone: {stricter:?}",
        seen.len()
    );
    assert_eq!(seen.len(), wanted);
    assert!(accepted > wanted / 20, "too few good ones to mean anything: {accepted}");
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
        prop_assert_eq!(ours(&token, &issuer, &keys, NOW_MS), Ok(()));
        let mut bytes = token.into_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(ours(&changed, &issuer, &keys, NOW_MS).is_err());
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
