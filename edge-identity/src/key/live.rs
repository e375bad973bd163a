//! A key in use: what a request needs of its record, and what requests leave behind.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use edge_common::Reason;

use super::pepper::{Digest, PepperId};
use super::record::{BoundSecret, Extra, Grants, KeyId, KeyRecord};
use crate::signed::Signing;

/// A key in use. A million of them are held, so each is small; its end, its revocation and its
/// marks change in place, and take effect with the next look.
#[derive(Debug)]
pub struct Key {
    id: KeyId,
    digest: Digest,
    pepper: PepperId,
    /// Its name, and behind it its owner's.
    labels: Box<str>,
    name_length: u32,
    grants: Arc<Grants>,
    /// `u64::MAX` is never.
    expires_ms: AtomicU64,
    /// 0 is not.
    revoked_ms: AtomicU64,
    marks: AtomicU8,
    /// When it was last good for a request, in unix seconds; 0 is never. And as of the last save.
    used_s: AtomicU32,
    saved_s: AtomicU32,
    bound: Option<Box<Bound>>,
    signing: Option<Box<Signing>>,
}

/// A secret that comes with the key.
#[derive(Debug)]
struct Bound {
    secret: BoundSecret,
    /// The digest of a chosen secret, once its slow hash was found to be right.
    known: OnceLock<Digest>,
}

/// What is known of a key beside its times. Each is set once and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    /// It was sent where others could read it.
    Exposed = 1,
    /// Its slow hash was looked at, or is about to be.
    Checked = 2,
    /// Its new digest is on the way to the store.
    Renewing = 4,
    /// Its owner was told that it ends soon.
    Warned = 8,
    /// It was told that it has ended.
    Ended = 16,
    /// Another takes its place: it ends because its owner wanted that.
    Replaced = 32,
}

/// What a secret is worth that came with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretCheck<'a> {
    /// It is the one, or none is bound and none came.
    Right,
    /// It is not, or it is missing, or there should be none.
    Wrong,
    /// Only the slow hash can tell: this one, in PHC form.
    Ask(&'a str),
}

impl Key {
    /// The key of a record, with its grants as the ring shares them.
    #[must_use]
    pub(super) fn new(record: &KeyRecord, grants: Arc<Grants>) -> Self {
        let exposed = record.exposed().map_or(0, |_| Mark::Exposed as u8);
        let replaced = record.replaced_by().map_or(0, |_| Mark::Replaced as u8);
        let bound = record.extras.iter().find_map(|extra| match extra {
            Extra::Secret(secret) => Some(secret.clone()),
            _ => None,
        });
        Self {
            id: record.id,
            digest: record.digest,
            pepper: record.pepper,
            labels: [record.name.as_str(), &record.owner].concat().into(),
            name_length: u32::try_from(record.name.len()).expect("a name is short"),
            grants,
            expires_ms: AtomicU64::new(record.expires_ms.unwrap_or(u64::MAX)),
            revoked_ms: AtomicU64::new(record.revoked_ms.unwrap_or(0)),
            marks: AtomicU8::new(exposed | replaced),
            used_s: AtomicU32::new(0),
            saved_s: AtomicU32::new(0),
            bound: bound.map(|secret| Box::new(Bound { secret, known: OnceLock::new() })),
            signing: record.signing().cloned().map(Box::new),
        }
    }

    /// Takes over what requests left behind at the key in its place before.
    pub(super) fn inherit(&self, former: &Self) {
        // What was taken from it stays so, whatever the record in its place says.
        self.revoked_ms.fetch_max(former.revoked_ms.load(Relaxed), Relaxed);
        self.end(former.expires_ms.load(Relaxed));
        self.used_s.store(former.used_s.load(Relaxed), Relaxed);
        self.saved_s.store(former.saved_s.load(Relaxed), Relaxed);
        let lasting = [Mark::Exposed, Mark::Checked, Mark::Replaced];
        let lasting = lasting.into_iter().fold(0, |all, mark| all | mark as u8);
        self.marks.fetch_or(former.marks.load(Relaxed) & lasting, Relaxed);
    }

    /// Its public name.
    #[must_use]
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// What a presented key is compared with.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The pepper under which that was made.
    #[must_use]
    pub const fn pepper(&self) -> PepperId {
        self.pepper
    }

    /// What its owner calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.labels[..self.name_length as usize]
    }

    /// Who answers for it; may be empty.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.labels[self.name_length as usize..]
    }

    /// What it was given.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// How it signs requests. Such a key is good for signed ones only.
    #[must_use]
    pub fn signing(&self) -> Option<&Signing> {
        self.signing.as_deref()
    }

    /// When it ends, in unix milliseconds; `None` is never.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        Some(self.expires_ms.load(Relaxed)).filter(|at| *at != u64::MAX)
    }

    /// When it was last good for a request, in unix seconds; `None` is never.
    #[must_use]
    pub fn used_s(&self) -> Option<u32> {
        Some(self.used_s.load(Relaxed)).filter(|at| *at != 0)
    }

    /// Whether this is known of it.
    #[must_use]
    pub fn has(&self, mark: Mark) -> bool {
        self.marks.load(Relaxed) & mark as u8 != 0
    }

    /// Notes this of it; whether it was not known before.
    pub fn mark(&self, mark: Mark) -> bool {
        // Most of the time it is known, and a read leaves the cache line where it is.
        !self.has(mark) && self.marks.fetch_or(mark as u8, Relaxed) & mark as u8 == 0
    }

    /// Takes a note back, so that it can be made again.
    pub fn unmark(&self, mark: Mark) {
        self.marks.fetch_and(!(mark as u8), Relaxed);
    }

    /// Ends it at this time, in unix milliseconds, in place of a later end.
    pub fn end(&self, at_ms: u64) {
        self.expires_ms.fetch_min(at_ms, Relaxed);
    }

    /// Revokes it: whoever looks after this has returned finds it revoked.
    pub fn revoke(&self, at_ms: u64) {
        self.revoked_ms.store(at_ms.max(1), Relaxed);
    }

    /// Whether it is good at this time. Looks at all of it, whatever it finds, so that what is wrong
    /// with a key cannot be told from the time it takes.
    ///
    /// # Errors
    /// Why not; the client must not learn it.
    pub fn check(&self, now_ms: u64, refuse_exposed: bool) -> Result<(), Reason> {
        let revoked = self.revoked_ms.load(Relaxed) != 0;
        let expired = self.expires_ms.load(Relaxed) <= now_ms;
        let marks = self.marks.load(Relaxed);
        let exposed = refuse_exposed & (marks & Mark::Exposed as u8 != 0);
        match (revoked, expired, exposed) {
            (false, false, false) => Ok(()),
            (true, ..) => Err(Reason::CredentialRevoked),
            (_, true, _) => Err(Reason::CredentialExpired),
            (.., true) => Err(Reason::CredentialExposed),
        }
    }

    /// Notes that it was good for a request; written once a second at most.
    pub fn touch(&self, now_ms: u64) {
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        if self.used_s.load(Relaxed) != now_s {
            self.used_s.store(now_s, Relaxed);
        }
    }

    /// When it was last used, if that is not saved; it counts as saved from now on.
    #[must_use]
    pub fn take_unsaved(&self) -> Option<u32> {
        let used_s = self.used_s.load(Relaxed);
        (self.saved_s.swap(used_s, Relaxed) != used_s).then_some(used_s)
    }

    /// What was saved of its last use before this start.
    pub fn restore_use(&self, used_s: u32) {
        self.used_s.store(used_s, Relaxed);
        self.saved_s.store(used_s, Relaxed);
    }

    /// What a secret is worth that came with it. Compares in constant time.
    #[must_use]
    pub fn check_secret(&self, presented: Option<&str>) -> SecretCheck<'_> {
        let (bound, presented) = match (&self.bound, presented) {
            (None, None) => return SecretCheck::Right,
            (None, Some(_)) | (Some(_), None) => return SecretCheck::Wrong,
            (Some(bound), Some(presented)) => (bound, presented),
        };
        let known = match (&bound.secret, bound.known.get()) {
            (BoundSecret::Random(digest), _) | (_, Some(digest)) => digest,
            (BoundSecret::Chosen(phc), None) => return SecretCheck::Ask(phc),
        };
        if BoundSecret::digest(&self.id, presented) == *known {
            SecretCheck::Right
        } else {
            SecretCheck::Wrong
        }
    }

    /// Remembers the secret that its slow hash was found to be right for.
    pub fn learn_secret(&self, presented: &str) {
        if let Some(bound) = &self.bound {
            // Of two that learn it at once, both know the same.
            let _ = bound.known.set(BoundSecret::digest(&self.id, presented));
        }
    }
}
