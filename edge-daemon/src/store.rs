//! What survives a restart: keys, the operator's lists, bans and how often they were earned.
//!
//! One embedded database with a table each. A call that changes something has made it durable
//! when it returns; it waits for the disk, so it belongs on the control thread.

mod bans;
mod dates;
mod denials;
mod keys;
mod lending;

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use edge_identity::jwt::denylist::Denial;
use edge_policy::verdict::{Culprit, Evidence, Origin, Step};
use ipnet::IpNet;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::keys::StoredKey;
use self::{
    denials::{DENIALS, SecondCopy},
    keys::{HASHES, KEYS, USES},
    lending::Held,
};
use crate::{control::ListName, saved};

/// A table of JSON records under a text key.
type Records = TableDefinition<'static, &'static str, &'static [u8]>;

const ALLOW: Records = TableDefinition::new("allow");
const DENY: Records = TableDefinition::new("deny");
const BANS: Records = TableDefinition::new("bans");

/// The database reads little and seldom; its default cache would be 1 GiB.
const CACHE_BYTES: usize = 8 << 20;

/// A network that an operator put on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// The network.
    pub net: IpNet,
    /// When it ends, in unix milliseconds; `None`: never.
    pub until_ms: Option<u64>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// When it was added, in unix milliseconds.
    pub added_ms: u64,
    /// Who added it.
    pub by: String,
    /// Whether its packets are counted and not dropped.
    #[serde(default)]
    pub monitor: bool,
}

/// A verdict, in force or past: a past one tells how often its culprit had one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanRecord {
    /// Whom it is about.
    #[serde(alias = "source")]
    pub culprit: Culprit,
    /// What becomes of it.
    #[serde(default = "ban")]
    pub step: Step,
    /// When it began, in unix milliseconds.
    pub since_ms: u64,
    /// When it ends, in unix milliseconds.
    pub until_ms: u64,
    /// How many verdicts this culprit has had, this one included.
    pub strikes: u32,
    /// Name of the [`Kind`](edge_policy::verdict::Kind) of the last signal; the word of whoever else
    /// decided.
    pub reason: String,
    /// The scenario; who decided, if none did.
    #[serde(default)]
    pub scenario: String,
    /// Whose decision it was.
    #[serde(default)]
    pub origin: Origin,
    /// Why it is milder than the scenario says, or about somebody narrower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spared: Option<String>,
    /// The signals that led to it, the latest first; times are unix milliseconds.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// Milder verdicts that outlast it, the harshest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milder: Vec<BanRecord>,
}

/// What the verdicts of former versions came to.
const fn ban() -> Step {
    Step::Ban
}

/// Everything in the store but the keys.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The operator's allow list.
    pub allow: Vec<ListRecord>,
    /// The operator's deny list.
    pub deny: Vec<ListRecord>,
    /// Bans, those past included.
    pub bans: Vec<BanRecord>,
    /// Tokens that operators denied.
    pub denials: Vec<Denial>,
    /// Records that could not be read, by table and key; they stay where they are.
    pub unreadable: Vec<String>,
}

/// A fault of the store.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The folder or a file cannot be used.
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    /// Another process holds the database.
    #[error("{0} is in use: is another edged running?")]
    InUse(PathBuf),
    /// Another process has taken it over.
    #[error("the store belongs to the daemon that took over")]
    Gone,
    /// The database failed.
    #[error("the store failed")]
    Database(#[from] redb::Error),
    /// A record cannot be encoded.
    #[error("a record cannot be encoded")]
    Encode(#[from] serde_json::Error),
    /// A key's record cannot be encoded.
    #[error("a key's record cannot be encoded: {0}")]
    EncodeKey(postcard::Error),
}

macro_rules! database_faults {
    ($($fault:ty),+) => {$(
        impl From<$fault> for Fault {
            fn from(fault: $fault) -> Self {
                Self::Database(fault.into())
            }
        }
    )+};
}
database_faults!(redb::TransactionError, redb::TableError, redb::CommitError, StorageError);

/// The open store.
pub struct Store {
    path: PathBuf,
    held: Mutex<Held>,
    changed: Condvar,
    copy: Mutex<SecondCopy>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens `edged.redb` in `dir`, which is created if it is missing.
    ///
    /// A damaged file is set aside under a name that ends in `now_s` (unix seconds), and told of
    /// in the second value; the store then starts empty.
    ///
    /// # Errors
    /// If the folder cannot be used, another process holds the file or the disk fails.
    pub fn open(dir: &Path, now_s: u64) -> Result<(Self, Option<String>), Fault> {
        saved::folder(dir).map_err(|fault| Fault::File(dir.to_owned(), fault))?;
        let path = dir.join("edged.redb");
        let mut copy = SecondCopy::read(dir);
        let mut is_new = fs::metadata(&path).map_or(true, |file| file.len() == 0);
        let (database, warning) = match create(&path) {
            Ok(database) => (database, None),
            Err(fault) if is_damage(&fault) => {
                // Before it is set aside: a crash in between must not make this a first start.
                copy.survive(now_s.saturating_mul(1000))?;
                is_new = true;
                let aside = dir.join(format!("edged.redb.corrupt-{now_s}"));
                fs::rename(&path, &aside).map_err(|fault| Fault::File(path.clone(), fault))?;
                let warning = format!(
                    "the store was damaged ({fault}); it lies aside as {} and a fresh one is used",
                    aside.display()
                );
                (create(&path).map_err(|fault| opening(fault, &path))?, Some(warning))
            }
            Err(fault) => return Err(opening(fault, &path)),
        };
        let store = Self {
            path,
            held: Mutex::new(Held::Open(Arc::new(database))),
            changed: Condvar::new(),
            copy: Mutex::new(copy),
        };
        store.make_tables()?;
        store.unite_denials(is_new, now_s.saturating_mul(1000))?;
        Ok((store, warning))
    }

    /// Everything in the store but the keys.
    ///
    /// # Errors
    /// If the database fails.
    pub fn load_all(&self) -> Result<Contents, Fault> {
        let mut unreadable = Vec::new();
        Ok(Contents {
            allow: self.records(ALLOW, &mut unreadable)?,
            deny: self.records(DENY, &mut unreadable)?,
            bans: self.records(BANS, &mut unreadable)?,
            denials: self.records(DENIALS, &mut unreadable)?,
            unreadable,
        })
    }

    /// Writes an entry of a list; an earlier one for the same network is replaced.
    ///
    /// # Errors
    /// If the database fails.
    pub fn put_list(&self, list: ListName, record: &ListRecord) -> Result<(), Fault> {
        self.put(table(list), [(record.net.to_string(), record)])
    }

    /// Removes an entry of a list, and says whether there was one.
    ///
    /// # Errors
    /// If the database fails.
    pub fn remove_list(&self, list: ListName, net: IpNet) -> Result<bool, Fault> {
        self.remove(table(list), &net.to_string())
    }

    /// Removes list entries that have ended and bans that ended `forget_after` ago; says how many.
    ///
    /// # Errors
    /// If the database fails.
    pub fn purge(&self, now_ms: u64, forget_after: Duration) -> Result<usize, Fault> {
        let forget_ms = u64::try_from(forget_after.as_millis()).unwrap_or(u64::MAX);
        let is_ended = |record: ListRecord| record.until_ms.is_some_and(|until| until <= now_ms);
        let is_old = |ban: BanRecord| {
            let last = ban.milder.last().map_or(ban.until_ms, |last| last.until_ms);
            last.saturating_add(forget_ms) <= now_ms
        };
        let count = self.write(|write| {
            let lists = retain(write, ALLOW, is_ended)? + retain(write, DENY, is_ended)?;
            Ok(lists + retain(write, BANS, is_old)?)
        })?;
        Ok(count + self.purge_denials(now_ms)?)
    }

    fn make_tables(&self) -> Result<(), Fault> {
        self.write(|write| {
            for table in [KEYS, ALLOW, DENY, BANS, DENIALS] {
                write.open_table(table)?;
            }
            write.open_table(HASHES)?;
            write.open_table(USES)?;
            Ok(())
        })
    }

    /// Does all of something or nothing. After a fault of the disk the database takes no write any
    /// more, though there be room again, so it is opened anew.
    fn write<T>(
        &self,
        act: impl FnOnce(&mut WriteTransaction) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let database = self.database()?;
        let done = transact(&database, act);
        if matches!(done, Err(Fault::Database(_))) {
            self.fail(&database);
        }
        done
    }

    fn records<T: DeserializeOwned>(
        &self,
        table: Records,
        unreadable: &mut Vec<String>,
    ) -> Result<Vec<T>, Fault> {
        let read = self.database()?.begin_read()?;
        let open = read.open_table(table)?;
        let mut records = Vec::new();
        for record in open.iter()? {
            let (key, value) = record?;
            match serde_json::from_slice(value.value()) {
                Ok(record) => records.push(record),
                Err(_) => unreadable.push(format!("{table} {}", key.value())),
            }
        }
        Ok(records)
    }

    fn put<'r, T: Serialize + 'r>(
        &self,
        table: Records,
        records: impl IntoIterator<Item = (String, &'r T)>,
    ) -> Result<(), Fault> {
        self.write(|write| {
            let mut open = write.open_table(table)?;
            for (key, record) in records {
                open.insert(key.as_str(), serde_json::to_vec(record)?.as_slice())?;
            }
            Ok(())
        })
    }

    fn remove(&self, table: Records, key: &str) -> Result<bool, Fault> {
        self.write(|write| Ok(write.open_table(table)?.remove(key)?.is_some()))
    }
}

fn transact<T>(
    database: &Database,
    act: impl FnOnce(&mut WriteTransaction) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut write = database.begin_write()?;
    let done = act(&mut write)?;
    write.commit()?;
    Ok(done)
}

/// Removes the records of a table that `is_gone` names; those it cannot read stay.
fn retain<T: DeserializeOwned>(
    write: &WriteTransaction,
    table: Records,
    is_gone: impl Fn(T) -> bool,
) -> Result<usize, Fault> {
    let mut count = 0;
    write.open_table(table)?.retain(|_, value| {
        let gone = serde_json::from_slice(value).is_ok_and(&is_gone);
        count += usize::from(gone);
        !gone
    })?;
    Ok(count)
}

const fn table(list: ListName) -> Records {
    match list {
        ListName::Allow => ALLOW,
        ListName::Deny => DENY,
    }
}

fn create(path: &Path) -> Result<Database, DatabaseError> {
    // The folder may be an older one with wider rights than ours would have.
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // An unchecked page could bring the process down later; checking them takes milliseconds.
    Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
}

/// Whether a fault lies in the file's contents, and not in the machine or in another process.
fn is_damage(fault: &DatabaseError) -> bool {
    match fault {
        DatabaseError::RepairAborted
        | DatabaseError::UpgradeRequired(_)
        | DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(fault)) => {
            matches!(fault.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

fn opening(fault: DatabaseError, path: &Path) -> Fault {
    match fault {
        DatabaseError::DatabaseAlreadyOpen => Fault::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(fault)) => Fault::File(path.to_owned(), fault),
        fault => Fault::Database(fault.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, sync::LazyLock, thread};

    use tempfile::{TempDir, tempdir};

    use super::{keys::tests::stored, *};

    fn open(dir: &TempDir) -> Store {
        let (store, warning) = Store::open(dir.path(), 7).unwrap();
        assert_eq!(warning, None);
        store
    }

    fn listed(net: &str, until_ms: Option<u64>) -> ListRecord {
        let (net, reason) = (net.parse().unwrap(), Some("noise".to_owned()));
        ListRecord { net, until_ms, reason, added_ms: 5, by: "root".to_owned(), monitor: false }
    }

    fn ban(culprit: &str, until_ms: u64) -> BanRecord {
        BanRecord {
            culprit: culprit.parse().unwrap(),
            step: Step::Ban,
            since_ms: 1,
            until_ms,
            strikes: 2,
            reason: "source_rate".into(),
            scenario: "flood".into(),
            origin: Origin::Scenario,
            spared: None,
            evidence: Vec::new(),
            milder: Vec::new(),
        }
    }

    #[test]
    fn bans_of_former_versions_are_read() {
        let old =
            r#"{"source":"192.0.2.7","since_ms":1,"until_ms":9,"strikes":2,"reason":"no_route"}"#;
        let read: BanRecord = serde_json::from_str(old).unwrap();
        let wanted =
            BanRecord { reason: "no_route".into(), scenario: String::new(), ..ban("192.0.2.7", 9) };
        assert_eq!(read, wanted);
        let json = serde_json::to_string(&ban("key:k1", 9)).unwrap();
        assert_eq!(serde_json::from_str::<BanRecord>(&json).unwrap(), ban("key:k1", 9));
    }

    #[test]
    fn everything_survives_a_reopen() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        store.put_list(ListName::Allow, &listed("192.0.2.0/24", None)).unwrap();
        store.put_list(ListName::Deny, &listed("2001:db8::/32", Some(9))).unwrap();
        store.put_list(ListName::Deny, &listed("198.51.100.7/32", None)).unwrap();
        store.put_bans(&[ban("203.0.113.1", 10), ban("2001:db8::", 20)]).unwrap();
        assert!(store.remove_list(ListName::Deny, "198.51.100.7/32".parse().unwrap()).unwrap());
        assert!(!store.remove_list(ListName::Allow, "198.51.100.7/32".parse().unwrap()).unwrap());
        assert!(store.remove_ban(&"203.0.113.1".parse().unwrap()).unwrap());
        drop(store);

        let contents = open(&dir).load_all().unwrap();
        assert_eq!(contents.allow, [listed("192.0.2.0/24", None)]);
        assert_eq!(contents.deny, [listed("2001:db8::/32", Some(9))]);
        assert_eq!(contents.bans, [ban("2001:db8::", 20)]);
        assert_eq!(contents.unreadable, [""; 0]);
    }

    #[test]
    fn what_has_ended_is_purged_and_strikes_are_kept_for_a_while() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        store.put_list(ListName::Deny, &listed("192.0.2.0/24", Some(100))).unwrap();
        store.put_list(ListName::Deny, &listed("192.0.3.0/24", Some(101))).unwrap();
        store.put_list(ListName::Allow, &listed("192.0.2.0/24", None)).unwrap();
        store.put_bans(&[ban("203.0.113.1", 50), ban("203.0.113.2", 51)]).unwrap();
        assert_eq!(store.purge(100, Duration::from_millis(50)).unwrap(), 2);
        let contents = store.load_all().unwrap();
        assert_eq!(contents.deny, [listed("192.0.3.0/24", Some(101))]);
        assert_eq!(contents.allow.len(), 1);
        assert_eq!(contents.bans, [ban("203.0.113.2", 51)]);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let pristine = tempdir().unwrap();
        open(&pristine).put_bans(&vec![ban("203.0.113.1", 50); 1]).unwrap();
        let whole = fs::read(pristine.path().join("edged.redb")).unwrap();
        let mut scrambled = whole.clone();
        scrambled.iter_mut().skip(64).for_each(|byte| *byte ^= 0x5a);
        let damages: [&[u8]; 4] =
            [b"not a database at all", &whole[..whole.len() / 2], &whole[..100], &scrambled];
        for damage in damages {
            let dir = tempdir().unwrap();
            fs::write(dir.path().join("edged.redb"), damage).unwrap();
            let (store, warning) = Store::open(dir.path(), 1_700_000_000).unwrap();
            let aside = dir.path().join("edged.redb.corrupt-1700000000");
            assert!(warning.unwrap().contains(&aside.display().to_string()));
            assert_eq!(fs::read(aside).unwrap().len(), damage.len());
            store.put_keys(&[stored(1)]).unwrap();
            drop(store);
            assert_eq!(open(&dir).load_keys().unwrap().0.len(), 1);
        }
    }

    #[test]
    fn the_store_is_for_its_owner_alone() {
        let dir = tempdir().unwrap();
        let state = dir.path().join("var/state");
        let _store = Store::open(&state, 7).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(state.join("edged.redb")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_store_is_lent_and_taken_back() {
        let dir = tempdir().unwrap();
        let first = open(&dir);
        first.put_bans(&[ban("203.0.113.1", 50)]).unwrap();
        first.release();
        let other = open(&dir);
        assert!(matches!(first.reclaim(Duration::from_millis(20)), Err(Fault::InUse(_))));
        assert!(matches!(first.load_all(), Err(Fault::InUse(_))));
        drop(other);
        assert_eq!(first.load_all().unwrap().bans.len(), 1, "it is opened once it can be");
        first.release();
        thread::scope(|scope| {
            let waits = scope.spawn(|| first.put_bans(&[ban("203.0.113.2", 60)]).is_ok());
            thread::sleep(Duration::from_millis(20));
            assert!(!waits.is_finished());
            first.reclaim(Duration::from_secs(1)).unwrap();
            assert!(waits.join().unwrap());
        });
        assert_eq!(first.load_all().unwrap().bans.len(), 2);
    }

    #[test]
    fn what_was_never_lent_is_not_taken_back() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        store.reclaim(Duration::from_millis(20)).unwrap();
        store.put_bans(&[ban("203.0.113.1", 50)]).unwrap();
        // Nor is what a fault of the disk has closed: whoever needs it opens it.
        store.fail(&store.database().unwrap());
        store.reclaim(Duration::from_millis(20)).unwrap();
        assert_eq!(store.load_all().unwrap().bans.len(), 1);
        store.give_up();
        store.reclaim(Duration::from_millis(20)).unwrap();
        assert!(matches!(store.load_all(), Err(Fault::Gone)), "it is the successor's");
    }

    #[test]
    fn two_processes_do_not_share_a_store() {
        let dir = tempdir().unwrap();
        let _first = open(&dir);
        assert!(matches!(Store::open(dir.path(), 7), Err(Fault::InUse(_))));
    }

    /// A store with something in most tables, as bytes.
    static FILLED: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        store.put_keys(&[stored(1)]).unwrap();
        store.put_list(ListName::Deny, &listed("192.0.2.0/24", None)).unwrap();
        let bans: Vec<_> = (0..500).map(|n| ban(&format!("2001:db8::{n:x}"), n)).collect();
        store.put_bans(&bans).unwrap();
        drop(store);
        fs::read(dir.path().join("edged.redb")).unwrap()
    });

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

        /// Whatever happened to the file, the daemon starts with a store that works.
        #[test]
        fn no_damage_stops_the_start(
            cut in 0.2_f64..1.0,
            flips in proptest::collection::vec((0.0_f64..1.0, 1_u8..), 0..40),
        ) {
            let mut bytes = FILLED.clone();
            let at = |part: f64, bytes: &[u8]| (part * bytes.len() as f64) as usize;
            if cut < 0.8 {
                bytes.truncate(at(cut, &bytes));
            }
            for (part, mask) in flips {
                let place = at(part, &bytes);
                bytes[place] ^= mask;
            }
            let dir = tempdir().unwrap();
            fs::write(dir.path().join("edged.redb"), bytes).unwrap();
            let (store, _) = Store::open(dir.path(), 7).unwrap();
            store.load_all().unwrap();
            store.load_keys().unwrap();
            store.put_keys(&[stored(2)]).unwrap();
        }
    }
}
