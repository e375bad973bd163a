//! Small files that outlive a restart: each is written whole beside the former, put in its place, and
//! ends in a digest of itself, so that it is read whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use crate::request::Edge;

/// Writes a file in the place of the former.
///
/// # Errors
/// If the disk fails; the former is left as it was.
pub(crate) fn write(path: &Path, mut content: Vec<u8>) -> io::Result<()> {
    content.extend(blake3::hash(&content).as_bytes());
    let fresh = path.with_extension("fresh");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut written = File::create(&fresh)?;
    written.write_all(&content)?;
    written.sync_all()?;
    fs::rename(&fresh, path)
}

/// What `parse` makes of a file of at most so many bytes; `None` if there is none. One that is damaged, or of
/// another version, so that `parse` makes nothing of it, is set aside with a message that says `what` it was.
///
/// # Errors
/// If what is there cannot be read: it may be sound, and whoever began anew would save over it.
pub(crate) fn read<T>(
    path: &Path,
    bytes_max: u64,
    what: &str,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    match parsed(path, bytes_max, parse) {
        Err(error) if matches!(error.kind(), DAMAGED | OTHER) => {
            let aside = path.with_extension("damaged");
            let moved = fs::rename(path, &aside);
            let (file, aside) = (path.display(), aside.display());
            if error.kind() == OTHER {
                tracing::warn!(%file, %aside, ?moved,
                    "{what} is of another version and was set aside: it begins anew");
            } else {
                tracing::error!(%file, %error, %aside, ?moved,
                    "{what} is damaged and was set aside: it begins anew");
            }
            Ok(None)
        }
        Err(error) => {
            let told = format!("{what} in {} cannot be read: {error}", path.display());
            Err(io::Error::new(error.kind(), told))
        }
        found => found,
    }
}

/// Saves something every so often until the other end of `stop` is gone, and then once more; no longer
/// once a successor has taken over.
pub(crate) fn keep(edge: &Edge, every: Duration, stop: &Receiver<()>, save: impl Fn()) {
    loop {
        let ended = stop.recv_timeout(every) != Err(RecvTimeoutError::Timeout);
        let Some(_turn) = edge.reign.turn() else { return };
        save();
        if ended {
            return;
        }
    }
}

fn parsed<T>(
    path: &Path,
    bytes_max: u64,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(bytes_max).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let content = bytes.split_last_chunk::<32>();
    let content = content.filter(|(content, sum)| blake3::hash(content).as_bytes() == *sum);
    let (content, _) = content.ok_or(DAMAGED)?;
    parse(content).map(Some).ok_or_else(|| OTHER.into())
}

const DAMAGED: io::ErrorKind = io::ErrorKind::InvalidData;
/// Whole, and means nothing here.
const OTHER: io::ErrorKind = io::ErrorKind::Unsupported;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below").join("a.kept");
        let read = || read(&path, 100, "it", |content| Some(content.to_vec())).unwrap();
        assert_eq!(read(), None);
        write(&path, b"one".to_vec()).unwrap();
        write(&path, b"another".to_vec()).unwrap();
        assert_eq!(read().as_deref(), Some(&b"another"[..]));
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!((read(), path.exists()), (None, false), "{cut}");
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), whole[..cut]);
        }
        write(&path, vec![0; 200]).unwrap();
        assert_eq!((read(), path.exists()), (None, false), "longer than it may be");
    }

    #[test]
    fn what_is_of_another_version_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.kept");
        write(&path, b"of former days".to_vec()).unwrap();
        let nothing = |_: &[u8]| None::<()>;
        assert_eq!(parsed(&path, 100, nothing).unwrap_err().kind(), OTHER);
        assert_eq!(parsed(&path, 9, nothing).unwrap_err().kind(), DAMAGED);
        assert_eq!((read(&path, 100, "it", nothing).unwrap(), path.exists()), (None, false));
    }

    #[test]
    fn what_cannot_be_read_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.kept");
        // As a disk that fails: there is something, and no byte of it comes.
        fs::create_dir(&path).unwrap();
        let error = read(&path, 100, "a quota", |content| Some(content.to_vec())).unwrap_err();
        assert!(error.to_string().contains("a quota in ") && path.is_dir(), "{error}");
    }
}
