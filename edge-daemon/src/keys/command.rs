//! What operators say about keys, done.

use anyhow::{Context as _, bail};
use edge_identity::{
    hex,
    key::{BoundSecret, Extra, Grants, KeyId, KeyRecord, Mark, PepperId, Secret},
    signed::Signing,
};

use super::{Registry, slow};
use crate::{
    audit, clock,
    config::settings::HashPolicy,
    control::{
        Peer, Reply,
        keys::{
            KeyCommand, KeyCreated, KeyEntry, KeyPage, Life, NewKey, NewSecret, NewSigning,
            SecretText,
        },
    },
    decisions::Decision,
    events::Event,
    store::StoredKey,
};

impl Registry {
    pub(super) fn obey(&mut self, command: KeyCommand, peer: Peer) -> Reply {
        if command.is_put_off() && !self.edge.audit.flush(audit::PATIENCE) {
            return Reply::unnoticed();
        }
        let reply = self.try_obey(command, peer);
        let is_kept = self.told.take().is_none_or(|kept| kept.within(audit::PATIENCE));
        reply.unwrap_or_else(|error| Reply::Refused(format!("{error:#}"))).told(is_kept)
    }

    fn try_obey(&mut self, command: KeyCommand, peer: Peer) -> anyhow::Result<Reply> {
        Ok(match command {
            KeyCommand::Create(new) => Reply::KeyCreated(self.create(*new, peer)?),
            KeyCommand::List { after } => Reply::Keys(self.list(after)?),
            KeyCommand::Show { id } => Reply::Key(Box::new(self.show(&id)?)),
            KeyCommand::Rotate { id, grace_ms, life, secret, signing } => {
                Reply::KeyCreated(self.rotate(&id, (grace_ms, life), (secret, *signing), peer)?)
            }
            KeyCommand::Revoke { id } => self.revoke(&id, peer)?,
            KeyCommand::Remove { id } => self.remove(&id, peer)?,
            KeyCommand::Export { after } => self.export(after, peer)?,
            KeyCommand::Import { lines, check } => {
                Reply::Imported(self.import(&lines, check, peer)?)
            }
        })
    }

    fn create(&mut self, new: NewKey, peer: Peer) -> anyhow::Result<KeyCreated> {
        let NewKey { name, owner, scopes, roles, tier, networks, places, life, secret, signing } =
            new;
        let grants = Grants { scopes, roles, tier, networks, places };
        let (mut stored, key) = self.mint(name, owner, grants, life)?;
        let id = stored.record.id;
        let told = self.equip(&mut stored.record, &key, secret, signing)?;
        let record = stored.record.clone();
        self.store.put_keys(&[stored])?;
        self.edge.keys.put(&record);
        self.tell(Event::KeyCreated {
            key_id: id.to_string(),
            name: record.name,
            owner: record.owner,
            until: record.expires_ms.map(clock::rfc3339),
            uid: peer.uid,
        });
        Ok(KeyCreated {
            id: id.to_string(),
            key: told.key,
            secret: told.secret,
            signing_secret: told.signing_secret,
            expires_ms: record.expires_ms,
            replaces: None,
        })
    }

    /// Gives a new key the secret that comes with it and what it signs with; what its owner is told
    /// this once.
    fn equip(
        &self,
        record: &mut KeyRecord,
        key: &Secret,
        secret: NewSecret,
        signing: NewSigning,
    ) -> anyhow::Result<Told> {
        let (bound, secret) = bound(record.id, secret)?;
        record.extras.extend(bound.map(Extra::Secret));
        let (signing, signing_secret) = self.signing(record.id, signing)?;
        // Its holder has a key of his own, and is known by the id.
        let is_public = matches!(signing, Some(Signing::Public(_)));
        let key = if is_public { SecretText::default() } else { key.expose().into() };
        record.extras.extend(signing.map(Extra::Signing));
        Ok(Told { key, secret, signing_secret })
    }

    /// How a new key of this id signs, and the secret that its owner is told.
    fn signing(
        &self,
        id: KeyId,
        new: NewSigning,
    ) -> anyhow::Result<(Option<Signing>, Option<SecretText>)> {
        Ok(match new {
            NewSigning::None => (None, None),
            NewSigning::Public(key) => (Some(Signing::Public(key)), None),
            NewSigning::Derived => {
                let masters = self.edge.masters.load();
                let master = masters.current().context("there is no master secret")?;
                let secret = masters.secret(master, id.as_str());
                let secret = secret.context("the master secret cannot be used")?;
                (Some(Signing::Derived(master.to_owned())), Some(hex::text(&*secret).into()))
            }
        })
    }

    /// A new key with its hash, and the key itself for its owner; not kept yet.
    fn mint(
        &self,
        name: String,
        owner: String,
        grants: Grants,
        life: Life,
    ) -> anyhow::Result<(StoredKey, Secret)> {
        let settings = self.settings();
        if self.edge.keys.len() >= settings.keys_max {
            bail!("there are {} keys, as many as keys.keys_max allows", settings.keys_max);
        }
        let peppers = self.edge.peppers.load();
        let created_ms = clock::unix_ms();
        let life_ms = match life {
            Life::Default => settings.expires.map(|life| life.as_millis() as u64),
            Life::Forever => None,
            Life::Ms(ms) => Some(ms),
        };
        let (key, digest) = loop {
            let key = Secret::mint(&settings.prefix, &*random()?);
            let digest = peppers.current.digest(key.expose());
            if self.edge.keys.by_id(&digest.id()).is_none() {
                break (key, digest);
            }
        };
        let record = KeyRecord {
            id: digest.id(),
            digest,
            pepper: peppers.current.id(),
            name,
            owner,
            grants,
            created_ms,
            expires_ms: life_ms.map(|ms| created_ms.saturating_add(ms)),
            revoked_ms: None,
            extras: Vec::new(),
        };
        let hash = match settings.hash {
            HashPolicy::Keyed => None,
            HashPolicy::KeyedAndArgon2id => Some(slow::hash(key.expose())?),
        };
        Ok((StoredKey { record, hash }, key))
    }

    /// The new key has what the old one has, but for secrets and a public key, which are new as well;
    /// those that are the edge's to choose are minted.
    fn rotate(
        &mut self,
        id: &KeyId,
        (grace_ms, life): (Option<u64>, Life),
        (secret, signing): (NewSecret, NewSigning),
        peer: Peer,
    ) -> anyhow::Result<KeyCreated> {
        let Some(mut old) = self.store.key(id)? else { bail!("there is no key {id}") };
        let now_ms = clock::unix_ms();
        // It may be refused already and the disk not know of it yet.
        if old.revoked_ms.is_some() || self.unsaved.contains(id) {
            bail!("the key {id} is revoked; make another");
        }
        if old.expires_ms.is_some_and(|end| end <= now_ms) {
            bail!("the key {id} has ended; make another");
        }
        if let Some(by) = old.replaced_by() {
            bail!("the key {id} was replaced already, by {by}");
        }
        let secret = next_secret(&old, secret)?;
        let signing = next_signing(&old, signing)?;
        let grace = u64::try_from(self.settings().grace.as_millis()).unwrap_or(u64::MAX);
        let ends_ms = now_ms.saturating_add(grace_ms.unwrap_or(grace));
        let ends_ms = old.expires_ms.map_or(ends_ms, |end| end.min(ends_ms));
        let (mut new, key) =
            self.mint(old.name.clone(), old.owner.clone(), old.grants.clone(), life)?;
        let told = self.equip(&mut new.record, &key, secret, signing)?;
        let record = new.record.clone();
        old.expires_ms = Some(ends_ms);
        old.extras.push(Extra::ReplacedBy(record.id));
        self.store.put_keys(&[new, StoredKey { record: old, hash: None }])?;
        self.edge.keys.put(&record);
        if let Some(old) = self.edge.keys.by_id(id) {
            old.mark(Mark::Replaced);
            old.end(ends_ms);
            self.edge.decisions.tell(Decision::key(&old, "is replaced", Some(ends_ms)));
        }
        self.tell(Event::KeyRotated {
            key_id: id.to_string(),
            by: record.id.to_string(),
            until: clock::rfc3339(ends_ms),
            uid: peer.uid,
        });
        Ok(KeyCreated {
            id: record.id.to_string(),
            key: told.key,
            secret: told.secret,
            signing_secret: told.signing_secret,
            expires_ms: record.expires_ms,
            replaces: Some((id.to_string(), Some(ends_ms))),
        })
    }

    /// In the ring first: from here on the key is refused, whatever the disk does. The answer comes
    /// when it is on disk as well.
    fn revoke(&mut self, id: &KeyId, peer: Peer) -> anyhow::Result<Reply> {
        let now_ms = clock::unix_ms();
        let Some(key) = self.edge.keys.by_id(id) else { bail!("there is no key {id}") };
        key.revoke(now_ms);
        let mut was_revoked = false;
        let kept = self.change(id, |record| {
            was_revoked = record.revoked_ms.is_some();
            record.revoked_ms.get_or_insert(now_ms);
        });
        if kept.is_err() && !self.unsaved.contains(id) {
            self.unsaved.push(*id);
        }
        self.count_unsaved();
        if !was_revoked {
            let (key_id, owner) = (id.to_string(), key.owner().to_owned());
            self.tell(Event::KeyRevoked { key_id, owner, uid: peer.uid });
            self.edge.decisions.tell(Decision::key(&key, "was revoked", None));
        }
        kept.with_context(|| {
            format!("the key {id} is refused from now on, but the disk fails: it is tried again")
        })?;
        if was_revoked {
            bail!("the key {id} was revoked already");
        }
        Ok(Reply::Done(format!("the key {id} is revoked")))
    }

    fn remove(&mut self, id: &KeyId, peer: Peer) -> anyhow::Result<Reply> {
        let Some(key) = self.edge.keys.by_id(id) else { bail!("there is no key {id}") };
        if key.check(clock::unix_ms(), false).is_ok() {
            bail!("the key {id} is in force; revoke it first");
        }
        self.store.remove_key(id)?;
        self.edge.keys.remove(id);
        self.tell(Event::KeyRemoved { key_id: id.to_string(), uid: peer.uid });
        Ok(Reply::Done(format!("the key {id} is forgotten")))
    }

    fn list(&self, after: Option<KeyId>) -> anyhow::Result<KeyPage> {
        let stored = self.store.keys_after(after.as_ref(), PAGE)?;
        let entries = stored.into_iter().map(|stored| self.entry(stored)).collect();
        Ok(KeyPage { entries, total: self.edge.keys.len() as u64 })
    }

    fn show(&self, id: &KeyId) -> anyhow::Result<KeyEntry> {
        let Some(record) = self.store.key(id)? else { bail!("there is no key {id}") };
        let hash = self.store.key_hash(id)?;
        Ok(self.entry(StoredKey { record, hash }))
    }

    fn entry(&self, StoredKey { record, hash }: StoredKey) -> KeyEntry {
        let peppers = self.edge.peppers.load();
        let live = self.edge.keys.by_id(&record.id);
        let secret = record.secret().map(|secret| match secret {
            BoundSecret::Random(_) => "random".to_owned(),
            BoundSecret::Chosen(_) => "chosen".to_owned(),
        });
        let pepper = match record.pepper {
            pepper if pepper == peppers.current.id() => "current",
            pepper if peppers.knows(pepper) || pepper == PepperId::default() => "former",
            _ => "unknown",
        };
        KeyEntry {
            used_ms: live.and_then(|key| key.used_s()).map(|used_s| u64::from(used_s) * 1000),
            exposed: record.exposed(),
            replaced_by: record.replaced_by(),
            secret,
            signing: record.signing().map(Signing::algorithm),
            argon2id: hash.is_some(),
            pepper: pepper.to_owned(),
            id: record.id,
            name: record.name,
            owner: record.owner,
            scopes: record.grants.scopes,
            roles: record.grants.roles,
            tier: record.grants.tier,
            networks: record.grants.networks,
            places: record.grants.places,
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            revoked_ms: record.revoked_ms,
        }
    }
}

/// What the owner of a new key is told this once.
struct Told {
    key: SecretText,
    secret: Option<SecretText>,
    signing_secret: Option<SecretText>,
}

/// The secret that is bound to a new key of this id, and what of it its owner is told.
fn bound(id: KeyId, new: NewSecret) -> anyhow::Result<(Option<BoundSecret>, Option<SecretText>)> {
    Ok(match new {
        NewSecret::None => (None, None),
        NewSecret::Random => {
            let secret = Secret::mint_bound(&*random()?);
            let digest = BoundSecret::digest(&id, secret.expose());
            (Some(BoundSecret::Random(digest)), Some(secret.expose().into()))
        }
        NewSecret::Chosen(secret) => {
            if secret.len() < CHOSEN_MIN {
                bail!("a secret of at least {CHOSEN_MIN} bytes");
            }
            (Some(BoundSecret::Chosen(slow::hash(&secret)?)), None)
        }
    })
}

/// The secret of the key that takes the place of this one: of the same kind, and another.
fn next_secret(old: &KeyRecord, given: NewSecret) -> anyhow::Result<NewSecret> {
    let id = &old.id;
    Ok(match (old.secret(), given) {
        (None, NewSecret::None) => NewSecret::None,
        (Some(BoundSecret::Random(_)), NewSecret::None) => NewSecret::Random,
        (Some(BoundSecret::Chosen(former)), NewSecret::Chosen(secret)) => {
            if slow::matches(former, &secret) {
                bail!("that is the secret of the key {id}; choose another");
            }
            NewSecret::Chosen(secret)
        }
        (Some(BoundSecret::Chosen(_)), _) => {
            bail!("the secret of the key {id} was chosen; give another with --secret-file")
        }
        (None | Some(BoundSecret::Random(_)), _) => {
            bail!("no secret was chosen for the key {id}; rotate it without one")
        }
    })
}

/// How the key signs that takes the place of this one: in the same way, with another key.
fn next_signing(old: &KeyRecord, given: NewSigning) -> anyhow::Result<NewSigning> {
    let id = &old.id;
    Ok(match (old.signing(), given) {
        (None, NewSigning::None) => NewSigning::None,
        (Some(Signing::Derived(_)), NewSigning::None) => NewSigning::Derived,
        (Some(Signing::Public(former)), NewSigning::Public(key)) => {
            if *former == key {
                bail!("that is the public key of the key {id}; give another");
            }
            NewSigning::Public(key)
        }
        (Some(Signing::Public(_)), _) => {
            bail!("the key {id} is a public one; give another with --public-key")
        }
        (None | Some(Signing::Derived(_)), _) => {
            bail!("the key {id} is no public one; rotate it without one")
        }
    })
}

fn random() -> anyhow::Result<zeroize::Zeroizing<[u8; 32]>> {
    let mut random = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).context("no randomness")?;
    Ok(random)
}

/// Keys that one reply holds.
pub(super) const PAGE: usize = 2_000;

/// The shortest secret that may be chosen, in bytes.
const CHOSEN_MIN: usize = 12;
