//! The one writer of verdicts: every ban and every list entry in the kernel is written here,
//! whether the request plane's signals or an operator's command asked for it.
//!
//! It has a thread of its own and takes one order after the other. The kernel comes first, the
//! disk after it: a ban takes effect in microseconds and is durable within a second.

mod command;
mod lists;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc::{Receiver, RecvTimeoutError}},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edge_common::{Reason, Source, map};
use edge_policy::{
    abuse::{Book, Outcome},
    key::{KeyRecord, KeyRing},
};
use tokio::sync::oneshot;

use self::lists::List;
use crate::{
    clock,
    config::Settings,
    control::{Command, ListName, Peer, Reply},
    events::Event,
    kernel::{self, Attached, Tables},
    metrics::KernelView,
    plan,
    request::Edge,
    store::{BanRecord, Store},
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
    /// What the packet program is attached to, for the status.
    pub attached: Vec<Attached>,
    store: Store,
    book: Book,
    settings: Settings,
    allow: List,
    deny: List,
    keys: BTreeMap<String, KeyRecord>,
    /// Bans in force, by client. The kernel holds the same and ends each by itself.
    bans: BTreeMap<Source, BanRecord>,
    /// Bans that are in the kernel and not yet on disk.
    unsaved: Vec<BanRecord>,
    edge: Arc<Edge>,
    config: PathBuf,
    started: Instant,
    last_reload: Option<(u64, Result<(), String>)>,
    next_purge_ms: u64,
}

impl Writer {
    /// Reads what is known of the past: keys, operators' lists and bans, from the store and from
    /// the kernel's own tables, which may have outlived the last daemon.
    pub fn new(
        tables: Tables,
        store: Store,
        config: PathBuf,
        settings: Settings,
        edge: Arc<Edge>,
    ) -> anyhow::Result<Self> {
        let past = store.load_all()?;
        for record in &past.unreadable {
            tracing::error!(record, "the store holds a record that cannot be read");
        }
        let mut writer = Self {
            tables,
            attached: Vec::new(),
            store,
            book: Book::new(plan::abuse(&settings.abuse)),
            settings: settings.clone(),
            allow: List::new(past.allow),
            deny: List::new(past.deny),
            keys: past.keys.into_iter().map(|key| (key.id.clone(), key)).collect(),
            bans: BTreeMap::new(),
            unsaved: Vec::new(),
            edge,
            config,
            started: Instant::now(),
            last_reload: None,
            next_purge_ms: 0,
        };
        writer.restore(past.bans)?;
        writer.publish_keys();
        writer.apply(settings)?;
        Ok(writer)
    }

    /// Brings the bans of the store and those of the kernel together. Where both know a client,
    /// the kernel is right: it has the hits, and the store may be a second behind.
    fn restore(&mut self, stored: Vec<BanRecord>) -> anyhow::Result<()> {
        let now_ms = clock::unix_ms();
        for record in stored {
            let client = Source::from(record.source);
            let until_ns = clock::boot_ns_at(record.until_ms);
            self.book.restore(client, record.strikes, until_ns);
            if record.until_ms > now_ms && self.tables.bans.lookup(client)?.is_none() {
                self.tables.bans.ban(client, map::Ban {
                    since_ns: clock::boot_ns_at(record.since_ms),
                    until_ns,
                    hits: 0,
                    first_hit_ns: 0,
                    reason: reason_named(&record.reason) as u32,
                    strikes: record.strikes,
                })?;
            }
        }
        for (client, ban) in self.tables.bans.entries()? {
            self.book.restore(client, ban.strikes, ban.until_ns);
            self.bans.insert(client, BanRecord {
                source: client.into(),
                since_ms: clock::unix_ms_at(ban.since_ns),
                until_ms: clock::unix_ms_at(ban.until_ns),
                strikes: ban.strikes,
                reason: reason_of(&ban).name().into(),
            });
        }
        self.unsaved.extend(self.bans.values().cloned());
        Ok(())
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
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return self.save_bans(),
            }
            if Instant::now() >= next_look {
                self.look_after();
                next_look = Instant::now() + LOOK_EVERY;
            }
        }
    }

    /// Puts a configuration in force: at the start as at every reload.
    fn apply(&mut self, settings: Settings) -> anyhow::Result<()> {
        self.allow.configure(&settings.lists.allow);
        self.deny.configure(&settings.lists.deny);
        self.tables
            .update_limits(plan::kernel_limits(&settings.kernel))
            .context("cannot configure the kernel programs")?;
        // Allow first: between the two writes, too much is let in rather than kept out.
        self.write_list(ListName::Allow)?;
        self.write_list(ListName::Deny)?;
        self.book.configure(plan::abuse(&settings.abuse));
        self.settings = settings;
        Ok(())
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

    /// Scores a misdeed; over the line, writes the ban.
    fn judge(&mut self, signal: &Signal) {
        let address = Source::from(signal.address);
        match self.tables.allow.covers(signal.address, signal.at_ns) {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => return tracing::error!(%error, "cannot read the allow list: no verdict"),
        }
        let client = address.client(self.settings.kernel.ipv6_prefix);
        let outcome = self.book.record(client, signal.reason, signal.at_ns);
        let Outcome::Ban { duration_ns, strikes } = outcome else { return };
        if let Err(error) = self.enforce(client, signal, duration_ns, strikes) {
            // The client is as free as before; its next misdeed tries again.
            self.book.retract(client);
            self.edge.metrics.bans_failed.fetch_add(1, Relaxed);
            tracing::error!(%client, error = %format!("{error:#}"), "cannot ban");
            let why = format!("{error:#}");
            self.edge.events.tell(Event::BanFailed { source: client.into(), why });
        }
    }

    fn enforce(
        &mut self,
        client: Source,
        signal: &Signal,
        duration_ns: u64,
        strikes: u32,
    ) -> anyhow::Result<()> {
        let since_ns = clock::boot_ns();
        let until_ns = since_ns.saturating_add(duration_ns);
        let reason = signal.reason;
        let ban = map::Ban {
            since_ns,
            until_ns,
            hits: 0,
            first_hit_ns: 0,
            reason: reason as u32,
            strikes,
        };
        self.tables.bans.ban(client, ban)?;
        let latency = Duration::from_nanos(clock::boot_ns().saturating_sub(signal.at_ns));
        let metrics = &self.edge.metrics;
        metrics.bans.fetch_add(1, Relaxed);
        metrics.ban_latency.observe(latency);
        let (since_ms, until_ms) = (clock::unix_ms_at(since_ns), clock::unix_ms_at(until_ns));
        let record = BanRecord {
            source: client.into(),
            since_ms,
            until_ms,
            strikes,
            reason: reason.name().into(),
        };
        self.unsaved.push(record.clone());
        self.bans.insert(client, record);
        metrics.bans_active.store(self.bans.len() as u64, Relaxed);
        self.edge.events.tell(Event::Ban {
            source: client.into(),
            reason: reason.name(),
            request_id: signal.request_id.clone(),
            until: clock::rfc3339(until_ms),
            strikes,
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        });
        Ok(())
    }

    /// What is due now and then: saving bans, clearing away what has ended.
    fn look_after(&mut self) {
        self.save_bans();
        let now_ms = clock::unix_ms();
        let ended: Vec<Source> =
            self.bans.iter().filter(|(_, b)| b.until_ms <= now_ms).map(|(c, _)| *c).collect();
        for client in ended {
            if let Err(error) = self.lift(&client, "expired") {
                tracing::error!(%client, error = %format!("{error:#}"), "cannot clear a ban away");
            }
        }
        for list in [ListName::Allow, ListName::Deny] {
            if let Err(error) = self.expire(list, now_ms) {
                let error = format!("{error:#}");
                tracing::error!(list = list.name(), error, "cannot clear expired entries away");
            }
        }
        let active = self.keys.values().filter(|key| key.check(now_ms).is_ok()).count();
        let metrics = &self.edge.metrics;
        metrics.keys_active.store(active as u64, Relaxed);
        metrics.bans_active.store(self.bans.len() as u64, Relaxed);
        metrics.watched.store(self.book.len() as u64, Relaxed);
        metrics.watched_evicted.store(self.book.evicted(), Relaxed);
        if now_ms >= self.next_purge_ms {
            self.next_purge_ms = now_ms + PURGE_EVERY_MS;
            if let Err(error) = self.store.purge(now_ms, self.settings.abuse.forget_after) {
                tracing::error!(%error, "cannot purge the store");
            }
        }
    }

    /// Forgets the entries that operators made for a time that is over. The kernel has not been
    /// minding them since.
    fn expire(&mut self, list: ListName, now_ms: u64) -> anyhow::Result<()> {
        let over = self.list_mut(list).expire(now_ms);
        for record in &over {
            self.store.remove_list(list, record.net)?;
        }
        if over.is_empty() { Ok(()) } else { self.write_list(list) }
    }

    /// Ends a ban. The store keeps the strikes until they are forgotten.
    fn lift(&mut self, client: &Source, why: &'static str) -> anyhow::Result<()> {
        self.bans.remove(client);
        self.tables.bans.unban(*client)?;
        self.edge.events.tell(Event::Unban { source: (*client).into(), reason: why });
        Ok(())
    }

    fn save_bans(&mut self) {
        if self.unsaved.is_empty() {
            return;
        }
        match self.store.put_bans(&self.unsaved) {
            Ok(()) => self.unsaved.clear(),
            Err(error) => tracing::error!(%error, "cannot save bans; they hold until a reboot"),
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
        }
    }
}

fn reason_of(ban: &map::Ban) -> Reason {
    Reason::from_index(ban.reason).unwrap_or(Reason::InternalError)
}

fn reason_named(name: &str) -> Reason {
    let named = |reason: &&Reason| reason.name() == name;
    Reason::ALL.iter().find(named).copied().unwrap_or(Reason::InternalError)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PURGE_EVERY_MS: u64 = 3_600_000;
