//! Tokens as clients, issuers and thieves see them: the real daemon, a key server whose every
//! answer is chosen, and the issuers and libraries of others.

use std::{
    fs,
    hash::{Hash as _, Hasher as _},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{Response, until},
    issuer::{
        AUDIENCE, Answers, ISSUER, KEYS_URL, KeyServer, Node, Signer, encode, jwks, node_json,
        node_json_trusting, now_s, ran,
    },
    lab::{CLIENT, EDGE, FRIEND},
    random::Random,
    talk::Dial,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Our own issuer, with keys from [`KeyServer`], and a route for its tokens alone.
fn terms(more: &str) -> String {
    format!(
        "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
         jwks_url = \"{KEYS_URL}\"\ncooldown = \"1s\"\nwait = \"2s\"\nfetch_timeout = \"1s\"\n\
         fresh_min = \"1h\"\nfresh = \"1h\"\n{more}\n\
         [[route]]\npath = \"/token\"\nmethods = [\"GET\", \"POST\"]\nauth = \"jwt\"\n\
         upstream = \"api\"\n\
         [[route]]\npath = \"/token/write\"\nmethods = [\"GET\"]\nauth = \"jwt\"\n\
         scopes = [\"write\"]\nupstream = \"api\"\n\
         [[route]]\npath = \"/token/other\"\nmethods = [\"GET\"]\nauth = \"jwt\"\n\
         audience = [\"https://other.test\"]\nupstream = \"api\"\n"
    )
}

const SOON: Duration = Duration::from_secs(20);

/// A GET with a token, from a source that no misdeed bans.
fn get(edged: &Edged<'_>, path: &str, token: &str) -> Result<Response> {
    edged.get(FRIEND, path).header("Authorization", &format!("Bearer {token}")).send()
}

fn status(edged: &Edged<'_>, token: &str) -> Result<u16> {
    Ok(get(edged, "/token", token)?.status)
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(claims.as_object_mut().map(|object| object.remove(name))),
        value => claims[name] = value,
    }
    claims
}

/// Row 26 of the seeds, over the wire: 401 401 401 401 401 403 403 200, and nobody learns why.
#[test]
fn seed_26_a_token_is_judged_in_the_order_of_the_flow() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let (signer, thief) = (Signer::new("k1")?, Signer::new("k1")?);
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = lab.edged()?.append(&terms(""))?.start()?;
    let claims = signer.claims();
    let now = now_s();

    let bad = [
        ("format", "a.b.c".to_owned()),
        ("signature", thief.token(&claims)),
        ("unknown key", Signer::new("k9")?.token(&claims)),
        ("expiry", signer.token(&with(claims.clone(), "exp", json!(now - 60)))),
        ("not yet", signer.token(&with(claims.clone(), "nbf", json!(now + 60)))),
        ("issuer", signer.token(&with(claims.clone(), "iss", json!("https://x.test")))),
        ("lifetime", signer.token(&with(claims.clone(), "exp", json!(now + 90_000)))),
        ("no expiry", signer.token(&with(claims.clone(), "exp", Value::Null))),
        ("type", signer.seal(&json!({"alg": "ES256", "kid": "k1", "typ": "dpop+jwt"}), &claims)),
        (
            "crit",
            signer.seal(
                &json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt", "crit": ["x"], "x": 1}),
                &claims,
            ),
        ),
        ("none", signer.seal(&json!({"alg": "none", "kid": "k1", "typ": "at+jwt"}), &claims)),
    ];
    for (what, token) in &bad {
        let refused = get(&edged, "/token", token)?;
        assert_eq!(refused.status, 401, "{what}: {refused:?}");
        let challenge = refused.header("www-authenticate");
        assert_eq!(challenge, Some(r#"Bearer realm="edged", error="invalid_token""#), "{what}");
        let mut problem = refused.json();
        problem["request_id"] = Value::Null;
        let expected = json!({
            "type": "about:blank", "title": "Unauthorized", "status": 401, "request_id": null,
        });
        assert_eq!(problem, expected, "{what}");
    }
    let foreign = signer.token(&with(claims.clone(), "aud", json!("https://x.test")));
    let refused = get(&edged, "/token", &foreign)?;
    assert_eq!((refused.status, refused.header("www-authenticate")), (403, None));
    let good = signer.token(&claims);
    let unscoped = get(&edged, "/token/write", &good)?;
    assert_eq!(unscoped.status, 403);
    let challenge = unscoped.header("www-authenticate").unwrap_or_default();
    assert!(challenge.contains(r#"error="insufficient_scope", scope="write""#), "{challenge}");
    assert_eq!(origin.seen(), 0, "nothing of it reached the origin");

    let missing = edged.get(FRIEND, "/token").send()?;
    assert_eq!(missing.status, 401);
    assert_eq!(missing.header("www-authenticate"), Some(r#"Bearer realm="edged""#));
    let twice = edged.get(FRIEND, "/token").header("Authorization", &format!("Bearer {good}"));
    let twice =
        twice.header("Authorization", &format!("Bearer {good}")).flag("--http1.1").send()?;
    assert_eq!(twice.status, 401);
    for n in 0..2 {
        assert_eq!(get(&edged, "/token", &good)?.status, 200, "time {n}");
    }
    // Why, operators learn: counted by fault, and told of without the token.
    let metrics = edged.scrape()?;
    for fault in ["base64", "signature", "expired", "critical", "audience"] {
        let line = format!("edged_token_faults_total{{fault=\"{fault}\"}}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    let unknown = ["unknown_key", "unasked_key"]
        .map(|fault| metrics.contains(&format!("edged_token_faults_total{{fault=\"{fault}\"}}")));
    assert!(unknown.contains(&true), "{metrics}");
    let told = edged.event("request_refused", FRIEND)?;
    assert_eq!(told["detail"], "base64", "{told}");
    let all = format!("{:?}{}", edged.events()?, edged.log());
    assert!(bad.iter().all(|(_, token)| !all.contains(token.as_str())) && !all.contains(&good));
    Ok(())
}

/// lua-resty-openidc 399 and 569, over the wire and with a warm cache.
#[test]
fn incident_a_warm_cache_does_not_cross_audiences() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = lab.edged()?.append(&terms(""))?.start()?;
    let token = signer.token(&signer.claims());
    for _ in 0..4 {
        assert_eq!(get(&edged, "/token", &token)?.status, 200);
        assert_eq!(get(&edged, "/token/other", &token)?.status, 403);
    }
    let both = with(signer.claims(), "aud", json!([AUDIENCE, "https://other.test"]));
    let both = signer.token(&both);
    assert_eq!(get(&edged, "/token/other", &both)?.status, 200);
    // A cached token ends when it ends.
    let short = signer.token(&with(signer.claims(), "exp", json!(now_s() + 1)));
    assert_eq!(status(&edged, &short)?, 200);
    until("the token has expired", Duration::from_secs(15), || Ok(status(&edged, &short)? == 401))?;
    // Another policy: the operator narrows the audience, and a reload is enough.
    edged.edit("issuer.0.audience", r#"["https://narrow.test"]"#)?;
    edged.tell("reload")?;
    assert_eq!(status(&edged, &token)?, 403);
    Ok(())
}

/// KrakenD without a cache, MongoDB SERVER-89870: tokens with made-up keys are no lever on the
/// issuer.
#[test]
fn incident_unknown_keys_are_fetched_once_a_cooldown() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let terms = terms("").replace("cooldown = \"1s\"", "cooldown = \"1h\"");
    let edged = lab.edged()?.append(&terms)?.start()?;
    let good = signer.token(&signer.claims());
    assert_eq!(status(&edged, &good)?, 200);
    assert_eq!(keys.asked(), 1);
    let thief = Signer::new("made up")?;
    let mut random = Random::new(20_261_129);
    let mut talk = Dial::new(&edged.ca, EDGE)?.connect(&lab, FRIEND)?;
    for n in 0..1000 {
        let kid = encode(&random.bytes(16));
        let forged =
            thief.seal(&json!({"alg": "ES256", "typ": "at+jwt", "kid": kid}), &thief.claims());
        let answer = talk.get(EDGE, "/token", &[&format!("Authorization: Bearer {forged}")])?;
        assert_eq!(answer.status, 401, "{n}: {answer:?}");
    }
    assert_eq!(keys.asked(), 1, "a thousand tokens, each with a key of its own that nobody knows");
    assert_eq!(status(&edged, &good)?, 200);
    Ok(())
}

/// However many ask on however many workers, one fetch serves all, and the next waits for the cooldown.
#[test]
fn a_flood_of_unknown_keys_is_one_fetch_a_cooldown() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let slow = Answers::Late(Duration::from_millis(200), jwks(&[&signer]));
    let keys = KeyServer::start(&lab, slow)?;
    let cooldown = Duration::from_secs(1);
    let begun = Instant::now();
    let edged = lab.edged()?.append(&terms(""))?.start()?;
    let good = signer.token(&signer.claims());
    until("the keys are there", SOON, || Ok(status(&edged, &good)? == 200))?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = |n: u64| {
            let (thief, mut random) = (Signer::new("made up")?, Random::new(n));
            let mut talk = Dial::new(&edged.ca, EDGE)?.connect(&lab, FRIEND)?;
            while !ended.load(Relaxed) {
                let header =
                    json!({"alg": "ES256", "typ": "at+jwt", "kid": encode(&random.bytes(16))});
                let line =
                    format!("Authorization: Bearer {}", thief.seal(&header, &thief.claims()));
                let answer = talk.get(EDGE, "/token", &[&line])?;
                ensure!(answer.status == 401, "{answer:?}");
            }
            Ok(())
        };
        let floods: Vec<_> = (0..6).map(|n| scope.spawn(move || flood(n))).collect();
        let asked = until("several cooldowns end", SOON, || Ok(keys.asked() >= 4));
        ended.store(true, Relaxed);
        floods.into_iter().try_for_each(|flood| flood.join().expect("no panic"))?;
        asked
    })?;
    let (asked, most) = (keys.asked(), begun.elapsed().as_secs_f64() / cooldown.as_secs_f64());
    assert!((asked - 1) as f64 <= most, "{asked} fetches within {most} cooldowns");
    Ok(())
}

/// A key that the edge does not know and could not ask for is not its client's fault: whoever comes with
/// it is refused, however often, and not banned. One that the issuer does not have is.
#[test]
fn a_key_that_could_not_be_asked_for_bans_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (first, second) = (Signer::new("k1")?, Signer::new("k2")?);
    let keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&first])))?;
    let terms = terms("").replace("wait = \"2s\"", "wait = \"100ms\"");
    let edged = lab.edged()?.append(&terms)?.start()?;
    let from = |source: &str, token: &str| -> Result<u16> {
        let bearer = format!("Bearer {token}");
        Ok(edged.get(source, "/token").header("Authorization", &bearer).send()?.status)
    };
    let token = |signer: &Signer| signer.token(&signer.claims());
    let (good, turned) = (token(&first), token(&second));
    until("the first keys come", SOON, || Ok(from(CLIENT, &good)? == 200))?;

    // The issuer signs with another key, and tells nobody: it hangs, it fails, or it was asked just now.
    for answers in [Answers::Late(Duration::from_secs(30), String::new()), Answers::Nothing] {
        keys.set(answers);
        let asked = keys.asked();
        until("it is asked, and asked again", SOON, || {
            assert_eq!(from(CLIENT, &turned)?, 401);
            Ok(keys.asked() > asked + 1)
        })?;
    }
    let before = edged.metrics()?;
    for _ in 0..20 {
        assert_eq!(from(CLIENT, &turned)?, 401);
    }
    let metrics = edged.metrics()?;
    let unknown = metrics.requests(Reason::TokenKeyUnknown);
    assert!(unknown >= before.requests(Reason::TokenKeyUnknown) + 20.0, "{unknown}");
    assert_eq!(metrics.requests(Reason::CredentialInvalid), 0.0);
    assert_eq!((edged.banned(CLIENT)?, from(CLIENT, &good)?), (false, 200));

    keys.set(Answers::Bytes(jwks(&[&first, &second])));
    until("the second is found", SOON, || Ok(from(CLIENT, &turned)? == 200))?;
    // What the issuer itself does not know is no good.
    let made_up = token(&Signer::new("k3")?);
    until("that is a fault", SOON, || {
        assert_eq!(from(FRIEND, &made_up)?, 401);
        Ok(edged.metrics()?.requests(Reason::CredentialInvalid) > 0.0)
    })?;
    Ok(())
}

/// Where a token is good tells nobody who may not use it here.
#[test]
fn a_token_of_another_routes_issuer_is_refused_like_a_bad_one() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (own, other) = (Signer::new("k1")?, Signer::new("k1")?);
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&own])))?;
    fs::write(lab.dir().join("other.json"), jwks(&[&other]))?;
    let more = format!(
        "[[issuer]]\nname = \"other\"\nissuer = \"https://other.test\"\n\
         audience = [\"{AUDIENCE}\"]\nkey_files = [\"other.json\"]\n\
         [[route]]\npath = \"/own\"\nmethods = [\"GET\"]\nauth = \"jwt\"\nissuers = [\"own\"]\n\
         upstream = \"api\""
    );
    let edged = lab.edged()?.append(&terms(&more))?.start()?;
    until("the keys are there", SOON, || Ok(status(&edged, &own.token(&own.claims()))? == 200))?;
    let claims = with(other.claims(), "iss", json!("https://other.test"));
    let (elsewhere, bad) = (other.token(&claims), own.token(&claims));
    assert_eq!(status(&edged, &elsewhere)?, 200, "on the route of all");
    let seen = |token: &str| -> Result<_> {
        let answer = get(&edged, "/own", token)?;
        let mut problem = answer.json();
        problem["request_id"] = Value::Null;
        let asked = answer.headers.iter().filter(|(name, _)| name == "www-authenticate");
        Ok((answer.status, problem, asked.cloned().collect::<Vec<_>>()))
    };
    let expected = seen(&bad)?;
    assert_eq!(expected.0, 401);
    assert_eq!(seen(&elsewhere)?, expected);
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::CredentialUnfit), 1.0);
    assert_eq!(metrics.requests(Reason::CredentialInvalid), 1.0);
    Ok(())
}

#[test]
fn keys_turn_and_issuers_fail() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (first, second, third) = (Signer::new("k1")?, Signer::new("k2")?, Signer::new("k3")?);
    let keys = KeyServer::start(&lab, Answers::Status("503 Down"))?;
    let edged = lab.edged()?.append(&terms("stale = \"1h\""))?.start()?;
    let token = |signer: &Signer| signer.token(&signer.claims());

    // Without keys nobody is let in, and nobody is blamed.
    assert_eq!(status(&edged, &token(&first))?, 503);
    keys.set(Answers::Bytes(jwks(&[&first])));
    let soon = Duration::from_secs(20);
    until("the first keys come", soon, || Ok(status(&edged, &token(&first))? == 200))?;

    // A new key is found by the first token that needs it.
    keys.set(Answers::Bytes(jwks(&[&first, &second])));
    until("the new key is found", soon, || Ok(status(&edged, &token(&second))? == 200))?;
    // A withdrawn one is no good any more, in the cache neither.
    keys.set(Answers::Bytes(jwks(&[&second, &third])));
    until("the third is found", soon, || Ok(status(&edged, &token(&third))? == 200))?;
    assert_eq!(status(&edged, &token(&first))?, 401);

    // What is no set of keys never replaces one.
    let private = with(first.jwk(), "d", json!("AA"));
    for bad in [
        Answers::Nothing,
        Answers::Status("500 Oops"),
        Answers::Status("302 Found\r\nLocation: http://127.0.0.1:9000/other"),
        Answers::Bytes("<html>".into()),
        Answers::Bytes(json!({"keys": []}).to_string()),
        Answers::Bytes(jwks(&[&first, &first])),
        Answers::Bytes(json!({"keys": [private]}).to_string()),
        Answers::Endless,
        Answers::Late(Duration::from_secs(30), jwks(&[&first])),
    ] {
        keys.set(bad.clone());
        let asked = keys.asked();
        until("it is fetched again", soon, || {
            assert_eq!(status(&edged, &token(&first))?, 401, "{bad:?}");
            Ok(keys.asked() > asked)
        })?;
        assert_eq!(status(&edged, &token(&second))?, 200, "{bad:?}");
    }
    // While a fetch hangs, who needs none does not wait.
    let key = edged.key("other")?;
    until("nobody else waits", soon, || {
        let begun = Instant::now();
        assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
        assert_eq!(status(&edged, &token(&second))?, 200);
        // Whoever waits does so for as long as a fetch may take.
        Ok(begun.elapsed() < Duration::from_secs(1))
    })?;
    let metrics = edged.scrape()?;
    let counted = |name: &str| metrics.contains(name);
    assert!(counted(r#"edged_issuer_fetches_total{issuer="own",result="ok"}"#), "{metrics}");
    assert!(counted(r#"edged_issuer_fetches_total{issuer="own",result="failed"}"#), "{metrics}");
    assert!(counted(r#"edged_issuer_keys{issuer="own"} 2"#), "{metrics}");
    assert!(counted(r#"edged_issuer_keys_age_seconds{issuer="own"}"#), "{metrics}");
    Ok(())
}

#[test]
fn what_is_revoked_is_refused_at_once_and_for_good() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let mut edged = lab.edged()?.append(&terms(""))?.start()?;
    let named = |jti: &str, sub: &str, sid: &str| {
        let claims = with(with(signer.claims(), "jti", json!(jti)), "sub", json!(sub));
        signer.token(&with(claims, "sid", json!(sid)))
    };
    let tokens = [named("a", "x", "1"), named("b", "alice", "2"), named("c", "y", "3")];
    let good = named("d", "z", "4");
    for token in tokens.iter().chain([&good]) {
        assert_eq!(status(&edged, token)?, 200, "and from now on in the cache");
    }
    for (line, token) in ["--jti a", "--sub alice", "--sid 3"].iter().zip(&tokens) {
        let said = edged.tell(&format!("token revoke {line} --issuer own"))?;
        assert!(said.contains("revoked"), "{said}");
        assert_eq!(status(&edged, token)?, 401, "{line}");
        assert_eq!(status(&edged, &good)?, 200, "{line}");
    }
    let denied_s = now_s();
    let list = edged.ask("token list")?;
    assert_eq!(list["total"], 3, "{list}");
    assert_eq!(list["entries"][0]["issuer"], ISSUER, "{list}");
    assert!(!edged.ctl("token revoke --jti a --issuer nobody")?.status.success());

    edged.kill9()?;
    edged.start_again()?;
    for token in &tokens {
        assert_eq!(status(&edged, token)?, 401, "after a crash");
    }
    assert_eq!(status(&edged, &good)?, 200);
    edged.tell("token remove --jti a --issuer own")?;
    assert_eq!(status(&edged, &tokens[0])?, 200);
    // A subject's tokens are refused that were issued before, or seem to be by a clock that is ahead;
    // later ones are good.
    let within = with(signer.claims(), "iat", json!(denied_s + 1));
    assert_eq!(status(&edged, &signer.token(&within))?, 401);
    let later = with(signer.claims(), "iat", json!(now_s() + 6));
    until("the clock has gone on", Duration::from_secs(15), || {
        Ok(status(&edged, &signer.token(&later))? == 200)
    })?;
    edged.tell("token revoke --kid k1 --issuer own --until 1h")?;
    assert_eq!(status(&edged, &good)?, 401);
    let told = edged.events()?.into_iter().filter(|e| e["event"] == "token_denied").count();
    assert_eq!(told, 5);
    Ok(())
}

/// Turns over all bytes of a file behind these.
fn damage(path: &Path, behind: usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    bytes.iter_mut().skip(behind).for_each(|byte| *byte ^= 0x5a);
    // In place, with the rights that it has.
    Ok(fs::write(path, &bytes)?)
}

/// Denials are kept twice: one of the two may be damaged. Without both, nobody knows what was denied.
#[test]
fn a_damaged_store_forgets_no_revocation() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let mut edged = lab.edged()?.append(&terms(""))?.start()?;
    let named = |jti: &str, sid: &str| {
        signer.token(&with(with(signer.claims(), "jti", json!(jti)), "sid", json!(sid)))
    };
    let (revoked, by_session, good) = (named("a", "1"), named("b", "2"), named("c", "3"));
    edged.tell("token revoke --jti a --issuer own")?;
    edged.tell("token revoke --sid 2 --issuer own")?;
    let state = lab.dir().join("state");
    let (store, copy) = (state.join("edged.redb"), state.join("denied-tokens"));
    for (which, path, behind) in
        [("store", &store, 4096), ("copy", &copy, 0), ("store", &store, 4096)]
    {
        edged.kill9()?;
        damage(path, behind)?;
        edged.start_again()?;
        assert_eq!(status(&edged, &revoked)?, 401, "{which}");
        assert_eq!(status(&edged, &by_session)?, 401, "{which}");
        assert_eq!(status(&edged, &named("d", "2"))?, 401, "minted afterwards, in that session");
        assert_eq!(status(&edged, &named("e", "4"))?, 200, "{which}: minted afterwards");
        assert_eq!(status(&edged, &good)?, 200, "{which}");
        assert_eq!(edged.ask("token list")?["total"], 2, "{which}");
        assert_eq!(edged.metrics()?.value("edged_token_denials_lost"), 0.0, "{which}");
    }

    edged.kill9()?;
    damage(&store, 4096)?;
    damage(&copy, 0)?;
    for time in ["after the damage", "and after one start more"] {
        edged.start_again()?;
        for token in [&revoked, &by_session, &good, &named("e", "4")] {
            assert_eq!(status(&edged, token)?, 503, "{time}");
        }
        assert_eq!(status(&edged, "a.b.c")?, 401, "{time}");
        assert_eq!(edged.metrics()?.value("edged_token_denials_lost"), 1.0, "{time}");
        assert!(edged.ask("status")?["denials_lost_ms"].is_u64(), "{time}");
        assert!(edged.tell("status")?.contains("edgectl token accept-loss"), "{time}");
        edged.kill9()?;
    }
    edged.start_again()?;
    edged.tell("token revoke --jti a --issuer own")?;
    edged.tell("token accept-loss")?;
    assert_eq!((status(&edged, &revoked)?, status(&edged, &good)?), (401, 200));
    assert!(!edged.ctl("token accept-loss")?.status.success(), "nothing is lost");
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!((status(&edged, &revoked)?, status(&edged, &good)?), (401, 200));
    assert!(edged.events()?.iter().any(|event| event["event"] == "token_loss_accepted"));
    Ok(())
}

#[test]
fn a_bound_token_needs_its_proof_each_time_a_new_one() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (signer, client, thief) = (Signer::new("k1")?, Signer::new("")?, Signer::new("")?);
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = lab.edged()?.append(&terms(""))?.start()?;
    let bound = with(signer.claims(), "cnf", json!({"jkt": client.thumbprint()}));
    let token = signer.token(&bound);
    let url = "https://edge.test/token";
    let ask = |scheme: &str, token: &str, proofs: &[&str]| -> Result<Response> {
        let mut request = edged.get(FRIEND, "/token?page=2");
        request = request.header("Authorization", &format!("{scheme} {token}"));
        for proof in proofs {
            request = request.header("DPoP", proof);
        }
        request.flag("--http1.1").send()
    };
    let made =
        |by: &Signer, method, url, token: &str, jti| by.prove(&by.proof(method, url, token, jti));
    let proof = made(&client, "GET", url, &token, "1");
    let first = ask("DPoP", &token, &[&proof])?;
    assert_eq!(first.status, 200, "{first:?}");
    let again = ask("DPoP", &token, &[&proof])?;
    assert_eq!(again.status, 401, "a proof is good once");
    let challenge = again.header("www-authenticate").unwrap_or_default();
    assert!(challenge.starts_with("DPoP ") && challenge.contains("invalid_dpop_proof"));
    assert!(challenge.contains("algs=\"") && challenge.contains("ES256"), "{challenge}");
    let old = with(client.proof("GET", url, &token, "2"), "iat", json!(now_s() - 3600));
    for (what, scheme, proofs) in [
        ("a stolen token alone", "Bearer", vec![]),
        ("no proof", "DPoP", vec![]),
        ("as bearer, with its proof", "Bearer", vec![made(&client, "GET", url, &token, "3")]),
        ("the thief's own proof", "DPoP", vec![made(&thief, "GET", url, &token, "4")]),
        ("another method", "DPoP", vec![made(&client, "POST", url, &token, "5")]),
        ("another path", "DPoP", vec![made(&client, "GET", "https://edge.test/x", &token, "6")]),
        ("another token", "DPoP", vec![made(&client, "GET", url, "x", "7")]),
        ("an old proof", "DPoP", vec![client.prove(&old)]),
        (
            "two proofs",
            "DPoP",
            vec![made(&client, "GET", url, &token, "8"), made(&client, "GET", url, &token, "9")],
        ),
    ] {
        let proofs: Vec<&str> = proofs.iter().map(String::as_str).collect();
        assert_eq!(ask(scheme, &token, &proofs)?.status, 401, "{what}");
    }
    let free = signer.token(&signer.claims());
    let proof = made(&client, "GET", url, &free, "10");
    assert_eq!(ask("DPoP", &free, &[&proof])?.status, 401, "a token that is not bound");
    assert_eq!(ask("DPoP", &token, &[&made(&client, "GET", url, &token, "11")])?.status, 200);
    // RFC 8705: a certificate that this connection has not.
    let certified = with(signer.claims(), "cnf", json!({"x5t#S256": client.thumbprint()}));
    assert_eq!(ask("Bearer", &signer.token(&certified), &[])?.status, 401);

    // With nonces of ours the client is told one, and uses it.
    edged.edit("tokens.proof_nonces", "\"30s\"")?;
    edged.tell("reload")?;
    let told = ask("DPoP", &token, &[&made(&client, "GET", url, &token, "12")])?;
    assert_eq!(told.status, 401);
    let challenge = told.header("www-authenticate").unwrap_or_default().to_owned();
    assert!(challenge.contains(r#"error="use_dpop_nonce""#), "{challenge}");
    let nonce = told.header("dpop-nonce").context("no nonce")?;
    let with_nonce = |jti: &str, nonce: &str| {
        client.prove(&with(client.proof("GET", url, &token, jti), "nonce", json!(nonce)))
    };
    assert_eq!(ask("DPoP", &token, &[&with_nonce("13", nonce)])?.status, 200);
    // A reload that changes nothing of it leaves them as they are; one that changes how long they are
    // good holds for those that were told before, too.
    edged.tell("reload")?;
    assert_eq!(ask("DPoP", &token, &[&with_nonce("14", nonce)])?.status, 200);
    edged.edit("tokens.proof_nonces", "\"1s\"")?;
    edged.tell("reload")?;
    assert_eq!(ask("DPoP", &token, &[&with_nonce("15", nonce)])?.status, 401);
    // It is good for a second, which a slow host may miss; the next one is told with each refusal.
    let mut short = nonce.to_owned();
    let mut status = || -> Result<u16> {
        let jti = format!("{:?}", Instant::now());
        let told = ask("DPoP", &token, &[&with_nonce(&jti, &short)])?;
        if let Some(nonce) = told.header("dpop-nonce").filter(|_| told.status == 401) {
            short = nonce.to_owned();
        }
        Ok(told.status)
    };
    until("a nonce of a second is taken", Duration::from_secs(15), || Ok(status()? == 200))?;
    until("and ends", Duration::from_secs(15), || Ok(status()? == 401))?;
    Ok(())
}

/// npm `oidc-provider` as an issuer, and a daemon with a route for its tokens.
fn provided(lab: &Lab) -> Result<(Node, Edged<'_>)> {
    let (provider, ready) = Node::start(&lab.edge, "provider.mjs", &["9001"])?;
    assert_eq!(ready, "ready");
    let edged = lab
        .edged()?
        .append(&format!(
            "[[issuer]]\nname = \"provider\"\nissuer = \"{PROVIDER}\"\n\
             audience = [\"https://api.example\"]\ndiscovery = true\ncooldown = \"1s\"\n\
             wait = \"6s\"\nfetch_timeout = \"4s\"\n\
             [[route]]\npath = \"/token\"\nmethods = [\"GET\"]\nauth = \"jwt\"\n\
             scopes = [\"read\"]\nupstream = \"api\""
        ))?
        .start()?;
    Ok((provider, edged))
}

/// Where it listens.
const PROVIDER: &str = "http://127.0.0.1:9001";
/// How long a fetch of its keys may take: much longer than a request that does not wait for it, also on a busy host.
const FETCH: Duration = Duration::from_secs(8);

/// npm `oidc-provider`, a certified provider: discovery, RFC 9068 tokens, DPoP by `jose`.
#[test]
fn a_certified_provider_and_an_independent_client_are_understood() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (_provider, edged) = provided(&lab)?;
    let bearer = node_json(&lab.edge, "client.mjs", &[PROVIDER, "bearer"])?;
    let token = bearer["token"].as_str().context("no token")?;
    let answer = get(&edged, "/token", token)?;
    assert_eq!(answer.status, 200, "{answer:?} {}", edged.log());
    std::thread::sleep(Duration::from_millis(1100));
    let url = "https://edge.test/token";
    let bound = node_json(&lab.edge, "client.mjs", &[PROVIDER, "dpop", "GET", url, "2"])?;
    let token = bound["token"].as_str().context("no token")?;
    assert_eq!(status(&edged, token)?, 401, "a bound token alone");
    for proof in bound["proofs"].as_array().context("no proofs")? {
        let ask = || {
            let request = edged.get(FRIEND, "/token");
            let request = request.header("Authorization", &format!("DPoP {token}"));
            request.header("DPoP", proof.as_str().unwrap_or_default()).send()
        };
        assert_eq!(ask()?.status, 200);
        assert_eq!(ask()?.status, 401, "replayed");
    }
    ran("npm oidc-provider, with jose as its client");
    Ok(())
}

/// npm `openid-client` with a token of `oidc-provider`, as an application uses them: by itself, bound to a
/// key, and bound where proofs must carry a nonce of the edge's.
#[test]
fn an_independent_openid_client_gets_a_token_and_is_let_in() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let (_provider, edged) = provided(&lab)?;
    let url = format!("https://{EDGE}/token");
    let call = |kind| {
        let done = node_json_trusting(&lab.edge, &edged.ca, "openid.mjs", &[PROVIDER, kind, &url]);
        done.with_context(|| edged.log())
    };
    for kind in ["bearer", "dpop"] {
        assert_eq!(call(kind)?["statuses"], json!([200, 200, 200]), "{kind}");
    }
    edged.edit("tokens.proof_nonces", "\"30s\"")?;
    edged.tell("reload")?;
    let bound = call("dpop")?;
    assert_eq!(bound["statuses"], json!([200, 200, 200]), "with a nonce");
    let token = bound["token"].as_str().context("no token")?;
    assert_eq!(status(&edged, token)?, 401, "a bound token alone");
    assert_eq!(origin.seen(), 9);
    ran("npm openid-client, with a token of oidc-provider");
    Ok(())
}

/// npm `oidc-provider`, whose keys turn and are withdrawn, which hangs and which dies, while somebody sends
/// without a pause: who has a token of a key that is published, or was last, never notices.
#[test]
fn a_provider_turns_its_keys_hangs_and_dies_under_load() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (mut provider, edged) = provided(&lab)?;
    let token = || -> Result<String> {
        let made = node_json(&lab.edge, "client.mjs", &[PROVIDER, "bearer"])?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    };
    let soon = Duration::from_secs(20);
    let first = token()?;
    until("the first is taken", soon, || Ok(status(&edged, &first)? == 200))?;

    let (sending, ended) = (Mutex::new(first.clone()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<(u32, Duration)> {
            let (mut sent, mut slowest) = (0, Duration::ZERO);
            let mut talk = Dial::new(&edged.ca, EDGE)?.connect(&lab, FRIEND)?;
            while !ended.load(Relaxed) {
                let line = {
                    let token = sending.lock().expect("nobody panics holding it");
                    format!("Authorization: Bearer {token}")
                };
                let begun = Instant::now();
                let answer = talk.get(EDGE, "/token", &[&line])?;
                ensure!(answer.status == 200, "after {sent}: {answer:?}");
                slowest = slowest.max(begun.elapsed());
                sent += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok((sent, slowest))
        });
        let done = (|| -> Result<()> {
            // A further key is found by the first token that needs it; the one before stays good.
            provider.ask("rotate")?;
            let second = token()?;
            until("the second is taken", soon, || Ok(status(&edged, &second)? == 200))?;
            assert_eq!(status(&edged, &first)?, 200);
            // A withdrawn one is no good from the next fetch on, in the cache neither.
            sending.lock().expect("nobody panics holding it").clone_from(&second);
            provider.ask("withdraw provider-1")?;
            provider.ask("rotate")?;
            let third = token()?;
            until("the third is taken", soon, || Ok(status(&edged, &third)? == 200))?;
            assert_eq!(status(&edged, &first)?, 401, "withdrawn");
            assert_eq!(status(&edged, &second)?, 200);

            let stranger = Signer::new("nobody's")?;
            let claims = with(stranger.claims(), "iss", json!(PROVIDER));
            let unknown = stranger.token(&with(claims, "aud", json!("https://api.example")));
            let key = edged.key("other")?;
            let unnoticed = |how: &str| -> Result<()> {
                // Who needs newer keys waits for them and is refused; nobody else does.
                std::thread::scope(|scope| {
                    let refused = scope.spawn(|| status(&edged, &unknown));
                    for _ in 0..5 {
                        let begun = Instant::now();
                        assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200, "{how}");
                        assert_eq!(status(&edged, &third)?, 200, "{how}");
                        assert!(begun.elapsed() < FETCH / 2, "{how}: {:?}", begun.elapsed());
                    }
                    let refused = refused.join().expect("no panic")?;
                    assert_eq!(refused, 401, "{how}");
                    Ok(())
                })
            };
            provider.signal(Signal::SIGSTOP)?;
            for _ in 0..3 {
                unnoticed("it hangs")?;
            }
            provider.signal(Signal::SIGCONT)?;
            provider.ask("rotate")?;
            let fourth = token()?;
            until("it goes on", soon, || Ok(status(&edged, &fourth)? == 200))?;
            provider.signal(Signal::SIGKILL)?;
            for _ in 0..3 {
                unnoticed("it is dead")?;
                std::thread::sleep(Duration::from_secs(1));
            }
            assert_eq!(status(&edged, &fourth)?, 200, "its last keys are kept");
            Ok(())
        })();
        ended.store(true, Relaxed);
        let (sent, slowest) = load.join().expect("no panic").context("the load")?;
        done.with_context(|| edged.log())?;
        assert!(sent > 500 && slowest < FETCH / 2, "{sent}, {slowest:?}");
        let page = edged.scrape()?;
        let failed = r#"edged_issuer_fetches_total{issuer="provider",result="failed"}"#;
        assert!(page.contains(failed), "{page}");
        ran(&format!("npm oidc-provider: {sent} requests meanwhile, the slowest in {slowest:?}"));
        Ok(())
    })
}

/// npm `oauth2-mock-server`: keys of every kind that turn, and tokens of other types.
#[test]
fn a_mock_issuer_turns_its_keys() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (mut mock, ready) = Node::start(&lab.edge, "mock.mjs", &["9002"])?;
    assert_eq!(ready, "ready");
    let edged = lab
        .edged()?
        .append(
            "[[issuer]]\nname = \"mock\"\nissuer = \"http://127.0.0.1:9002\"\n\
             audience = [\"api\"]\ndiscovery = true\ncooldown = \"100ms\"\nprofile = \"plain\"\n\
             algorithms = [\"RS256\", \"ES256\", \"EdDSA\", \"PS512\"]\n\
             [[route]]\npath = \"/token\"\nmethods = [\"GET\"]\nauth = \"jwt\"\nupstream = \"api\"",
        )?
        .start()?;
    let good = r#"mint {"header": {}, "claims": {"aud": "api", "sub": "alice"}}"#;
    let old = mock.ask(good)?;
    assert_eq!(status(&edged, &old)?, 200);
    for algorithm in ["ES256", "EdDSA", "PS512", "RS256"] {
        mock.ask(&format!("rotate {algorithm}"))?;
        let new = mock.ask(good)?;
        until("the new key is taken", Duration::from_secs(10), || {
            assert_eq!(status(&edged, &old)?, 200, "the old one stays good");
            Ok(status(&edged, &new)? == 200)
        })?;
    }
    for (what, line, expected) in [
        ("another audience", r#"mint {"header": {}, "claims": {"aud": "other", "sub": "a"}}"#, 403),
        ("no audience", r#"mint {"header": {}, "claims": {"sub": "a"}}"#, 403),
        ("nobody", r#"mint {"header": {}, "claims": {"aud": "api"}}"#, 401),
        (
            "a logout token",
            r#"mint {"header": {"typ": "logout+jwt"}, "claims": {"aud": "api"}}"#,
            401,
        ),
        (
            "an expired one",
            r#"mint {"header": {}, "claims": {"aud": "api", "sub": "a", "exp": 9}}"#,
            401,
        ),
    ] {
        assert_eq!(status(&edged, &mock.ask(line)?)?, expected, "{what}");
    }
    ran("npm oauth2-mock-server");
    Ok(())
}

/// Tokens changed by npm `jose`, each but once: nothing may pass here that it refuses. Some thousand;
/// a million by `cargo xtask differential`.
#[test]
fn nothing_passes_that_jose_refuses() -> Result<()> {
    use edge_identity::jwt::{
        Algorithm, Issuer, KeySet, Presented, Profile, Unverified, VerifyingKey, denylist::Denylist,
    };
    if !Node::is_there()? {
        return Ok(());
    }
    let wanted = std::env::var("EDGED_TOKEN_MUTATIONS").map_or(Ok(4000), |text| text.parse())?;
    let (mut judge, first) = Node::plain("judge.mjs", &["20261125"])?;
    let first: Value = serde_json::from_str(&first)?;
    let public = KeySet::from_jwks(first["jwks"].to_string().as_bytes())?;
    let secret = first["secret"].as_str().context("no secret")?.as_bytes();
    let secret = KeySet::new(vec![VerifyingKey::from_secret(secret, &[Algorithm::Hs256])?])?;
    let now_ms = first["now"].as_u64().context("no time")? * 1000;
    let issuer = Issuer {
        name: "jose".into(),
        issuer: "https://issuer.example".into(),
        audience: vec!["https://api.example".into()],
        algorithms: Algorithm::ALL.to_vec(),
        profile: Profile::AccessToken,
        leeway_ms: 5_000,
        lifetime_max_ms: u64::MAX,
        scope_claims: vec!["scope".into()],
        roles_claim: None,
        tier_claim: None,
    };
    let denylist = Denylist::default();
    let judged = |token: &str, keys: &KeySet| {
        let verified = issuer.verify(Unverified::parse(token, 8192)?, keys)?;
        issuer.admit(
            &verified,
            &Presented {
                now_ms,
                denylist: &denylist,
                audience: &[],
                proof_key: None,
                certificate: None,
            },
        )
    };
    let (mut both, mut after, mut ours) = (0, 0_u64, std::collections::BTreeMap::new());
    let mut seen = std::collections::HashSet::new();
    while seen.len() < wanted {
        let line = judge.line()?.context("it has ended")?;
        let (about, token) = line.split_once(' ').context("no verdict")?;
        let token: String = serde_json::from_str(token)?;
        // What was changed before it was signed counts once, however often it is signed.
        let content = match about.ends_with('b') {
            true => token.rsplit_once('.').map_or("", |(input, _)| input),
            false => &token,
        };
        let mut hasher = std::hash::DefaultHasher::new();
        content.hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            continue;
        }
        after += u64::from(about.ends_with('a'));
        let theirs = about.starts_with('1');
        match judged(&token, if about[1..].starts_with('p') { &public } else { &secret }) {
            Ok(()) => {
                assert!(theirs, "accepted here, refused by jose: {token}");
                both += 1;
            }
            Err(fault) if theirs => *ours.entry(fault.name()).or_insert(0_u64) += 1,
            Err(_) => {}
        }
    }
    ran(&format!(
        "npm jose: {wanted} different tokens, {after} changed after they were signed, {both} taken \
         by both, refused here alone: {ours:?}"
    ));
    assert!(both > wanted / 20, "{both} of {wanted}");
    Ok(())
}
