//! Checks an audit log, with or without a daemon that writes it.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use edge_identity::audit::{ChainKey, Link, check};
use serde::{Deserialize, Serialize};

use super::files;
use crate::secret::Origin;

/// A log that is whole, as far as it goes.
#[derive(Debug, Default, Serialize)]
pub struct Whole {
    /// Files that were read.
    pub files: usize,
    /// Lines in them.
    pub lines: u64,
    /// The number of the first; above 1, the log has removed the files before it.
    pub first: u64,
    /// The end of the chain.
    pub last: Link,
    /// A file that ends in the middle of a line: one that is being written, or was when the host went
    /// down.
    pub torn: Option<String>,
}

/// The first line that is not as it was written.
#[derive(Debug, Serialize)]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
}

/// What became of a check.
pub type Verdict = Result<Whole, Broken>;

/// Checks one file, or all of a folder in their order.
///
/// # Errors
/// If there is nothing to check, or a file or the key cannot be read.
pub fn verify(path: &Path, key: &Origin) -> anyhow::Result<Verdict> {
    let key = files::read_key(key)?;
    let is_dir = path.is_dir();
    let paths = if is_dir { files::paths(path)? } else { vec![path.to_owned()] };
    anyhow::ensure!(!paths.is_empty(), "{} holds no audit log", path.display());
    let (verdict, removed) = check_files(&paths, &key)?;
    Ok(verdict.and_then(|whole| match whole.first.saturating_sub(1) {
        missing if is_dir && missing > removed => {
            let why = format!(
                "lines {} to {missing} before it are missing, and the log did not remove them",
                removed + 1
            );
            Err(Broken { file: paths[0].clone(), line: 1, why })
        }
        _ => Ok(whole),
    }))
}

/// The number of the last line that was removed with its file, if this line says so.
fn removed(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Removed {
        event: String,
        /// Former versions did not say.
        last: Option<u64>,
    }
    // Few lines say it, and only those are taken apart.
    line.windows(REMOVED.len()).any(|part| part == REMOVED.as_bytes()).then_some(())?;
    let told: Removed = serde_json::from_slice(line).ok()?;
    (told.event == REMOVED).then_some(told.last.unwrap_or(u64::MAX))
}

/// The word for it.
const REMOVED: &str = "file_removed";

/// What became of the check, and up to which line the log says to have removed files.
fn check_files(paths: &[PathBuf], key: &ChainKey) -> io::Result<(Verdict, u64)> {
    let (mut whole, mut last) = (Whole { files: paths.len(), ..Whole::default() }, None);
    let mut gone = 0;
    for path in paths {
        let (mut reader, mut line, mut number) = (BufReader::new(File::open(path)?), Vec::new(), 0);
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                whole.torn = Some(files::file_name(path));
                break;
            }
            match check(key, last, &line) {
                Ok(link) => {
                    whole.first = if last.is_none() { link.number } else { whole.first };
                    last = Some(link);
                    gone = removed(&line).unwrap_or(gone);
                }
                Err(fault) => {
                    let (file, why) = (path.clone(), fault.to_string());
                    return Ok((Err(Broken { file, line: number, why }), gone));
                }
            }
            whole.lines += 1;
        }
    }
    whole.last = last.unwrap_or_default();
    Ok((Ok(whole), gone))
}
