//! Tokens whose signature was checked, so that it is not checked again for every request.
//!
//! An entry is found by a keyed digest of all of the token's bytes and holds only under the policy
//! and the keys that it was verified with. It says what the token says, and nothing of whether it
//! is good: times, denylist, sender and audience are judged every time.

use std::collections::HashMap;
use std::sync::Arc;

use zeroize::Zeroizing;

/// What was made of verified tokens, bounded in bytes. For one thread.
#[derive(Debug)]
pub struct Cache<T> {
    secret: Zeroizing<[u8; 32]>,
    half_bytes: usize,
    young: Generation<T>,
    /// What was young before; what is asked for becomes young again, the rest goes at once.
    old: Generation<T>,
}

#[derive(Debug)]
struct Generation<T> {
    entries: HashMap<[u8; 32], Entry<T>>,
    bytes: usize,
}

impl<T> Default for Generation<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), bytes: 0 }
    }
}

#[derive(Debug)]
struct Entry<T> {
    under: Under,
    until_ms: u64,
    bytes: usize,
    token: Arc<T>,
}

/// What a token was verified under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Under {
    /// The number of the configuration's state.
    pub policy: u64,
    /// The place of the issuer in it.
    pub issuer: usize,
    /// The number of the issuer's set of keys.
    pub keys: u64,
}

/// A token's name in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Digest([u8; 32]);

impl<T> Cache<T> {
    /// A cache of about `bytes_max` bytes; `secret` is random, so that nobody can aim at an entry.
    #[must_use]
    pub fn new(secret: impl Into<Zeroizing<[u8; 32]>>, bytes_max: usize) -> Self {
        let (young, old) = (Generation::default(), Generation::default());
        Self { secret: secret.into(), half_bytes: bytes_max / 2, young, old }
    }

    /// The token's name here.
    #[must_use]
    pub fn digest(&self, token: &str) -> Digest {
        Digest(*blake3::keyed_hash(&self.secret, token.as_bytes()).as_bytes())
    }

    /// The token with this name and the place of its issuer, if it was verified under what `holds`
    /// says is still in force.
    pub fn find(
        &mut self,
        digest: Digest,
        now_ms: u64,
        holds: impl Fn(Under) -> bool,
    ) -> Option<(usize, Arc<T>)> {
        let good = |entry: &Entry<T>| entry.until_ms > now_ms && holds(entry.under);
        if let Some(entry) = self.young.entries.get(&digest.0) {
            return good(entry).then(|| (entry.under.issuer, Arc::clone(&entry.token)));
        }
        let entry = self.old.entries.remove(&digest.0)?;
        self.old.bytes -= entry.bytes;
        if !good(&entry) {
            return None;
        }
        let found = (entry.under.issuer, Arc::clone(&entry.token));
        self.insert(digest, entry);
        Some(found)
    }

    /// Remembers a token of `bytes` bytes until this time, at most.
    pub fn put(
        &mut self,
        digest: Digest,
        under: Under,
        token: Arc<T>,
        bytes: usize,
        until_ms: u64,
    ) {
        let bytes = ENTRY_BYTES + CLAIMS_FACTOR * bytes;
        self.insert(digest, Entry { under, until_ms, bytes, token });
    }

    /// Forgets a token, so that it is verified again when it comes again.
    pub fn forget(&mut self, digest: Digest) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(entry) = generation.entries.remove(&digest.0) {
                generation.bytes -= entry.bytes;
            }
        }
    }

    fn insert(&mut self, digest: Digest, entry: Entry<T>) {
        if entry.bytes > self.half_bytes {
            return;
        }
        if self.young.bytes + entry.bytes > self.half_bytes {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += entry.bytes;
        if let Some(former) = self.young.entries.insert(digest.0, entry) {
            self.young.bytes -= former.bytes;
        }
    }

    /// What the entries take, about.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.young.bytes + self.old.bytes
    }
}

/// What an entry takes beside the token's claims.
const ENTRY_BYTES: usize = 600;
/// Claims in a tree of values take several times the room of their text.
const CLAIMS_FACTOR: usize = 4;
