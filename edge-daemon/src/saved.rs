//! Files that outlive a restart: each is written whole beside the former and put in its place, for nobody
//! else to read, as some hold secrets. Small ones end in a digest of themselves, so that they are read whole
//! or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use crate::request::Edge;

/// Makes a folder, and those above it, that nobody else can look into. One that is there stays as it is.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn folder(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Puts what `fill` writes in the place of the former file, in a folder that is made if it is missing.
///
/// # Errors
/// If the disk fails; the former is left as it was.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    path.parent().map_or(Ok(()), folder)?;
    let fresh = path.with_extension("fresh");
    // One that a crash left may have other rights.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let done = fill(&mut written).and_then(|()| written.sync_all());
    done.and_then(|()| fs::rename(&fresh, path)).inspect_err(|_| {
        // Half a file only takes the room that may be what is lacking.
        let _ = fs::remove_file(&fresh);
    })
}

/// Writes a small file in the place of the former.
///
/// # Errors
/// If the disk fails; the former is left as it was.
pub(crate) fn write(path: &Path, mut content: Vec<u8>) -> io::Result<()> {
    content.extend(blake3::hash(&content).as_bytes());
    replace(path, |file| file.write_all(&content))
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
    use std::os::unix::fs::PermissionsExt as _;

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
    fn nobody_else_can_read_it_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("below");
        let path = folder.join("a.kept");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        write(&path, b"one".to_vec()).unwrap();
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        // As a version before left it, and as it was cut short.
        for left in [path.clone(), path.with_extension("fresh")] {
            fs::write(&left, "old").unwrap();
            fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        }
        write(&path, b"two".to_vec()).unwrap();
        assert_eq!(mode(&path), 0o600);
        // What cannot be written whole leaves the former, and nothing beside it.
        let full = replace(&path, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap()[..3], *b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
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
