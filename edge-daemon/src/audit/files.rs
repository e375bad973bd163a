//! The files of the audit log: found as they were left, begun anew when they are full, never
//! rewritten.
//!
//! A file is named after the number of its first line, so that names sort as lines do.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use edge_identity::audit::{ChainKey, Link, check};

use super::Note;
use crate::{
    clock,
    config::settings,
    keys::pepper,
    saved,
    secret::{BYTES_MIN, Origin},
};

/// The file that is written, and the folder it lies in.
pub(super) struct Files {
    dir: PathBuf,
    file: File,
    /// Bytes of whole batches in it.
    length: u64,
    is_dirty: bool,
    file_bytes_max: u64,
    files_max: usize,
    /// Files that are to be removed, once it is told.
    doomed: Vec<PathBuf>,
}

/// The log as it was found.
pub(super) struct Opened {
    pub(super) files: Files,
    pub(super) last: Link,
    pub(super) notes: Vec<Note>,
}

impl Files {
    pub(super) fn open(settings: &settings::Audit, key: &ChainKey) -> anyhow::Result<Opened> {
        let dir = settings.dir.clone();
        saved::folder(&dir)
            .with_context(|| format!("cannot use the audit log's folder {}", dir.display()))?;
        let newest = paths(&dir)?.pop();
        let mut notes = Vec::new();
        let found = match &newest {
            Some(path) => find_end(path, key, &mut notes)
                .with_context(|| format!("cannot use the audit log {}", path.display()))?,
            None => End::Genuine(Link::default()),
        };
        let (path, is_new, last) = match (newest, found) {
            (Some(path), End::Genuine(last)) => (path, false, last),
            (None, End::Genuine(last)) => (dir.join(name(1)), true, last),
            // Behind a line that is not genuine nothing is written: it stays as the evidence it is.
            (_, End::Broken { number }) => {
                (dir.join(name(number + 1)), true, Link { number, ..Link::default() })
            }
        };
        let file = append_to(&path)
            .with_context(|| format!("cannot write the audit log {}", path.display()))?;
        if is_new {
            sync_dir(&dir)?;
            notes.push(Note::FileBegun { file: file_name(&path) });
        }
        let length = file.metadata()?.len();
        let (file_bytes_max, files_max) = (settings.file_bytes_max, settings.files_max);
        let (is_dirty, doomed) = (false, Vec::new());
        let files = Self { dir, file, length, is_dirty, file_bytes_max, files_max, doomed };
        Ok(Opened { files, last, notes })
    }

    /// Writes whole lines, or none of them.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.is_dirty = true;
        self.file.write_all(lines).inspect_err(|_| {
            // A part of them would be in the way of what follows.
            if let Err(error) = self.file.set_len(self.length) {
                tracing::error!(%error, "the audit log ends in the middle of a line");
            }
        })?;
        self.length += lines.len() as u64;
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.length >= self.file_bytes_max
    }

    /// Begins the file whose first line has this number. The oldest beyond the bound are removed when
    /// what this returns is written.
    pub(super) fn rotate(&mut self, number: u64) -> io::Result<Vec<Note>> {
        self.sync()?;
        let path = self.dir.join(name(number));
        self.file = append_to(&path)?;
        self.length = self.file.metadata()?.len();
        let mut notes = vec![Note::FileBegun { file: file_name(&path) }];
        let doomed = sync_dir(&self.dir).and_then(|()| self.doom_oldest(&mut notes));
        if let Err(error) = doomed {
            tracing::error!(%error, "cannot clear away old files of the audit log");
        }
        Ok(notes)
    }

    fn doom_oldest(&mut self, notes: &mut Vec<Note>) -> io::Result<()> {
        let mut files = paths(&self.dir)?;
        let kept = files.split_off(files.len().saturating_sub(self.files_max));
        let follow = files.iter().skip(1).chain(kept.first());
        for (old, next) in files.iter().zip(follow) {
            let last = first_number(next)?.saturating_sub(1);
            notes.push(Note::FileRemoved { file: file_name(old), last });
        }
        self.doomed = files;
        Ok(())
    }

    /// Removes the files of which it is written that they are.
    pub(super) fn clear_away(&mut self) -> io::Result<()> {
        let doomed = std::mem::take(&mut self.doomed);
        if doomed.is_empty() {
            return Ok(());
        }
        self.sync()?;
        doomed.iter().try_for_each(fs::remove_file)
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.file.sync_data()?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

/// The key of the seals; a file that is not there yet is made.
pub(super) fn key(origin: &Origin) -> anyhow::Result<ChainKey> {
    if let Origin::File(path) = origin {
        pepper::make_if_missing(path)
            .with_context(|| format!("cannot make the audit log's key {}", path.display()))?;
    }
    read_key(origin)
}

/// The key of the seals, which is there.
pub(super) fn read_key(origin: &Origin) -> anyhow::Result<ChainKey> {
    let secret = origin.read().and_then(|secret| secret.at_least(BYTES_MIN));
    let secret = secret.with_context(|| format!("cannot use the audit log's key {origin}"))?;
    Ok(ChainKey::of(secret.expose()))
}

/// The files of a log, the oldest first.
pub(super) fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = file_name(&path);
        if name.starts_with("audit-") && name.ends_with(".jsonl") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// How a log was found to end.
enum End {
    /// With this line.
    Genuine(Link),
    /// With a line that is not genuine, the one of this number by its place.
    Broken { number: u64 },
}

/// The end of the chain in a file, with a torn last line set aside. An empty file has none of its
/// own: it is that of the file before it.
fn find_end(path: &Path, key: &ChainKey, notes: &mut Vec<Note>) -> anyhow::Result<End> {
    let (mut whole, torn) = read_tail(path)?;
    if !torn.is_empty() {
        let aside = path.with_extension(format!("torn-{}", clock::unix_ms()));
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        copy.write_all(&torn)?;
        copy.sync_all()?;
        let file = OpenOptions::new().write(true).open(path)?;
        let length = file.metadata()?.len() - torn.len() as u64;
        file.set_len(length)?;
        file.sync_all()?;
        let (file, aside) = (file_name(path), file_name(&aside));
        tracing::warn!(file, aside, "the audit log ended in the middle of a line; it lies aside");
        notes.push(Note::TornLine { file, aside, bytes: torn.len() as u64 });
    }
    if whole.is_empty() {
        let dir = path.parent().unwrap_or(Path::new("."));
        let before = paths(dir)?.into_iter().rev().find(|other| other.as_path() < path);
        let Some(before) = before else { return Ok(End::Genuine(Link::default())) };
        whole = read_tail(&before)?.0;
    }
    match check(key, None, &whole) {
        Ok(link) => Ok(End::Genuine(link)),
        Err(fault) => {
            let (file, why) = (file_name(path), fault.to_string());
            tracing::error!(
                file,
                why,
                "the end of the audit log is not genuine; a new file begins"
            );
            notes.push(Note::ChainBroken { file, why });
            Ok(End::Broken { number: last_number(path)? })
        }
    }
}

/// The last whole line of a file, without its end, and what stands behind it.
fn read_tail(path: &Path) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let torn = tail.split_off(end);
    tail.pop();
    let start = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    Ok((tail.split_off(start), torn))
}

/// The number that the last line of a file has by its place.
fn last_number(path: &Path) -> io::Result<u64> {
    let lines = fs::read(path)?.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(first_number(path)? + lines.max(1) - 1)
}

/// The number of a file's first line, which it is named after.
fn first_number(path: &Path) -> io::Result<u64> {
    let name = file_name(path);
    let digits = name.trim_start_matches("audit-").trim_end_matches(".jsonl");
    digits.parse().map_err(|_| io::Error::other("an odd name"))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn name(number: u64) -> String {
    format!("audit-{number:020}.jsonl")
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The last line lies within so many bytes of the end: lines are a few hundred bytes long.
const TAIL: u64 = 1 << 20;
