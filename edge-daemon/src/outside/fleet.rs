//! The fleet: edges that share bans and limits through a Redis or a Valkey. Requests and packets never
//! wait for it; without it bans stay on this edge, and limits keep to this edge's part.
//!
//! Bans lie in a sorted set, by their ends, and are announced in a stream. Whoever comes late, or back,
//! reads the stream's last number, then the set, then the stream from that number on, so that nothing
//! falls in between. Each record is sealed, and means the same however often it comes.

mod bans;
mod keys;
mod leases;
mod server;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
};

use edge_identity::fleet::{Bans, Fault, Record, Seal};
use tokio::sync::{Notify, mpsc};

use super::{Source, Told, lock};
use crate::{config::settings, request::Edge, verdict::Sheet};

/// A fleet, and how it is doing.
pub struct Fleet {
    /// What the configuration says of it.
    pub settings: settings::Fleet,
    bans: Mutex<Bans>,
    /// Records of this edge that hold, to be shared again with a server that lost them.
    own: Mutex<BTreeMap<IpAddr, Record>>,
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
    pub(super) fn new(settings: &settings::Fleet) -> Self {
        let (told, to_tell) = mpsc::channel(TOLD_MAX);
        Self {
            settings: settings.clone(),
            bans: Mutex::default(),
            own: Mutex::default(),
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
                    let publish = bans::publish(Arc::clone(&self), to_tell);
                    tokio::join!(bans::follow(Arc::clone(&self), edge), publish)
                };
                tokio::join!(bans, leases, keyed);
            } else {
                tokio::join!(leases, keyed);
            }
        })
    }
}

/// Bans that wait to be shared; more stay on this edge, and are counted.
const TOLD_MAX: usize = 16_384;
