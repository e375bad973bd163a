//! The life of an API key, as operators and clients see it.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_daemon::store::{Store, StoredKey};
use edge_identity::key::Secret;
use edge_tests::{
    Edged, Lab, Origin,
    client::{Response, until},
    daemon::find_key,
    lab::{ATTACKER, CLIENT, FRIEND},
};
use serde_json::Value;

/// A new key: its id, the key, and its bound secret if there is one.
fn create(edged: &Edged<'_>, line: &str) -> Result<(String, String, Option<String>)> {
    let made: Value = edged.ask(&format!("key create {line}"))?;
    let text = |name: &str| made[name].as_str().map(str::to_owned);
    Ok((text("id").context("no id")?, text("key").context("no key")?, text("secret")))
}

fn status(edged: &Edged<'_>, key: &str) -> Result<u16> {
    Ok(edged.get(FRIEND, "/").key(key).send()?.status)
}

/// Waits for an event of this kind about this key.
fn event(edged: &Edged<'_>, kind: &str, id: &str) -> Result<Value> {
    let mut found = None;
    until(&format!("event {kind} of {id}"), Duration::from_secs(20), || {
        let mut events = edged.events()?.into_iter();
        found = events.find(|event| event["event"] == kind && event["key_id"] == id);
        Ok(found.is_some())
    })?;
    found.context("found above")
}

/// What a refused client sees, but for what differs by request.
fn seen(response: &Response) -> (u16, Vec<(String, String)>, String) {
    let own = ["date", "x-request-id", "x-ratelimit-remaining", "x-ratelimit-reset"];
    let mut headers = response.headers.clone();
    headers.retain(|(name, _)| !own.contains(&name.to_lowercase().as_str()));
    let id = response.json()["request_id"].as_str().unwrap_or_default().to_owned();
    (response.status, headers, response.text().replace(&id, "ID"))
}

#[test]
fn a_key_is_shown_once_and_kept_as_digests() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let (id, key, none) = create(
        &edged,
        "--name billing --owner team-a --scopes orders:read --roles clerk --tier gold",
    )?;
    assert!(none.is_none());
    assert_eq!(status(&edged, &key)?, 200);
    let shown = edged.ask(&format!("key show {id}"))?;
    assert_eq!(
        (&shown["name"], &shown["owner"], &shown["tier"]),
        (&"billing".into(), &"team-a".into(), &"gold".into())
    );
    let expires = shown["expires_ms"].as_u64().zip(shown["created_ms"].as_u64());
    assert_eq!(expires.map(|(end, made)| end - made), Some(90 * 86_400_000), "90 days by default");
    assert!(edged.tell(&format!("key show {id}"))?.contains("$argon2id$"));
    for line in [format!("key show {id}"), "key list".into(), "key list --json".into()] {
        assert!(find_key(&edged.tell(&line)?).is_none(), "{line}");
    }
    // Neither the store nor the logs hold the key.
    let body = &key[6..49];
    for entry in fs::read_dir(lab.dir().join("state"))? {
        let bytes = fs::read(entry?.path())?;
        assert!(!String::from_utf8_lossy(&bytes).contains(body));
    }
    assert!(!edged.log().contains(body));
    assert!(!fs::read_to_string(lab.dir().join("events.jsonl"))?.contains(body));
    until("the slow hash is checked", Duration::from_secs(20), || {
        Ok(edged.metrics()?.value("edged_key_hashes_total") == 1.0)
    })?;
    assert_eq!(edged.metrics()?.value("edged_keys_forged_total"), 0.0);
    assert_eq!(status(&edged, &key)?, 200);
    assert_eq!(edged.metrics()?.value("edged_key_hashes_total"), 1.0, "once, and no more");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_key_cannot_be_seen_from_outside() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let (revoked, revoked_key, _) = create(&edged, "--name a")?;
    let (_, expired_key, _) = create(&edged, "--name b --expires 1ms")?;
    let (_, bound_key, _) = create(&edged, "--name c --secret")?;
    edged.tell(&format!("key revoke {revoked}"))?;
    let unknown = Secret::mint("edged", &[1; 32]);
    let unknown = unknown.expose();
    let get = |key: &str| edged.get(FRIEND, "/").key(key);
    let expected = seen(&get(unknown).send()?);
    assert_eq!(expected.0, 401);
    for response in [
        get(&revoked_key).send()?,
        get(&expired_key).send()?,
        get(&bound_key).send()?,
        get(&bound_key).header("X-API-Secret", "wrong").send()?,
        get("nonsense").send()?,
        edged.get(FRIEND, "/").header("Authorization", &format!("ApiKey {unknown}")).send()?,
    ] {
        assert_eq!(seen(&response), expected);
    }
    assert_eq!(origin.seen(), 0);
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::CredentialRevoked), 1.0);
    assert_eq!(metrics.requests(Reason::CredentialExpired), 1.0);
    assert_eq!(metrics.value("edged_key_hashes_total"), 0.0, "none reached Argon2id");
    Ok(())
}

#[test]
fn a_key_goes_only_where_it_may_and_comes_with_its_secret() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let get = |source: &str, path: &str, key: &str| -> Result<u16> {
        Ok(edged.get(source, path).key(key).send()?.status)
    };
    let (_, confined, _) = create(&edged, &format!("--name a --allow-cidr {CLIENT}/32"))?;
    assert_eq!(get(CLIENT, "/", &confined)?, 200);
    assert_eq!(get(FRIEND, "/", &confined)?, 403);
    let (_, placed, _) = create(&edged, "--name b --routes /echo,other.test/")?;
    assert_eq!(get(FRIEND, "/echo", &placed)?, 200);
    assert_eq!(get(FRIEND, "/echoes", &placed)?, 403);
    assert_eq!(get(FRIEND, "/", &placed)?, 403);
    assert_eq!(edged.metrics()?.requests(Reason::KeyNetwork), 1.0);
    assert_eq!(edged.metrics()?.requests(Reason::KeyPlace), 2.0);

    let (_, bound, secret) = create(&edged, "--name c --secret")?;
    let secret = secret.context("no secret")?;
    let with = |secret: &str| edged.get(FRIEND, "/echo").key(&bound).header("X-API-Secret", secret);
    let echo = with(&secret).send()?;
    assert_eq!(echo.status, 200);
    assert!(!echo.text().contains(&secret), "the secret stays at the edge");
    assert_eq!(with("wrong").send()?.status, 401);
    assert_eq!(get(FRIEND, "/", &bound)?, 401);

    let file = lab.dir().join("chosen");
    fs::write(&file, "correct horse battery\n")?;
    let line = format!("--name d --secret-file {}", file.display());
    let (_, chosen, none) = create(&edged, &line)?;
    assert!(none.is_none(), "who chose it knows it");
    let with =
        |secret: &str| edged.get(FRIEND, "/").key(&chosen).header("X-API-Secret", secret).send();
    assert_eq!(with("correct horse batterz")?.status, 401);
    assert_eq!(with("correct horse battery")?.status, 200);
    assert_eq!(with("correct horse batterz")?.status, 401);
    Ok(())
}

#[test]
fn a_rotated_key_ends_after_its_grace_and_a_revoked_one_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (old, old_key, _) = create(&edged, "--name a --scopes s --owner o")?;
    let made = edged.ask(&format!("key rotate {old} --grace 3s"))?;
    let new_key = made["key"].as_str().context("no key")?.to_owned();
    let new = made["id"].as_str().context("no id")?.to_owned();
    assert_eq!((status(&edged, &old_key)?, status(&edged, &new_key)?), (200, 200));
    assert_eq!(edged.ask(&format!("key show {new}"))?["scopes"][0], "s");
    assert!(!edged.ctl(&format!("key rotate {old}"))?.status.success(), "only once");
    let unnameable = edged.ctl("key create --name b --scopes a;b")?;
    assert!(!unnameable.status.success(), "no configuration could ask for such a scope");
    until("the old key ends", Duration::from_secs(20), || Ok(status(&edged, &old_key)? == 401))?;
    assert_eq!(status(&edged, &new_key)?, 200);
    event(&edged, "key_rotated", &old)?;
    event(&edged, "key_expired", &old)?;
    assert!(edged.events()?.iter().all(|event| event["event"] != "key_expiring"), "it is replaced");

    assert!(!edged.ctl(&format!("key remove {new}"))?.status.success(), "it is in force");
    edged.tell(&format!("key revoke {new}"))?;
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!(status(&edged, &new_key)?, 401, "whatever happens right after");
    assert_eq!(status(&edged, &old_key)?, 401);
    assert_eq!(event(&edged, "key_revoked", &new)?["owner"], "o");
    edged.tell(&format!("key remove {new}"))?;
    assert!(!edged.ctl(&format!("key show {new}"))?.status.success());
    Ok(())
}

#[test]
fn what_comes_with_a_key_is_rotated_with_it() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let rotate = |id: &str, more: &str| -> Result<(String, Option<String>)> {
        let made = edged.ask(format!("key rotate {id} --grace 1h {more}").trim())?;
        let text = |name: &str| made[name].as_str().map(str::to_owned);
        Ok((text("key").context("no key")?, text("secret")))
    };
    let refused = |id: &str, more: &str| -> Result<bool> {
        Ok(!edged.ctl(format!("key rotate {id} {more}").trim())?.status.success())
    };
    let with = |key: &str, secret: &str| -> Result<u16> {
        let request = edged.get(FRIEND, "/").key(key).header("X-API-Secret", secret);
        Ok(request.send()?.status)
    };
    let write = |name: &str, text: &str| -> Result<String> {
        let file = lab.dir().join(name);
        fs::write(&file, text)?;
        Ok(file.display().to_string())
    };

    let (id, old, old_secret) = create(&edged, "--name random --secret")?;
    let old_secret = old_secret.context("no secret")?;
    let one = write("one", "correct horse battery")?;
    assert!(refused(&id, &format!("--secret-file {one}"))?, "this one's is the edge's to choose");
    let (new, new_secret) = rotate(&id, "")?;
    let new_secret = new_secret.context("no new secret")?;
    assert_ne!(old_secret, new_secret);
    assert_eq!((with(&old, &old_secret)?, with(&new, &new_secret)?), (200, 200));
    assert_eq!((with(&old, &new_secret)?, with(&new, &old_secret)?), (401, 401));
    assert_eq!(status(&edged, &new)?, 401, "not without it");

    let (id, old, _) = create(&edged, &format!("--name chosen --secret-file {one}"))?;
    let two = write("two", "staple horse battery")?;
    assert!(refused(&id, "")?, "another has to be chosen");
    assert!(refused(&id, &format!("--secret-file {one}"))?, "and is another");
    let (new, told) = rotate(&id, &format!("--secret-file {two}"))?;
    assert!(told.is_none());
    assert_eq!(with(&old, "correct horse battery")?, 200);
    assert_eq!(with(&new, "staple horse battery")?, 200);
    assert_eq!(with(&new, "correct horse battery")?, 401);

    let public = |name: &str| write(name, &rcgen::KeyPair::generate()?.public_key_pem());
    let (one, two) = (public("one.pem")?, public("two.pem")?);
    let made = edged.ask(&format!("key create --name public --public-key {one}"))?;
    let id = made["id"].as_str().context("no id")?.to_owned();
    assert!(refused(&id, "")? && refused(&id, &format!("--public-key {one}"))?);
    let made = edged.ask(&format!("key rotate {id} --public-key {two}"))?;
    assert_eq!(made["key"], "", "it is named by its id alone");
    let shown = edged.ask(&format!("key show {}", made["id"].as_str().context("no id")?))?;
    assert_eq!(shown["signing"], edged.ask(&format!("key show {id}"))?["signing"]);
    let (id, _, _) = create(&edged, "--name plain")?;
    assert!(refused(&id, &format!("--public-key {two}"))?);
    Ok(())
}

#[test]
fn a_key_that_others_could_read_is_flagged() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (in_url, url_key, _) = create(&edged, "--name url --owner team-a")?;
    let (in_clear, clear_key, _) = create(&edged, "--name clear")?;
    let (in_both, both_key, _) = create(&edged, "--name both")?;
    for path in [format!("/?x={url_key}"), format!("/a/{url_key}/b"), format!("/?{url_key}")] {
        assert_eq!(edged.get(FRIEND, &path).send()?.status, 400, "even if the key is good");
    }
    let escaped: String = url_key.bytes().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(edged.get(FRIEND, &format!("/{escaped}/b")).send()?.status, 400);
    let logs = || -> Result<String> {
        let audit =
            fs::read_dir(lab.dir().join("audit"))?.map(|file| fs::read_to_string(file?.path()));
        Ok(audit.collect::<std::io::Result<String>>()?
            + &format!("{:?}{}", edged.events()?, edged.log()))
    };
    until("they are told of", Duration::from_secs(20), || {
        Ok(logs()?.matches("credential_in_url").count() >= 8)
    })?;
    let logged = logs()?;
    assert!(
        !logged.contains(&url_key) && !logged.contains(&escaped),
        "a path in a log holds no key"
    );
    let clear = edged.get(FRIEND, "http://edge.test/").key(&clear_key).send()?;
    assert_eq!((clear.status, clear.header("location")), (400, None), "refused, not redirected");
    for path in [format!("?x={both_key}"), format!("a/{both_key}/b"), "?api_key=1".into()] {
        let both = edged.get(FRIEND, &format!("http://edge.test/{path}")).send()?;
        assert_eq!((both.status, both.header("location")), (400, None), "{path}");
    }
    let told = event(&edged, "key_exposed", &in_url)?;
    assert_eq!((&told["how"], &told["owner"]), (&"url".into(), &"team-a".into()));
    assert_eq!(event(&edged, "key_exposed", &in_clear)?["how"], "clear");
    assert_eq!(event(&edged, "key_exposed", &in_both)?["how"], "url");
    until("those in plain HTTP are told of", Duration::from_secs(20), || {
        Ok(logs()?.matches("credential_in_url").count() >= 14)
    })?;
    assert!(!logs()?.contains(&both_key));
    let told = edged.events()?.into_iter().filter(|event| event["event"] == "key_exposed").count();
    assert_eq!(told, 3, "once for each");
    assert_eq!((status(&edged, &url_key)?, origin.seen()), (200, 1), "flagged, not refused");

    let exposed = edged.ask("key list --exposed")?;
    assert_eq!(exposed["entries"].as_array().map(Vec::len), Some(3));
    edged.kill9()?;
    edged.edit("keys.exposed", "\"refuse\"")?;
    edged.start_again()?;
    assert_eq!((status(&edged, &url_key)?, status(&edged, &clear_key)?), (401, 401));
    assert_eq!(edged.metrics()?.requests(Reason::CredentialExposed), 2.0);
    Ok(())
}

#[test]
fn a_pepper_is_changed_without_a_new_key() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (seen, seen_key, _) = create(&edged, "--name seen")?;
    let (_, unseen_key, _) = create(&edged, "--name unseen")?;
    let file = |name: &str| format!("\"file:{}\"", lab.dir().join(name).display());
    edged.edit("keys.pepper", &file("pepper-2"))?;
    edged.edit("keys.former_peppers", &format!("[{}]", file("pepper")))?;
    edged.tell("reload")?;
    assert_eq!(edged.ask(&format!("key show {seen}"))?["pepper"], "former");
    assert_eq!(status(&edged, &seen_key)?, 200);
    event(&edged, "key_renewed", &seen)?;
    assert_eq!(edged.ask(&format!("key show {seen}"))?["pepper"], "current");
    assert_eq!(status(&edged, &seen_key)?, 200);

    edged.edit("keys.former_peppers", "[]")?;
    edged.terminate()?;
    edged.start_again()?;
    assert_eq!(status(&edged, &seen_key)?, 200);
    assert_eq!(status(&edged, &unseen_key)?, 401, "its pepper is gone");
    Ok(())
}

#[test]
fn keys_move_from_one_store_to_another() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (id, key, _) = create(&edged, "--name moving --scopes s")?;
    let (gone, gone_key, _) = create(&edged, "--name gone")?;
    edged.tell(&format!("key revoke {gone}"))?;
    let lines = edged.tell("key export")?;
    assert_eq!((lines.lines().count(), find_key(&lines)), (2, None));
    let file = lab.dir().join("keys.jsonl");
    fs::write(&file, &lines)?;

    edged.terminate()?;
    fs::remove_dir_all(lab.dir().join("state"))?;
    edged.start_again()?;
    assert_eq!(status(&edged, &key)?, 401);
    let import = format!("key import {}", file.display());
    fs::write(&file, format!("{lines}{{\"id\": 1}}\n"))?;
    let refused = edged.ctl(&import)?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("keys.jsonl:3:"), "{words}");
    assert_eq!(status(&edged, &key)?, 401, "nothing was taken");
    // One digest under two ids would be one key that is revoked once and stays good; a public key that
    // is none of its algorithm, or a weak one, verifies nothing.
    let other = lines.lines().find(|line| line.contains(&id)).context("its line")?;
    let other = other.replacen(&id, "0123456789ab", 1);
    let public = r#"{"signing":{"public":{"algorithm":"rsa-pss-sha512","key":"AAAA"}}}"#;
    let weak = other.replacen("\"extras\":[]", &format!("\"extras\":[{public}]"), 1);
    let cheap =
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
    let cheap = format!(r#""extras":[{{"secret":{{"chosen":"{cheap}"}}}}]"#);
    let cheap = other.replacen("\"extras\":[]", &cheap, 1);
    for (text, place, why) in [
        (format!("{lines}{other}\n"), 3, "digest"),
        (format!("{weak}\n"), 1, "public key"),
        (format!("{cheap}\n"), 1, "m=19456,t=2 at least"),
    ] {
        fs::write(&file, text)?;
        let refused = edged.ctl(&import)?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(words.contains(&format!("jsonl:{place}: ")) && words.contains(why), "{words}");
        assert_eq!(status(&edged, &key)?, 401, "nothing was taken");
    }
    // However far apart: the daemon is told of a MiB of lines at once.
    let numbered = |n: usize| -> Result<String> {
        let mut line: Value = serde_json::from_str(&other)?;
        (line["id"], line["digest"]) = (format!("{n:012x}").into(), format!("{n:064x}").into());
        Ok(format!("{line}\n"))
    };
    let far = (1..4000).map(numbered).collect::<Result<String>>()?;
    assert!(2 * far.len() > 2 << 20, "{}", far.len());
    let first = lines.lines().find(|line| line.contains(&id)).context("its line")?;
    for (again, why) in [(&*other, "line 1 has this digest as well"), (first, "is there twice")] {
        fs::write(&file, format!("{first}\n{far}{again}\n"))?;
        for more in ["", " --check"] {
            let refused = edged.ctl(&format!("{import}{more}"))?;
            let words = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(words.contains("jsonl:4001: ") && words.contains(why), "{words}");
            assert_eq!(edged.ask("key list")?["total"], 0, "nothing was taken");
        }
    }
    fs::write(&file, &lines)?;
    assert!(edged.tell(&import)?.contains("2 keys are new"));
    fs::write(&file, format!("{other}\n"))?;
    let refused = edged.ctl(&import)?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("another key has this digest"), "{words}");
    fs::write(&file, &lines)?;
    assert!(edged.tell(&import)?.contains("2 were known"));
    assert_eq!((status(&edged, &key)?, status(&edged, &gone_key)?), (200, 401));
    assert_eq!(edged.ask(&format!("key show {id}"))?["argon2id"], true);
    Ok(())
}

/// Who writes to the store puts the digest of a key of his own into the record of another: the first time that
/// it comes it is compared with the slow hash, and from then on refused.
#[test]
fn a_digest_that_was_changed_in_the_store_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (victim, key, _) = create(&edged, "--name victim")?;
    let (own, own_key, _) = create(&edged, "--name own")?;
    edged.terminate()?;
    let (store, _) = Store::open(&lab.dir().join("state"), 0)?;
    let read = |id: &str| store.key(&id.parse().ok()?).ok()?;
    let (mut changed, forgers) = read(&victim).zip(read(&own)).context("their records")?;
    changed.digest = forgers.digest;
    store.remove_key(&forgers.id)?;
    store.put_keys(&[StoredKey { record: changed, hash: None }])?;
    drop(store);

    edged.start_again()?;
    assert_eq!(status(&edged, &key)?, 401, "its digest is gone");
    until("it is found", Duration::from_secs(30), || Ok(status(&edged, &own_key)? == 401))?;
    event(&edged, "key_forged", &victim)?;
    assert_eq!(edged.metrics()?.value("edged_keys_forged_total"), 1.0);
    assert_eq!(status(&edged, &own_key)?, 401);
    until("that is kept", Duration::from_secs(20), || {
        Ok(!edged.ask(&format!("key show {victim}"))?["revoked_ms"].is_null())
    })?;
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!(status(&edged, &own_key)?, 401, "the first request after a restart");
    Ok(())
}

/// The store fails under a daemon that runs: who has a good key is served from memory, and nobody else is.
#[test]
fn a_store_that_fails_meanwhile_lets_nobody_in() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged =
        lab.edged()?.append("[[scenario]]\nname = \"brute-force\"\nenabled = false")?.start()?;
    let (_, good, _) = create(&edged, "--name good")?;
    let (revoked, revoked_key, _) = create(&edged, "--name revoked")?;
    let (early, early_key, _) = create(&edged, "--name early")?;
    edged.tell(&format!("key revoke {early}"))?;
    let store = lab.dir().join("state/edged.redb");
    let length = fs::metadata(&store)?.len();
    let file = fs::OpenOptions::new().write(true).open(&store)?;
    // Cut off under the daemon that has it open: nothing behind the first page can be read any more.
    file.set_len(4096)?;
    let bound = |key: &str, secret: &str| {
        edged.get(FRIEND, "/").key(key).header("X-API-Secret", secret).send().map(|a| a.status)
    };
    for round in 0..3 {
        assert_eq!(status(&edged, &early_key)?, 401, "{round}");
        assert_eq!(status(&edged, &format!("{good}x"))?, 401, "{round}");
        assert_eq!(bound(&good, "none-was-chosen")?, 401, "{round}");
    }
    assert_eq!(origin.seen(), 0);
    // A revocation holds, whatever becomes of it.
    let _ = edged.ctl(&format!("key revoke {revoked}"))?;
    assert_eq!(status(&edged, &revoked_key)?, 401);
    assert_eq!(status(&edged, &good)?, 200);
    file.set_len(length)?;
    Ok(())
}

/// Whatever is wrong with the disk, no key is good that is not, and none that is revoked.
#[test]
fn a_broken_store_lets_nobody_in() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let (id, key, _) = create(&edged, "--name a")?;
    edged.terminate()?;
    let store = lab.dir().join("state/edged.redb");
    let mut bytes = fs::read(&store)?;
    bytes.iter_mut().skip(4096).for_each(|byte| *byte ^= 0x5a);
    fs::write(&store, &bytes)?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o600))?;
    edged.start_again()?;
    assert_eq!(status(&edged, &key)?, 401);
    assert!(!edged.ctl(&format!("key show {id}"))?.status.success());
    assert_eq!(edged.get(ATTACKER, "/").key(&key).send()?.status, 401);
    assert_eq!(origin.seen(), 0);
    Ok(())
}
