//! Checks an audit log, with or without a daemon that writes it.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use edge_identity::audit::{ChainKey, Link, check};
use serde::Serialize;

use super::files;
use crate::secret::Origin;

/// A log that is whole, as far as it goes.
#[derive(Debug, Default, Serialize)]
pub struct Whole {
    /// Files that were read.
    pub files: usize,
    /// Lines in them.
    pub lines: u64,
    /// The number of the first; above 1, files before it were removed.
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
    let paths = if path.is_dir() { files::paths(path)? } else { vec![path.to_owned()] };
    anyhow::ensure!(!paths.is_empty(), "{} holds no audit log", path.display());
    Ok(check_files(&paths, &key)?)
}

fn check_files(paths: &[PathBuf], key: &ChainKey) -> io::Result<Verdict> {
    let (mut whole, mut last) = (Whole { files: paths.len(), ..Whole::default() }, None);
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
                }
                Err(fault) => {
                    let (file, why) = (path.clone(), fault.to_string());
                    return Ok(Err(Broken { file, line: number, why }));
                }
            }
            whole.lines += 1;
        }
    }
    whole.last = last.unwrap_or_default();
    Ok(Ok(whole))
}
