//! Denials of tokens, kept twice: in the database, and as lines in a file beside it.
//!
//! One of the two is enough to know them all, so damage to the other lets no revoked token in. Where
//! neither is whole, that they are lost is remembered in the file, until an operator accepts it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use edge_identity::jwt::denylist::{Denial, Target};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{Fault, Records, Store};
use crate::saved;

pub(super) const DENIALS: Records = TableDefinition::new("denied_tokens");

/// Denials by their key in the database.
type Known = BTreeMap<String, Denial>;

/// A line, behind its checksum.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first: how many denials follow at least, and when others were lost.
    Head { denials: usize, lost_ms: Option<u64> },
    /// From here on it is denied.
    Denied(Denial),
    /// From here on it is not.
    Allowed { issuer: String, target: Target },
}

/// The file beside the database. Each write opens it anew: across a handover it is another's.
#[derive(Debug)]
pub(super) struct SecondCopy {
    path: PathBuf,
    /// When denials were lost, in unix milliseconds.
    lost_ms: Option<u64>,
    /// What it said when it was opened; `None`: it was not whole.
    said: Option<Known>,
    was_there: bool,
}

impl SecondCopy {
    /// Reads the file in this folder, if there is one.
    pub(super) fn read(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let read = fs::read(&path);
        let was_there = !matches!(&read, Err(fault) if fault.kind() == io::ErrorKind::NotFound);
        let (said, lost_ms) = read.ok().and_then(|bytes| parse(&bytes)).unzip();
        Self { path, lost_ms: lost_ms.flatten(), said, was_there }
    }

    /// Notes that the database is about to be set aside: what this file does not tell is lost.
    pub(super) fn survive(&mut self, now_ms: u64) -> Result<(), Fault> {
        if self.said.is_some() {
            return Ok(());
        }
        self.lost_ms = Some(now_ms);
        self.write(&Known::new())?;
        self.said = Some(Known::new());
        Ok(())
    }

    /// Writes the file anew; the former one stays if the disk fails.
    fn write(&self, known: &Known) -> Result<(), Fault> {
        let write = || -> io::Result<()> {
            let text = text(known, self.lost_ms).map_err(io::Error::other)?;
            saved::replace(&self.path, |file| file.write_all(&text))?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|fault| Fault::File(self.path.clone(), fault))
    }

    /// Adds lines, or nothing if the disk fails.
    fn append(&self, lines: impl IntoIterator<Item = Line>) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        for line in lines {
            push(&mut bytes, &line)?;
        }
        let append = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&self.path)?;
            let len = file.metadata()?.len();
            file.write_all(&bytes).and_then(|()| file.sync_data()).inspect_err(|_| {
                // Half a line would spoil the file.
                let _ = file.set_len(len);
            })
        };
        append().map_err(|fault| Fault::File(self.path.clone(), fault))
    }
}

impl Store {
    /// Brings both places in line after the start: what either denies is denied. `is_new` is a
    /// database that has just been made.
    pub(super) fn unite_denials(&self, is_new: bool, now_ms: u64) -> Result<(), Fault> {
        let (stored, unreadable) = stored(&*self.database()?)?;
        let mut copy = self.copy();
        let said = copy.said.take();
        let is_told = |key: &String| said.as_ref().is_some_and(|said| said.contains_key(key));
        let was_spoilt = said.is_none() && copy.was_there;
        if !unreadable.iter().all(is_told) || (was_spoilt && is_new) {
            copy.lost_ms = copy.lost_ms.or(Some(now_ms));
        }
        let mut known = stored.clone();
        known.extend(said.into_iter().flatten());
        let is_missing = |(key, denial): &(&String, &Denial)| stored.get(*key) != Some(denial);
        if known.iter().any(|known| is_missing(&known)) {
            self.write(|write| insert(write, known.iter().filter(is_missing).map(|(_, d)| d)))?;
        }
        let is_same = fs::read(&copy.path)
            .is_ok_and(|bytes| text(&known, copy.lost_ms).is_ok_and(|text| text == bytes));
        let written = if is_same { Ok(()) } else { copy.write(&known) };
        match written {
            Err(fault) if copy.lost_ms.is_none() => {
                let error = &fault as &dyn std::error::Error;
                tracing::error!(error, "denials of tokens are kept once, and not twice");
                Ok(())
            }
            written => written,
        }
    }

    /// When denials of tokens were lost, in unix milliseconds, unless that was accepted.
    #[must_use]
    pub fn denials_lost_ms(&self) -> Option<u64> {
        self.copy().lost_ms
    }

    /// Goes on with the denials that are known.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn accept_loss(&self) -> Result<(), Fault> {
        self.write(|write| {
            write.open_table(DENIALS)?.retain(|_, value| decode(value).is_some())?;
            Ok(())
        })?;
        let (database, mut copy) = (self.database()?, self.copy());
        let lost_ms = copy.lost_ms.take();
        let written = copy.write(&stored(&database)?.0);
        if written.is_err() {
            copy.lost_ms = lost_ms;
        }
        written
    }

    /// Writes denials of tokens; earlier ones of the same are replaced.
    ///
    /// # Errors
    /// If the disk fails; one of the two places may have them.
    pub fn put_denials(&self, denials: &[Denial]) -> Result<(), Fault> {
        // Both within the transaction: who takes over waits for it.
        self.write(|write| {
            let copied = self.copy().append(denials.iter().cloned().map(Line::Denied));
            insert(write, denials)?;
            Ok(copied)
        })?
    }

    /// Removes a denial of tokens.
    ///
    /// # Errors
    /// If the disk fails; then the next start knows it again.
    pub fn remove_denial(&self, denial: &Denial) -> Result<(), Fault> {
        self.remove(DENIALS, &key(denial))?;
        let _database = self.database()?;
        let (issuer, target) = (denial.issuer.clone(), denial.target.clone());
        self.copy().append([Line::Allowed { issuer, target }])
    }

    /// Removes denials that have ended from both places; says how many.
    pub(super) fn purge_denials(&self, now_ms: u64) -> Result<usize, Fault> {
        let is_over = |denial: Denial| denial.is_over(now_ms);
        let count = self.write(|write| super::retain(write, DENIALS, is_over))?;
        if count > 0 {
            let (database, copy) = (self.database()?, self.copy());
            copy.write(&stored(&database)?.0)?;
        }
        Ok(count)
    }

    fn copy(&self) -> MutexGuard<'_, SecondCopy> {
        let copy: &Mutex<SecondCopy> = &self.copy;
        copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The denials in the database, and the keys of those that cannot be read.
fn stored(database: &Database) -> Result<(Known, Vec<String>), Fault> {
    let read = database.begin_read()?;
    let (mut known, mut unreadable) = (Known::new(), Vec::new());
    for record in read.open_table(DENIALS)?.iter()? {
        let (key, value) = record?;
        match decode(value.value()) {
            Some(denial) => _ = known.insert(key.value().to_owned(), denial),
            None => unreadable.push(key.value().to_owned()),
        }
    }
    Ok((known, unreadable))
}

fn insert<'d>(
    write: &WriteTransaction,
    denials: impl IntoIterator<Item = &'d Denial>,
) -> Result<(), Fault> {
    let mut table = write.open_table(DENIALS)?;
    for denial in denials {
        table.insert(key(denial).as_str(), serde_json::to_vec(denial)?.as_slice())?;
    }
    Ok(())
}

fn decode(value: &[u8]) -> Option<Denial> {
    serde_json::from_slice(value).ok()
}

fn key(denial: &Denial) -> String {
    name(&denial.issuer, &denial.target)
}

/// No name of an issuer or a token has a line end.
fn name(issuer: &str, target: &Target) -> String {
    format!("{issuer}\n{}\n{}", target.kind(), target.value())
}

/// The whole file.
fn text(known: &Known, lost_ms: Option<u64>) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    push(&mut bytes, &Line::Head { denials: known.len(), lost_ms })?;
    for denial in known.values() {
        push(&mut bytes, &Line::Denied(denial.clone()))?;
    }
    Ok(bytes)
}

fn push(bytes: &mut Vec<u8>, line: &Line) -> Result<(), serde_json::Error> {
    let json = serde_json::to_vec(line)?;
    bytes.extend_from_slice(&sum(&json).as_bytes()[..SUM]);
    bytes.push(b' ');
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    Ok(())
}

/// What a file says, if it is whole: the denials, and when others were lost.
fn parse(bytes: &[u8]) -> Option<(Known, Option<u64>)> {
    let mut lines = bytes.strip_suffix(b"\n")?.split(|byte| *byte == b'\n').map(line);
    let Some(Line::Head { denials, lost_ms }) = lines.next()? else { return None };
    let (mut known, mut count) = (Known::new(), 0);
    for line in lines {
        match line? {
            Line::Head { .. } => return None,
            Line::Denied(denial) => {
                count += 1;
                known.insert(key(&denial), denial);
            }
            Line::Allowed { issuer, target } => _ = known.remove(&name(&issuer, &target)),
        }
    }
    (count >= denials).then_some((known, lost_ms))
}

fn line(bytes: &[u8]) -> Option<Line> {
    let (found, json) = bytes.split_at_checked(SUM)?;
    let json = json.strip_prefix(b" ")?;
    if &sum(json).as_bytes()[..SUM] != found {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn sum(json: &[u8]) -> String {
    blake3::hash(json).to_hex().to_string()
}

/// The file's name.
const FILE: &str = "denied-tokens";

/// Characters of a line's checksum: 64 bits.
const SUM: usize = 16;

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn denial(jti: &str, until_ms: u64) -> Denial {
        let (issuer, target) = ("https://id.test".to_owned(), Target::Jti(jti.to_owned()));
        let until_ms = Some(until_ms);
        Denial { issuer, target, since_ms: 1, until_ms, by: "uid 0".to_owned() }
    }

    fn open(dir: &TempDir) -> (Vec<Denial>, Option<u64>, Store) {
        let (store, _) = Store::open(dir.path(), 7).unwrap();
        (store.load_all().unwrap().denials, store.denials_lost_ms(), store)
    }

    /// A store with two denials, one that was taken back, and one that has ended.
    fn filled() -> (TempDir, [Denial; 2]) {
        let dir = tempdir().unwrap();
        let (.., store) = open(&dir);
        for (jti, until_ms) in [("a", 90), ("b", 90), ("c", 90), ("d", 5)] {
            store.put_denials(&[denial(jti, until_ms)]).unwrap();
        }
        store.remove_denial(&denial("b", 90)).unwrap();
        store.purge(5, std::time::Duration::ZERO).unwrap();
        (dir, [denial("a", 90), denial("c", 90)])
    }

    fn spoil_record(store: &Store, key: &str) {
        let database = store.database().unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(DENIALS).unwrap().insert(key, &b"{"[..]).unwrap();
        write.commit().unwrap();
    }

    #[test]
    fn either_place_is_enough_and_without_both_the_loss_is_known_until_accepted() {
        let (store, copy) = ("edged.redb", FILE);
        for (spoilt, gone, is_lost) in [
            (&[][..], &[][..], false),
            (&[store], &[], false),
            (&[copy], &[], false),
            (&[], &[store], false),
            (&[], &[copy], false),
            (&[store, copy], &[], true),
            (&[store], &[copy], true),
            (&[copy], &[store], true),
            // Nothing is left that could tell of a loss: it is a first start.
            (&[], &[store, copy], false),
        ] {
            let (dir, wanted) = filled();
            let what = format!("spoilt {spoilt:?}, gone {gone:?}");
            for file in spoilt {
                fs::write(dir.path().join(file), b"nonsense that is long enough").unwrap();
            }
            for file in gone {
                fs::remove_file(dir.path().join(file)).unwrap();
            }
            let nothing_left = spoilt.len() + gone.len() == 2;
            for time in 0..2 {
                let (found, lost_ms, _) = open(&dir);
                assert_eq!(lost_ms, is_lost.then_some(7_000), "{what}, start {time}");
                assert_eq!(found, if nothing_left { &[][..] } else { &wanted }, "{what}");
            }
            open(&dir).2.accept_loss().unwrap();
            assert_eq!(open(&dir).1, None, "{what}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_known_from_the_copy_or_lost() {
        let (dir, wanted) = filled();
        spoil_record(&open(&dir).2, &key(&wanted[0]));
        let (found, lost_ms, store) = open(&dir);
        assert_eq!((found.as_slice(), lost_ms), (&wanted[..], None));
        spoil_record(&store, "whose?");
        drop(store);
        let (found, lost_ms, store) = open(&dir);
        assert_eq!((found.as_slice(), lost_ms), (&wanted[..], Some(7_000)));
        store.accept_loss().unwrap();
        drop(store);
        assert_eq!(open(&dir).1, None);
    }

    #[test]
    fn a_file_is_whole_or_nothing() {
        let (dir, wanted) = filled();
        let path = dir.path().join(FILE);
        let (.., store) = open(&dir);
        store.put_denials(&[denial("e", 90)]).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(parse(&whole).unwrap().0.len(), wanted.len() + 1);
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            assert!(parse(&bytes).is_none(), "{place}");
            // Only of what was added since it was last written anew, whole lines may be missing.
            if let Some((known, _)) = parse(&whole[..place]) {
                assert!(known.len() >= wanted.len(), "{place}");
            }
        }
    }

    #[test]
    fn the_copy_is_for_its_owner_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let (dir, _) = filled();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
    }
}
