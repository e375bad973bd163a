//! The files that operators name: regular ones, read whole, no larger than they may be, and never waited for.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::config::text as values;

/// Opens a file.
///
/// # Errors
/// If it cannot be opened, or is no regular one: a pipe in its place would be waited for.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// If it cannot be read, is no regular one, or is larger.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {}", values::show_size(most))));
    }
    Ok(bytes)
}

/// As [`read`]; bytes that are not UTF-8 are replaced.
///
/// # Errors
/// As [`read`].
pub(crate) fn text(path: &Path, most: u64) -> io::Result<String> {
    let replaced = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(String::from_utf8(read(path, most)?).unwrap_or_else(|error| replaced(error.as_bytes())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn pipes_are_not_waited_for_and_nothing_larger_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        assert_eq!(read(&pipe, 9).unwrap_err().to_string(), "not a regular file");
        fs::write(&file, b"caf\xe9").unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"caf\xe9");
        assert_eq!(text(&file, 4).unwrap(), "caf\u{fffd}");
        assert!(read(&file, 3).unwrap_err().to_string().starts_with("larger than"));
    }
}
