//! The fleet: edges that share bans and limits through a Redis or a Valkey. Requests and packets never
//! wait for it; without it bans stay on this edge, and limits keep to this edge's part.
//!
//! Bans lie in a sorted set, by their ends, and are announced in a stream. Whoever comes late, or back,
//! reads the stream's last number, then the set, then the stream from that number on, so that nothing
//! falls in between. Each record is sealed, and means the same however often it comes.

mod bans;
mod keys;
mod leases;
mod lifts;
mod publish;
mod server;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use edge_identity::fleet::{Act, Bans, Change, Fault, Own, Record, Seal};
use tokio::sync::{Notify, mpsc};

use super::{Source, Told, lock};
use crate::{clock, config::settings, request::Edge, verdict::Sheet};

/// A fleet, and how it is doing.
pub struct Fleet {
    /// What the configuration says of it.
    pub settings: settings::Fleet,
    bans: Mutex<Bans>,
    /// Records of this edge that hold, to be shared again with a server that lost them.
    own: Mutex<Own>,
    /// When clients were last lifted anywhere, or a ban of this edge's was revoked, and until when that means
    /// anything. Few: it is asked while
    /// others wait for a verdict.
    lifted: Mutex<BTreeMap<IpAddr, (u64, u64)>>,
    /// Where this edge's lifts are kept, whether there are others than those on disk, and whether those
    /// on disk are known: they were if the lock says so, which one save at a time has.
    dir: PathBuf,
    is_unsaved: AtomicBool,
    loaded: Mutex<bool>,
    /// Our own bans, on their way to the others.
    pub(super) told: mpsc::Sender<Told>,
    to_tell: Mutex<Option<mpsc::Receiver<Told>>>,
    /// Rung when a server was found, which may know nothing.
    found: Notify,
    /// What is counted.
    pub counts: Counts,
}

/// What is counted of a fleet.
#[derive(Default)]
pub struct Counts {
    /// Whether the stream of bans is being read.
    pub is_connected: AtomicBool,
    /// Times that the server was lost.
    pub lost: AtomicU64,
    /// Records that were shared.
    pub published: AtomicU64,
    /// Records that changed something here.
    pub applied: AtomicU64,
    /// Records that were known already.
    pub known: AtomicU64,
    /// Records that were not taken, by [`Fault`].
    pub refused: [AtomicU64; Fault::ALL.len()],
    /// Between the decision and this edge, of the last record that came by the stream, in
    /// milliseconds.
    pub delay_ms: AtomicU64,
    /// Leases that were renewed, and attempts that failed.
    pub renewals: [AtomicU64; 2],
    /// Edges that had leases when they were last looked at.
    pub nodes: AtomicUsize,
}

impl Fleet {
    pub(super) fn new(settings: &settings::Fleet, state: &Path) -> Self {
        let (told, to_tell) = mpsc::channel(TOLD_MAX);
        Self {
            settings: settings.clone(),
            bans: Mutex::default(),
            own: Mutex::default(),
            lifted: Mutex::default(),
            dir: state.join("fleet"),
            is_unsaved: AtomicBool::new(false),
            loaded: Mutex::default(),
            told,
            to_tell: Mutex::new(Some(to_tell)),
            found: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// Clients of which any record is known.
    #[must_use]
    pub fn clients(&self) -> usize {
        lock(&self.bans).len()
    }

    /// When to date a ban of this edge's that was decided now: after all lifts of its client that are
    /// known, of which an edge with a faster clock may have dated one later.
    #[must_use]
    pub fn dated(&self, client: &IpAddr, at_ms: u64) -> u64 {
        lock(&self.lifted).get(client).map_or(at_ms, |(lifted_ms, _)| at_ms.max(lifted_ms + 1))
    }

    /// Until when a client is banned by any edge that is known of.
    #[must_use]
    pub fn banned_until(&self, client: &IpAddr) -> Option<u64> {
        let until_ms = lock(&self.bans).get(client).map(|ban| ban.until_ms);
        until_ms.filter(|until_ms| *until_ms > clock::unix_ms())
    }

    /// When to date a lift that ends all that is known of a client.
    #[must_use]
    pub fn after(&self, client: &IpAddr) -> u64 {
        lock(&self.bans).after(client, clock::unix_ms())
    }

    /// Notes that this edge ended what was decided at `at_ms` or before and would have lasted until `until_ms`: all
    /// of it, or a ban of its own. At once, and not when it is shared: what its client does next is later, and to
    /// be dated so. What bans the client from now on, if anything does.
    pub fn end(&self, client: IpAddr, act: Act, at_ms: u64, until_ms: u64) -> Option<Record> {
        let end = self.end_at(client, act, at_ms, until_ms);
        self.note_end(&end);
        lock(&self.own).put(end.clone(), CLIENTS_MAX);
        // So that it is known when it comes back by the stream, and a ban from before that does, too.
        let changes = lock(&self.bans).merge(end, CLIENTS_MAX).unwrap_or_default();
        self.is_unsaved.store(true, Relaxed);
        changes.into_iter().find_map(|change| match change {
            Change::Ban(ban) => Some(ban),
            Change::Ended(_) => None,
        })
    }

    fn end_at(&self, client: IpAddr, act: Act, at_ms: u64, until_ms: u64) -> Record {
        // Remembered for a while longer than what it ends can come again.
        let until_ms = until_ms.saturating_add(ENDS_KEPT_MS);
        Record { client, act, at_ms, until_ms, node: self.settings.node.clone() }
    }

    /// Saves what is not on disk yet.
    pub(super) fn finish(&self) {
        if let Err(error) = lifts::save(self) {
            tracing::error!(error, "lifted bans are not on disk");
        }
    }

    /// Notes what ends bans, whoever it is from.
    fn note_end(&self, end: &Record) {
        if end.act != Act::Lift && end.node != self.settings.node {
            return;
        }
        if lock(&self.own).lifted(end, CLIENTS_MAX) {
            self.is_unsaved.store(true, Relaxed);
        }
        let mut lifted = lock(&self.lifted);
        if lifted.len() < CLIENTS_MAX || lifted.contains_key(&end.client) {
            let (at_ms, until_ms) = lifted.entry(end.client).or_default();
            (*at_ms, *until_ms) = (end.at_ms.max(*at_ms), end.until_ms.max(*until_ms));
        }
    }

    /// Forgets what means nothing any more.
    fn expire(&self, now_ms: u64) {
        lock(&self.bans).expire(now_ms);
        lock(&self.own).expire(now_ms);
        lock(&self.lifted).retain(|_, (_, until_ms)| *until_ms > now_ms);
    }

    /// The seal, under the secret as it is now.
    fn seal(&self) -> Result<Seal, String> {
        self.settings.seal()
    }

    /// The name of a key there.
    fn key(&self, what: &str) -> String {
        format!("{}:{what}", self.settings.name)
    }
}

impl Source for Fleet {
    fn name(&self) -> String {
        "fleet".to_owned()
    }

    fn sheet(&self) -> Option<Arc<Sheet>> {
        None
    }

    fn keep(self: Arc<Self>, edge: Arc<Edge>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let to_tell = lock(&self.to_tell).take();
            let keyed = keys::keep(Arc::clone(&self), Arc::clone(&edge));
            let leases = leases::keep(Arc::clone(&self), Arc::clone(&edge));
            if self.settings.bans {
                let bans = async {
                    // First, so that a lift from meanwhile finds what it ends.
                    bans::recall(&self, &edge).await;
                    let publish = publish::publish(Arc::clone(&self), to_tell);
                    let kept = lifts::keep(Arc::clone(&self), Arc::clone(&edge));
                    let follow = bans::follow(Arc::clone(&self), edge);
                    tokio::join!(follow, publish, kept, forget(&self))
                };
                tokio::join!(bans, leases, keyed);
            } else {
                tokio::join!(leases, keyed);
            }
        })
    }
}

/// Forgets what is over, for ever, whether the server is there or not.
async fn forget(fleet: &Fleet) {
    loop {
        tokio::time::sleep(FORGET).await;
        fleet.expire(clock::unix_ms());
    }
}

const FORGET: Duration = Duration::from_secs(60);
const ENDS_KEPT_MS: u64 = 600_000;
/// Clients of which records are remembered.
const CLIENTS_MAX: usize = 1_000_000;
/// Bans that wait to be shared; more stay on this edge, and are counted.
const TOLD_MAX: usize = 16_384;
