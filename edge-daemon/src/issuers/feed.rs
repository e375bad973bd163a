//! The keys of one issuer as they are now, and the requests that wait for newer ones.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use edge_identity::jwt::KeySet;
use tokio::sync::{Notify, watch};

use super::Issuers;
use crate::{clock, fetch::Url};

/// Where an issuer's keys are fetched, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where they are, or where it is told where they are.
    pub place: Place,
    /// A PEM file with the authorities that the issuer's host must be certified by; `None` are
    /// those that this host trusts.
    pub authorities: Option<PathBuf>,
    /// For how long keys are fresh, if the answer does not say.
    pub fresh: Duration,
    /// For how long at the least, whatever the answer says.
    pub fresh_min: Duration,
    /// For how long at the most, whatever the answer says.
    pub fresh_max: Duration,
    /// Between the end of one fetch and the begin of the next, at the least.
    pub cooldown: Duration,
    /// For how long keys are used that cannot be fetched again.
    pub stale: Duration,
    /// For a whole fetch.
    pub timeout: Duration,
    /// For which a request waits for a fetch.
    pub wait: Duration,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this URL.
    Jwks(Url),
    /// At the `jwks_uri` of the metadata at this URL, which must be this issuer's.
    Discovery(Url, String),
}

/// One state of an issuer's keys.
#[derive(Debug)]
pub struct Keys {
    /// Its number, which no other state of any feed has.
    pub number: u64,
    /// The keys.
    pub set: KeySet,
    /// When they were fetched or confirmed, in unix milliseconds.
    pub at_ms: AtomicU64,
}

/// The keys of one issuer.
pub struct Feed {
    /// What the operator calls the issuer.
    pub name: String,
    /// Where they are fetched; `None` if they lie on this host.
    pub source: Option<Source>,
    keys: ArcSwapOption<Keys>,
    /// Fetches that have ended.
    ended: watch::Sender<u64>,
    /// Rung by a request that found no key.
    pub(super) wanted: Notify,
    /// Before this, in boot nanoseconds, nothing is fetched; `u64::MAX` while a fetch is under way.
    not_before_ns: AtomicU64,
    waiting: AtomicUsize,
    /// Fetches that brought keys.
    pub fetched: AtomicU64,
    /// Fetches that did not.
    pub failed: AtomicU64,
}

impl Feed {
    /// Keys that lie on this host.
    #[must_use]
    pub fn fixed(name: &str, set: KeySet) -> Self {
        let feed = Self::empty(name, None);
        feed.put(set);
        feed
    }

    fn empty(name: &str, source: Option<Source>) -> Self {
        Self {
            name: name.to_owned(),
            source,
            keys: ArcSwapOption::empty(),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
            not_before_ns: AtomicU64::new(u64::MAX),
            waiting: AtomicUsize::new(0),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// The keys in force; `None` before the first fetch, or when they are too old.
    #[must_use]
    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// Puts keys in force. The same keys again are only confirmed: what was verified stays so.
    pub(super) fn put(&self, set: KeySet) {
        let now_ms = clock::unix_ms();
        if let Some(former) = self.keys.load().as_ref()
            && former.set.is_same(&set)
        {
            former.at_ms.store(now_ms, Relaxed);
            return;
        }
        let number = NUMBERS.fetch_add(1, Relaxed);
        self.keys.store(Some(Arc::new(Keys { number, set, at_ms: AtomicU64::new(now_ms) })));
    }

    /// Forgets keys that were confirmed longer ago than they may be used.
    pub(super) fn drop_stale(&self, stale: Duration) {
        let stale_ms = u64::try_from(stale.as_millis()).unwrap_or(u64::MAX);
        let now_ms = clock::unix_ms();
        let is_old = |keys: &Arc<Keys>| keys.at_ms.load(Relaxed).saturating_add(stale_ms) < now_ms;
        if self.keys.load().as_ref().is_some_and(is_old) {
            self.keys.store(None);
            tracing::error!(issuer = self.name, "its keys are too old: its tokens are refused");
        }
    }

    /// A fetch begins.
    pub(super) fn begin(&self) {
        self.not_before_ns.store(u64::MAX, Release);
    }

    /// A fetch has ended; the next may begin after `cooldown`.
    pub(super) fn end(&self, cooldown: Duration) {
        let cooldown_ns = u64::try_from(cooldown.as_nanos()).unwrap_or(u64::MAX);
        self.not_before_ns.store(clock::boot_ns().saturating_add(cooldown_ns), Release);
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// Asks for keys newer than `seen`, and waits for them at most as long as the source allows.
    /// However many ask, one fetch serves all, and none begins before the cooldown is over.
    ///
    /// Whether the keys are now all that there are: a fetch that began since has brought them, or
    /// they lie on this host.
    pub async fn refresh(&self, seen: Option<u64>) -> bool {
        let Some(source) = &self.source else { return true };
        let mut ended = self.ended.subscribe();
        if self.keys().map(|keys| keys.number) != seen {
            return false;
        }
        let fetched = self.fetched.load(Relaxed);
        let not_before_ns = self.not_before_ns.load(Acquire);
        let is_running = not_before_ns == u64::MAX;
        if !is_running && clock::boot_ns() < not_before_ns {
            return false;
        }
        let Some(_place) = Seat::take(&self.waiting) else { return false };
        if !is_running {
            self.wanted.notify_one();
        }
        let _ = tokio::time::timeout(source.wait, ended.changed()).await;
        // One that was under way may have been answered before the key was there.
        !is_running && self.fetched.load(Relaxed) != fetched
    }

    /// How old the keys in force are, in milliseconds, and how many they are.
    #[must_use]
    pub fn age_and_count(&self) -> Option<(u64, usize)> {
        let keys = self.keys()?;
        let age_ms = clock::unix_ms().saturating_sub(keys.at_ms.load(Relaxed));
        Some((age_ms, keys.set.keys().len()))
    }
}

/// The place of one request among those that wait.
struct Seat<'f>(&'f AtomicUsize);

impl<'f> Seat<'f> {
    fn take(waiting: &'f AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, AcqRel) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

/// Every feed that fetches, through all reloads: keys at the same place are fetched once.
pub struct Feeds {
    known: Mutex<Vec<Arc<Feed>>>,
    published: watch::Sender<Vec<Arc<Feed>>>,
    numbers: AtomicU64,
}

impl Default for Feeds {
    fn default() -> Self {
        let published = watch::Sender::new(Vec::new());
        Self { known: Mutex::default(), published, numbers: AtomicU64::new(1) }
    }
}

impl Feeds {
    /// The feed from this source: that which exists, or a new one.
    pub(super) fn of(&self, name: &str, source: &Source) -> Arc<Feed> {
        let mut known = self.known();
        let same = |feed: &&Arc<Feed>| feed.name == name && feed.source.as_ref() == Some(source);
        if let Some(feed) = known.iter().find(same) {
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed::empty(name, Some(source.clone())));
        known.push(Arc::clone(&feed));
        feed
    }

    /// From now on the feeds of these issuers are in use, and kept fresh.
    pub fn publish(&self, issuers: &Issuers) {
        let feeds: Vec<_> = issuers.all.iter().map(|(_, feed)| Arc::clone(feed)).collect();
        let in_use = |known: &Arc<Feed>| feeds.iter().any(|feed| Arc::ptr_eq(feed, known));
        self.known().retain(in_use);
        self.published.send_replace(feeds);
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Arc<Feed>>> {
        self.published.subscribe()
    }

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Those in use.
    #[must_use]
    pub fn in_use(&self) -> Vec<Arc<Feed>> {
        self.published.borrow().clone()
    }
}

/// Requests that wait for one feed; more are refused at once.
const WAITING_MAX: usize = 256;

static NUMBERS: AtomicU64 = AtomicU64::new(1);
