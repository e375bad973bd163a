//! The project's own files, for the tests that read them.

use std::{fs, path::Path};

use anyhow::Result;

use crate::daemon::root;

/// A file of the working tree.
pub struct Source {
    /// Its path from the top of the tree.
    pub path: String,
    /// What it holds.
    pub text: String,
}

impl Source {
    /// The part that is shipped, without comments: what comes before the file's tests.
    #[must_use]
    pub fn code(&self) -> String {
        let lines = self.shipped().filter(|line| !line.trim_start().starts_with("//"));
        lines.fold(String::new(), |text, line| text + line + "\n")
    }

    /// The lines before the file's tests.
    pub fn shipped(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))
    }

    /// Whether the file holds only tests.
    #[must_use]
    pub fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.starts_with("tests/")
    }
}

/// Every file of ours under a folder of the tree with this ending.
///
/// # Errors
/// If a file cannot be read.
pub fn sources(folder: &str, ending: &str) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let top = root();
    let mut folders = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with(".git") {
                    folders.push(path);
                }
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(Source { path: name(&top, &path), text: fs::read_to_string(&path)? });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn name(top: &Path, path: &Path) -> String {
    path.strip_prefix(top).unwrap_or(path).to_string_lossy().into_owned()
}
