//! What a token costs, beside the library most use; and what a flood of made-up keys costs its issuer.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize, PublicKey},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use edge_identity::jwt::{
    Algorithm, Issuer, KeySet, Presented, Profile, Unverified,
    cache::{Cache, Under},
    denylist::Denylist,
};
use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Value, json};

use super::micros;
use crate::{
    bench::{Effort, Goal, Line, MEASURED_CPU, Report, pin_self, report::median},
    issuer::{AUDIENCE, Answers, ISSUER, KEYS_URL, KeyServer, Signer, encode, jwks, now_s},
    lab::{FRIEND, Lab},
    origin::Origin,
};

/// RS256 tokens with the claims of RFC 9068: seen for the first time, seen again, and by
/// `jsonwebtoken`, each as CPU microseconds a token.
pub(in crate::bench) fn rs256(effort: Effort, report: &mut Report) -> Result<()> {
    pin_self(MEASURED_CPU)?;
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let bench = Bench::new()?;
    let count = if effort.is_quick() { 2_000 } else { 20_000 };
    let (mut first, mut cached, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        first.push(micros(count, |n| bench.first_sight(n))?);
        let mut cache = bench.warm_cache()?;
        cached.push(micros(count * 5, |n| bench.cached(&mut cache, n))?);
        theirs.push(micros(count, |n| bench.theirs(n))?);
        let (a, b, c) = (first[round - 1], cached[round - 1], theirs[round - 1]);
        report.note(&format!("round {round}: first {a:.1}, cached {b:.2}, jsonwebtoken {c:.1} µs"));
    }
    let reference = format!("jsonwebtoken 11.1 in the same run: {:.1} µs", median(&theirs));
    for (name, rounds, goal) in [
        ("RS256-2048 token, first sight, CPU", first, 28.0),
        ("RS256-2048 token, cached, CPU", cached, 2.0),
    ] {
        let (goal, reference) = (Goal::AtMost(goal), reference.clone());
        report.add(&Line {
            measure: 3,
            name: name.to_owned(),
            rounds,
            unit: "us",
            goal,
            reference,
        });
    }
    Ok(())
}

/// Tokens with unknown keys as fast as they come, for several cooldowns: fetches for each.
pub(in crate::bench) fn unknown_keys(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let cooldown = Duration::from_secs(2);
    let edged = lab
        .edged()?
        .set("limits.per_source", r#"{ rate = "1000000/s", burst = 1000000 }"#)
        .set("limits.global", r#"{ rate = "1000000/s", burst = 1000000 }"#)
        .append(&format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
             jwks_url = \"{KEYS_URL}\"\ncooldown = \"{}s\"\n\
             [[route]]\npath = \"/token\"\nmethods = [\"GET\"]\nauth = \"jwt\"\nupstream = \"api\"",
            cooldown.as_secs()
        ))?
        .start()?;
    let ask = |token: &str| {
        edged.get(FRIEND, "/token").header("Authorization", &format!("Bearer {token}"))
    };
    ensure!(ask(&signer.token(&signer.claims())).send()?.status == 200, "the keys are not known");
    let thief = Signer::new("")?;
    let mut rates = Vec::new();
    let mut flood = 0_u64;
    for round in 0..effort.rounds {
        let (begun, asked) = (Instant::now(), keys.asked());
        while begun.elapsed() < cooldown * 2 {
            let header =
                json!({"alg": "ES256", "typ": "at+jwt", "kid": format!("{round}-{flood}")});
            let statuses = ask(&thief.seal(&header, &thief.claims())).send_many(500)?;
            ensure!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
            flood += statuses.len() as u64;
        }
        // The first fetch of a stretch of time opens it.
        let cooldowns = begun.elapsed().as_secs_f64() / cooldown.as_secs_f64() + 1.0;
        rates.push((keys.asked() - asked) as f64 / cooldowns);
    }
    report.note(&format!("{flood} tokens with unknown keys, {} fetches in all", keys.asked()));
    report.add(&Line {
        measure: 8,
        name: "fetches of keys a cooldown, under a flood of unknown 'kid'".to_owned(),
        rounds: rates,
        unit: "fetches",
        goal: Goal::AtMost(1.0),
        reference: format!("one fetch a token without a cooldown: {flood}"),
    });
    Ok(())
}

/// Tokens, who judges them, and who judges them beside.
struct Bench {
    tokens: Vec<String>,
    keys: KeySet,
    issuer: Issuer,
    denylist: Denylist,
    now_ms: u64,
    key: DecodingKey,
    validation: Validation,
}

/// What the daemon keeps of a token.
type Known = (edge_identity::jwt::Verified, edge_identity::principal::Named);

const UNDER: Under = Under { policy: 1, issuer: 0, keys: 1 };

impl Bench {
    fn new() -> Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048)?;
        let public = PublicKey::from_der(pair.public_key().as_ref())?;
        let n = encode(public.modulus().big_endian_without_leading_zero());
        let e = encode(public.exponent().big_endian_without_leading_zero());
        let jwks = json!({"keys": [{"kty": "RSA", "kid": "k", "use": "sig", "n": n, "e": e}]});
        let now = now_s();
        let tokens = (0..64).map(|number| {
            let claims = json!({
                "iss": ISSUER, "aud": AUDIENCE, "sub": "0b5e2f8c", "client_id": "app",
                "jti": format!("token-{number}"), "iat": now, "exp": now + 3600,
                "scope": "orders:read orders:write", "roles": ["clerk"],
            });
            sign(&pair, &claims)
        });
        let mut validation = Validation::new(jsonwebtoken::Algorithm::RS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.validate_nbf = true;
        Ok(Self {
            tokens: tokens.collect::<Result<_>>()?,
            keys: KeySet::from_jwks(jwks.to_string().as_bytes())?,
            issuer: Issuer {
                name: "bench".into(),
                issuer: ISSUER.into(),
                audience: vec![AUDIENCE.into()],
                algorithms: vec![Algorithm::Rs256],
                profile: Profile::AccessToken,
                leeway_ms: 5_000,
                lifetime_max_ms: 86_400_000,
                scope_claims: vec!["scope".into(), "scp".into()],
                roles_claim: Some("roles".into()),
                tier_claim: Some("tier".into()),
            },
            denylist: Denylist::default(),
            now_ms: now * 1000,
            key: DecodingKey::from_rsa_components(&n, &e)?,
            validation,
        })
    }

    fn first_sight(&self, n: usize) -> Result<()> {
        let known = self.verify(&self.tokens[n % self.tokens.len()])?;
        self.admit(&known)?;
        black_box(known);
        Ok(())
    }

    fn verify(&self, token: &str) -> Result<Known> {
        let token = Unverified::parse(token, 8192).ok().context("form")?;
        ensure!(token.issuer() == self.issuer.issuer, "issuer");
        let verified = self.issuer.verify(token, &self.keys).ok().context("signature")?;
        let named = verified.named(&self.issuer);
        Ok((verified, named))
    }

    fn admit(&self, known: &Known) -> Result<()> {
        let presented = Presented {
            now_ms: self.now_ms,
            denylist: &self.denylist,
            audience: &[],
            proof_key: None,
            certificate: None,
        };
        self.issuer.admit(&known.0, &presented).ok().context("refused")
    }

    fn warm_cache(&self) -> Result<Cache<Known>> {
        let mut cache = Cache::new([7; 32], 16 << 20);
        for token in &self.tokens {
            let known = Arc::new(self.verify(token)?);
            cache.put(cache.digest(token), UNDER, known, token.len(), u64::MAX);
        }
        Ok(cache)
    }

    fn cached(&self, cache: &mut Cache<Known>, n: usize) -> Result<()> {
        let digest = cache.digest(&self.tokens[n % self.tokens.len()]);
        let (_, known) = cache.find(digest, self.now_ms, |u| u == UNDER).context("not cached")?;
        self.admit(&known)?;
        black_box(known);
        Ok(())
    }

    fn theirs(&self, n: usize) -> Result<()> {
        let token = &self.tokens[n % self.tokens.len()];
        black_box(jsonwebtoken::decode::<Value>(token, &self.key, &self.validation)?);
        Ok(())
    }
}

fn sign(pair: &KeyPair, claims: &Value) -> Result<String> {
    let header = encode(br#"{"alg":"RS256","typ":"at+jwt","kid":"k"}"#);
    let input = format!("{header}.{}", encode(claims.to_string().as_bytes()));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature)?;
    Ok(format!("{input}.{}", encode(&signature)))
}
