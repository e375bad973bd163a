//! Lifts and revocations on disk. A ban that is over is nowhere any more but in the memory of others, so what ended it has to
//! outlive a restart of this edge for as long as the ban would have.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_identity::fleet::Record;
use tokio::time;

use super::{
    super::{
        kept::{self, Head},
        lock,
    },
    CLIENTS_MAX, Fleet,
};
use crate::{clock, request::Edge};

/// Takes in what was kept.
pub(super) fn load(fleet: &Fleet) {
    let loaded = take_in(fleet, &mut lock(&fleet.loaded));
    if let Err(error) = loaded {
        tracing::error!(error, "which bans were lifted cannot be read yet");
    }
}

/// Sealed as it was shared, so that under another secret there is nothing; without one it stays unread.
fn take_in(fleet: &Fleet, is_loaded: &mut bool) -> Result<(), String> {
    let seal = fleet.seal()?;
    let kept = kept::load(&fleet.dir, KEPT, &fleet.settings.name, BYTES_MAX);
    let content = kept.map_err(|why| why.to_string())?.map(|(_, content)| content);
    let content = content.unwrap_or_default();
    let now_ms = clock::unix_ms();
    let records = content.lines().filter_map(|line| Record::open(line, &seal, now_ms).ok());
    for end in records.take(CLIENTS_MAX) {
        fleet.note_end(&end);
        lock(&fleet.own).put(end.clone(), CLIENTS_MAX);
        let _ = lock(&fleet.bans).merge(end, CLIENTS_MAX);
    }
    *is_loaded = true;
    Ok(())
}

/// Keeps them, for ever: durable within a second, as bans are.
pub(super) async fn keep(fleet: Arc<Fleet>, edge: Arc<Edge>) {
    loop {
        time::sleep(EVERY).await;
        if !fleet.is_unsaved.load(Relaxed) {
            continue;
        }
        let (this, edge) = (Arc::clone(&fleet), Arc::clone(&edge));
        let saved = tokio::task::spawn_blocking(move || {
            // What a successor has loaded, only it may change.
            edge.reign.turn().map_or(Ok(()), |_turn| save(&this))
        });
        let saved = saved.await;
        if let Ok(Err(error)) = saved {
            tracing::error!(error, "lifted bans are not on disk yet");
            time::sleep(PAUSE).await;
        }
    }
}

/// Saves them if they are not on disk; never in the place of those that could not be read so far.
pub(super) fn save(fleet: &Fleet) -> Result<(), String> {
    let mut is_loaded = lock(&fleet.loaded);
    if !fleet.is_unsaved.swap(false, Relaxed) {
        return Ok(());
    }
    let saved = write(fleet, &mut is_loaded);
    saved.inspect_err(|_| fleet.is_unsaved.store(true, Relaxed))
}

fn write(fleet: &Fleet, is_loaded: &mut bool) -> Result<(), String> {
    let seal = fleet.seal()?;
    if !*is_loaded {
        take_in(fleet, is_loaded)?;
    }
    let ends: Vec<_> = lock(&fleet.own).ends().cloned().collect();
    let content: String = ends.iter().map(|end| end.seal(&seal) + "\n").collect();
    let head = Head::new(fleet.settings.name.clone(), clock::unix_ms(), None, None);
    let saved = kept::save(&fleet.dir, KEPT, head, content.as_bytes());
    saved.map_err(|error| error.to_string())
}

const KEPT: &str = "lifts";
/// A million of them.
const BYTES_MAX: usize = 256 << 20;
const EVERY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use edge_identity::fleet::Act;

    use super::*;
    use crate::{config::settings, secret::Origin};

    const CLIENT: [u8; 4] = [192, 0, 2, 7];

    fn fleet(dir: &std::path::Path) -> Fleet {
        let settings = settings::Fleet {
            secret: Origin::File(dir.join("secret")),
            name: "edged".into(),
            node: "a".into(),
            nodes: 2,
            server: settings::FleetServer::default(),
            login: (None, None),
            timeout: Duration::from_secs(1),
            bans: true,
            client: edge_common::ClientWidth::USUAL,
        };
        Fleet::new(&settings, dir)
    }

    fn give_secret(dir: &std::path::Path) {
        let path = dir.join("secret");
        fs::write(&path, "a secret that all edges have: 32 bytes").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_ban_after_a_lift_is_later_before_anybody_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (fleet, now_ms) = (fleet(dir.path()), clock::unix_ms());
        fleet.end(CLIENT.into(), Act::Lift, now_ms + 5, now_ms + 60_000);
        assert!(fleet.dated(&CLIENT.into(), now_ms) > now_ms + 5);
        assert!(fleet.after(&CLIENT.into()) >= now_ms);
    }

    #[test]
    fn who_was_banned_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let (fleet, now_ms) = (fleet(dir.path()), clock::unix_ms());
        let mut ban = fleet.end_at(CLIENT.into(), Act::Lift, now_ms - 9, now_ms);
        ban.act = Act::Ban { strikes: 1, reason: "scan".into() };
        for (until_ms, wanted) in [(now_ms, None), (now_ms + 60_000, Some(now_ms + 60_000))] {
            let ban = Record { until_ms, ..ban.clone() };
            lock(&fleet.bans).merge(ban, CLIENTS_MAX).unwrap();
            assert_eq!(fleet.banned_until(&CLIENT.into()), wanted);
        }
    }

    #[test]
    fn a_lift_is_on_disk_at_the_end_and_in_the_place_of_no_unread_one() {
        let dir = tempfile::tempdir().unwrap();
        give_secret(dir.path());
        let (first, now_ms) = (fleet(dir.path()), clock::unix_ms());
        load(&first);
        first.end(CLIENT.into(), Act::Lift, 0, now_ms + 60_000);
        first.finish();
        // The next cannot read it at first, or has no secret, and lifts somebody else meanwhile.
        let (kept, away) = (dir.path().join("fleet/lifts.feed"), dir.path().join("away"));
        fs::rename(&kept, &away).unwrap();
        fs::create_dir(&kept).unwrap();
        let unread = self::fleet(dir.path());
        load(&unread);
        unread.end([192, 0, 2, 9].into(), Act::Lift, 0, now_ms + 60_000);
        assert!(save(&unread).is_err());
        fs::remove_dir(&kept).unwrap();
        fs::rename(&away, &kept).unwrap();
        fs::remove_file(dir.path().join("secret")).unwrap();
        let second = fleet(dir.path());
        load(&second);
        let other = [192, 0, 2, 8].into();
        second.end(other, Act::Lift, 0, now_ms + 60_000);
        assert!(save(&second).is_err());
        give_secret(dir.path());
        save(&second).unwrap();
        let third = fleet(dir.path());
        load(&third);
        let clients: Vec<_> = lock(&third.own).ends().map(|end| end.client).collect();
        assert_eq!(clients, [CLIENT.into(), other]);
    }
}
