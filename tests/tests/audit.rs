//! The audit log: every attempt is in it, and what is done to it is found.

use std::{fs, path::PathBuf, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    disk::SmallDisk,
    issuer::{AUDIENCE, ISSUER, KEYS_URL},
    lab::{CLIENT, FRIEND},
};
use serde_json::Value;

/// Where a lab's daemon keeps the log, and what seals it.
fn place(lab: &Lab) -> (PathBuf, String) {
    (lab.dir().join("audit"), format!("file:{}", lab.dir().join("audit.key").display()))
}

fn verify(lab: &Lab, edged: &Edged<'_>) -> Result<Output> {
    let (dir, key) = place(lab);
    edged.ctl(&format!("audit verify --dir {} --key {key} --json", dir.display()))
}

/// The files of the log, the oldest first.
fn files(lab: &Lab) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(place(lab).0)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    Ok(paths)
}

fn lines(lab: &Lab) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for path in files(lab)? {
        let text = fs::read_to_string(path)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            lines.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
        }
    }
    Ok(lines)
}

/// Waits until so many lines with these words are in the log.
fn wait_for(lab: &Lab, words: &[(&str, &str)], count: usize) -> Result<()> {
    until(&format!("{count} lines with {words:?}"), Duration::from_secs(20), || {
        let is_it = |line: &Value| words.iter().all(|(name, value)| line[*name] == *value);
        Ok(lines(lab)?.iter().filter(|line| is_it(line)).count() == count)
    })
    .map(drop)
}

#[test]
fn every_attempt_is_one_line_and_a_changed_one_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let scoped = "[[route]]\npath = \"/admin\"\nmethods = [\"GET\"]\nauth = \"key\"\n\
                  scopes = [\"admin\"]\nupstream = \"api\"";
    let mut edged = lab.edged()?.append(scoped)?.start()?;
    let key = edged.key("a")?;
    for _ in 0..3 {
        assert_eq!(edged.get(FRIEND, "/?x=secret-query").key(&key).send()?.status, 200);
    }
    assert_eq!(edged.get(FRIEND, "/admin").key(&key).send()?.status, 403);
    assert_eq!(edged.get(FRIEND, "/").send()?.status, 401);
    assert_eq!(edged.get(FRIEND, "/").key("nonsense").send()?.status, 401);
    assert_eq!(edged.get(FRIEND, &format!("/?k={key}")).send()?.status, 400);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    wait_for(&lab, &[("event", "request_granted"), ("by", "key"), ("path", "/")], 3)?;
    for reason in ["not_permitted", "credential_missing", "credential_invalid", "credential_in_url"]
    {
        wait_for(&lab, &[("event", "request_refused"), ("reason", reason)], 1)?;
    }
    wait_for(&lab, &[("event", "key_created")], 1)?;
    wait_for(&lab, &[("event", "key_exposed")], 1)?;
    let told = lines(&lab)?;
    let attempts =
        told.iter().filter(|l| l["event"].as_str().is_some_and(|e| e.contains("request_")));
    assert_eq!(attempts.count(), 7, "and none for who was asked nothing");
    let text = fs::read_to_string(&files(&lab)?[0])?;
    assert!(!text.contains(&key) && !text.contains("secret-query"));

    assert!(verify(&lab, &edged)?.status.success());
    edged.kill9()?;
    let torn = fs::OpenOptions::new().append(true).open(&files(&lab)?[0])?;
    std::io::Write::write_all(&mut &torn, b"{\"n\":99,\"time\":\"20")?;
    edged.start_again()?;
    wait_for(&lab, &[("event", "torn_line")], 1)?;
    wait_for(&lab, &[("event", "started")], 2)?;
    assert!(verify(&lab, &edged)?.status.success());

    let path = files(&lab)?.remove(0);
    let text = fs::read_to_string(&path)?;
    let victim = text.lines().position(|line| line.contains("not_permitted")).context("a line")?;
    fs::write(&path, text.replace("not_permitted", "not_permittee"))?;
    let found = verify(&lab, &edged)?;
    let told: Value = serde_json::from_slice(&found.stdout)?;
    assert_eq!(found.status.code(), Some(1));
    assert_eq!(told["broken"]["line"], victim as u64 + 1, "{told}");
    Ok(())
}

/// What the log cannot tell of is not done to keys, or whoever asked is told; but a key is revoked.
#[test]
fn keys_are_not_changed_unnoticed_while_the_log_cannot_be_written() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let disk = SmallDisk::at(place(&lab).0, 256 << 10)?;
    let edged = lab.edged()?.start()?;
    let made = edged.ask("key create --name old")?;
    let (id, key) = (made["id"].as_str().context("id")?, made["key"].as_str().context("key")?);
    disk.fill()?;
    let count = || -> Result<u64> { edged.ask("key list")?["total"].as_u64().context("total") };
    // There is room for a few lines more in the page that the file ends in.
    let (mut keys, mut refused) = (count()?, Vec::new());
    for n in 0..100 {
        let done = edged.ctl(&format!("key create --name n{n}"))?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() {
            assert!(refused.is_empty(), "after {refused:?}");
            keys += 1;
            continue;
        }
        // It was made and is shown, or it was not made.
        if words.contains("it is done, but the audit log cannot be written") {
            assert!(String::from_utf8_lossy(&done.stdout).contains("shown this once"), "{done:?}");
            keys += 1;
        } else {
            assert!(words.contains("nothing is changed: the audit log cannot be"), "{words}");
            assert!(done.stdout.is_empty(), "{done:?}");
        }
        refused.push(words);
        if refused.len() > 2 {
            break;
        }
    }
    assert_eq!((refused.len(), count()?), (3, keys), "{refused:?}");
    assert_eq!(edged.get(FRIEND, "/").key(key).send()?.status, 200);
    let done = edged.ctl(&format!("key revoke {id}"))?;
    assert_eq!(edged.get(FRIEND, "/").key(key).send()?.status, 401, "{done:?}");
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && words.contains("audit log cannot be written"), "{words}");
    disk.make_room()?;
    until("keys can be made again", Duration::from_secs(20), || {
        Ok(edged.ctl("key create --name later")?.status.success())
    })?;
    wait_for(&lab, &[("event", "key_created"), ("name", "later")], 1)?;
    assert!(verify(&lab, &edged)?.status.success());
    Ok(())
}

/// A token is revoked whatever the log can tell of, and not let in again unnoticed.
#[test]
fn tokens_are_not_let_in_again_while_the_log_cannot_be_written() -> Result<()> {
    let lab = Lab::new()?;
    let disk = SmallDisk::at(place(&lab).0, 256 << 10)?;
    let edged = lab
        .edged()?
        .append(&format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
             jwks_url = \"{KEYS_URL}\""
        ))?
        .start()?;
    let revoked = || -> Result<u64> { edged.ask("token list")?["total"].as_u64().context("total") };
    let line = |verb: &str, n: u64| edged.ctl(&format!("token {verb} --jti {n} --issuer own"));
    let words = |done: &Output| String::from_utf8_lossy(&done.stderr).into_owned();
    let (unaudited, refused) = (
        "it is done, but the audit log cannot be written",
        "nothing is changed: the audit log cannot be",
    );
    for n in 0..5 {
        ensure!(line("revoke", n)?.status.success(), "{n}");
    }
    disk.fill()?;
    // There is room for a few lines more in the page that the file ends in.
    let mut count = revoked()?;
    loop {
        let done = line("revoke", count)?;
        count += 1;
        assert_eq!(revoked()?, count, "it holds, whatever is told of it: {done:?}");
        if !done.status.success() {
            assert!(words(&done).contains(unaudited), "{done:?}");
            break;
        }
        ensure!(count < 100, "the log can always be written");
    }
    // A short line may find room where a longer one does not.
    let mut stolen = 0;
    loop {
        let done = line("remove", stolen)?;
        ensure!(!done.status.success(), "{stolen}: {done:?}");
        if words(&done).contains(refused) {
            break;
        }
        assert!(words(&done).contains(unaudited), "{done:?}");
        (stolen, count) = (stolen + 1, count - 1);
    }
    assert_eq!(revoked()?, count);
    let accepted = edged.ctl("token accept-loss")?;
    assert!(!accepted.status.success() && words(&accepted).contains(refused), "{accepted:?}");
    disk.make_room()?;
    until("it can be let in again", Duration::from_secs(20), || {
        Ok(line("remove", stolen)?.status.success())
    })?;
    let stolen = stolen.to_string();
    wait_for(&lab, &[("event", "token_denied"), ("change", "remove"), ("value", &stolen)], 1)?;
    assert_eq!(revoked()?, count - 1);
    assert!(verify(&lab, &edged)?.status.success());
    Ok(())
}

#[test]
fn a_full_disk_stops_nobody_and_the_gap_is_in_the_chain() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let disk = SmallDisk::at(place(&lab).0, 128 << 10)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("a")?;
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 100 << 10])?;
    let lost = || anyhow::Ok(edged.metrics()?.value("edged_audit_lost_total"));
    until("the disk is full", Duration::from_secs(30), || {
        assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200, "whatever the disk does");
        assert_eq!(edged.get(FRIEND, "/").key("nonsense").send()?.status, 401);
        Ok(lost()? > 3.0)
    })?;
    fs::remove_file(&ballast)?;
    assert_eq!(edged.get(FRIEND, "/").key(&key).send()?.status, 200);
    until("the gap is told", Duration::from_secs(20), || {
        Ok(lines(&lab)?.iter().any(|line| line["event"] == "lost"))
    })?;
    let told = lines(&lab)?;
    let gaps = told.iter().filter(|line| line["event"] == "lost");
    let entries: f64 = gaps.filter_map(|line| line["entries"].as_f64()).sum();
    assert_eq!(entries, lost()?);
    assert!(verify(&lab, &edged)?.status.success());
    Ok(())
}
