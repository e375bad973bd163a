//! API keys: how they look, what is kept of them and how a presented one is found and judged.

mod format;
mod live;
mod pepper;
mod prove;
mod record;
mod ring;

pub use format::{PREFIX_LENGTH_MAX, Secret, find_keys, well_formed};
pub use live::{Key, Mark, SecretCheck};
pub use pepper::{Digest, Pepper, PepperId, Peppers};
pub use prove::{Proof, Rules, prove, recognize};
pub use record::{BoundSecret, Extra, Grants, KeyId, KeyRecord, Leak, Place};
pub use ring::{BUCKETS, KeyRing};

#[cfg(test)]
mod tests {
    use super::*;

    /// A record by its number, from 1 s to 2 s.
    pub(super) fn record(number: u32) -> KeyRecord {
        let digest = Digest(*blake3::hash(&number.to_le_bytes()).as_bytes());
        KeyRecord {
            id: digest.id(),
            digest,
            pepper: PepperId::default(),
            name: "test".into(),
            owner: "team".into(),
            grants: Grants { scopes: vec!["read".into()], ..Grants::default() },
            created_ms: 1000,
            expires_ms: Some(2000),
            revoked_ms: None,
            extras: Vec::new(),
        }
    }

    fn key(secret: Option<BoundSecret>) -> std::sync::Arc<Key> {
        let extras = secret.map(Extra::Secret).into_iter().collect();
        KeyRing::default().put(&KeyRecord { extras, ..record(1) })
    }

    #[test]
    fn a_key_tells_its_labels_apart() {
        assert_eq!((key(None).name(), key(None).owner()), ("test", "team"));
    }

    #[test]
    fn a_bound_secret_is_asked_for() {
        let plain = key(None);
        assert_eq!(plain.check_secret(None), SecretCheck::Right);
        assert_eq!(plain.check_secret(Some("s")), SecretCheck::Wrong);
        let bound = key(Some(BoundSecret::Random(BoundSecret::digest(&record(1).id, "s"))));
        assert_eq!(bound.check_secret(None), SecretCheck::Wrong);
        assert_eq!(bound.check_secret(Some("t")), SecretCheck::Wrong);
        assert_eq!(bound.check_secret(Some("s")), SecretCheck::Right);
    }

    #[test]
    fn a_chosen_secret_is_asked_of_the_slow_hash_until_it_is_known() {
        let chosen = key(Some(BoundSecret::Chosen("$argon2id$...".into())));
        assert_eq!(chosen.check_secret(None), SecretCheck::Wrong);
        assert_eq!(chosen.check_secret(Some("s")), SecretCheck::Ask("$argon2id$..."));
        chosen.learn_secret("s");
        assert_eq!(chosen.check_secret(Some("s")), SecretCheck::Right);
        assert_eq!(chosen.check_secret(Some("t")), SecretCheck::Wrong);
    }
}
