//! Where security events go: whole lines, into a file that may be moved away under the log.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::config::settings;

/// The destination, and whether what it holds ends in the middle of a line.
pub(super) struct Sink {
    file: File,
    is_torn: bool,
    /// The file's path; none for standard output.
    path: Option<PathBuf>,
    next_check: Instant,
}

/// A write that failed.
#[derive(Debug)]
pub(super) struct Torn {
    /// Lines that were not written, or not to their end.
    pub(super) lost: u64,
    /// Why.
    pub(super) error: io::Error,
}

impl Sink {
    /// Opens the destination that `key` of `[log]` names.
    pub(super) fn open(key: &str, to: &settings::Events) -> anyhow::Result<Self> {
        let (file, path) = match to {
            // Past the standard library's buffer, which would hide what was written.
            settings::Events::Stdout => {
                (File::from(io::stdout().as_fd().try_clone_to_owned()?), None)
            }
            settings::Events::File(path) => {
                let place = || format!("[log] {key}: cannot open {}", path.display());
                (append(path).with_context(place)?, Some(path.clone()))
            }
        };
        Ok(Self { file, is_torn: false, path, next_check: Instant::now() + CHECK_EVERY })
    }

    /// Opens the file again if another, or none, has come to its path, as after a rotation.
    pub(super) fn follow(&mut self) {
        let now = Instant::now();
        let Some(path) = self.path.as_deref().filter(|_| now >= self.next_check) else { return };
        self.next_check = now + CHECK_EVERY;
        if is_at(&self.file, path) {
            return;
        }
        match append(path) {
            Ok(file) => (self.file, self.is_torn) = (file, false),
            // The old file still takes what there is to tell.
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "a log that was moved cannot be opened again");
            }
        }
    }

    /// Writes lines, each with its end.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Torn> {
        write_lines(&mut self.file, &mut self.is_torn, lines)
    }
}

/// Writes lines; a line that an earlier fault cut off is ended first.
fn write_lines(to: &mut impl Write, is_torn: &mut bool, lines: &[u8]) -> Result<(), Torn> {
    let mut rest = lines;
    let result = loop {
        let next = if *is_torn { b"\n" } else { rest };
        match to.write(next) {
            _ if next.is_empty() => break Ok(()),
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(_) if *is_torn => *is_torn = false,
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let written = &lines[..lines.len() - rest.len()];
    *is_torn |= written.last().is_some_and(|last| *last != b'\n');
    result.map_err(|error| Torn {
        lost: rest.iter().filter(|byte| **byte == b'\n').count() as u64,
        error,
    })
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

const CHECK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room).min(3);
            if count == 0 && !bytes.is_empty() {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.bytes.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_fault_loses_the_lines_it_cut_and_no_others() {
        let (mut disk, mut is_torn) = (Disk { room: 7, ..Disk::default() }, false);
        let torn = write_lines(&mut disk, &mut is_torn, b"one\ntwo\nthree\n").unwrap_err();
        assert_eq!((torn.lost, is_torn), (2, true));
        let torn = write_lines(&mut disk, &mut is_torn, b"four\n").unwrap_err();
        assert_eq!((torn.lost, is_torn), (1, true));
        disk.room = 100;
        write_lines(&mut disk, &mut is_torn, b"five\n").unwrap();
        assert_eq!((disk.bytes.as_slice(), is_torn), (&b"one\ntwo\nfive\n"[..], false));
    }

    #[test]
    fn a_fault_between_lines_leaves_no_empty_one() {
        let (mut disk, mut is_torn) = (Disk { room: 4, ..Disk::default() }, false);
        assert_eq!(write_lines(&mut disk, &mut is_torn, b"one\ntwo\n").unwrap_err().lost, 1);
        disk.room = 100;
        write_lines(&mut disk, &mut is_torn, b"three\n").unwrap();
        assert_eq!(disk.bytes, b"one\nthree\n");
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/access.log");
        let told = Sink::open("access", &settings::Events::File(path.clone())).err().unwrap();
        let told = format!("{told:#}");
        assert!(told.contains("[log] access") && told.contains(path.to_str().unwrap()), "{told}");
    }

    #[test]
    fn a_rotated_file_is_left_for_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("events"), dir.path().join("events.1"));
        let mut sink = Sink::open("events", &settings::Events::File(path.clone())).unwrap();
        sink.write(b"old\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        sink.follow();
        sink.write(b"between\n").unwrap();
        sink.next_check = Instant::now();
        sink.follow();
        sink.write(b"new\n").unwrap();
        assert_eq!(fs::read(&moved).unwrap(), b"old\nbetween\n");
        assert_eq!(fs::read(&path).unwrap(), b"new\n");
    }
}
