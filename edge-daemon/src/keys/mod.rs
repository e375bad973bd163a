//! API keys in the daemon: the one thread that changes them, on disk first and then in the ring
//! that requests look them up in.
//!
//! A revocation alone goes the other way round: it holds at once, and its caller waits for the
//! disk.

mod command;
mod exchange;
pub mod masters;
pub mod pepper;
pub mod slow;
mod sweep;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edge_identity::key::{Digest, Extra, Key, KeyId, KeyRecord, KeyRing, Leak, Mark};
use tokio::sync::oneshot;

use self::sweep::Sweep;
use crate::{
    audit::Kept,
    clock,
    config::settings,
    control::{Peer, Reply, keys::KeyCommand},
    decisions::Decision,
    events::Event,
    request::Edge,
    store::{Store, StoredKey},
};

/// What the thread can be asked to do.
pub enum Order {
    /// Do what an operator says.
    Command(KeyCommand, Peer, oneshot::Sender<Reply>),
    /// Keep a key under the pepper in use, of which this is its digest.
    Renew(Arc<Key>, Digest),
    /// Note that a key was seen where others could read it.
    Exposed {
        /// The key.
        key: Arc<Key>,
        /// How.
        leak: Leak,
        /// Who sent it.
        source: IpAddr,
    },
    /// Keep that a key is revoked, since its slow hash is another key's, and tell of it.
    Forged(Arc<Key>),
    /// Save what is not saved and end.
    Stop,
}

/// The way to the thread that changes keys, for requests: it never waits.
#[derive(Clone)]
pub struct Orders(SyncSender<Order>);

impl Orders {
    /// The way to whoever receives from the other end.
    #[must_use]
    pub const fn new(queue: SyncSender<Order>) -> Self {
        Self(queue)
    }

    /// Gives an order, unless too many wait; whether it was taken.
    pub fn give(&self, order: Order) -> bool {
        self.0.try_send(order).is_ok()
    }

    /// Gives an operator's order; it is handed back if too many wait.
    ///
    /// # Errors
    /// The order, if there is no room for it now; nothing, if nobody takes orders any more.
    pub fn ask(&self, order: Order) -> Result<(), Option<Order>> {
        self.0.try_send(order).map_err(|error| match error {
            TrySendError::Full(order) => Some(order),
            TrySendError::Disconnected(_) => None,
        })
    }

    /// Has the thread end, however many orders wait for it.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.0.send(Order::Stop).context("the thread of the keys is gone")
    }
}

/// The keys in the store; one that cannot be read is told of, and left where it is.
///
/// # Errors
/// If the store fails.
pub fn load(store: &Store) -> anyhow::Result<KeyRing> {
    let started = Instant::now();
    let (keys, unreadable) = store.load_keys().context("cannot read the keys")?;
    for key in &unreadable {
        tracing::error!(key, "the store holds a key that cannot be read");
    }
    tracing::info!(keys = keys.len(), ms = started.elapsed().as_millis() as u64, "keys are loaded");
    Ok(keys)
}

/// The one writer of keys.
pub struct Registry {
    store: Arc<Store>,
    edge: Arc<Edge>,
    /// Keys that are revoked in the ring and not yet on disk.
    unsaved: Vec<KeyId>,
    /// Keys that are flagged in the ring and not yet on disk: how, and when they were seen.
    unsaved_leaks: Vec<(KeyId, Leak, u64)>,
    /// The audit log's line of the command that is being carried out.
    told: Option<Kept>,
    sweep: Sweep,
}

impl Registry {
    /// A registry of the keys in the store, which are in the edge's ring already.
    #[must_use]
    pub fn new(store: Arc<Store>, edge: Arc<Edge>) -> Self {
        let (unsaved, unsaved_leaks) = (Vec::new(), Vec::new());
        Self { store, edge, unsaved, unsaved_leaks, told: None, sweep: Sweep::default() }
    }

    /// Takes orders until it is told to stop.
    pub fn run(mut self, orders: &Receiver<Order>) {
        let mut next_look = Instant::now();
        let edge = Arc::clone(&self.edge);
        loop {
            let order = orders.recv_timeout(next_look.saturating_duration_since(Instant::now()));
            let Some(_turn) = edge.reign.turn() else { return };
            match order {
                Ok(Order::Command(command, peer, answer)) => {
                    // An operator who has gone away is not told; the work is done all the same.
                    let _ = answer.send(self.obey(command, peer));
                }
                Ok(Order::Renew(key, digest)) => self.renew(&key, digest),
                Ok(Order::Exposed { key, leak, source }) => self.exposed(&key, leak, source),
                Ok(Order::Forged(key)) => self.forged(&key),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.save_unsaved();
                    return self.save_all_uses();
                }
            }
            if Instant::now() >= next_look {
                self.save_unsaved();
                self.sweep();
                next_look = Instant::now() + LOOK_EVERY;
            }
        }
    }

    /// The settings in force.
    fn settings(&self) -> settings::Keys {
        self.edge.plan.load().keys.clone()
    }

    /// Tells of what a command did; the command waits for the audit log to tell of it.
    fn tell(&mut self, event: Event) {
        self.told = Some(self.edge.events.tell_kept(event));
    }

    /// Writes a change of one key to the disk and then to the ring.
    fn change(&self, id: &KeyId, change: impl FnOnce(&mut KeyRecord)) -> anyhow::Result<KeyRecord> {
        let Some(mut record) = self.store.key(id)? else { anyhow::bail!("there is no key {id}") };
        change(&mut record);
        self.store.put_keys(&[StoredKey { record: record.clone(), hash: None }])?;
        Ok(record)
    }

    fn renew(&self, key: &Key, digest: Digest) {
        let pepper = self.edge.peppers.load().current.id();
        let changed = self.change(key.id(), |record| {
            (record.digest, record.pepper) = (digest, pepper);
        });
        match changed {
            Ok(record) => {
                self.edge.keys.put(&record);
                self.edge.metrics.keys.renewed.fetch_add(1, Relaxed);
                self.edge.events.tell(Event::KeyRenewed { key_id: record.id.to_string() });
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(key = %key.id(), error, "a key stays under its former pepper");
                key.unmark(Mark::Renewing);
            }
        }
    }

    fn exposed(&mut self, key: &Key, leak: Leak, source: IpAddr) {
        let (how, at_ms) = (leak.name(), clock::unix_ms());
        let (key_id, owner) = (key.id().to_string(), key.owner().to_owned());
        self.edge.events.tell(Event::KeyExposed { key_id, owner, how, source });
        self.edge.decisions.tell(Decision::key(key, "was sent where others can read it", None));
        if let Err(error) = self.note_leak(key.id(), leak, at_ms) {
            // The mark in the ring stays, and is tried again.
            let error = format!("{error:#}");
            tracing::error!(key = %key.id(), error, "cannot keep that a key is exposed");
            self.unsaved_leaks.push((*key.id(), leak, at_ms));
        }
    }

    fn note_leak(&self, id: &KeyId, leak: Leak, at_ms: u64) -> anyhow::Result<KeyRecord> {
        self.change(id, |record| {
            if record.exposed().is_none() {
                record.extras.push(Extra::Exposed(leak, at_ms));
            }
        })
    }

    /// It is refused already, and for good once that is kept.
    fn forged(&mut self, key: &Key) {
        self.edge.metrics.keys.forged.fetch_add(1, Relaxed);
        tracing::error!(key = %key.id(), "the store was changed by another hand: key refused");
        self.edge.events.tell(Event::KeyForged { key_id: key.id().to_string() });
        self.edge.decisions.tell(Decision::key(key, "was changed by another hand", None));
        // A renewal may have put another in its place meanwhile.
        if let Some(live) = self.edge.keys.by_id(key.id()) {
            live.revoke(clock::unix_ms());
        }
        self.unsaved.push(*key.id());
        self.save_unsaved();
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
