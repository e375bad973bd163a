//! The last good list of a feed on disk: a line that says what it is, and the list as it came.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::saved;

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
    saved::replace(&file(dir, name), |written| {
        written.write_all(&serde_json::to_vec(&head).map_err(io::Error::other)?)?;
        written.write_all(b"\n")?;
        written.write_all(content)?;
        written.set_modified(time(head.at_ms))
    })
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

/// The list that is kept, as [`load`] has it. One that cannot be read stays where it is until another comes.
pub(super) fn found(dir: &Path, name: &str, place: &str, most: usize) -> Option<(Head, String)> {
    load(dir, name, place, most).unwrap_or_else(|why| {
        tracing::error!(feed = name, %why, file = %file(dir, name).display(),
            "what is kept of the feed stays where it is and is not in force");
        None
    })
}

/// The list that is kept, if there is one from this place, of `most` bytes at most. A damaged one is set aside.
///
/// # Errors
/// If it is larger, or cannot be read: it may be sound.
pub(super) fn load(
    dir: &Path,
    name: &str,
    place: &str,
    most: usize,
) -> io::Result<Option<(Head, String)>> {
    let path = file(dir, name);
    match read(&path, most) {
        Err(why) if why.kind() == DAMAGED => {
            let aside = path.with_extension("damaged");
            let moved = fs::rename(&path, &aside);
            tracing::error!(feed = name, aside = %aside.display(), ?moved,
                "what was kept of the feed is damaged and was set aside");
            Ok(None)
        }
        found => Ok(found?.filter(|(head, _)| head.place == place)),
    }
}

fn read(path: &Path, most: usize) -> io::Result<Option<(Head, String)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let at = file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    let large = || {
        let why = format!("it is larger than the {most} bytes that it may have");
        io::Error::new(io::ErrorKind::FileTooLarge, why)
    };
    let most_of_file = (most as u64).saturating_add(HEAD_BYTES_MAX);
    let mut bytes = Vec::new();
    file.take(most_of_file.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most_of_file {
        return Err(large());
    }
    let (head, content) = parse(&bytes).ok_or(DAMAGED)?;
    if content.len() > most {
        return Err(large());
    }
    let content = String::from_utf8_lossy(content).into_owned();
    Ok(Some((Head { at_ms, ..head }, content)))
}

fn parse(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, content) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    let head: Head = serde_json::from_slice(head).ok()?;
    if blake3::hash(content).to_hex().as_str() != head.sum {
        return None;
    }
    Some((head, content))
}

const DAMAGED: io::ErrorKind = io::ErrorKind::InvalidData;
const HEAD_BYTES_MAX: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_as_it_came_and_a_damaged_one_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let head = Head::new("https://a.example/x".into(), 7, Some("\"1\"".into()), None);
        let place = head.place.clone();
        assert!(found(dir.path(), "a", &place, 1_000).is_none());
        save(dir.path(), "a", head.clone(), b"192.0.2.1\n").unwrap();
        let (kept, content) = found(dir.path(), "a", &place, 1_000).unwrap();
        assert_eq!((kept.at_ms, kept.etag, content.as_str()), (7, head.etag, "192.0.2.1\n"));
        confirm(dir.path(), "a", 1_700_000_000_009).unwrap();
        let confirmed = found(dir.path(), "a", &place, 1_000).unwrap();
        assert_eq!((confirmed.0.at_ms, confirmed.1), (1_700_000_000_009, content));
        assert!(found(dir.path(), "a", "https://b.example/x", 1_000).is_none());
        let path = file(dir.path(), "a");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(found(dir.path(), "a", &place, 1_000).is_none(), "{cut}");
            assert!(path.with_extension("damaged").exists() && !path.exists());
        }
    }
    #[test]
    fn what_is_larger_than_it_may_be_or_cannot_be_read_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (head, place) = (Head::new("here".into(), 7, None, None), "here");
        let path = file(dir.path(), "a");
        // Within the room for the head, and beyond it.
        for length in [11, HEAD_BYTES_MAX as usize + 11] {
            save(dir.path(), "a", head.clone(), &vec![b'1'; length]).unwrap();
            let kind = read(&path, 10).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::FileTooLarge, "{length}");
            assert!(found(dir.path(), "a", place, 10).is_none());
            assert!(path.exists() && !path.with_extension("damaged").exists());
            // The bound is what kept it out.
            assert_eq!(found(dir.path(), "a", place, length).unwrap().1.len(), length);
        }
        // As a disk that fails: there is something, and no byte of it comes.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(found(dir.path(), "a", place, 10).is_none());
        assert!(path.is_dir() && !path.with_extension("damaged").exists());
    }
}
