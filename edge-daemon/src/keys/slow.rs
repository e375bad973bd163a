//! Argon2id, off the path of requests: a thread of its own, a bounded queue before it.
//!
//! A key that is known and good is checked once after each start against the hash in the store. Its
//! 256 random bits are proved by the keyed digest alone, so requests do not wait for this: what it
//! finds out is that somebody changed a digest in the store and not the hash. A secret that somebody chose
//! may be guessable, so a request with one does wait, until its hash was found to be right once. Of
//! one key, one secret is looked at at a time: who holds a key and guesses makes others of that key
//! wait, and nobody else.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use edge_identity::key::{Key, KeyId, Mark, SecretCheck};
use tokio::sync::{OwnedMutexGuard, oneshot};
use zeroize::Zeroizing;

use super::{Order, Orders};
use crate::{clock, metrics::Metrics, store::Store};

/// What OWASP asks of Argon2id for passwords: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Checks that wait; each holds a key or a secret in memory.
const QUEUE: usize = 256;

/// Secrets of one key that wait or are looked at; each holds a request.
const ASKING_MAX: usize = 32;

/// The thread sleeps so many times as long as it has worked: of one core it takes a quarter.
const REST: u32 = 3;

/// Between two looks whether the thread that changes keys has room for an order.
const ROOM_WAIT: Duration = Duration::from_millis(50);

enum Job {
    Key(Arc<Key>, Zeroizing<String>),
    /// The turn of its key ends with it, whether or not anybody still waits.
    Secret(Arc<Key>, Zeroizing<String>, oneshot::Sender<bool>, OwnedMutexGuard<()>),
}

/// Whose turn it is among those who ask about one key.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The way to the thread that hashes.
pub struct Slow {
    jobs: SyncSender<Job>,
    turns: Mutex<HashMap<KeyId, Turn>>,
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
        (Self::to(queue), Hasher { jobs, store, orders, metrics })
    }

    fn to(jobs: SyncSender<Job>) -> Self {
        Self { jobs, turns: Mutex::default() }
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

    /// Whether a secret is the one that was chosen for this key, which then knows it; `None` if too
    /// many wait.
    pub async fn ask(&self, key: &Arc<Key>, secret: &str) -> Option<bool> {
        let turn = self.turn(key.id())?.lock_owned().await;
        // Whoever went before may have had the right one.
        match key.check_secret(Some(secret)) {
            SecretCheck::Ask(_) => {}
            known => return Some(known == SecretCheck::Right),
        }
        let (answer, answered) = oneshot::channel();
        let secret = Zeroizing::new(secret.to_owned());
        self.jobs.try_send(Job::Secret(Arc::clone(key), secret, answer, turn)).ok()?;
        answered.await.ok()
    }

    /// The turns of a key, unless too many wait for theirs.
    fn turn(&self, id: &KeyId) -> Option<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = turns.entry(*id).or_default();
        (Arc::strong_count(turn) <= ASKING_MAX).then(|| Arc::clone(turn))
    }
}

impl Hasher {
    /// Checks until nobody can ask any more.
    pub fn run(self) {
        while let Ok(job) = self.jobs.recv() {
            let started = Instant::now();
            match job {
                Job::Key(key, text) => {
                    self.metrics.keys.hashed.fetch_add(1, Relaxed);
                    self.check(&key, &text);
                    thread::sleep(started.elapsed() * REST);
                }
                // Whoever asked has gone away.
                Job::Secret(_, _, answer, _) if answer.is_closed() => {}
                // Somebody waits.
                Job::Secret(key, secret, answer, turn) => {
                    self.metrics.keys.hashed.fetch_add(1, Relaxed);
                    let is_right = is_chosen(&key, &secret);
                    drop(turn);
                    let _ = answer.send(is_right);
                }
            }
        }
    }

    fn check(&self, key: &Arc<Key>, text: &str) {
        match self.store.key_hash(key.id()) {
            Ok(Some(hash)) if !matches(&hash, text) => {
                key.revoke(clock::unix_ms());
                // It will not be found a second time: its word waits for room.
                let mut order = Order::Forged(Arc::clone(key));
                while let Err(Some(full)) = self.orders.ask(order) {
                    order = full;
                    thread::sleep(ROOM_WAIT);
                }
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

/// Whether a secret is the one that was chosen for a key, which then knows it.
fn is_chosen(key: &Key, secret: &str) -> bool {
    let SecretCheck::Ask(hash) = key.check_secret(Some(secret)) else { return false };
    let is_right = matches(hash, secret);
    if is_right {
        key.learn_secret(secret);
    }
    is_right
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
    costs(hash).is_some_and(|[memory, passes, lanes]| {
        memory <= COST_MAX * MEMORY_KIB && passes <= COST_MAX * PASSES && lanes <= COST_MAX * LANES
    })
}

/// Whether a hash costs enough for a secret that may be guessable.
#[must_use]
pub fn is_dear(hash: &str) -> bool {
    costs(hash).is_some_and(|[memory, passes, _]| {
        LEAST.iter().any(|(least, of)| memory >= *least && passes >= *of)
    })
}

/// The memory in KiB, passes and lanes of an Argon2id hash in PHC form.
fn costs(hash: &str) -> Option<[u32; 3]> {
    let parsed = PasswordHash::new(hash).ok()?;
    let costs = ["m", "t", "p"].map(|name| parsed.params.get_decimal(name).unwrap_or(u32::MAX));
    (hash.starts_with("$argon2id$v=19$") && parsed.hash.is_some()).then_some(costs)
}

/// The least memory, in KiB, for so many passes: as OWASP's password storage cheat sheet has them, each as
/// dear as the others.
const LEAST: [(u32, u32); 5] = [(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)];

/// Imported hashes may cost so many times as much in each of their parameters.
const COST_MAX: u32 = 4;

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("they are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use edge_identity::key::{BoundSecret, Digest, Extra, Grants, KeyRecord, KeyRing, PepperId};

    use super::*;

    /// A key for which "hunter2" was chosen.
    fn key(number: u8) -> Arc<Key> {
        let digest = Digest([number; 32]);
        let record = KeyRecord {
            id: digest.id(),
            digest,
            pepper: PepperId::default(),
            name: String::new(),
            owner: String::new(),
            grants: Grants::default(),
            created_ms: 0,
            expires_ms: None,
            revoked_ms: None,
            extras: vec![Extra::Secret(BoundSecret::Chosen(hash("hunter2").unwrap()))],
        };
        KeyRing::default().put(&record)
    }

    #[test]
    fn who_guesses_the_secret_of_one_key_keeps_nobody_else_waiting() {
        let (queue, jobs) = sync_channel(QUEUE);
        let (slow, one, other) = (Slow::to(queue), key(1), key(2));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut asked: Vec<_> = (0..40).map(|_| Box::pin(slow.ask(&one, "hunter3"))).collect();
        let mut right = Box::pin(slow.ask(&other, "hunter2"));
        let answers: Vec<_> = asked.iter_mut().map(|ask| ask.as_mut().poll(&mut cx)).collect();
        let refused = answers.iter().filter(|answer| answer.is_ready()).count();
        assert_eq!(refused, 40 - ASKING_MAX, "so many are too many");
        assert!(right.as_mut().poll(&mut cx).is_pending());
        // One of the guesses is in the queue, and then the other's.
        let first = jobs.try_recv().unwrap();
        assert!(matches!(&first, Job::Secret(key, ..) if key.id() == one.id()));
        let second = jobs.try_recv().unwrap();
        assert!(matches!(&second, Job::Secret(key, ..) if key.id() == other.id()));
        assert!(jobs.try_recv().is_err());
        // Those who go away do not make room for more hashes of that key.
        drop(asked.drain(..1));
        assert!(asked[0].as_mut().poll(&mut cx).is_pending() && jobs.try_recv().is_err());
        drop(first);
        assert!(asked[0].as_mut().poll(&mut cx).is_pending() && jobs.try_recv().is_ok());
    }

    #[test]
    fn a_secret_that_was_found_right_is_not_hashed_again() {
        let (queue, jobs) = sync_channel(QUEUE);
        let (slow, key) = (Slow::to(queue), key(1));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut asked: Vec<_> = (0..3).map(|_| Box::pin(slow.ask(&key, "hunter2"))).collect();
        for ask in &mut asked {
            assert!(ask.as_mut().poll(&mut cx).is_pending());
        }
        let Ok(Job::Secret(found, secret, answer, turn)) = jobs.try_recv() else { panic!("none") };
        assert!(!is_chosen(&found, "hunter3") && is_chosen(&found, &secret));
        drop(turn);
        answer.send(true).unwrap();
        for mut ask in asked {
            assert_eq!(ask.as_mut().poll(&mut cx), std::task::Poll::Ready(Some(true)));
        }
        assert!(jobs.try_recv().is_err());
    }

    #[test]
    fn a_hash_of_a_secret_costs_no_less_than_owasp_asks() {
        let hash = hash("hunter2").unwrap();
        let of = |costs: &str| hash.replace("m=19456,t=2,p=1", costs);
        for dear in ["m=19456,t=2,p=1", "m=47104,t=1,p=1", "m=7168,t=5,p=1", "m=77824,t=8,p=4"] {
            assert!(is_hash(&of(dear)) && is_dear(&of(dear)), "{dear}");
        }
        for cheap in ["m=8,t=1,p=1", "m=19455,t=2,p=1", "m=19456,t=1,p=1", "m=7167,t=8,p=4"] {
            assert!(is_hash(&of(cheap)) && !is_dear(&of(cheap)), "{cheap}");
        }
    }

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
