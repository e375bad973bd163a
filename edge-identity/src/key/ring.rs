//! All keys in memory, found by digest and by id.
//!
//! A hash table whose buckets are replaced whole: a bucket is an array that never changes, and a
//! change swaps in another for the few dozen keys that share it. Readers take no lock and never
//! wait; a million keys cost a change no more than sixty.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::live::{Key, Mark};
use super::pepper::{Digest, PepperId};
use super::record::{Grants, KeyId, KeyRecord};

/// All keys.
#[derive(Debug)]
pub struct KeyRing {
    by_digest: Index,
    by_id: Index,
    /// Held by whoever changes the ring: one at a time.
    writing: Mutex<Shared>,
    count: AtomicUsize,
    /// Judged in the place of a key that is not there, which takes as long.
    pub(super) decoy: Key,
}

/// Grants that keys share.
#[derive(Debug, Default)]
struct Shared {
    grants: HashSet<Arc<Grants>>,
    /// How many there may be before those that nobody has are cleared away.
    next_look: usize,
}

/// Keys by one of their names.
#[derive(Debug)]
struct Index {
    buckets: Box<[ArcSwap<Bucket>]>,
}

/// A few dozen keys. Each has a tag of sixteen bits beside the others' in one or two cache lines,
/// so that of the keys themselves hardly any but the right one is looked at.
#[derive(Debug, Default)]
struct Bucket {
    tags: Box<[u16]>,
    keys: Box<[Arc<Key>]>,
}

/// Where a name leads: the upper bits choose its bucket, the lowest sixteen are its tag there.
#[derive(Clone, Copy)]
struct Way(u64);

impl Way {
    const fn tag(self) -> u16 {
        self.0 as u16
    }

    /// Digests are random already, and nobody outside can choose them.
    fn of_digest(digest: &Digest) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    fn of_id(id: &KeyId) -> Self {
        let mut start = [0; 8];
        let hash = blake3::hash(id.as_str().as_bytes());
        start.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_be_bytes(start))
    }
}

impl Default for KeyRing {
    fn default() -> Self {
        Self::with_buckets(BUCKETS)
    }
}

impl KeyRing {
    fn with_buckets(buckets: usize) -> Self {
        let decoy = KeyRecord {
            id: Digest([0; 32]).id(),
            digest: Digest([0; 32]),
            pepper: PepperId::default(),
            name: String::new(),
            owner: String::new(),
            grants: Grants::default(),
            created_ms: 0,
            expires_ms: None,
            revoked_ms: None,
            extras: Vec::new(),
        };
        Self {
            by_digest: Index::new(buckets),
            by_id: Index::new(buckets),
            writing: Mutex::default(),
            count: AtomicUsize::new(0),
            decoy: Key::new(&decoy, Arc::default()),
        }
    }

    /// A ring of these keys; of those with one id the last stands. Each is told with what was saved
    /// of its last use, in unix seconds.
    #[must_use]
    pub fn load(records: impl IntoIterator<Item = (KeyRecord, Option<u32>)>) -> Self {
        let ring = Self::default();
        let mut by_digest = vec![Vec::new(); BUCKETS];
        let mut by_id = by_digest.clone();
        let mut shared = ring.lock();
        for (record, used_s) in records {
            let key = Arc::new(Key::new(&record, shared.share(&record.grants)));
            if let Some(used_s) = used_s {
                key.restore_use(used_s);
            }
            by_digest[ring.by_digest.place(Way::of_digest(key.digest()))].push(Arc::clone(&key));
            by_id[ring.by_id.place(Way::of_id(key.id()))].push(key);
        }
        drop(shared);
        let count = by_id.iter().map(Vec::len).sum();
        ring.by_digest.fill(by_digest, |key| Way::of_digest(key.digest()));
        ring.by_id.fill(by_id, |key| Way::of_id(key.id()));
        ring.count.store(count, Relaxed);
        ring
    }

    /// Adds a key, or puts it in the place of the one with its id, whose last use and end it
    /// keeps.
    pub fn put(&self, record: &KeyRecord) -> Arc<Key> {
        let mut shared = self.lock();
        let key = Arc::new(Key::new(record, shared.share(&record.grants)));
        let id_way = Way::of_id(&record.id);
        let former = self.by_id.find(id_way, |other| other.id() == key.id());
        if let Some(former) = &former {
            key.inherit(former);
        } else {
            self.count.fetch_add(1, Relaxed);
        }
        // The new one is found before the old one is gone: a key that is renewed is always there.
        let (way, is_it) = (Way::of_digest(key.digest()), |other: &Key| other.id() == key.id());
        self.by_digest.replace(way, is_it, Some(&key));
        self.by_id.replace(id_way, is_it, Some(&key));
        if let Some(former) = former.filter(|former| former.digest() != key.digest()) {
            // Both may share a bucket, so it is known by its digest here.
            let is_former = |other: &Key| is_it(other) && other.digest() == former.digest();
            self.by_digest.replace(Way::of_digest(former.digest()), is_former, None);
        }
        key
    }

    /// Takes a key out; whether it was there.
    pub fn remove(&self, id: &KeyId) -> bool {
        let _writing = self.lock();
        let way = Way::of_id(id);
        let Some(key) = self.by_id.find(way, |key| key.id() == id) else { return false };
        self.by_digest.replace(Way::of_digest(key.digest()), |key| key.id() == id, None);
        self.by_id.replace(way, |key| key.id() == id, None);
        self.count.fetch_sub(1, Relaxed);
        true
    }

    /// The key with this digest, good or not.
    #[must_use]
    pub fn by_digest(&self, digest: &Digest) -> Option<Arc<Key>> {
        self.by_digest.find(Way::of_digest(digest), |key| key.digest() == digest)
    }

    /// The key with this id, good or not.
    #[must_use]
    pub fn by_id(&self, id: &KeyId) -> Option<Arc<Key>> {
        self.by_id.find(Way::of_id(id), |key| key.id() == id)
    }

    /// The keys of one of [`BUCKETS`] buckets, as they are now: for whoever looks at all keys.
    #[must_use]
    pub fn bucket(&self, number: usize) -> Vec<Arc<Key>> {
        self.by_id.buckets[number].load().keys.to_vec()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks a key, if it is there; whether it was not marked before.
    pub fn mark(&self, id: &KeyId, mark: Mark) -> bool {
        self.by_id(id).is_some_and(|key| key.mark(mark))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn share(&mut self, grants: &Grants) -> Arc<Grants> {
        if let Some(known) = self.grants.get(grants) {
            return Arc::clone(known);
        }
        if self.grants.len() >= self.next_look {
            self.grants.retain(|grants| Arc::strong_count(grants) > 1);
            self.next_look = 2 * self.grants.len().max(1024);
        }
        let grants = Arc::new(grants.clone());
        self.grants.insert(Arc::clone(&grants));
        grants
    }
}

impl Index {
    fn new(buckets: usize) -> Self {
        let empty = Arc::new(Bucket::default());
        Self { buckets: (0..buckets).map(|_| ArcSwap::new(Arc::clone(&empty))).collect() }
    }

    const fn place(&self, way: Way) -> usize {
        (way.0 >> 32) as usize % self.buckets.len()
    }

    fn find(&self, way: Way, is_it: impl Fn(&Key) -> bool) -> Option<Arc<Key>> {
        let bucket = self.buckets[self.place(way)].load();
        let tagged = bucket.tags.iter().zip(&bucket.keys).filter(|(tag, _)| **tag == way.tag());
        tagged.map(|(_, key)| key).find(|key| is_it(key)).cloned()
    }

    /// Puts a key in the place of the one that `is_it` knows, or at the end; or takes that one out.
    fn replace(&self, way: Way, is_it: impl Fn(&Key) -> bool, by: Option<&Arc<Key>>) {
        let place = &self.buckets[self.place(way)];
        let former = place.load();
        let kept = former.tags.iter().zip(&former.keys).filter(|(_, key)| !is_it(key));
        let all = kept.map(|(tag, key)| (*tag, Arc::clone(key)));
        let all = all.chain(by.map(|key| (way.tag(), Arc::clone(key))));
        place.store(Arc::new(Bucket::of(all)));
    }

    /// Fills an empty index.
    fn fill(&self, buckets: Vec<Vec<Arc<Key>>>, way: impl Fn(&Key) -> Way) {
        for (place, keys) in self.buckets.iter().zip(buckets).filter(|(_, keys)| !keys.is_empty()) {
            place.store(Arc::new(Bucket::of(keys.into_iter().map(|key| (way(&key).tag(), key)))));
        }
    }
}

impl Bucket {
    fn of(entries: impl Iterator<Item = (u16, Arc<Key>)>) -> Self {
        let (tags, keys): (Vec<_>, Vec<_>) = entries.unzip();
        Self { tags: tags.into(), keys: keys.into() }
    }
}

/// Buckets of the ring: sixty keys in each of them if there are a million, and 256 KiB if there
/// are none.
pub const BUCKETS: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edge_common::Reason;
    use proptest::prelude::*;

    use super::super::tests::record;
    use super::*;

    fn ring(records: impl IntoIterator<Item = KeyRecord>) -> KeyRing {
        KeyRing::load(records.into_iter().map(|record| (record, None)))
    }

    #[test]
    fn a_change_in_place_is_seen_by_whoever_holds_the_key() {
        let ring = ring([record(1), record(2)]);
        let key = ring.by_digest(&record(1).digest).unwrap();
        assert_eq!(key.check(1999, false), Ok(()));
        assert_eq!(key.check(2000, false), Err(Reason::CredentialExpired));
        ring.by_id(&record(1).id).unwrap().end(1500);
        assert_eq!(key.check(1500, false), Err(Reason::CredentialExpired));
        key.end(9999);
        assert_eq!(key.expires_ms(), Some(1500), "an end is never put off");
        ring.by_id(&record(1).id).unwrap().revoke(1200);
        assert_eq!(key.check(1300, false), Err(Reason::CredentialRevoked));
        assert_eq!(ring.by_id(&record(2).id).unwrap().check(1300, false), Ok(()));
    }

    #[test]
    fn an_exposed_key_is_refused_only_where_that_is_wanted() {
        let ring = ring([record(1)]);
        assert!(
            ring.mark(&record(1).id, Mark::Exposed) && !ring.mark(&record(1).id, Mark::Exposed)
        );
        let key = ring.by_id(&record(1).id).unwrap();
        assert_eq!(key.check(1500, false), Ok(()));
        assert_eq!(key.check(1500, true), Err(Reason::CredentialExposed));
    }

    #[test]
    fn a_renewed_key_keeps_its_past_and_loses_its_former_digest() {
        let ring = ring([record(1)]);
        let key = ring.by_id(&record(1).id).unwrap();
        key.touch(1_500_000);
        let renewed = KeyRecord { digest: record(9).digest, ..record(1) };
        ring.put(&renewed);
        assert!(ring.by_digest(&record(1).digest).is_none());
        let key = ring.by_digest(&record(9).digest).unwrap();
        assert_eq!((key.id(), key.used_s(), ring.len()), (&record(1).id, Some(1500), 1));
        assert_eq!((key.take_unsaved(), key.take_unsaved()), (Some(1500), None));
    }

    #[test]
    fn equal_grants_are_shared_and_cleared_away() {
        let ring = ring((0..100).map(record));
        assert_eq!(ring.lock().grants.len(), 1);
        for n in 0..5000_u32 {
            let mut changing = record(1);
            changing.grants.tier = Some(n.to_string());
            ring.put(&changing);
        }
        let grants = ring.lock().grants.len();
        assert!(grants < 2500, "{grants}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is done to it, the ring holds what a plain map would.
        #[test]
        fn the_ring_is_a_map(steps in prop::collection::vec((0_u8..4, 0_u32..20, 0_u32..40), 0..120)) {
            let (ring, mut map) = (KeyRing::with_buckets(3), BTreeMap::<KeyId, KeyRecord>::new());
            for (what, number, digest) in steps {
                let changed = KeyRecord { digest: record(1000 + digest).digest, ..record(number) };
                let taken = map.values().any(|r| r.digest == changed.digest && r.id != changed.id);
                match what {
                    0 | 1 if !taken => {
                        ring.put(&changed);
                        map.insert(changed.id, changed);
                    }
                    2 => {
                        prop_assert_eq!(ring.remove(&changed.id), map.remove(&changed.id).is_some());
                    }
                    _ => {}
                }
                prop_assert_eq!(ring.len(), map.len());
                for number in 0..20 {
                    let id = record(number).id;
                    let found = ring.by_id(&id).map(|key| *key.digest());
                    prop_assert_eq!(found, map.get(&id).map(|record| record.digest));
                }
                for digest in 0..40 {
                    let digest = record(1000 + digest).digest;
                    let found = ring.by_digest(&digest).map(|key| *key.id());
                    prop_assert_eq!(found, map.values().find(|r| r.digest == digest).map(|r| r.id));
                }
                let listed: usize = (0..3).map(|n| ring.bucket(n).len()).sum();
                prop_assert_eq!(listed, map.len());
            }
        }
    }
}
