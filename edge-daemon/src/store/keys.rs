//! API keys on disk: a record each, its slow hash and its last use in tables of their own, so that
//! a start reads neither more nor longer than it must.

use std::collections::HashMap;

use edge_identity::key::{Digest, Grants, KeyId, KeyRecord, KeyRing, PepperId};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Deserialize;

use super::{Fault, Records, Store};

/// By id: a byte that tells the form, and the record in it.
pub(super) const KEYS: Records = TableDefinition::new("keys");
/// By id: the Argon2id hash of the key, in PHC form.
pub(super) const HASHES: TableDefinition<'static, &'static str, &'static str> =
    TableDefinition::new("key_hashes");
/// By id: when the key was last used, in unix seconds.
pub(super) const USES: TableDefinition<'static, &'static str, u32> =
    TableDefinition::new("key_uses");

/// A key with everything that is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// The record.
    pub record: KeyRecord,
    /// The Argon2id hash of the key, in PHC form, if one was made.
    pub hash: Option<String>,
}

impl Store {
    /// All keys, ready to be used, and the ids of records that cannot be read; these stay where
    /// they are.
    ///
    /// # Errors
    /// If the database fails.
    pub fn load_keys(&self) -> Result<(KeyRing, Vec<String>), Fault> {
        let read = self.database()?.begin_read()?;
        let (keys, uses) = (read.open_table(KEYS)?, read.open_table(USES)?);
        let mut used = HashMap::new();
        for entry in uses.iter()? {
            let (id, used_s) = entry?;
            if let Ok(id) = id.value().parse::<KeyId>() {
                used.insert(id, used_s.value());
            }
        }
        let (mut unreadable, mut fault) = (Vec::new(), None);
        let records = keys.iter()?.map_while(|entry| match entry {
            Ok((id, value)) => {
                let record = decode(value.value());
                if record.is_none() {
                    unreadable.push(id.value().to_owned());
                }
                Some(record)
            }
            Err(error) => {
                fault = Some(error);
                None
            }
        });
        let ring = KeyRing::load(records.flatten().map(|record| {
            let used_s = used.get(&record.id).copied();
            (record, used_s)
        }));
        fault.map_or(Ok((ring, unreadable)), |fault| Err(fault.into()))
    }

    /// Writes keys, new or changed, all or none of them. A hash that was there stays if none is
    /// given.
    ///
    /// # Errors
    /// If the database fails; then nothing has changed.
    pub fn put_keys(&self, keys: &[StoredKey]) -> Result<(), Fault> {
        self.write(|write| {
            let (mut records, mut hashes) = (write.open_table(KEYS)?, write.open_table(HASHES)?);
            for StoredKey { record, hash } in keys {
                let id = record.id.as_str();
                records.insert(id, encode(record)?.as_slice())?;
                if let Some(hash) = hash {
                    hashes.insert(id, hash.as_str())?;
                }
            }
            Ok(())
        })
    }

    /// A key's record; `None` if there is none that can be read.
    ///
    /// # Errors
    /// If the database fails.
    pub fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, Fault> {
        let read = self.database()?.begin_read()?;
        let found = read.open_table(KEYS)?.get(id.as_str())?;
        Ok(found.and_then(|value| decode(value.value())))
    }

    /// A key's slow hash, in PHC form.
    ///
    /// # Errors
    /// If the database fails.
    pub fn key_hash(&self, id: &KeyId) -> Result<Option<String>, Fault> {
        let read = self.database()?.begin_read()?;
        let found = read.open_table(HASHES)?.get(id.as_str())?;
        Ok(found.map(|hash| hash.value().to_owned()))
    }

    /// So many keys in the order of their ids, behind one of them or from the first.
    ///
    /// # Errors
    /// If the database fails.
    pub fn keys_after(&self, id: Option<&KeyId>, count: usize) -> Result<Vec<StoredKey>, Fault> {
        use std::ops::Bound::{Excluded, Unbounded};
        let read = self.database()?.begin_read()?;
        let (keys, hashes) = (read.open_table(KEYS)?, read.open_table(HASHES)?);
        let from = id.map_or(Unbounded, |id| Excluded(id.as_str()));
        let mut found = Vec::new();
        for entry in keys.range::<&str>((from, Unbounded))?.take(count) {
            let (id, value) = entry?;
            if let Some(record) = decode(value.value()) {
                let hash = hashes.get(id.value())?.map(|hash| hash.value().to_owned());
                found.push(StoredKey { record, hash });
            }
        }
        Ok(found)
    }

    /// Removes a key and all that is kept of it; whether it was there.
    ///
    /// # Errors
    /// If the database fails.
    pub fn remove_key(&self, id: &KeyId) -> Result<bool, Fault> {
        self.write(|write| {
            let was_there = write.open_table(KEYS)?.remove(id.as_str())?.is_some();
            write.open_table(HASHES)?.remove(id.as_str())?;
            write.open_table(USES)?.remove(id.as_str())?;
            Ok(was_there)
        })
    }

    /// Notes when keys were last used, in unix seconds. Not on disk yet when it returns: the next
    /// change of anything else takes it along.
    ///
    /// # Errors
    /// If the database fails.
    pub fn put_uses(&self, uses: &[(KeyId, u32)]) -> Result<(), Fault> {
        self.write(|write| {
            // A crash loses a minute of it, which nobody misses.
            write.set_durability(redb::Durability::None).map_err(|e| Fault::Database(e.into()))?;
            let mut table = write.open_table(USES)?;
            for (id, used_s) in uses {
                table.insert(id.as_str(), used_s)?;
            }
            Ok(())
        })
    }
}

/// The form of a record: this one is postcard's.
const FORM: u8 = 1;

fn encode(record: &KeyRecord) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![FORM];
    bytes = postcard::to_extend(record, bytes).map_err(Fault::EncodeKey)?;
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<KeyRecord> {
    match bytes {
        [FORM, record @ ..] => postcard::from_bytes(record).ok(),
        [b'{', ..] => serde_json::from_slice::<Former>(bytes).ok()?.record(),
        _ => None,
    }
}

/// A record as the first versions wrote it, in JSON.
#[derive(Deserialize)]
struct Former {
    id: KeyId,
    name: String,
    scopes: Vec<String>,
    created_ms: u64,
    expires_ms: Option<u64>,
    revoked_ms: Option<u64>,
    digest: Digest,
}

impl Former {
    fn record(self) -> Option<KeyRecord> {
        Some(KeyRecord {
            id: self.id,
            digest: self.digest,
            // It did not tell; whichever pepper it is, the key is found under it.
            pepper: PepperId::default(),
            name: self.name,
            owner: String::new(),
            grants: Grants { scopes: self.scopes, ..Grants::default() },
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            revoked_ms: self.revoked_ms,
            extras: Vec::new(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;

    pub(in super::super) fn record(number: u8) -> KeyRecord {
        let digest = Digest([number; 32]);
        KeyRecord {
            id: digest.id(),
            digest,
            pepper: PepperId([1; 4]),
            name: "ci".into(),
            owner: "team".into(),
            grants: Grants { scopes: vec!["read".into()], ..Grants::default() },
            created_ms: 1,
            expires_ms: Some(2),
            revoked_ms: None,
            extras: Vec::new(),
        }
    }

    pub(in super::super) fn stored(number: u8) -> StoredKey {
        StoredKey { record: record(number), hash: Some("$argon2id$x".into()) }
    }

    fn open(dir: &TempDir) -> Store {
        Store::open(dir.path(), 7).unwrap().0
    }

    #[test]
    fn keys_survive_a_reopen() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        store.put_keys(&[stored(1), stored(2), stored(3)]).unwrap();
        let revoked = KeyRecord { revoked_ms: Some(3), ..record(1) };
        store.put_keys(&[StoredKey { record: revoked.clone(), hash: None }]).unwrap();
        store.put_uses(&[(record(2).id, 77)]).unwrap();
        assert!(store.remove_key(&record(3).id).unwrap());
        assert!(!store.remove_key(&record(3).id).unwrap());
        drop(store);

        let store = open(&dir);
        let (ring, unreadable) = store.load_keys().unwrap();
        assert_eq!((ring.len(), unreadable.len()), (2, 0));
        assert_eq!(ring.by_id(&record(2).id).unwrap().used_s(), Some(77));
        assert!(ring.by_digest(&record(1).digest).unwrap().check(1, false).is_err());
        assert_eq!(store.key(&record(1).id).unwrap(), Some(revoked));
        assert_eq!(store.key_hash(&record(1).id).unwrap().as_deref(), Some("$argon2id$x"));
        assert_eq!(store.key_hash(&record(3).id).unwrap(), None);
    }

    #[test]
    fn pages_follow_each_other() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        let all: Vec<_> = (0..9).map(stored).collect();
        store.put_keys(&all).unwrap();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.keys_after(after.as_ref(), 4).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.record.id);
            found.extend(page);
        }
        let mut sorted = all;
        sorted.sort_by_key(|key| key.record.id);
        assert_eq!(found, sorted);
    }

    #[test]
    fn records_of_the_first_versions_are_read() {
        let dir = tempdir().unwrap();
        let store = open(&dir);
        let digest = "07".repeat(32);
        let json = format!(
            r#"{{"id":"0a1b2c3d4e5f","name":"old","scopes":["a"],"created_ms":1,"expires_ms":null,
            "revoked_ms":null,"digest":"{digest}"}}"#
        );
        let write = store.database().unwrap().begin_write().unwrap();
        let mut table = write.open_table(KEYS).unwrap();
        table.insert("0a1b2c3d4e5f", json.as_bytes()).unwrap();
        table.insert("torn", &[1_u8, 2][..]).unwrap();
        drop(table);
        write.commit().unwrap();
        let (ring, unreadable) = store.load_keys().unwrap();
        assert_eq!(unreadable, ["torn"]);
        let key = ring.by_digest(&Digest([7; 32])).unwrap();
        assert_eq!((key.name(), key.grants().scopes.as_slice()), ("old", &["a".to_owned()][..]));
    }
}
