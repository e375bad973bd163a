//! Keys from one store to another, a line of JSON each: digests and hashes, nothing that opens
//! anything. A digest is of use only where its pepper is.

use std::collections::HashSet;

use edge_identity::key::{BoundSecret, KeyId, KeyRecord, PepperId};
use serde::{Deserialize, Serialize};

use super::{Registry, command::PAGE, slow};
use crate::{
    control::{
        Peer, Reply,
        keys::{Imported, name_fault},
        protocol::TEXT_BYTES_MAX,
    },
    events::Event,
    store::StoredKey,
};

/// A line.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    record: KeyRecord,
    /// The Argon2id hash of the key, in PHC form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argon2id: Option<String>,
}

impl Registry {
    pub(super) fn export(&mut self, after: Option<KeyId>, peer: Peer) -> anyhow::Result<Reply> {
        let page = self.store.keys_after(after.as_ref(), PAGE)?;
        if after.is_none() {
            self.tell(Event::KeysExported { uid: peer.uid });
        }
        let last = (page.len() == PAGE).then(|| page.last().map(|key| key.record.id)).flatten();
        let line =
            |StoredKey { record, hash }| serde_json::to_string(&Line { record, argon2id: hash });
        Ok(Reply::Exported(page.into_iter().map(line).collect::<Result<_, _>>()?, last))
    }

    pub(super) fn import(
        &mut self,
        lines: &[String],
        check: bool,
        peer: Peer,
    ) -> anyhow::Result<Imported> {
        let (mut imported, mut keys) = (Imported::default(), Vec::new());
        let (mut seen, mut digests) = (HashSet::new(), HashSet::new());
        for (number, line) in lines.iter().enumerate() {
            match self.read_line(line) {
                Ok(key) if !seen.insert(key.record.id) => {
                    let what = format!("the key {} is there twice", key.record.id);
                    imported.wrong.push((number, what));
                }
                // Under two ids one key would be alive after the other was revoked.
                Ok(key) if !digests.insert(key.record.digest.0) => {
                    imported.wrong.push((number, "another line has this digest".into()));
                }
                Ok(key) if self.edge.keys.by_id(&key.record.id).is_some() => imported.known += 1,
                Ok(key) => keys.push(key),
                Err(what) => imported.wrong.push((number, what)),
            }
        }
        let room = self.settings().keys_max.saturating_sub(self.edge.keys.len());
        if keys.len() > room {
            let what = format!("there is room for {room} more keys: keys.keys_max");
            imported.wrong.push((room, what));
        }
        imported.wrong.truncate(WRONG_MAX);
        if !imported.wrong.is_empty() || check {
            return Ok(imported);
        }
        imported.added = keys.len() as u64;
        self.store.put_keys(&keys)?;
        for key in &keys {
            self.edge.keys.put(&key.record);
        }
        if imported.added > 0 {
            self.tell(Event::KeysImported { keys: imported.added, uid: peer.uid });
        }
        Ok(imported)
    }

    fn read_line(&self, line: &str) -> Result<StoredKey, String> {
        let Line { record, argon2id: hash } =
            serde_json::from_str(line).map_err(|fault| fault.to_string())?;
        if !self.edge.peppers.load().knows(record.pepper) && record.pepper != PepperId::default() {
            return Err("its digest was made under a pepper that is not configured here".into());
        }
        if has_bad_text(&record) {
            return Err(format!("a text over {TEXT_BYTES_MAX} bytes, or with control characters"));
        }
        if let Some(fault) = name_fault(record.grants.scopes.iter().chain(&record.grants.roles)) {
            return Err(fault);
        }
        let chosen = match record.secret() {
            Some(BoundSecret::Chosen(hash)) => Some(hash),
            _ => None,
        };
        if hash.iter().chain(chosen).any(|hash| !slow::is_hash(hash)) {
            return Err("not an Argon2id hash that can be checked here".into());
        }
        if chosen.is_some_and(|hash| !slow::is_dear(hash)) {
            let least = "m=19456,t=2 at least, or as much otherwise: m=47104,t=1 to m=7168,t=5";
            return Err(format!("the hash of a chosen secret is too cheap to guess: {least}"));
        }
        let known = self.edge.keys.by_digest(&record.digest);
        if known.is_some_and(|key| *key.id() != record.id) {
            return Err("another key has this digest".into());
        }
        Ok(StoredKey { record, hash })
    }
}

/// Whether a text is too long, or could rewrite the terminal of whoever lists the keys.
fn has_bad_text(record: &KeyRecord) -> bool {
    let words = record.grants.scopes.iter().chain(&record.grants.roles);
    let mut words = words.chain(&record.grants.tier).chain([&record.name, &record.owner]);
    words.any(|word| word.len() > TEXT_BYTES_MAX || word.chars().any(char::is_control))
}

/// Mistakes that one reply tells.
const WRONG_MAX: usize = 20;
