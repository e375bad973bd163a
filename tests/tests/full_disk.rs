//! What operators say of keys and tokens while the disk is full: what is refused stays refused, whoever asks
//! is told, and what holds is saved when there is room again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    disk::SmallDisk,
    issuer::{AUDIENCE, Answers, ISSUER, KEYS_URL, KeyServer, Signer, jwks},
    lab::FRIEND,
};
use serde_json::json;

const ROOM: u32 = 8 << 20;
/// As many changes are never made before a full disk is noticed.
const CHANGES_MAX: usize = 500;
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_revoked_token_is_refused_though_it_cannot_be_saved() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let disk = SmallDisk::at(lab.dir().join("state"), ROOM)?;
    let mut edged = lab
        .edged()?
        .append(&format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
             jwks_url = \"{KEYS_URL}\"\n\
             [[route]]\npath = \"/token\"\nmethods = [\"GET\"]\nauth = \"jwt\"\nupstream = \"api\"\n"
        ))?
        .start()?;
    let token = |jti: usize| {
        let mut claims = signer.claims();
        claims["jti"] = json!(jti.to_string());
        signer.token(&claims)
    };
    let status = |edged: &Edged<'_>, jti: usize| -> Result<u16> {
        let bearer = format!("Bearer {}", token(jti));
        Ok(edged.get(FRIEND, "/token").header("Authorization", &bearer).send()?.status)
    };
    let unsaved = |edged: &Edged<'_>| -> Result<f64> {
        Ok(edged.metrics()?.value("edged_token_denials_unsaved"))
    };
    disk.fill()?;
    let mut revoked = 0_usize;
    loop {
        revoked += 1;
        ensure!(revoked < CHANGES_MAX, "the disk is never full");
        assert_eq!(status(&edged, revoked)?, 200);
        let said = edged.ctl(&format!("token revoke --jti {revoked} --issuer own"))?;
        assert_eq!(status(&edged, revoked)?, 401, "{said:?}");
        if !said.status.success() {
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.contains("refused from now on"), "{said}");
            // There may be room for it a second later, in what the store has already.
            if unsaved(&edged)? >= 1.0 {
                break;
            }
        }
    }
    disk.make_room()?;
    until("it is saved", SOON, || Ok(unsaved(&edged)? == 0.0))?;
    assert_eq!(edged.ask("token list")?["total"], revoked);
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!((status(&edged, 1)?, status(&edged, revoked)?), (401, 401));
    assert_eq!(status(&edged, revoked + 1)?, 200);
    Ok(())
}

#[test]
fn a_takeover_that_a_full_disk_forbids_leaves_the_store_to_who_stays() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let disk = SmallDisk::at(lab.dir().join("state"), ROOM)?;
    let mut edged = lab.edged()?.start()?;
    let unsaved = |edged: &Edged<'_>| -> Result<f64> {
        Ok(edged.metrics()?.value("edged_key_revocations_unsaved"))
    };
    let create = |name: &str| -> Result<(String, String)> {
        let made = edged.ask(&format!("key create --name {name}"))?;
        let word = |field: &str| made[field].as_str().map(str::to_owned).context("told");
        Ok((word("id")?, word("key")?))
    };
    let mut revocable = (0..60).map(|n| create(&format!("n{n}"))).collect::<Result<Vec<_>>>()?;
    disk.fill()?;
    let mut changes = 0_usize;
    while create("more").is_ok() {
        changes += 1;
        ensure!(changes < CHANGES_MAX, "the disk is never full");
    }
    let mut revoked = Vec::new();
    while unsaved(&edged)? == 0.0 {
        let (id, key) = revocable.pop().context("the disk is never full")?;
        edged.ctl(&format!("key revoke {id}"))?;
        revoked.push(key);
    }
    assert_eq!(edged.successor()?.wait()?.code(), Some(1));
    let log = edged.log();
    assert!(log.contains("the disk fails: a successor would not know"), "{log}");
    disk.make_room()?;
    until("all is saved", SOON, || Ok(unsaved(&edged)? == 0.0))?;
    assert!(edged.take_over()?.success());
    for key in &revoked {
        assert_eq!(edged.get(FRIEND, "/").key(key).send()?.status, 401);
    }
    Ok(())
}

#[test]
fn keys_are_changed_for_good_or_not_at_all_but_refused_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let disk = SmallDisk::at(lab.dir().join("state"), ROOM)?;
    let mut edged = lab.edged()?.set("keys.exposed", "\"refuse\"").start()?;
    let create = |name: &str| -> Result<(String, String)> {
        let made = edged.ask(&format!("key create --name {name}"))?;
        let word = |field: &str| made[field].as_str().map(str::to_owned).context("told");
        Ok((word("id")?, word("key")?))
    };
    let status = |edged: &Edged<'_>, key: &str| -> Result<u16> {
        Ok(edged.get(FRIEND, "/").key(key).send()?.status)
    };
    let unsaved = |edged: &Edged<'_>| -> Result<f64> {
        Ok(edged.metrics()?.value("edged_key_revocations_unsaved"))
    };
    let (kept, leaked) = (create("kept")?, create("leaked")?);
    let mut revocable = (0..60).map(|n| create(&format!("n{n}"))).collect::<Result<Vec<_>>>()?;
    disk.fill()?;
    let mut good = Vec::new();
    while let Ok((_, key)) = create("more") {
        ensure!(good.len() < CHANGES_MAX, "the disk is never full");
        good.push(key);
    }
    let rotated = edged.ctl(&format!("key rotate {} --grace 0s", kept.0))?;
    if !rotated.status.success() {
        assert_eq!(status(&edged, &kept.1)?, 200, "it was not replaced");
        good.push(kept.1);
    }
    assert_eq!(edged.get(FRIEND, &format!("/?x={}", leaked.1)).send()?.status, 400);
    until("it is flagged", SOON, || Ok(status(&edged, &leaked.1)? == 401))?;
    let mut revoked = Vec::new();
    loop {
        let (id, key) = revocable.pop().context("the disk is never full")?;
        let said = edged.ctl(&format!("key revoke {id}"))?;
        assert_eq!(status(&edged, &key)?, 401, "{said:?}");
        revoked.push(key);
        if !said.status.success() {
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.contains("refused from now on"), "{said}");
            // There may be room for it a second later, in what the store has already.
            if unsaved(&edged)? >= 1.0 {
                let rotated = edged.ctl(&format!("key rotate {id}"))?;
                let said = String::from_utf8_lossy(&rotated.stderr).into_owned();
                assert!(said.contains("is revoked"), "whatever the disk knows: {said}");
                break;
            }
        }
    }
    disk.make_room()?;
    until("all is saved", SOON, || Ok(unsaved(&edged)? == 0.0))?;
    let later = edged.key("later")?;
    edged.kill9()?;
    edged.start_again()?;
    for key in revoked.iter().chain([&leaked.1]) {
        assert_eq!(status(&edged, key)?, 401);
    }
    good.extend(revocable.into_iter().map(|(_, key)| key));
    for key in good.iter().chain([&later]) {
        assert_eq!(status(&edged, key)?, 200, "who was told a key has one");
    }
    Ok(())
}
