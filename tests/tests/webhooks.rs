//! Webhooks: a real receiver hears of bans and alarms, and whatever it does costs it alone.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use edge_tests::{
    Edged, Lab, Origin,
    client::{reaches, until},
    lab::{ATTACKER, CLIENT, FRIEND},
    web::{Answer, Asked, Web},
};
use serde_json::Value;

const AT: &str = "127.0.0.1:9002";
const SECRET: &str = "a secret between two: 32 bytes and more";
const SOON: Duration = Duration::from_secs(10);

/// A webhook called `one` at the lab's server, with these lines besides.
fn webhook(lab: &Lab, lines: &str) -> Result<String> {
    let path = lab.dir().join("webhook.secret");
    std::fs::write(&path, format!("{SECRET}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(format!(
        "[[webhook]]\nname = \"one\"\nurl = \"http://{AT}/hook?x=1\"\nsecret = \"file:{}\"\n{lines}\n",
        path.display()
    ))
}

fn document(asked: &Asked) -> Value {
    serde_json::from_str(&asked.body).unwrap()
}

/// Documents of this kind that came.
fn told(web: &Web, what: &str) -> Vec<Value> {
    web.asked().iter().map(document).filter(|document| document["what"] == what).collect()
}

fn counted(edged: &Edged<'_>, result: &str) -> Result<f64> {
    let labels = [("webhook", "one"), ("result", result)];
    Ok(edged.metrics()?.sum("edged_webhook_documents_total", &labels))
}

/// Whether the seal is what the secret makes of it.
fn is_sealed(asked: &Asked) -> bool {
    let [id, time, seal] = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|name| asked.header(name).unwrap_or_default());
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = format!("{id}.{time}.{}", asked.body);
    let seal = BASE64_STANDARD.decode(seal.strip_prefix("v1,").unwrap_or_default());
    hmac::verify(&key, signed.as_bytes(), &seal.unwrap_or_default()).is_ok()
        && document(asked)["id"] == id
}

#[test]
fn bans_and_alarms_are_told_and_signed() -> Result<()> {
    let lab = Lab::new()?;
    let web = Web::start(&lab.edge, AT, |_| Answer::status("204 No Content"))?;
    let hook = webhook(&lab, "")?;
    // A feed that is not there is told of, too.
    let feed = "[[feed]]\nname = \"gone\"\nurl = \"http://127.0.0.1:9/list\"";
    let edged = lab.edged()?.set("verdicts.bans_per_minute", "1").append(&hook)?;
    let edged = edged.append(feed)?.start()?;
    for attacker in [ATTACKER, CLIENT] {
        for _ in 0..6 {
            let guess = edged.get(attacker, "/?secret=1").key("edged_x").arg("--max-time", "1");
            let _ = guess.send();
        }
    }
    for what in ["ban", "alarm", "feed"] {
        until(what, SOON, || Ok(!told(&web, what).is_empty()))?;
    }
    let asked = web.asked();
    assert!(asked.iter().all(is_sealed), "{asked:?}");
    let head = &asked[0];
    assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/hook?x=1"));
    assert_eq!(head.header("content-type"), Some("application/json"));
    let ids: BTreeSet<_> = asked.iter().map(|asked| asked.header("webhook-id")).collect();
    assert_eq!(ids.len(), asked.len(), "each has an id of its own");
    let ban = &told(&web, "ban")[0];
    assert_eq!(
        (&ban["culprit"], &ban["scenario"], &ban["origin"]),
        (&ATTACKER.into(), &"brute-force".into(), &"scenario".into())
    );
    assert_eq!(ban["evidence"].as_array().map(Vec::len), Some(6), "{ban}");
    assert!(!ban.to_string().contains("secret"), "no query is told: {ban}");
    let alarm = &told(&web, "alarm")[0];
    assert!(alarm["reason"].as_str().unwrap().contains("1 bans within a minute"), "{alarm}");
    assert_eq!(told(&web, "feed")[0]["scenario"], "gone");
    assert!(told(&web, "penalty").is_empty(), "nobody asked for it");
    until("all are counted", SOON, || {
        Ok(counted(&edged, "delivered")? == web.asked().len() as f64)
    })?;
    Ok(())
}

#[test]
fn what_becomes_of_a_key_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let web = Web::start(&lab.edge, AT, |_| Answer::status("204 No Content"))?;
    let hook = webhook(&lab, "events = [\"key\"]")?;
    let edged = lab.edged()?.append(&hook)?.start()?;
    let told_of = |name: &str, line: &str, said: &str| -> Result<()> {
        edged.tell(format!("key create --name {name} --owner team-{name} {line}").trim_end())?;
        let keys = edged.ask("key list")?;
        let entries = keys["entries"].as_array().context("keys")?;
        let key = entries.iter().find(|key| key["name"] == name).context("listed")?;
        let id = key["id"].as_str().context("an id")?;
        match name {
            "gone" => drop(edged.tell(&format!("key revoke {id}"))?),
            "turned" => drop(edged.tell(&format!("key rotate {id} --grace 1h"))?),
            _ => {}
        }
        let expected = format!("{said}; its owner is team-{name}");
        until(said, SOON, || {
            let mut all = told(&web, "key").into_iter();
            Ok(all.any(|t| t["culprit"] == format!("key:{id}") && t["reason"] == expected))
        })?;
        Ok(())
    };
    told_of("gone", "", "was revoked")?;
    told_of("turned", "", "is replaced")?;
    told_of("brief", "--expires 1h", "will end")?;
    let warned = told(&web, "key").into_iter().filter(|told| {
        told["reason"].as_str().is_some_and(|reason| reason.starts_with("will end"))
    });
    assert_eq!(warned.count(), 1, "what is replaced ends as it should");
    told_of("ended", "--expires 1s", "has ended")?;
    let key = edged.key("shown")?;
    assert_eq!(edged.get(FRIEND, &format!("/?x={key}")).send()?.status, 400);
    let shown =
        || Ok(told(&web, "key").iter().any(|t| t["reason"].to_string().contains("can read")));
    until("it is told", SOON, shown)?;
    assert!(web.asked().iter().all(|asked| !asked.body.contains(&key)));
    Ok(())
}

#[test]
fn a_receiver_that_fails_is_asked_again_and_refuses_for_good() -> Result<()> {
    let lab = Lab::new()?;
    let web = Web::start(&lab.edge, AT, |_| Answer::status("500 Oops"))?;
    let hook = webhook(&lab, "events = [\"ban\"]\ntimeout = \"4s\"")?;
    let edged = lab.edged()?.append(&hook)?.start()?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    until("it was tried twice", SOON, || Ok(web.asked().len() >= 2))?;
    // Slow is as good as gone, and only the webhook waits.
    web.set(|_| Answer::Late(Duration::from_secs(6), String::new()));
    let before = web.asked().len();
    until("it was tried again", SOON, || Ok(web.asked().len() > before))?;
    let begun = Instant::now();
    edged.tell(&format!("ban add {CLIENT} --ttl 1h"))?;
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it did not wait for what was tried just now"
    );
    assert!(!reaches(&lab, CLIENT, 443));
    web.set(|_| Answer::status("200 OK"));
    until("both were told", Duration::from_secs(30), || Ok(counted(&edged, "delivered")? == 2.0))?;
    let asked = web.asked();
    let ids: Vec<_> = asked.iter().map(|asked| asked.header("webhook-id").unwrap()).collect();
    let (last, tries) = ids.split_last().unwrap();
    assert!(tries.len() > 2 && tries.iter().all(|id| id != last && *id == tries[0]), "{ids:?}");
    assert!(edged.metrics()?.sum("edged_webhook_attempts_failed_total", &[]) >= 3.0);
    // What it does not want it is not asked to take again.
    web.set(|_| Answer::status("422 No"));
    edged.tell(&format!("ban remove {CLIENT}"))?;
    edged.tell(&format!("ban add {CLIENT} --ttl 1h"))?;
    until("it was refused", SOON, || Ok(counted(&edged, "refused")? == 1.0))?;
    assert_eq!(web.asked().len(), asked.len() + 1);
    Ok(())
}

#[test]
fn a_dead_receiver_costs_a_bounded_queue() -> Result<()> {
    let lab = Lab::new()?;
    let hook = webhook(&lab, "events = [\"ban\"]\nqueue = 2\ngive_up = \"4s\"")?;
    let edged = lab.edged()?.append(&hook)?.start()?;
    let begun = Instant::now();
    for n in 1..=20 {
        edged.tell(&format!("ban add 203.0.113.{n} --ttl 1h"))?;
    }
    println!("20 bans in {:?}", begun.elapsed());
    assert_eq!(edged.bans()?.len(), 20);
    // One is tried, two wait.
    until("the rest is lost", SOON, || Ok(counted(&edged, "lost")? >= 17.0))?;
    until("those are too old", Duration::from_secs(20), || {
        Ok(counted(&edged, "expired")? + counted(&edged, "lost")? == 20.0)
    })?;
    assert_eq!(edged.metrics()?.sum("edged_webhook_waiting", &[]), 0.0);
    // It comes alive, and hears of what comes now.
    let web = Web::start(&lab.edge, AT, |_| Answer::ok(""))?;
    edged.tell("ban add 203.0.113.99 --ttl 1h")?;
    until("it hears", SOON, || Ok(!web.asked().is_empty()))?;
    assert_eq!(told(&web, "ban")[0]["culprit"], "203.0.113.99");
    let log = edged.log();
    assert!(log.contains("a webhook cannot be told") && !log.contains(SECRET), "{log}");
    Ok(())
}
