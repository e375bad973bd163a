//! What the list files held when they were last taken, beside the store: a restart, too, refuses a feed
//! that has shrunk to nothing or is gone, and goes on with what it had.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use edge_policy::list::reasons;

use super::{
    files,
    settings::{Line, ListFile, Lists},
};
use crate::{leftovers::LISTS, regular, saved};

/// How many networks the file had when it was last taken, as far as anything is known of it.
pub(super) fn count(state: &Path, path: &Path) -> Option<usize> {
    let mut head = String::new();
    let kept = fs::File::open(place(state, path)).ok()?;
    BufReader::new(kept.take(HEAD_BYTES_MAX)).read_line(&mut head).ok()?;
    counted(head.trim_end_matches('\n'), path)
}

/// The number in the first line. Another file may have the same hash.
fn counted(head: &str, path: &Path) -> Option<usize> {
    let (named, count) = head.rsplit_once(' ')?;
    count.parse().ok().filter(|_| named == path.to_string_lossy())
}

/// The file as it was last taken, if anything is known of it.
pub(super) fn former(state: &Path, path: &Path) -> Option<ListFile> {
    let kept = place(state, path);
    let text = regular::text(&kept, KEPT_BYTES_MAX).ok()?;
    let mut lines = text.lines();
    let count = counted(lines.next()?, path)?;
    let mut reasons = reasons::Gathered::default();
    let nets: Option<Vec<Line>> = lines
        .map(|line| {
            let (net, rest) = line.split_once(' ')?;
            let (number, why) = rest.split_once(' ').unwrap_or((rest, ""));
            let line = Line { net: net.parse().ok()?, number: number.parse().ok()? };
            reasons.note(line.number, why);
            Some(line)
        })
        .collect();
    // A copy may have been cut short.
    let nets = nets.filter(|nets| nets.len() == count)?;
    let (path, changed_s) = (path.to_owned(), files::changed_s(&kept));
    let (nets, reasons) = (nets.into(), reasons.finish().into());
    Some(ListFile { path, nets, reasons, changed_s, ..ListFile::default() })
}

/// Keeps what the list files hold that are now in force.
///
/// # Errors
/// If the folder of the state cannot be written.
pub fn keep(state: &Path, lists: &Lists) -> io::Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = lists.allow.files.iter().chain(&lists.deny.files).filter(|file| !file.is_stale);
    for file in fresh {
        let mut text = format!("{} {}\n", file.path.display(), file.nets.len());
        for Line { net, number } in file.nets.iter() {
            // Writing to a string never fails.
            let _ = match file.reasons.get(*number) {
                Some(why) => writeln!(text, "{net} {number} {why}"),
                None => writeln!(text, "{net} {number}"),
            };
        }
        saved::replace(&place(state, &file.path), |kept| kept.write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn place(state: &Path, path: &Path) -> PathBuf {
    state.join(LISTS).join(kept_as(path))
}

/// The name under which a list file's content is kept, which every path can have: FNV-1a of it.
#[must_use]
pub fn kept_as(path: &Path) -> String {
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// As long as a path may be, and a number.
const HEAD_BYTES_MAX: u64 = 8 << 10;
/// As much as a list file may have, and a number for each line.
const KEPT_BYTES_MAX: u64 = 512 << 20;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_was_kept_comes_back_and_what_is_damaged_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = PathBuf::from("/etc/edged/feed one.txt");
        let mut lists = Lists::default();
        let line = |net: &str, number| Line { net: net.parse().unwrap(), number };
        let nets = [line("192.0.2.0/24", 3), line("2001:db8::/32", 9)];
        let mut reasons = reasons::Gathered::default();
        reasons.note(9, "; SBL1 of 2026");
        let reasons = Arc::new(reasons.finish());
        let file =
            ListFile { path: path.clone(), nets: nets.into(), reasons, ..ListFile::default() };
        lists.deny.files = vec![file.clone()];
        assert_eq!(former(folder.path(), &path), None);
        keep(folder.path(), &lists).unwrap();
        let back = former(folder.path(), &path).unwrap();
        assert!(back.changed_s > 0);
        assert_eq!(ListFile { changed_s: 0, ..back }, file);
        assert_eq!(count(folder.path(), &path), Some(2));
        assert_eq!(count(folder.path(), Path::new("/etc/edged/other.txt")), None);
        // What is in force in the place of a bad file is no news.
        lists.deny.files[0].is_stale = true;
        lists.deny.files[0].nets = Arc::default();
        keep(folder.path(), &lists).unwrap();
        assert_eq!(former(folder.path(), &path).unwrap().nets.len(), 2);
        let kept = place(folder.path(), &path);
        let whole = fs::read_to_string(&kept).unwrap();
        for damaged in ["", "x", whole.trim_end().rsplit_once('\n').unwrap().0] {
            fs::write(&kept, damaged).unwrap();
            assert_eq!(former(folder.path(), &path), None, "{damaged}");
        }
    }
}
