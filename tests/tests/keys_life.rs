//! What operators see of keys as these grow old: who is listed, who is warned of, what a restart keeps.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use edge_tests::{Edged, Lab, Origin, client::until, lab::FRIEND};

/// A new key and its id.
fn create(edged: &Edged<'_>, line: &str) -> Result<(String, String)> {
    let made = edged.ask(&format!("key create {line}"))?;
    let text = |name: &str| made[name].as_str().map(str::to_owned).context("told of a new key");
    Ok((text("id")?, text("key")?))
}

/// The names of the keys that a list shows, in order.
fn listed(edged: &Edged<'_>, filter: &str) -> Result<Vec<String>> {
    let keys = edged.ask(&format!("key list {filter}"))?;
    let entries = keys["entries"].as_array().context("entries")?;
    let mut names: Vec<_> =
        entries.iter().filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whom events of this kind are about.
fn told(edged: &Edged<'_>, kind: &str) -> Result<Vec<String>> {
    let events = edged.events()?.into_iter().filter(|event| event["event"] == kind);
    Ok(events.filter_map(|event| event["key_id"].as_str().map(str::to_owned)).collect())
}

#[test]
fn a_list_shows_the_keys_that_were_asked_for() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    create(&edged, "--name soon --owner team-a --expires 30m")?;
    create(&edged, "--name later --owner team-b --expires 30d")?;
    let (forever, _) = create(&edged, "--name forever --owner team-a --expires never")?;
    let (used, key) = create(&edged, "--name used --owner team-b --expires 60d")?;
    assert_eq!(listed(&edged, "--owner team-a")?, ["forever", "soon"]);
    assert_eq!(listed(&edged, "--owner team")?, [""; 0]);
    assert_eq!(listed(&edged, "--expiring 1h")?, ["soon"]);
    assert_eq!(listed(&edged, "--expiring 31d")?, ["later", "soon"]);
    assert_eq!(listed(&edged, "--expiring 31d --owner team-b")?, ["later"]);
    assert_eq!(listed(&edged, "--without-expiry")?, ["forever"]);
    assert_eq!(listed(&edged, "--unused 1h")?, [""; 0], "a key is not idle before it is old");

    thread::sleep(Duration::from_secs(10));
    assert_eq!(edged.get(FRIEND, "/").key(&key).send()?.status, 200);
    assert_eq!(listed(&edged, "--unused 8s")?, ["forever", "later", "soon"]);
    assert_eq!(listed(&edged, "--unused 8s --owner team-b")?, ["later"]);
    edged.tell(&format!("key revoke {forever}"))?;
    assert_eq!(listed(&edged, "--without-expiry")?, [""; 0], "one that is revoked is no worry");
    assert_eq!(listed(&edged, "--unused 8s")?, ["later", "soon"]);

    let used_ms = |edged: &Edged<'_>| -> Result<u64> {
        edged.ask(&format!("key show {used}"))?["used_ms"].as_u64().context("it was used")
    };
    let before = used_ms(&edged)?;
    edged.terminate()?;
    edged.start_again()?;
    assert_eq!(used_ms(&edged)?, before, "an orderly restart forgets nothing");
    Ok(())
}

#[test]
fn a_key_is_warned_of_once_before_its_end() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("keys.warn_before", "\"10s\"").start()?;
    let (later, _) = create(&edged, "--name later --expires 1h")?;
    let (brief, key) = create(&edged, "--name brief --owner team-a --expires 16s")?;
    let status = || Ok::<_, anyhow::Error>(edged.get(FRIEND, "/").key(&key).send()?.status);
    until("it is warned of", Duration::from_secs(20), || {
        Ok(told(&edged, "key_expiring")? == [&*brief])
    })?;
    assert_eq!(status()?, 200, "it has not ended");
    let events = edged.events()?;
    let warning = events.iter().find(|event| event["event"] == "key_expiring").context("told")?;
    assert_eq!((&warning["name"], &warning["owner"]), (&"brief".into(), &"team-a".into()));
    until("it ends", Duration::from_secs(30), || Ok(status()? == 401))?;
    until("that is told", Duration::from_secs(20), || {
        Ok(told(&edged, "key_expired")? == [&*brief])
    })?;
    assert_eq!(told(&edged, "key_expiring")?, [&*brief], "once");

    edged.edit("keys.warn_before", "\"2h\"")?;
    edged.terminate()?;
    edged.start_again()?;
    until("the other is warned of", Duration::from_secs(20), || {
        Ok(told(&edged, "key_expiring")? == [&*brief, &*later])
    })?;
    Ok(())
}
