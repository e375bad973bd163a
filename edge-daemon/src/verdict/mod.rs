//! The one writer of verdicts: every ban and every list entry in the kernel is written here,
//! whether the request plane's signals or an operator's command asked for it.
//!
//! It has a thread of its own and takes one order after the other. A ban comes to the kernel first
//! and to the disk after it, through another thread: it takes effect in microseconds and is
//! durable within a second. What an operator says comes to the disk first.

mod bans;
mod command;
mod keeper;
mod lists;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edge_common::{Reason, Source, map};
use edge_policy::{
    abuse::Book,
    key::{KeyRecord, KeyRing},
};
use tokio::sync::oneshot;

pub use self::keeper::Keeper;
use self::{bans::Held, keeper::Unsaved, lists::List};
use crate::{
    clock,
    config::Settings,
    control::{Command, ListName, Peer, Reply},
    kernel::{self, Health, Tables},
    metrics::KernelView,
    plan,
    request::Edge,
    store::Store,
};

/// A client's misdeed, on its way to the writer.
#[derive(Clone, Debug)]
pub struct Signal {
    /// Who.
    pub address: IpAddr,
    /// What.
    pub reason: Reason,
    /// When, in boot time.
    pub at_ns: u64,
    /// In which request.
    pub request_id: Option<String>,
}

/// What the writer can be asked to do.
pub enum Order {
    /// Score a misdeed.
    Signal(Signal),
    /// Do what an operator says.
    Command(Command, Peer, oneshot::Sender<Reply>),
    /// Put another configuration in force.
    Apply(Box<Settings>, oneshot::Sender<anyhow::Result<()>>),
    /// Note how a reload went, for the status.
    Reloaded(Result<(), String>),
    /// Read the kernel's tables for a scrape.
    View(oneshot::Sender<KernelView>),
    /// Make everything durable and end.
    Stop,
}

/// The kernel's tables, the store behind them and the book of misdeeds.
pub struct Writer {
    tables: Tables,
    /// How the interfaces and the count of connections are, for the status and for scrapes.
    pub health: Arc<Health>,
    store: Arc<Store>,
    book: Book,
    settings: Settings,
    allow: List,
    deny: List,
    keys: BTreeMap<String, KeyRecord>,
    /// Bans in force, by client. The kernel holds the same and ends each by itself.
    bans: BTreeMap<Source, Held>,
    /// Bans that are in the kernel and not yet on disk.
    unsaved: Unsaved,
    edge: Arc<Edge>,
    config: PathBuf,
    started: Instant,
    last_reload: Option<(u64, Result<(), String>)>,
    next_purge: Instant,
}

impl Writer {
    /// Reads what is known of the past: keys, operators' lists and bans, from the store and from
    /// the kernel's own tables, which may have outlived the last daemon. The keeper saves bans
    /// once it runs.
    pub fn new(
        tables: Tables,
        store: Store,
        config: PathBuf,
        settings: Settings,
        edge: Arc<Edge>,
    ) -> anyhow::Result<(Self, Keeper)> {
        let store = Arc::new(store);
        let (unsaved, keeper) = Unsaved::new(Arc::clone(&store));
        let past = store.load_all()?;
        for record in &past.unreadable {
            tracing::error!(record, "the store holds a record that cannot be read");
        }
        let mut writer = Self {
            tables,
            health: Arc::default(),
            store,
            book: Book::new(plan::abuse(&settings.abuse)),
            settings: settings.clone(),
            allow: List::new(past.allow),
            deny: List::new(past.deny),
            keys: past.keys.into_iter().map(|key| (key.id.clone(), key)).collect(),
            bans: BTreeMap::new(),
            unsaved,
            edge,
            config,
            started: Instant::now(),
            last_reload: None,
            next_purge: Instant::now(),
        };
        writer.restore(past.bans)?;
        writer.publish_keys();
        writer.apply(settings)?;
        Ok((writer, keeper))
    }

    /// Takes orders until it is told to stop.
    pub fn run(mut self, orders: &Receiver<Order>) {
        let mut next_look = Instant::now();
        loop {
            match orders.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
                Ok(Order::Signal(signal)) => self.judge(&signal),
                Ok(Order::Command(command, peer, answer)) => {
                    // An operator who has gone away is not told; the work is done all the same.
                    let _ = answer.send(self.obey(command, peer));
                }
                Ok(Order::Apply(settings, answer)) => {
                    let _ = answer.send(self.apply(*settings));
                }
                Ok(Order::Reloaded(result)) => self.last_reload = Some((clock::unix_ms(), result)),
                Ok(Order::View(answer)) => {
                    let _ = answer.send(self.view());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return self.unsaved.finish();
                }
            }
            if Instant::now() >= next_look {
                self.look_after();
                next_look = Instant::now() + LOOK_EVERY;
            }
        }
    }

    /// Puts a configuration in force, at the start as at every reload: all of it, or as far as the
    /// kernel lets it the former again.
    fn apply(&mut self, settings: Settings) -> anyhow::Result<()> {
        let former = self.settings.clone();
        all_or_former(&former, &settings, |settings| self.put_in_force(settings))?;
        self.book.configure(plan::abuse(&settings.abuse));
        self.settings = settings;
        Ok(())
    }

    fn put_in_force(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.allow.configure(&settings.lists.allow);
        self.allow.configure_upstreams(&settings.upstreams);
        self.deny.configure(&settings.lists.deny);
        self.tables
            .update_policy(&plan::kernel_policy(&settings.kernel))
            .context("cannot configure the kernel programs")?;
        // Allow first: between the two writes, too much is let in rather than kept out.
        self.write_list(ListName::Allow)?;
        self.write_list(ListName::Deny)
    }

    fn list(&self, list: ListName) -> &List {
        match list {
            ListName::Allow => &self.allow,
            ListName::Deny => &self.deny,
        }
    }

    fn list_mut(&mut self, list: ListName) -> &mut List {
        match list {
            ListName::Allow => &mut self.allow,
            ListName::Deny => &mut self.deny,
        }
    }

    fn table(&self, list: ListName) -> &kernel::List {
        match list {
            ListName::Allow => &self.tables.allow,
            ListName::Deny => &self.tables.deny,
        }
    }

    /// Brings a list's table in the kernel up to date.
    fn write_list(&mut self, list: ListName) -> anyhow::Result<()> {
        let wanted = self.list(list).compile();
        let table = match list {
            ListName::Allow => &mut self.tables.allow,
            ListName::Deny => &mut self.tables.deny,
        };
        let changes = table.sync(&wanted);
        let changes = changes.with_context(|| format!("cannot write the {} list", list.name()))?;
        tracing::debug!(list = list.name(), ?changes, "written");
        Ok(())
    }

    /// What is due now and then: saving bans, clearing away what has ended.
    fn look_after(&mut self) {
        let now = Instant::now();
        self.unsaved.save(now);
        let now_ns = clock::boot_ns();
        self.end_bans(now_ns);
        for list in [ListName::Allow, ListName::Deny] {
            self.expire(list, now_ns);
        }
        let now_ms = clock::unix_ms();
        if now >= self.next_purge && self.unsaved.purge(now_ms, self.settings.abuse.forget_after) {
            self.next_purge = now + PURGE_EVERY;
        }
        let active = self.keys.values().filter(|key| key.check(now_ms).is_ok()).count();
        let metrics = &self.edge.metrics;
        metrics.keys_active.store(active as u64, Relaxed);
        metrics.bans_active.store(self.bans.len() as u64, Relaxed);
        metrics.watched.store(self.book.len() as u64, Relaxed);
        metrics.watched_evicted.store(self.book.evicted(), Relaxed);
    }

    /// Forgets the entries that operators made for a time that is over. The kernel has not been
    /// minding them since; from the disk the next purge takes them.
    fn expire(&mut self, list: ListName, now_ns: u64) {
        if !self.list_mut(list).expire(now_ns) {
            return;
        }
        if let Err(error) = self.write_list(list) {
            // They take room and decide nothing; the list's next change clears them away too.
            let error = format!("{error:#}");
            tracing::error!(list = list.name(), error, "cannot clear expired entries away");
        }
    }

    fn publish_keys(&self) {
        let previous = self.edge.keys.load();
        let ring = KeyRing::new(self.keys.values().cloned(), Some(&previous));
        self.edge.keys.store(Arc::new(ring));
    }

    fn view(&self) -> KernelView {
        let tables = &self.tables;
        KernelView {
            counts: tables.counts().unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read the packet counters");
                [map::Count::default(); Reason::COUNT]
            }),
            tables: tables.occupancy().iter().map(|o| (o.map, o.used, o.capacity)).collect(),
            drops_lost: tables.drops_lost().unwrap_or_default(),
            uncounted: tables.uncounted().unwrap_or_default(),
            interfaces: self.health.interfaces(),
            corrected: [
                ("added", self.health.added.load(Relaxed)),
                ("removed", self.health.removed.load(Relaxed)),
            ],
            censuses_failed: self.health.failed.load(Relaxed),
        }
    }
}

/// Puts the new in force or, if a part of it fails, the former.
fn all_or_former<T>(
    former: &T,
    new: &T,
    mut put: impl FnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Err(error) = put(new) else { return Ok(()) };
    match put(former) {
        Ok(()) => Err(error),
        Err(again) => Err(error.context(format!("nor can the former be put back ({again:#})"))),
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PURGE_EVERY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// Three writes, of which the kernel refuses one.
    fn written(refused: &[(&'static str, usize)]) -> ([&'static str; 3], anyhow::Result<()>) {
        let mut tables = ["old"; 3];
        let result = all_or_former(&"old", &"new", |settings| {
            for (index, table) in tables.iter_mut().enumerate() {
                if refused.contains(&(*settings, index)) {
                    bail!("no {settings}");
                }
                *table = *settings;
            }
            Ok(())
        });
        (tables, result)
    }

    #[test]
    fn a_fault_half_way_leaves_the_former_in_force() {
        assert!(matches!(written(&[]), (["new", "new", "new"], Ok(()))));
        for fault in 0..3 {
            let (tables, result) = written(&[("new", fault)]);
            assert_eq!(tables, ["old"; 3]);
            assert_eq!(format!("{:#}", result.unwrap_err()), "no new");
        }
    }

    #[test]
    fn a_former_that_cannot_come_back_is_told_of() {
        let (_, result) = written(&[("new", 1), ("old", 0)]);
        assert_eq!(
            format!("{:#}", result.unwrap_err()),
            "nor can the former be put back (no old): no new"
        );
    }
}
