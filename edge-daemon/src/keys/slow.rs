//! Argon2id, off the path of requests: a thread of its own, a bounded queue before it.
//!
//! A key that is known and good is checked once after each start against the hash in the store. Its
//! 256 random bits are proved by the keyed digest alone, so requests do not wait for this: what it
//! finds out is that somebody changed a digest in the store and not the hash. A secret that somebody chose
//! may be guessable, so a request with one does wait, until its hash was found to be right once.

use std::{
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use edge_identity::key::{Key, Mark};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Order, Orders};
use crate::{metrics::Metrics, store::Store};

/// What OWASP asks of Argon2id for passwords: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Checks that wait; each holds a key or a secret in memory.
const QUEUE: usize = 256;

/// The thread sleeps so many times as long as it has worked: of one core it takes a quarter.
const REST: u32 = 3;

enum Job {
    Key(Arc<Key>, Zeroizing<String>),
    Secret(String, Zeroizing<String>, oneshot::Sender<bool>),
}

/// The way to the thread that hashes.
pub struct Slow {
    jobs: SyncSender<Job>,
}

/// The thread that hashes, before it runs.
pub struct Hasher {
    jobs: Receiver<Job>,
    store: Arc<Store>,
    orders: Orders,
    metrics: Arc<Metrics>,
}

impl Slow {
    /// The way to a thread that is still to be run.
    #[must_use]
    pub fn new(store: Arc<Store>, orders: Orders, metrics: Arc<Metrics>) -> (Self, Hasher) {
        let (queue, jobs) = sync_channel(QUEUE);
        (Self { jobs: queue }, Hasher { jobs, store, orders, metrics })
    }

    /// Has a key checked against its hash in the store, unless that was done or too many wait; then
    /// its next request asks again. Never waits.
    pub fn check(&self, key: &Arc<Key>, text: &str) {
        if key.mark(Mark::Checked) {
            let job = Job::Key(Arc::clone(key), Zeroizing::new(text.to_owned()));
            if self.jobs.try_send(job).is_err() {
                key.unmark(Mark::Checked);
            }
        }
    }

    /// Whether a secret is the one of this hash, in PHC form; `None` if too many wait.
    pub async fn ask(&self, hash: &str, secret: &str) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Secret(hash.to_owned(), Zeroizing::new(secret.to_owned()), answer);
        self.jobs.try_send(job).ok()?;
        answered.await.ok()
    }
}

impl Hasher {
    /// Checks until nobody can ask any more.
    pub fn run(self) {
        while let Ok(job) = self.jobs.recv() {
            let started = Instant::now();
            self.metrics.keys.hashed.fetch_add(1, Relaxed);
            match job {
                Job::Key(key, text) => {
                    self.check(&key, &text);
                    thread::sleep(started.elapsed() * REST);
                }
                // Somebody waits.
                Job::Secret(hash, secret, answer) => {
                    let _ = answer.send(matches(&hash, &secret));
                }
            }
        }
    }

    fn check(&self, key: &Arc<Key>, text: &str) {
        match self.store.key_hash(key.id()) {
            Ok(Some(hash)) if !matches(&hash, text) => {
                key.mark(Mark::Forged);
                self.orders.give(Order::Forged(Arc::clone(key)));
            }
            // One made while only digests were kept has none. Nothing in its record could tell it from a
            // forged one: who has the pepper and writes records can write hashes too.
            Ok(_) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, key = %key.id(), "a key's hash cannot be read");
                key.unmark(Mark::Checked);
            }
        }
    }
}

/// The Argon2id hash of a key or a secret, in PHC form.
///
/// # Errors
/// If there is no randomness for the salt.
pub fn hash(text: &str) -> anyhow::Result<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|fault| anyhow::anyhow!("no randomness: {fault}"))?;
    let hash = argon2()
        .hash_password_with_salt(text.as_bytes(), &salt)
        .map_err(|fault| anyhow::anyhow!("cannot hash: {fault}"))?;
    Ok(hash.to_string())
}

/// Whether a text is the one of this hash. One that is no Argon2id hash, or would take more than
/// ours, is nobody's.
pub(super) fn matches(hash: &str, text: &str) -> bool {
    is_hash(hash)
        && PasswordHash::new(hash)
            .is_ok_and(|hash| argon2().verify_password(text.as_bytes(), &hash).is_ok())
}

/// Whether this is an Argon2id hash in PHC form that can be checked here.
#[must_use]
pub fn is_hash(hash: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    let cost = |name| parsed.params.get_decimal(name).unwrap_or(u32::MAX);
    hash.starts_with("$argon2id$v=19$")
        && cost("m") <= COST_MAX * MEMORY_KIB
        && cost("t") <= COST_MAX * PASSES
        && cost("p") <= COST_MAX * LANES
        && parsed.hash.is_some()
}

/// Imported hashes may cost so many times as much in each of their parameters.
const COST_MAX: u32 = 4;

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("they are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_knows_its_text_and_tells_its_cost() {
        let hash = hash("hunter2").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(matches(&hash, "hunter2") && !matches(&hash, "hunter3"));
        assert!(is_hash(&hash));
        for strange in [
            "",
            "hunter2",
            "$2b$12$abcdefghijklmnopqrstuv",
            &hash.replace("argon2id", "argon2i"),
            &hash.replace("m=19456", "m=4000000"),
            &hash.replace("t=2", "t=1000000"),
        ] {
            assert!(!is_hash(strange) && !matches(strange, "hunter2"), "{strange}");
        }
    }
}
