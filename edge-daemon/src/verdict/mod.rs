//! The one writer of verdicts: every ban and every list entry in the kernel is written here,
//! whether the request plane's signals or an operator's command asked for it.
//!
//! It has a thread of its own and takes one order after the other. A ban comes to the kernel first
//! and to the disk after it, through another thread: it takes effect in microseconds and is
//! durable within a second. What an operator says comes to the disk first, but for denials of tokens,
//! which hold whatever the disk does.

mod admit;
mod bans;
mod book;
mod command;
mod configured;
mod exempt;
mod explain;
mod fleet;
mod fold;
mod held;
mod keeper;
mod lists;
mod named;
mod prompt;
mod rekey;
mod renew;
mod room;
mod sheets;
mod tell;
mod tokens;
mod unban;
mod view;
mod vital;
mod warden;

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use edge_common::{Source, map};
use edge_identity::fleet::Record;
use edge_policy::{
    list::Class,
    verdict::{Cap, Culprit, Engine, Signal},
};
use ipnet::IpNet;
use tokio::sync::oneshot;

use self::{
    book::Book,
    fold::Folding,
    keeper::Unsaved,
    lists::List,
    renew::{Compiled, Waiting},
    tokens::Denials,
    vital::Vital,
};
pub use self::{
    keeper::Keeper,
    lists::Prepared,
    sheets::{Listed, Sheet, Sheets, Update},
    warden::{Suspects, Warden},
};
use crate::{
    audit::Kept,
    clock,
    config::{Settings, settings::NamedSignature},
    control::{Command, ListName, Peer, Reply},
    kernel::{Health, InForce, Tables, Twin},
    metrics::KernelView,
    plan,
    request::Edge,
    store::Store,
};

/// What the writer can be asked to do.
pub enum Order {
    /// Judge what a client did, as this worker saw it.
    Signals(Vec<Signal>, usize),
    /// Put in force what another edge has decided, and whether it was told just now.
    Ban(Box<Record>, bool),
    /// Tell which bans are in force that a fleet may know of, to an edge of this name.
    Recall(String, oneshot::Sender<Vec<Record>>),
    /// Look once more at what may differ between what was decided and the kernel.
    Heal(Box<Suspects>),
    /// End what is in force against a client as far as this lift or revocation of an edge means it.
    Ended(Box<Record>),
    /// Do what an operator says. The audit log's line of it, if there is one to wait for, goes with the
    /// answer: the writer waits for no log.
    Command(Command, Peer, oneshot::Sender<(Reply, Option<Kept>)>),
    /// Put another configuration in force.
    Apply(Box<Settings>, oneshot::Sender<anyhow::Result<()>>),
    /// Put what somebody else lists in force.
    Sheet(Update),
    /// The lists that were compiled are in the kernel, or cannot be.
    Compiled(Box<Compiled>),
    /// Note how a reload went, for the status.
    Reloaded(Result<(), String>),
    /// Read the kernel's tables for a scrape.
    View(oneshot::Sender<KernelView>),
    /// Make everything durable and end.
    Stop,
}

/// The kernel's tables, the store behind them and the engine that judges.
pub struct Writer {
    tables: Tables,
    twin: Twin,
    /// How the interfaces and the count of connections are, for the status and for scrapes.
    pub health: Arc<Health>,
    store: Arc<Store>,
    engine: Engine,
    settings: Settings,
    /// Those in force in the kernel: ahead of `settings` while lists are compiled.
    signatures: Vec<NamedSignature>,
    allow: List,
    deny: List,
    folding: Folding,
    /// What waits for an image in the making.
    waiting: Waiting,
    /// Which of the lists the request plane was told, by their number.
    listed: Option<u64>,
    /// What operators changed, and what ended, while lists are compiled anew; `None`: none are.
    meanwhile: Option<Vec<(ListName, IpNet)>>,
    /// Tokens that operators denied.
    denials: Denials,
    /// The audit log's line of the command that is being carried out.
    told: Option<Kept>,
    /// Bans in force, by client. The kernel holds the same and ends each by itself.
    bans: Book<Source>,
    /// Milder verdicts in force, which the request plane enforces.
    penalties: Book<Culprit>,
    /// Clients as they were banned before another prefix stood for one, and as they are since.
    moved: (Vec<(Source, map::Ban)>, Vec<Source>),
    /// Clients that other edges ban and the cap has spared so far, the first first.
    capped: VecDeque<Source>,
    /// Whom no scenario may cut off.
    vital: Vital,
    /// Bans within this minute, and when that they were too many was last told.
    cap: Cap,
    alarmed_ns: [Option<u64>; tell::LASTING],
    /// Bans that were put right since that was last told.
    mended: u64,
    /// Whether the last of those whom the cap had spared could not be banned.
    is_promotion_failing: bool,
    /// Bans that are in the kernel and not yet on disk.
    unsaved: Unsaved,
    edge: Arc<Edge>,
    config: PathBuf,
    started: Instant,
    last_reload: Option<(u64, Result<(), String>)>,
    next_purge: Instant,
}

impl Writer {
    /// Brings together what is known of the past: operators' lists and bans, from the store and from
    /// the kernel's own tables, which may have outlived the last daemon; and puts the lists in force.
    /// The keeper saves bans once it runs.
    pub fn new(
        (tables, twin): (Tables, Twin),
        store: Arc<Store>,
        config: PathBuf,
        settings: Settings,
        prepared: Prepared,
        edge: Arc<Edge>,
    ) -> anyhow::Result<(Self, Keeper)> {
        let (unsaved, keeper) = Unsaved::new(Arc::clone(&store));
        let Prepared { past, lists: [allow, deny], draft } = prepared;
        for record in &past.unreadable {
            tracing::error!(record, "the store holds a record that cannot be read");
        }
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).context("no randomness")?;
        let mut writer = Self {
            tables,
            twin,
            health: Arc::default(),
            store,
            engine: Engine::new(plan::verdicts(&settings.verdicts), secret),
            signatures: settings.kernel.signatures.clone(),
            settings,
            allow,
            deny,
            folding: Folding::default(),
            waiting: Waiting::default(),
            listed: None,
            meanwhile: None,
            denials: Denials::new(),
            told: None,
            bans: Book::new(),
            penalties: Book::new(),
            moved: (Vec::new(), Vec::new()),
            capped: VecDeque::new(),
            vital: Vital::default(),
            cap: Cap::default(),
            alarmed_ns: [None; tell::LASTING],
            mended: 0,
            is_promotion_failing: false,
            unsaved,
            edge,
            config,
            started: Instant::now(),
            last_reload: None,
            next_purge: Instant::now(),
        };
        let filled = writer
            .restore(past.bans)
            .and_then(|()| writer.tables.lists.fill(draft).context("cannot write the lists"));
        filled.or_else(|error| writer.settle_clients(false).and(Err(error)))?;
        writer.restore_denials(past.denials);
        writer.tell_loss();
        writer.tell_listed();
        Ok((writer, keeper))
    }

    /// Takes orders until it is told to stop.
    pub fn run(mut self, orders: &Receiver<Order>) {
        if let Err(error) = prompt::be_prompt() {
            tracing::info!(%error, "verdicts wait for their turn as all threads do");
        }
        let mut next_look = Instant::now();
        let edge = Arc::clone(&self.edge);
        loop {
            let order = orders.recv_timeout(next_look.saturating_duration_since(Instant::now()));
            // What a successor has loaded, only it may change.
            let Some(_turn) = edge.reign.turn() else { return };
            let first = match order {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
            };
            // What else waits is taken in the same turn.
            for order in first.into_iter().chain(orders.try_iter().take(TAKEN_MAX)) {
                if self.take(order).is_break() {
                    return self.unsaved.finish();
                }
            }
            self.apply();
            if Instant::now() >= next_look {
                self.look_after();
                next_look = Instant::now() + LOOK_EVERY;
            }
            if !self.waiting.is_empty() {
                next_look = next_look.min(Instant::now() + RETRY);
            }
        }
    }

    /// Takes an order; breaks at the last.
    fn take(&mut self, order: Order) -> ControlFlow<()> {
        match order {
            Order::Signals(signals, worker) => {
                self.edge.signals.taken(worker, signals.len());
                signals.into_iter().for_each(|signal| self.judge(signal));
            }
            Order::Ban(record, is_news) => self.banned(*record, is_news),
            Order::Recall(node, answer) => drop(answer.send(self.recall(&node))),
            Order::Ended(end) => self.ended_by(&end),
            Order::Heal(suspects) => self.heal(&suspects),
            Order::Command(command, peer, answer) => {
                // An operator who has gone away is not told; the work is done all the same.
                let reply = self.obey(command, peer);
                let _ = answer.send((reply, self.told.take()));
            }
            Order::Apply(settings, answer) => self.waiting.settings = Some((settings, answer)),
            Order::Sheet(update) => self.waiting.sheets.push_back(update),
            Order::Compiled(compiled) => self.compiled(*compiled),
            Order::Reloaded(result) => self.last_reload = Some((clock::unix_ms(), result)),
            Order::View(answer) => {
                let _ = answer.send(self.view());
            }
            Order::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Everything that operators have listed.
    fn of_operators(&self) -> Vec<(Class, IpNet, u64)> {
        let allow = self.allow.of_operators(ListName::Allow);
        allow.chain(self.deny.of_operators(ListName::Deny)).collect()
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

    /// Tells the kernel what a list says of a network now.
    fn write(&mut self, list: ListName, net: &IpNet) -> anyhow::Result<InForce> {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.push((list, *net));
        }
        let until = |class: &Class| (*class, self.list(list).until_ns(list, *class, net));
        let mut ends: Vec<_> = lists::classes(list).iter().map(until).collect();
        // What it is goes before what it is no more: there may be no room for it.
        ends.sort_by_key(|(_, until_ns)| *until_ns == 0);
        let mut in_force = InForce::Now;
        for (class, until_ns) in ends {
            let set = self.tables.lists.set(class, net, until_ns);
            if set.with_context(|| format!("cannot write the {} list", list.name()))?
                != InForce::Now
            {
                in_force = InForce::WithNextImage;
            }
        }
        self.folding.note(in_force != InForce::Now, Instant::now());
        self.folding.look(&self.tables.lists, Instant::now());
        Ok(in_force)
    }

    /// What is due now and then: saving bans, clearing away what has ended.
    fn look_after(&mut self) {
        let now = Instant::now();
        self.unsaved.save(now);
        self.count_unsaved_denials();
        let now_ns = clock::boot_ns();
        self.end_bans(now_ns);
        self.promote();
        for list in [ListName::Allow, ListName::Deny] {
            self.expire(list, now_ns);
        }
        self.folding.look(&self.tables.lists, now);
        // While lists are compiled, the policy in force is ahead of the settings.
        if self.meanwhile.is_none() {
            self.follow_addresses();
        }
        let now_ms = clock::unix_ms();
        self.expire_denials(now_ms);
        if now >= self.next_purge && self.unsaved.purge(now_ms, self.forget_after()) {
            self.next_purge = now + PURGE_EVERY;
        }
        let metrics = &self.edge.metrics;
        metrics.watched.store(self.engine.len() as u64, Relaxed);
        metrics.watched_evicted.store(self.engine.evicted(), Relaxed);
        self.vital.follow(&self.settings, now);
        self.tell_listed();
    }

    /// How long past verdicts are kept on disk: until the last of some strikes is forgotten.
    fn forget_after(&self) -> Duration {
        self.settings.verdicts.forget_after.saturating_mul(STRIKES_KEPT)
    }

    /// Protects the listeners on the addresses that the host has now.
    fn follow_addresses(&mut self) {
        let policy = plan::kernel_policy(&self.settings);
        if let Err(error) = self.tables.follow_addresses(policy) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "cannot follow the addresses of this host");
        }
    }

    /// Forgets the entries that operators made for a time that is over. The kernel has not been
    /// minding them since; from the disk the next purge takes them, unless their dates are of the future.
    fn expire(&mut self, list: ListName, now_ns: u64) {
        for entry in self.list_mut(list).expire(now_ns) {
            let (class, net) = (entry.class(list), entry.record.net);
            if entry.record.is_future(clock::unix_ms())
                && let Err(error) = self.store.remove_list(list, net)
            {
                tracing::error!(%net, %error, "cannot take an entry that has ended from the disk");
            }
            // The configuration under way may list it for good.
            if let Some(meanwhile) = &mut self.meanwhile {
                meanwhile.push((list, net));
            }
            if self.list(list).until_ns(list, class, &net) == 0 {
                self.tables.lists.forget(class, &net);
                self.folding.note(false, Instant::now());
            }
        }
    }
}

/// Orders that are taken in one turn, beside the first.
const TAKEN_MAX: usize = 64;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon what waits asks again for its turn.
const RETRY: Duration = Duration::from_millis(20);
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// More strikes than these no longer lengthen a verdict: the longest is reached.
const STRIKES_KEPT: u32 = 8;
