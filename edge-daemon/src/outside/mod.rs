//! What comes from outside of the host and goes there: other people's lists, which one thread fetches and
//! hands to the verdict writer; the fleet; and webhooks. Nothing on the way of a request or a packet waits for any of it.

mod crowdsec;
mod feed;
mod fleet;
mod kept;
mod poll;
mod webhook;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use edge_policy::list::Class;
use ipnet::IpNet;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

pub use self::{
    crowdsec::{Crowdsec, NAME as CROWDSEC},
    feed::Feed,
    fleet::Fleet,
    webhook::{Account, Webhook},
};
use crate::{
    config::{self, settings},
    control::{feeds::FeedEntry, guard},
    kernel::Lists,
    leftovers::FEEDS,
    request::Edge,
    verdict::{Order, Sheet, Sheets, Update},
};

/// The sources of a configuration, through all reloads.
pub struct Outside {
    sources: watch::Sender<Sources>,
    /// Where the last good lists are kept.
    state: PathBuf,
    /// The kernel's lists, for their hits.
    lists: OnceLock<Lists>,
    /// The upstreams of the configuration.
    upstreams: ArcSwap<Vec<IpAddr>>,
    untold: AtomicU64,
}

impl Outside {
    /// The sources that a configuration names, with what is kept of them in the state folder.
    #[must_use]
    pub fn new(settings: &settings::Settings) -> Self {
        let this = Self {
            sources: watch::Sender::new(Sources::default()),
            state: settings.state.dir.clone(),
            lists: OnceLock::new(),
            upstreams: ArcSwap::default(),
            untold: AtomicU64::new(0),
        };
        this.publish(settings);
        this
    }

    /// From now on these sources are in use. Those that have not changed go on as they are.
    pub fn publish(&self, settings: &settings::Settings) {
        let upstreams = settings.upstream_addresses().map(|(_, address)| address);
        self.upstreams.store(Arc::new(upstreams.collect()));
        let (former, own) = (self.sources.borrow().clone(), self.own());
        let dir = self.state.join(FEEDS);
        let feed = |settings: &settings::Feed| {
            let same = former.feeds.iter().find(|feed| feed.settings == *settings);
            same.map_or_else(|| Arc::new(Feed::new(settings, &dir, &own)), Arc::clone)
        };
        let crowdsec = |settings: &settings::Crowdsec| {
            let same = former.crowdsec.as_ref().filter(|known| known.settings == *settings);
            same.map_or_else(|| Arc::new(Crowdsec::new(settings, &self.state)), Arc::clone)
        };
        let fleet = |settings: &settings::Fleet| {
            let same = former.fleet.as_ref().filter(|known| known.settings == *settings);
            same.map_or_else(|| Arc::new(Fleet::new(settings, &self.state)), Arc::clone)
        };
        let name = || match &settings.fleet {
            Some(fleet) => fleet.node.clone(),
            None => config::host_name(),
        };
        let webhook = |settings: &settings::Webhook| {
            let same = former.webhooks.iter().find(|webhook| webhook.settings == *settings);
            same.map_or_else(|| Arc::new(Webhook::new(settings, name())), Arc::clone)
        };
        self.sources.send_replace(Sources {
            feeds: settings.feeds.iter().map(feed).collect(),
            crowdsec: settings.crowdsec.as_ref().map(crowdsec),
            fleet: settings.fleet.as_ref().map(fleet),
            webhooks: settings.webhooks.iter().map(webhook).collect(),
        });
    }

    /// The sheets that are known at a start, which the writer has from here.
    #[must_use]
    pub fn sheets(&self) -> Sheets {
        let sources = self.sources.borrow().clone();
        sources.feeds.iter().for_each(|feed| feed.polling.is_in_force.store(true, Relaxed));
        sources.crowdsec.iter().for_each(|it| it.polling.is_in_force.store(true, Relaxed));
        sources.webhooks.iter().for_each(|it| it.is_from_start.store(true, Relaxed));
        let sheets = sources.all().into_iter().filter_map(|source| source.sheet());
        sheets.map(|sheet| (Arc::clone(&sheet.from), sheet)).collect()
    }

    /// Whose hits are to be told.
    pub fn follow_hits(&self, lists: Lists) {
        let _ = self.lists.set(lists);
    }

    /// Tells others of a ban of ours. Never waits: what finds a full queue is lost, and counted.
    pub fn tell(&self, told: &Told) {
        let sources = self.sources.borrow();
        let crowdsec = sources.crowdsec.as_ref().filter(|it| it.settings.machine.is_some());
        let fleet = sources.fleet.as_ref().filter(|it| it.settings.bans);
        let queues = crowdsec.map(|it| &it.told).into_iter().chain(fleet.map(|it| &it.told));
        let lost = queues.filter(|queue| queue.try_send(told.clone()).is_err()).count();
        self.untold.fetch_add(lost as u64, Relaxed);
    }

    /// As [`Self::tell`], but the fleet knows.
    pub fn tell_crowdsec(&self, told: &Told) {
        let sources = self.sources.borrow();
        let crowdsec = sources.crowdsec.as_ref().filter(|it| it.settings.machine.is_some());
        let lost = crowdsec.is_some_and(|it| it.told.try_send(told.clone()).is_err());
        self.untold.fetch_add(u64::from(lost), Relaxed);
    }

    /// Bans of ours that others were not told of, because the queue was full.
    #[must_use]
    pub fn untold(&self) -> u64 {
        self.untold.load(Relaxed)
    }

    /// The fleet, if there is one.
    #[must_use]
    pub fn fleet(&self) -> Option<Arc<Fleet>> {
        self.sources.borrow().fleet.clone()
    }

    /// Makes durable at once what else would be within a second: before the end, or a successor.
    pub fn finish(&self) {
        self.fleet().iter().for_each(|fleet| fleet.finish());
    }

    /// How webhooks are doing, by their names.
    #[must_use]
    pub fn webhooks(&self) -> Vec<(String, Account)> {
        let sources = self.sources.borrow();
        sources.webhooks.iter().map(|it| (it.settings.name.clone(), it.account())).collect()
    }

    /// Addresses that no list of others may deny, as of now: this host's, its gateways', its upstreams'.
    fn own(&self) -> Vec<IpAddr> {
        let mut own = guard::addresses();
        own.extend(guard::gateways());
        own.extend_from_slice(&self.upstreams.load());
        own
    }

    /// The hits of the kernel's lists.
    fn hits(&self) -> Hits {
        self.lists.get().map(Lists::hits).unwrap_or_default()
    }

    /// How the feeds are doing, and `CrowdSec` as one of them.
    #[must_use]
    pub fn show(&self) -> Vec<FeedEntry> {
        let (sources, hits) = (self.sources.borrow().clone(), self.hits());
        let feeds = sources.feeds.iter().map(|feed| feed.show(&hits));
        feeds.chain(sources.crowdsec.iter().map(|it| it.show(&hits))).collect()
    }

    /// Has a feed fetched now; a sentence about what came of it.
    ///
    /// # Errors
    /// Why nothing came of it.
    pub async fn refresh(&self, name: &str, force: bool) -> Result<String, String> {
        let Sources { feeds, crowdsec, .. } = self.sources.borrow().clone();
        let done = async {
            if let Some(crowdsec) = crowdsec.filter(|_| name == CROWDSEC) {
                return crowdsec.polling.refresh(force).await;
            }
            match feeds.iter().find(|feed| feed.settings.name == name) {
                Some(feed) => feed.polling.refresh(force).await,
                None => Err(format!("there is no [[feed]] called '{name}'")),
            }
        };
        match tokio::time::timeout(REFRESH_MAX, done).await {
            Ok(done) => done,
            Err(_) => Ok("it is still being fetched; 'edgectl feed list' tells of it".to_owned()),
        }
    }
}

/// A ban of ours, or the end of one before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A client was banned.
    Ban {
        /// The client: an address, or the first of its network.
        source: IpAddr,
        /// The length of its prefix.
        bits: u32,
        /// The name of the reason.
        reason: String,
        /// Since when, in unix milliseconds.
        since_ms: u64,
        /// Until when.
        until_ms: u64,
        /// How many bans this client has had, this one included.
        strikes: u32,
    },
    /// An operator ended a ban, or all bans, of a client.
    Lift {
        /// The client.
        source: IpAddr,
        /// The length of its prefix.
        bits: u32,
        /// For what it had been banned.
        reason: String,
        /// Whether what it was banned for otherwise holds still.
        is_alone: bool,
        /// When, as the fleet dates it.
        at_ms: u64,
        /// Until when it would have been banned, in unix milliseconds.
        until_ms: u64,
    },
}

impl Told {
    /// Whom it is about.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        match self {
            Self::Ban { source, .. } | Self::Lift { source, .. } => *source,
        }
    }
}

/// The sources that are in use.
#[derive(Clone, Default)]
struct Sources {
    feeds: Vec<Arc<Feed>>,
    crowdsec: Option<Arc<Crowdsec>>,
    fleet: Option<Arc<Fleet>>,
    webhooks: Vec<Arc<Webhook>>,
}

impl Sources {
    fn all(&self) -> Vec<Arc<dyn Source>> {
        let feeds = self.feeds.iter().map(|feed| Arc::clone(feed) as Arc<dyn Source>);
        let crowdsec = self.crowdsec.iter().map(|it| Arc::clone(it) as Arc<dyn Source>);
        let fleet = self.fleet.iter().map(|it| Arc::clone(it) as Arc<dyn Source>);
        let webhooks = self.webhooks.iter().map(|it| Arc::clone(it) as Arc<dyn Source>);
        feeds.chain(crowdsec).chain(fleet).chain(webhooks).collect()
    }
}

/// Something outside of the host that a task looks after.
trait Source: Send + Sync {
    /// What no other source is called.
    fn name(&self) -> String;

    /// What it has in force.
    fn sheet(&self) -> Option<Arc<Sheet>>;

    /// Looks after it, for ever.
    fn keep(self: Arc<Self>, edge: Arc<Edge>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Hits of the kernel's lists by class and network; none of those without any.
pub type Hits = BTreeMap<(Class, IpNet), u64>;

/// Packets that a sheet's entries decided.
fn hits_of(sheet: &Sheet, hits: &Hits) -> u64 {
    let own =
        hits.iter().filter(|((class, net), _)| *class == sheet.class && sheet.get(net).is_some());
    own.map(|(_, hits)| hits).sum()
}

/// What the thread runs on.
pub struct Keeper {
    edge: Arc<Edge>,
    stopping: watch::Receiver<bool>,
}

/// The keeper of the sources, until `stopping` turns true.
#[must_use]
pub fn keeper(edge: Arc<Edge>, stopping: watch::Receiver<bool>) -> Keeper {
    Keeper { edge, stopping }
}

type Tasks = BTreeMap<String, (Arc<dyn Source>, JoinHandle<()>)>;

impl Keeper {
    /// Follows the sources that are in use, a task for each: a slow one delays no other.
    ///
    /// # Errors
    /// If the runtime cannot be made.
    pub fn run(mut self) -> io::Result<()> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(4).build()?;
        runtime.block_on(async {
            let mut tasks = Tasks::new();
            let mut sources = self.edge.outside.sources.subscribe();
            loop {
                let in_use = sources.borrow_and_update().all();
                self.follow(&mut tasks, &in_use).await;
                tokio::select! {
                    changed = sources.changed() => if changed.is_err() { return },
                    _ = self.stopping.wait_for(|stop| *stop) => return,
                }
            }
        });
        // What is still being judged or saved comes too late.
        runtime.shutdown_background();
        Ok(())
    }

    /// Begins what is new and ends what is gone.
    async fn follow(&self, tasks: &mut Tasks, in_use: &[Arc<dyn Source>]) {
        let former = std::mem::take(tasks);
        for (name, (source, task)) in former {
            if in_use.iter().any(|other| Arc::ptr_eq(other, &source)) {
                tasks.insert(name, (source, task));
                continue;
            }
            task.abort();
            // Its successor of the same name replaces the sheet when it has one.
            if let Some(sheet) = source.sheet()
                && !in_use.iter().any(|other| other.name() == name)
            {
                let none = Sheet::new(Arc::clone(&sheet.from), sheet.class, Vec::new(), Vec::new());
                let _ = put(&self.edge, Arc::new(none), None).await;
            }
        }
        for source in in_use {
            tasks.entry(source.name()).or_insert_with(|| {
                let keep = Arc::clone(source).keep(Arc::clone(&self.edge));
                (Arc::clone(source), tokio::spawn(keep))
            });
        }
    }
}

/// Has the writer put a sheet in force, and waits until it is.
///
/// # Errors
/// Why it is not.
async fn put(edge: &Edge, sheet: Arc<Sheet>, changed: Option<Vec<IpNet>>) -> Result<(), String> {
    let (answer, answered) = oneshot::channel();
    send(edge, Order::Sheet(Update { sheet, changed, answer })).await?;
    answered.await.unwrap_or_else(|_| Err(WRITER_GONE.into()))
}

/// Sends the writer an order. The queue may be full of signals; there is time.
///
/// # Errors
/// If there is no writer any more.
async fn send(edge: &Edge, mut order: Order) -> Result<(), String> {
    while let Err(unsent) = edge.orders.try_send(order) {
        let std::sync::mpsc::TrySendError::Full(back) = unsent else {
            return Err(WRITER_GONE.into());
        };
        order = back;
        tokio::time::sleep(QUEUE_PAUSE).await;
    }
    Ok(())
}

/// A tenth more or less, so that not all of the world asks at once.
fn jittered(time: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    time.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long an operator waits for a fetch: less than for a reply at all.
const REFRESH_MAX: Duration = Duration::from_secs(8);
const WRITER_GONE: &str = "the verdict writer is gone";
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
