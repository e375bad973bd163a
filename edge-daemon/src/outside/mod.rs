//! What comes from outside of the host: other people's lists, which one thread fetches and hands to
//! the verdict writer. Nothing on the way of a request or a packet waits for any of it.

mod feed;
mod kept;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_policy::list::Class;
use ipnet::IpNet;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

pub use self::feed::{Feed, FeedCounts};
use crate::{
    config::settings,
    control::{feeds::FeedEntry, guard},
    kernel::Lists,
    request::Edge,
    verdict::{Order, Sheet, Sheets, Update},
};

/// The sources of a configuration, through all reloads.
pub struct Outside {
    feeds: watch::Sender<Vec<Arc<Feed>>>,
    /// Where the last good lists are kept.
    dir: PathBuf,
    /// The kernel's lists, for their hits.
    lists: OnceLock<Lists>,
}

impl Outside {
    /// The sources that a configuration names, with what is kept of them in the state folder.
    #[must_use]
    pub fn new(settings: &settings::Settings) -> Self {
        let this = Self {
            feeds: watch::Sender::new(Vec::new()),
            dir: settings.state.dir.join("feeds"),
            lists: OnceLock::new(),
        };
        this.publish(settings);
        this
    }

    /// From now on these sources are in use. Those that have not changed go on as they are.
    pub fn publish(&self, settings: &settings::Settings) {
        let former = self.feeds();
        let own = own(settings);
        let feed = |settings: &settings::Feed| {
            let same = former.iter().find(|feed| feed.settings == *settings);
            same.map_or_else(|| Arc::new(Feed::new(settings, &self.dir, &own)), Arc::clone)
        };
        self.feeds.send_replace(settings.feeds.iter().map(feed).collect());
    }

    /// The sheets that are known at a start, which the writer has from here.
    #[must_use]
    pub fn sheets(&self) -> Sheets {
        self.feeds().iter().for_each(|feed| feed.is_in_force.store(true, Relaxed));
        let sheets = self.feeds().into_iter().filter_map(|feed| feed.sheet());
        sheets.map(|sheet| (Arc::clone(&sheet.from), sheet)).collect()
    }

    /// Whose hits are to be told.
    pub fn follow_hits(&self, lists: Lists) {
        let _ = self.lists.set(lists);
    }

    /// The feeds in use.
    #[must_use]
    pub fn feeds(&self) -> Vec<Arc<Feed>> {
        self.feeds.borrow().clone()
    }

    /// How the feeds are doing.
    #[must_use]
    pub fn show(&self) -> Vec<FeedEntry> {
        let hits = self.lists.get().map(Lists::hits).unwrap_or_default();
        self.feeds().iter().map(|feed| feed.show(&hits)).collect()
    }

    /// Has a feed fetched now; a sentence about what came of it.
    ///
    /// # Errors
    /// Why nothing came of it.
    pub async fn refresh(&self, name: &str, force: bool) -> Result<String, String> {
        let feed = self.feeds().into_iter().find(|feed| feed.settings.name == name);
        let feed = feed.ok_or_else(|| format!("there is no [[feed]] called '{name}'"))?;
        match tokio::time::timeout(REFRESH_MAX, feed.refresh(force)).await {
            Ok(done) => done,
            Err(_) => Ok("it is still being fetched; 'edgectl feed list' tells of it".to_owned()),
        }
    }
}

/// Hits of the kernel's lists by class and network; none of those without any.
pub type Hits = BTreeMap<(Class, IpNet), u64>;

/// Addresses that no list of others may deny: this host's, its gateways', its upstreams'.
fn own(settings: &settings::Settings) -> Arc<[IpAddr]> {
    let mut own = guard::addresses();
    own.extend(guard::gateways());
    own.extend(settings.upstream_addresses().map(|(_, address)| address));
    own.into()
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

type Tasks = BTreeMap<String, (Arc<Feed>, JoinHandle<()>)>;

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
            let mut feeds = self.edge.outside.feeds.subscribe();
            loop {
                let in_use = feeds.borrow_and_update().clone();
                self.follow(&mut tasks, &in_use).await;
                tokio::select! {
                    changed = feeds.changed() => if changed.is_err() { return },
                    _ = self.stopping.wait_for(|stop| *stop) => return,
                }
            }
        });
        // A look-up of a name may hang in a thread of its own; nobody waits for it.
        runtime.shutdown_background();
        Ok(())
    }

    /// Begins what is new and ends what is gone.
    async fn follow(&self, tasks: &mut Tasks, in_use: &[Arc<Feed>]) {
        let former = std::mem::take(tasks);
        for (name, (feed, task)) in former {
            if in_use.iter().any(|other| Arc::ptr_eq(other, &feed)) {
                tasks.insert(name, (feed, task));
                continue;
            }
            task.abort();
            // Its successor of the same name replaces the sheet when it has one.
            if let Some(sheet) = feed.sheet()
                && !in_use.iter().any(|other| other.settings.name == name)
            {
                let none = Sheet::new(Arc::clone(&sheet.from), sheet.class, Vec::new(), Vec::new());
                let _ = put(&self.edge, Arc::new(none), None).await;
            }
        }
        for feed in in_use {
            tasks.entry(feed.settings.name.clone()).or_insert_with(|| {
                let keep = feed::keep(Arc::clone(feed), Arc::clone(&self.edge));
                (Arc::clone(feed), tokio::spawn(keep))
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
    let mut order = Order::Sheet(Update { sheet, changed, answer });
    // The queue may be full of signals; there is time.
    while let Err(unsent) = edge.orders.try_send(order) {
        let std::sync::mpsc::TrySendError::Full(back) = unsent else {
            return Err(WRITER_GONE.into());
        };
        order = back;
        tokio::time::sleep(QUEUE_PAUSE).await;
    }
    answered.await.unwrap_or_else(|_| Err(WRITER_GONE.into()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long an operator waits for a fetch: less than for a reply at all.
const REFRESH_MAX: Duration = Duration::from_secs(8);
const WRITER_GONE: &str = "the verdict writer is gone";
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
