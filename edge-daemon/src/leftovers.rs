//! Files in the state folder that nothing configured uses any more: what was counted by limits, kept of
//! feeds and held by list files that no configuration has named for thirty days.
//!
//! So much time lets a limit, a quota of a month as well, be left out of the configuration for a while and come
//! back as it was. When a file was named last is noted in its change time (`ctime`), as some of
//! these files say other things by the time that they were written. While no daemon ran, or one that does not
//! know of this, nobody noted anything: then the time begins anew for all of them. Only files are removed that this
//! daemon makes, by their names, in the folders that it makes them in.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry, File, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::config::{self, Settings};

/// What a configuration names, of what has files.
#[derive(Debug)]
pub struct Named(BTreeSet<(&'static str, String)>);

impl Named {
    /// What these settings name.
    #[must_use]
    pub fn by(settings: &Settings) -> Self {
        let limits = settings.limits.iter().filter(|limit| limit.persist);
        let limits = limits.map(|limit| (QUOTAS, limit.name.to_string()));
        let feeds = settings.feeds.iter().map(|feed| (FEEDS, feed.name.clone()));
        let files = settings.lists.allow.files.iter().chain(&settings.lists.deny.files);
        let lists = files.map(|file| (LISTS, config::kept_as(&file.path)));
        Self(limits.chain(feeds).chain(lists).collect())
    }
}

/// Removes from the state folder what has not been named for too long at this time, in unix seconds, and
/// notes what is named. What cannot be looked at or removed is told of and stays.
pub fn sweep(state: &Path, named: &Named, now_s: i64) {
    let is_anew = match renew(&state.join(SWEPT), now_s) {
        Ok(is_anew) => is_anew,
        Err(error) => {
            tracing::warn!(%error, "what is not used any more is not looked for");
            return;
        }
    };
    for folder in [QUOTAS, FEEDS, LISTS] {
        let path = state.join(folder);
        let is_named = |stem: &str| is_anew || named.0.contains(&(folder, stem.to_owned()));
        match sweep_folder(&path, is_named, folder, now_s) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %path.display(), %error,
                    "what is not used any more cannot be removed");
            }
            _ => {}
        }
    }
}

/// Notes that there is a sweep at this time; whether the one before was too long ago, or none.
fn renew(path: &Path, now_s: i64) -> io::Result<bool> {
    let before = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.mtime()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let now = UNIX_EPOCH + Duration::from_secs(now_s.try_into().unwrap_or_default());
    file.set_modified(now)?;
    Ok(before.is_none_or(|before| before.abs_diff(now_s) > APART_S))
}

fn sweep_folder(
    path: &Path,
    is_named: impl Fn(&str) -> bool,
    folder: &str,
    now_s: i64,
) -> io::Result<()> {
    for entry in fs::read_dir(path)?.take(ENTRIES_MAX) {
        let entry = entry?;
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|name| stem(folder, name)) else { continue };
        if let Err(error) = settle(&entry, is_named(stem), now_s) {
            tracing::warn!(file = %entry.path().display(), %error,
                "a file of the state folder cannot be looked after");
        }
    }
    Ok(())
}

/// Notes that a file is named, or removes it if it was not for too long.
fn settle(entry: &DirEntry, is_named: bool, now_s: i64) -> io::Result<()> {
    // Of a link it is the link's.
    let metadata = match entry.metadata() {
        // Renamed by whoever has just written it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    let path = entry.path();
    if !metadata.is_file() {
        return Ok(());
    }
    if is_named {
        // This changes the change time alone, and the rights that a version before may have left.
        return fs::set_permissions(path, Permissions::from_mode(0o600));
    }
    if now_s.saturating_sub(metadata.ctime()) > KEPT_S {
        fs::remove_file(&path)?;
        tracing::info!(file = %path.display(),
            "removed: no configuration has named what it is of for thirty days");
    }
    Ok(())
}

/// What a file of this name in this folder is of, if it is one of ours.
fn stem<'a>(folder: &str, name: &'a str) -> Option<&'a str> {
    if folder == LISTS {
        let stem =
            name.strip_suffix(".fresh").or_else(|| name.strip_suffix(".new")).unwrap_or(name);
        let is_hash = stem.len() == 16 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
        return is_hash.then_some(stem);
    }
    let (stem, extension) = name.rsplit_once('.')?;
    let own = if folder == QUOTAS { "quota" } else { "feed" };
    let is_ours = [own, "fresh", "damaged"].contains(&extension) && !stem.is_empty();
    is_ours.then_some(stem)
}

/// The folder of quotas, in the state folder.
pub const QUOTAS: &str = "quotas";
/// The folder of the last good lists of feeds.
pub const FEEDS: &str = "feeds";
/// The folder of what list files held.
pub const LISTS: &str = "lists";
/// Whose change is the last sweep, in the state folder.
const SWEPT: &str = "swept";
const KEPT_S: i64 = 30 * 86_400;
/// Between two sweeps, if the daemon runs: there is one each day.
const APART_S: u64 = 2 * 86_400;
/// More than there ever are; the rest has its turn another day.
const ENTRIES_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, thread};

    use super::*;
    use crate::clock;

    const DAY_S: i64 = 86_400;

    fn named(text: &str) -> Named {
        let text = format!("{}\n{text}", include_str!("../../config/minimal.toml"));
        let (settings, _) = config::parse(Path::new("edged.toml"), &text).unwrap();
        Named::by(&settings)
    }

    const TEXT: &str = "[lists]\ndeny_files = [\"/etc/edged/deny.txt\"]\n[[limit]]\nname = \"a.month\"\nby = [\"user\"]\nalgorithm = \"fixed_window\"\n\
        rate = \"3/month\"\n[[limit]]\nname = \"passing\"\nby = [\"user\"]\nrate = \"3/s\"\n\
        [[feed]]\nname = \"drop\"\nurl = \"http://a.example/x\"\n";

    const FILES: [&str; 15] = [
        "quotas/a.month.quota",
        "quotas/a.month.damaged",
        "quotas/gone.quota",
        "quotas/gone.fresh",
        "quotas/gone.damaged",
        "quotas/passing.quota",
        "quotas/notes",
        "quotas/gone.quota.bak",
        "feeds/drop.feed",
        "feeds/gone.feed",
        "feeds/gone.quota",
        "lists/0123456789abcdef",
        "lists/README",
        "edged.redb",
        "gone.quota",
    ];

    fn there(state: &Path) -> Vec<&'static str> {
        FILES.into_iter().filter(|file| state.join(file).exists()).collect()
    }

    #[test]
    fn what_nobody_names_goes_after_thirty_days_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        for file in FILES {
            fs::create_dir_all(state.join(file).parent().unwrap()).unwrap();
            fs::write(state.join(file), file).unwrap();
        }
        fs::create_dir(state.join("quotas/folder.quota")).unwrap();
        std::os::unix::fs::symlink(state.join("edged.redb"), state.join("feeds/link.feed"))
            .unwrap();
        let (named, now_s) = (named(TEXT), (clock::unix_ms() / 1000) as i64);
        sweep(&state.join("none"), &named, now_s);
        let list = format!("lists/{}", config::kept_as(Path::new("/etc/edged/deny.txt")));
        fs::write(state.join(&list), "x").unwrap();
        // After a month without a daemon the time begins anew.
        for days in [-10_000, 0, 29, 60, 29] {
            sweep(state, &named, now_s + days * DAY_S);
            assert_eq!(there(state), FILES);
        }
        sweep(state, &named, now_s + 31 * DAY_S);
        assert_eq!(
            there(state),
            [
                "quotas/a.month.quota",
                "quotas/a.month.damaged",
                "quotas/notes",
                "quotas/gone.quota.bak",
                "feeds/drop.feed",
                "feeds/gone.quota",
                "lists/README",
                "edged.redb",
                "gone.quota",
            ]
        );
        assert!(state.join(&list).exists());
        assert!(state.join("quotas/folder.quota").is_dir());
        assert!(state.join("feeds/link.feed").is_symlink());
    }

    #[test]
    fn the_time_counts_from_when_it_was_named_last() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        let files = ["quotas/a.month.quota", "quotas/gone.quota"];
        fs::create_dir(state.join("quotas")).unwrap();
        for file in files {
            fs::write(state.join(file), file).unwrap();
            fs::set_permissions(state.join(file), Permissions::from_mode(0o644)).unwrap();
        }
        let look = || -> BTreeMap<_, _> {
            let look = |file| {
                let it = fs::metadata(state.join(file)).unwrap();
                ((it.ctime(), it.ctime_nsec()), (it.mtime(), it.mtime_nsec()), it.mode() & 0o777)
            };
            files.into_iter().map(|file| (file, look(file))).collect()
        };
        let now_s = (clock::unix_ms() / 1000) as i64;
        sweep(state, &named(TEXT), now_s - DAY_S);
        files.iter().for_each(|file| {
            fs::set_permissions(state.join(file), Permissions::from_mode(0o644)).unwrap();
        });
        let before = look();
        thread::sleep(Duration::from_millis(30));
        sweep(state, &named(TEXT), now_s);
        let after = look();
        let (was, is) = (before[files[0]], after[files[0]]);
        assert!(is.0 > was.0, "{was:?} {is:?}");
        assert_eq!((is.1, is.2), (was.1, 0o600), "when it was written stays");
        assert_eq!(before[files[1]], after[files[1]]);
    }

    #[test]
    fn files_are_where_they_are_kept() {
        // As `config::keep` writes them.
        let path = Path::new("/etc/edged/deny.txt");
        assert_eq!(stem(LISTS, &config::kept_as(path)), Some(&*config::kept_as(path)));
        assert_eq!(stem(QUOTAS, "a.quota"), Some("a"));
        assert_eq!(stem(QUOTAS, ".quota"), None);
    }
}
