//! API keys: how they look, what is kept of them and how a presented one is found.
//!
//! A key is `<prefix>_<43 base62>_<6 base62>`: 256 random bits and the CRC-32 of all before it,
//! so that a mistyped key is refused before any lookup and a leaked one is found by scanners.

use std::collections::HashMap;
use std::collections::hash_map::Values;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use edge_common::Reason;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A whole key in the clear: shown once to its owner, never kept, never printed.
pub struct Secret(String);

impl Secret {
    /// The key that these 256 random bits make.
    #[must_use]
    pub fn mint(prefix: &str, random: &[u8; 32]) -> Self {
        let mut text = format!("{prefix}_{}", base62(*random, BODY_LENGTH));
        let checksum = checksum(&text);
        text.push('_');
        text.push_str(&checksum);
        Self(text)
    }

    /// The key itself, for its owner or for its digest.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(masked)")
    }
}

/// Whether the text has the form of a key with this prefix, checksum included.
#[must_use]
pub fn well_formed(text: &str, prefix: &str) -> bool {
    split(text).is_some_and(|found| found == prefix)
}

/// Whether the text has the form of a key with any prefix.
#[must_use]
pub fn looks_like_key(text: &str) -> bool {
    split(text).is_some()
}

/// The prefix of a well-formed key.
fn split(text: &str) -> Option<&str> {
    let (signed, sum) = text.rsplit_once('_')?;
    let (prefix, body) = signed.rsplit_once('_')?;
    let formed = !prefix.is_empty()
        && body.len() == BODY_LENGTH
        && body.bytes().all(|b| b.is_ascii_alphanumeric())
        && sum == checksum(signed);
    formed.then_some(prefix)
}

/// The secret without which a stolen store is of no use. Kept outside the store.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pepper([u8; 32]);

/// Names a pepper and tells nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PepperId(pub [u8; 4]);

/// The pepper in use, and those under which keys are still looked up.
#[derive(Clone, Debug)]
pub struct Peppers {
    /// New digests are made under this one.
    pub current: Pepper,
    /// Digests under these are replaced when their key is seen.
    pub former: Vec<Pepper>,
}

impl Pepper {
    /// The pepper of these random bytes.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The pepper of a secret: 32 bytes are it, others are condensed to it.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(secret.try_into().unwrap_or_else(|_| blake3::derive_key("edged pepper v1", secret)))
    }

    /// Its name, by which a digest tells under which pepper it was made.
    #[must_use]
    pub fn id(&self) -> PepperId {
        let [a, b, c, d, ..] = blake3::derive_key("edged pepper id v1", &self.0);
        PepperId([a, b, c, d])
    }

    /// What is kept of a key.
    #[must_use]
    pub fn digest(&self, key: &str) -> Digest {
        Digest(*blake3::keyed_hash(&self.0, key.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(masked)")
    }
}

/// The keyed BLAKE3 digest of a key. Compared in constant time; serialized as hex.
#[derive(Clone, Copy, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The key's public name in logs and commands; tells nothing of the digest.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&blake3::hash(&self.0).as_bytes()[..ID_BYTES])
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest of {}", self.id())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// What the store keeps of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its public name, from [`Digest::id`].
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made, in unix milliseconds.
    pub created_ms: u64,
    /// When it ends, in unix milliseconds; `None` is never.
    pub expires_ms: Option<u64>,
    /// When it was revoked, in unix milliseconds.
    pub revoked_ms: Option<u64>,
    /// What a presented key is compared with.
    pub digest: Digest,
}

impl KeyRecord {
    /// Whether the key is good at this time.
    ///
    /// # Errors
    /// If it is revoked or expired.
    pub fn check(&self, now_ms: u64) -> Result<(), Reason> {
        if self.revoked_ms.is_some() {
            return Err(Reason::CredentialRevoked);
        }
        if self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Err(Reason::CredentialExpired);
        }
        Ok(())
    }
}

/// A key in use.
#[derive(Debug)]
pub struct Key {
    /// What the store keeps of it.
    pub record: KeyRecord,
}

/// All keys, by digest. Replaced whole when one changes.
#[derive(Debug, Default)]
pub struct KeyRing {
    keys: HashMap<Digest, Arc<Key>>,
}

impl KeyRing {
    /// A ring of these keys.
    pub fn new(records: impl IntoIterator<Item = KeyRecord>) -> Self {
        let keys = records.into_iter().map(|record| (record.digest, Arc::new(Key { record })));
        Self { keys: keys.collect() }
    }

    /// The key with this digest, if it is good at this time.
    ///
    /// # Errors
    /// If it is unknown, expired or revoked; the client must not learn which.
    pub fn find(&self, digest: &Digest, now_ms: u64) -> Result<&Arc<Key>, Reason> {
        let key = self.keys.get(digest).ok_or(Reason::CredentialInvalid)?;
        key.record.check(now_ms)?;
        Ok(key)
    }

    /// Every key, in no order.
    #[must_use]
    pub fn iter(&self) -> Values<'_, Digest, Arc<Key>> {
        self.keys.values()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<'a> IntoIterator for &'a KeyRing {
    type Item = &'a Arc<Key>;
    type IntoIter = Values<'a, Digest, Arc<Key>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// 62^43 is just above 2^256.
const BODY_LENGTH: usize = 43;

/// 62^6 is above 2^32.
const CHECKSUM_LENGTH: usize = 6;

/// 48 bits: two of a million keys share an id with a chance below 1 in 500.
const ID_BYTES: usize = 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn checksum(text: &str) -> String {
    let mut number = [0; 32];
    number[28..].copy_from_slice(&crc32fast::hash(text.as_bytes()).to_be_bytes());
    base62(number, CHECKSUM_LENGTH)
}

/// A big-endian number in base 62, zeros in front.
fn base62(mut number: [u8; 32], length: usize) -> String {
    let mut digits = vec![0; length];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = ALPHABET[rest as usize];
    }
    String::from_utf8(digits).expect("the alphabet is ASCII")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(digest: Digest) -> KeyRecord {
        KeyRecord {
            id: digest.id(),
            name: "test".into(),
            scopes: vec!["read".into()],
            created_ms: 1000,
            expires_ms: Some(2000),
            revoked_ms: None,
            digest,
        }
    }

    fn digest_of(random: u8) -> Digest {
        Pepper::new([9; 32]).digest(Secret::mint("edged", &[random; 32]).expose())
    }

    #[test]
    fn a_key_has_its_stated_form() {
        // Computed apart from this code; keys in the field rest on it.
        let counted = Secret::mint("edged", &std::array::from_fn(|i| i as u8));
        assert_eq!(counted.expose(), "edged_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf_1oplit");
        let lowest = Secret::mint("edged", &[0; 32]);
        assert!(lowest.expose().starts_with(&format!("edged_{}_", "0".repeat(43))));
        let highest = Secret::mint("edged", &[0xff; 32]);
        assert_eq!(highest.expose().len(), 5 + 1 + 43 + 1 + 6);
        assert!(well_formed(highest.expose(), "edged"));
        assert!(!well_formed(highest.expose(), "other"));
        assert!(looks_like_key(Secret::mint("a_b", &[1; 32]).expose()));
        for text in ["", "_", "__", "edged__", "edged_x_y", "edged"] {
            assert!(!looks_like_key(text), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::mint("edged", &[3; 32]);
        let body = &secret.expose()[6..20];
        let pepper = Pepper::new([9; 32]);
        let digest = pepper.digest(secret.expose());
        let shown = format!("{secret:?} {pepper:?} {digest:?}");
        assert!(!shown.contains(body) && !shown.contains(&hex(&digest.0)), "{shown}");
    }

    #[test]
    fn a_digest_needs_the_pepper() {
        let (a, b) = (Pepper::new([1; 32]), Pepper::new([2; 32]));
        assert_ne!(a.digest("key"), b.digest("key"));
        assert_eq!(a.digest("key"), a.digest("key"));
    }

    #[test]
    fn only_a_live_key_is_found() {
        let ring = KeyRing::new([record(digest_of(1))]);
        assert_eq!(ring.find(&digest_of(1), 1999).unwrap().record.name, "test");
        assert_eq!(ring.find(&digest_of(1), 2000).unwrap_err(), Reason::CredentialExpired);
        assert_eq!(ring.find(&digest_of(2), 1500).unwrap_err(), Reason::CredentialInvalid);
        let revoked = KeyRecord { revoked_ms: Some(1200), ..record(digest_of(1)) };
        let ring = KeyRing::new([revoked]);
        assert_eq!(ring.find(&digest_of(1), 9999).unwrap_err(), Reason::CredentialRevoked);
    }

    #[test]
    fn records_survive_the_store() {
        let kept = serde_json::to_string(&record(digest_of(1))).unwrap();
        assert_eq!(serde_json::from_str::<KeyRecord>(&kept).unwrap(), record(digest_of(1)));
        assert!(serde_json::from_str::<Digest>("\"abcd\"").is_err());
    }

    proptest! {
        #[test]
        fn every_key_is_well_formed_and_its_own(a: [u8; 32], b: [u8; 32]) {
            let (x, y) = (Secret::mint("edged", &a), Secret::mint("edged", &b));
            prop_assert!(well_formed(x.expose(), "edged"));
            prop_assert_eq!(x.expose() == y.expose(), a == b);
        }

        #[test]
        fn one_changed_character_is_refused(random: [u8; 32], at in 0_usize..56, by in 1_u8..127) {
            let mut text = Secret::mint("edged", &random).expose().as_bytes().to_vec();
            text[at] = (text[at] ^ by) & 0x7f;
            prop_assert!(!well_formed(std::str::from_utf8(&text).unwrap(), "edged"));
        }

        #[test]
        fn no_text_breaks_the_check(text in "\\PC{0,80}") {
            prop_assert!(!well_formed(&text, "edged"));
        }
    }
}
