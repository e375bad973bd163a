//! Whether the time of a refusal tells why it was refused.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use edge_identity::key::{KeyRing, Pepper, Peppers, Rules, Secret, prove};
use serde_json::json;

use super::{cpu, keys};
use crate::{
    Edged, Origin,
    bench::{
        Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report, need_two_cores, pin, pin_self,
        report::median,
    },
    client::HOST,
    daemon::find_key,
    issuer::{AUDIENCE, Answers, ISSUER, KEYS_URL, KeyServer, Signer, jwks, now_s},
    lab::{FRIEND, Lab},
    random::Random,
    talk::{Dial, Talk},
};

/// Bad keys, tokens and signatures in random order over one connection, each with its response time. Two kinds are
/// alike if a request of the one takes longer than one of the other in half of all pairs.
pub(in crate::bench) fn refusals(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    pin_self(LOAD_CPU)?;
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (signer, thief) = (Signer::new("k1")?, Signer::new("k1")?);
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = lab
        .edged()?
        .set("bounds.requests_per_connection", "1000000000")
        .set("verdicts.never_ban", &format!("[\"{FRIEND}/32\"]"))
        .append(&format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
             jwks_url = \"{KEYS_URL}\"\n[[route]]\npath = \"/token\"\nmethods = [\"GET\"]\n\
             auth = \"jwt\"\nupstream = \"api\"\n[[route]]\npath = \"/signed\"\n\
             methods = [\"GET\"]\nauth = \"signature\"\nupstream = \"api\"\n"
        ))?
        .start()?;
    let kinds = [
        ("keys", "/", bad_keys(&edged)?),
        ("tokens", "/token", bad_tokens(&edged, &signer, &thief)?),
        ("signatures", "/signed", bad_signatures(&lab, &edged)?),
    ];
    pin(edged.pid(), MEASURED_CPU)?;
    let count = if effort.is_quick() { 300 } else { 4_000 };
    for (what, path, kinds) in kinds {
        let mut worst = Vec::new();
        for round in 0..effort.rounds {
            let mut talk = Dial::new(&edged.ca, HOST)?.connect(&lab, FRIEND)?;
            let spent = ask(&mut talk, path, &kinds, count, round as u64)?;
            let mut far = 0.0_f64;
            for ((name, _), of_kind) in kinds.iter().zip(&spent) {
                let share = longer(of_kind, &spent[0]);
                far = far.max((share - 0.5).abs());
                report.note(&format!(
                    "round {}: {what}, {name}: {:.1} µs, longer than {} in {share:.3} of pairs",
                    round + 1,
                    median(of_kind),
                    kinds[0].0
                ));
            }
            worst.push(far);
        }
        report.add(&Line {
            measure: 9,
            name: format!(
                "bad {what}: how far from a half the share of pairs is in which a kind takes longer"
            ),
            rounds: worst,
            unit: "share",
            goal: Goal::AtMost(0.05),
            reference: format!("refusals of {} {what} in the same run", kinds[0].0),
        });
    }
    checks(effort, report)
}

/// What the check of a bad key costs by itself, a thousand at a time in random order of kinds: on the wire
/// a difference might be hidden by the way there.
fn checks(effort: Effort, report: &mut Report) -> Result<()> {
    pin_self(MEASURED_CPU)?;
    let peppers = Peppers { current: Pepper::of(&[7; 32]), former: vec![Pepper::of(&[8; 32])] };
    let rules = Rules { prefix: "edged".to_owned(), refuse_exposed: false };
    let spoilt = |n: u64| {
        let mut record = keys::record(&peppers, n);
        match n % 2 {
            0 => record.expires_ms = Some(keys::NOW_MS - 1),
            _ => record.revoked_ms = Some(keys::NOW_MS - 1),
        }
        (record, None)
    };
    let ring = KeyRing::load((0..IN_RING).map(spoilt));
    // Of each kind as many, none of which is asked for more often than another.
    let kind = |first: u64| (0..IN_RING / 2).map(|n| keys::secret(first + 2 * n)).collect();
    let kinds: [(&str, Vec<Secret>); 3] =
        [("unknown", kind(IN_RING)), ("expired", kind(0)), ("revoked", kind(1))];
    let mut random = Random::new(1);
    let batches = if effort.is_quick() { 100 } else { 2_000 };
    let mut apart = Vec::new();
    for round in 1..=effort.rounds {
        let mut spent = vec![Vec::new(); kinds.len()];
        for _ in 0..batches * kinds.len() {
            let at = random.below(kinds.len() as u32) as usize;
            let secrets = &kinds[at].1;
            let first = random.below(secrets.len() as u32) as usize;
            let before = cpu()?;
            for n in 0..BATCH {
                let text = secrets[(first + n * 7) % secrets.len()].expose();
                let refused =
                    prove(&ring, &peppers, &rules, black_box(text), keys::NOW_MS).is_err();
                ensure!(refused, "{} passed", kinds[at].0);
            }
            spent[at].push((cpu()? - before).as_secs_f64() * 1e9 / BATCH as f64);
        }
        let medians: Vec<_> = spent.iter().map(|of_kind| median(of_kind)).collect();
        for ((name, _), (of_kind, ns)) in kinds.iter().zip(spent.iter().zip(&medians)) {
            let share = longer(of_kind, &spent[0]);
            report.note(&format!(
                "round {round}: the check of keys, {name}: {ns:.0} ns, longer in {share:.3} of pairs"
            ));
        }
        let most = medians.iter().copied().fold(f64::MIN, f64::max);
        apart.push(most - medians.iter().copied().fold(f64::MAX, f64::min));
    }
    report.add(&Line {
        measure: 9,
        name: "the check of a bad key: dearest kind less cheapest, medians, CPU".to_owned(),
        rounds: apart,
        unit: "ns",
        goal: Goal::AtMost(100.0),
        reference: "unknown, expired and revoked keys in the same run".to_owned(),
    });
    Ok(())
}

/// Keys in the ring of [`checks`]; as many are not in it.
const IN_RING: u64 = 60_000;
/// Checks whose time is taken together.
const BATCH: usize = 1_000;

/// A kind of bad credential, and the header line that shows one.
type Kind = (&'static str, String);

fn bad_keys(edged: &Edged<'_>) -> Result<Vec<Kind>> {
    let create = |line: &str| -> Result<String> {
        let text = edged.tell(&format!("key create {line}"))?;
        find_key(&text).with_context(|| format!("no key in: {text}"))
    };
    let (expired, revoked) = (create("--name expired --expires 1ms")?, create("--name revoked")?);
    let shown = edged.ask("key list")?;
    let entries = shown["entries"].as_array().context("keys")?;
    let entry = entries.iter().find(|entry| entry["name"] == "revoked").context("listed")?;
    edged.tell(&format!("key revoke {}", entry["id"].as_str().context("an id")?))?;
    thread::sleep(Duration::from_millis(10));
    let unknown = |n: u8| Secret::mint("edged", &[n; 32]).expose().to_owned();
    let kinds = [
        ("unknown", unknown(1)),
        ("also unknown", unknown(2)),
        ("expired", expired),
        ("revoked", revoked),
    ];
    Ok(kinds.map(|(name, key)| (name, format!("X-API-Key: {key}"))).into())
}

fn bad_tokens(edged: &Edged<'_>, signer: &Signer, thief: &Signer) -> Result<Vec<Kind>> {
    let with = |changes: serde_json::Value| {
        let mut claims = signer.claims();
        for (name, value) in changes.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        claims
    };
    edged.tell("token revoke --jti revoked --issuer own")?;
    let kinds = [
        ("wrongly signed", thief.token(&with(json!({ "jti": "wrong" })))),
        ("otherwise wrongly signed", Signer::new("k1")?.token(&with(json!({ "jti": "wrong" })))),
        ("expired", signer.token(&with(json!({ "jti": "expired", "exp": now_s() - 60 })))),
        ("early", signer.token(&with(json!({ "jti": "early", "nbf": now_s() + 3_000 })))),
        ("revoked", signer.token(&with(json!({ "jti": "revoked" })))),
    ];
    Ok(kinds.map(|(name, token)| (name, format!("Authorization: Bearer {token}"))).into())
}

/// Signatures of ids that nobody has, and wrong ones of a key that there is.
fn bad_signatures(lab: &Lab, edged: &Edged<'_>) -> Result<Vec<Kind>> {
    let pair = Ed25519KeyPair::generate().context("a key")?;
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().context("a public key")?;
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let file = lab.dir().join("bench.pub");
    std::fs::write(&file, pem)?;
    let create = |name: &str| -> Result<String> {
        let line = format!("key create --name {name} --public-key {}", file.display());
        Ok(edged.ask(&line)?["id"].as_str().context("an id")?.to_owned())
    };
    let (known, revoked) = (create("known")?, create("gone")?);
    edged.tell(&format!("key revoke {revoked}"))?;
    let line = |id: &str| {
        let created = now_s();
        let input = format!(
            "sig=(\"@method\" \"@authority\" \"@path\");created={created};keyid=\"{id}\";alg=\"ed25519\";nonce=\"n\""
        );
        let signature = STANDARD.encode(pair.sign(id.as_bytes()).as_ref());
        format!("Signature-Input: {input}\r\nSignature: sig=:{signature}:")
    };
    let kinds = [
        ("of nobody", line("0123456789ab")),
        ("of nobody else", line("ba9876543210")),
        ("wrong", line(&known)),
        ("wrong, and revoked", line(&revoked)),
    ];
    Ok(kinds.into())
}

/// Microseconds of each refusal of each kind, after a tenth as many for warmth.
fn ask(
    talk: &mut Talk,
    path: &str,
    kinds: &[Kind],
    count: usize,
    seed: u64,
) -> Result<Vec<Vec<f64>>> {
    let (mut random, mut spent) = (Random::new(seed), vec![Vec::with_capacity(count); kinds.len()]);
    let warm = kinds.len() * count / 10;
    for n in 0..warm + kinds.len() * count {
        let kind = random.below(kinds.len() as u32) as usize;
        let began = Instant::now();
        let answer = talk.get(HOST, path, &[&kinds[kind].1])?;
        let us = began.elapsed().as_secs_f64() * 1e6;
        ensure!(answer.status == 401, "{}: {answer:?}", kinds[kind].0);
        if n >= warm {
            spent[kind].push(us);
        }
    }
    Ok(spent)
}

/// The share of pairs in which the one is the greater; of equals, half (Mann and Whitney's statistic).
fn longer(one: &[f64], other: &[f64]) -> f64 {
    let mut sorted = other.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins = one.iter().map(|value| {
        let below = sorted.partition_point(|o| o < value);
        let equal = sorted.partition_point(|o| o <= value) - below;
        below as f64 + equal as f64 / 2.0
    });
    wins.sum::<f64>() / (one.len() * other.len()) as f64
}
