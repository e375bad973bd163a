//! The last good list of a feed on disk: a line that says what it is, and the list as it came.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// What is known of a list beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    /// Where it is from.
    pub(super) place: String,
    /// When its source last confirmed it, in unix milliseconds; on disk that is when the file was changed.
    pub(super) at_ms: u64,
    /// What its server calls this state of it.
    pub(super) etag: Option<String>,
    /// When it changed, as its server says.
    pub(super) last_modified: Option<String>,
    /// BLAKE3 of the content, in hexadecimal.
    sum: String,
}

impl Head {
    /// Of a list that came now.
    pub(super) fn new(
        place: String,
        at_ms: u64,
        etag: Option<String>,
        last_modified: Option<String>,
    ) -> Self {
        Self { place, at_ms, etag, last_modified, sum: String::new() }
    }
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.feed"))
}

/// Keeps a list in the place of the former one.
///
/// # Errors
/// If the disk fails; then the former stays.
pub(super) fn save(dir: &Path, name: &str, mut head: Head, content: &[u8]) -> io::Result<()> {
    head.sum = blake3::hash(content).to_hex().to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = file(dir, name);
    let fresh = path.with_extension("fresh");
    let mut options = OpenOptions::new();
    let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    written.write_all(&serde_json::to_vec(&head).map_err(io::Error::other)?)?;
    written.write_all(b"\n")?;
    written.write_all(content)?;
    written.set_modified(time(head.at_ms))?;
    written.sync_all()?;
    fs::rename(&fresh, &path)
}

/// Notes that a list that is kept is still what its source has.
///
/// # Errors
/// If the disk fails; then it is asked for sooner.
pub(super) fn confirm(dir: &Path, name: &str, at_ms: u64) -> io::Result<()> {
    File::options().write(true).open(file(dir, name))?.set_modified(time(at_ms))
}

fn time(at_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at_ms)
}

/// The list that is kept, if there is one from this place. A damaged one is set aside.
pub(super) fn load(dir: &Path, name: &str, place: &str, most: usize) -> Option<(Head, String)> {
    let path = file(dir, name);
    let read = || -> io::Result<(Head, String)> {
        let mut bytes = Vec::new();
        let most = (most as u64).saturating_add(HEAD_BYTES_MAX);
        let file = File::open(&path)?;
        let at = file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        file.take(most).read_to_end(&mut bytes)?;
        let (head, content) =
            parse(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        Ok((Head { at_ms, ..head }, content))
    };
    match read() {
        Ok((head, content)) => (head.place == place).then_some((head, content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let aside = path.with_extension("damaged");
            let moved = fs::rename(&path, &aside);
            tracing::error!(feed = name, %error, aside = %aside.display(), ?moved,
                "what was kept of the feed is damaged and was set aside");
            None
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Head, String)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, content) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    let head: Head = serde_json::from_slice(head).ok()?;
    if blake3::hash(content).to_hex().as_str() != head.sum {
        return None;
    }
    Some((head, String::from_utf8_lossy(content).into_owned()))
}

const HEAD_BYTES_MAX: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_as_it_came_and_a_damaged_one_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let head = Head::new("https://a.example/x".into(), 7, Some("\"1\"".into()), None);
        let place = head.place.clone();
        assert!(load(dir.path(), "a", &place, 1_000).is_none());
        save(dir.path(), "a", head.clone(), b"192.0.2.1\n").unwrap();
        let (found, content) = load(dir.path(), "a", &place, 1_000).unwrap();
        assert_eq!((found.at_ms, found.etag, content.as_str()), (7, head.etag, "192.0.2.1\n"));
        confirm(dir.path(), "a", 1_700_000_000_009).unwrap();
        let confirmed = load(dir.path(), "a", &place, 1_000).unwrap();
        assert_eq!((confirmed.0.at_ms, confirmed.1), (1_700_000_000_009, content));
        assert!(load(dir.path(), "a", "https://b.example/x", 1_000).is_none());
        let path = file(dir.path(), "a");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(load(dir.path(), "a", &place, 1_000).is_none(), "{cut}");
            assert!(path.with_extension("damaged").exists() && !path.exists());
        }
    }
}
