//! The daemon's life: build all that can fail, give up every power, then run, then drain.

mod certificates;
mod decided;
mod exposition;
mod operator;
mod overview;
mod serving;
mod sockets;
mod told;
mod traffic;

use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use edge_identity::jwt::denylist::Denylist;
use tokio::sync::{mpsc::unbounded_channel, watch};

use self::{
    operator::Operator,
    serving::Office,
    sockets::{Sockets, provide_descriptors},
    traffic::Watch,
};
use crate::{
    audit::{Audit, AuditLog},
    clock,
    config::Settings,
    decisions::Decisions,
    events::{Event, EventLog, Events},
    handover::{Giver, Predecessor, Remembered},
    issuers::{self, Feeds},
    kernel::{Attached, DebugLog, Drops, Kernel, LoadSettings, Lock, Superseded, Upkeep},
    keys::{
        self, Registry, masters, pepper,
        slow::{Hasher, Slow},
    },
    listen::Inherited,
    metrics::Metrics,
    outside::{self, Outside},
    penalties::Penalties,
    plan, privilege, quota,
    request::{self, Edge, Phase},
    secret::Stamp,
    shared,
    signals::Signals,
    store::Store,
    upstream,
    verdict::{Keeper, Order, Prepared, Warden, Writer},
};

/// Everything that was loaded, attached, bound and opened, and nothing that runs yet.
pub struct App {
    config: PathBuf,
    settings: Settings,
    edge: Arc<Edge>,
    writer: Writer,
    keeper: Keeper,
    warden: Warden,
    upkeep: Upkeep,
    orders: Receiver<Order>,
    keys: (Registry, Receiver<keys::Order>, Hasher),
    told: Told,
    logs: (EventLog, AuditLog),
    /// What one process alone may hold.
    lent: (Arc<Store>, Arc<Lock>),
    /// The files of secrets as they were before these were read.
    stamps: Vec<Option<Stamp>>,
    /// What goes once this daemon is in office.
    superseded: Superseded,
    sockets: Sockets,
}

impl App {
    /// Does everything that can fail or needs a privilege. Listeners that are `given` are used; a daemon may be
    /// `in_office` until this one is.
    pub fn build(
        config: PathBuf,
        settings: Settings,
        mut given: Inherited,
        in_office: bool,
    ) -> anyhow::Result<Self> {
        let stamps = operator::stamps(&settings);
        let feeds = Feeds::default();
        let restore = |spec| quota::restore(&settings, spec, clock::now());
        let plan = plan::plan(&settings, None, &feeds, restore)?;
        plan.limits.begin(plan.alone);
        let workers = match settings.server.workers {
            0 => thread::available_parallelism()?.get(),
            workers => workers,
        };
        provide_descriptors(&settings, workers);
        let metrics_of = Arc::new(Metrics::new(workers));
        let (audit, audit_log) = Audit::open(&settings.audit, Arc::clone(&metrics_of.audit))?;
        let (events, event_log) = Events::open(&settings.log, audit.clone())?;
        let (store, damage) = Store::open(&settings.state.dir, clock::unix_ms() / 1000)?;
        if let Some(damage) = damage {
            tracing::error!(damage, "the store was damaged");
        }
        let (store, peppers) = (Arc::new(store), pepper::make(&settings.keys)?);
        masters::make(&settings.signing)?;
        let masters = masters::load(&settings.signing)?;
        let keys = keys::load(&store)?;
        let sockets = Sockets::open(&settings, workers, &mut given)?;
        let (queue, orders) = sync_channel(Signals::room(workers) + ORDERS_MAX);
        let (key_queue, key_orders) = sync_channel(KEY_ORDERS_MAX);
        let to_keys = keys::Orders::new(key_queue);
        let (slow, hasher) =
            Slow::new(Arc::clone(&store), to_keys.clone(), Arc::clone(&metrics_of));
        feeds.publish(&plan.issuers);
        let outside = Outside::new(&settings);
        let sheets = outside.sheets();
        let identities = shared::restore(&settings.state.dir)?;
        identities.expect(settings.verdicts.shared_by, settings.verdicts.shared_within);
        let edge = Arc::new(Edge {
            plan: ArcSwap::from_pointee(plan),
            feeds,
            outside,
            denylist: Denylist::default(),
            changed: tokio::sync::watch::Sender::new(()),
            keys,
            key_orders: to_keys,
            slow,
            peppers: ArcSwap::from_pointee(peppers),
            masters: ArcSwap::from_pointee(masters),
            replays: Remembered::default(),
            crowd: Arc::default(),
            shaking: Arc::default(),
            penalties: Penalties::default(),
            listed: arc_swap::ArcSwap::default(),
            identities,
            signals: Signals::new(queue.clone(), workers),
            decisions: Decisions::default(),
            orders: queue,
            metrics: metrics_of,
            events,
            audit,
            reign: Arc::default(),
        });
        let lists = Prepared::new(&settings, sheets, &store)?;
        // The tables are filled before the program that reads them sees its first packet.
        let mut kernel = Kernel::load(&LoadSettings {
            pin_dir: settings.kernel.pin_dir.clone(),
            debug: settings.kernel.debug,
            policy: plan::kernel_policy(&settings),
            lists: lists.capacity(),
        })?;
        let interfaces = plan::interfaces(&settings.kernel);
        kernel.find(&interfaces, in_office)?;
        let kernels = (kernel.tables.duplicate()?, kernel.take_twin()?);
        let registry = Registry::new(Arc::clone(&store), Arc::clone(&edge));
        let lent = (Arc::clone(&store), kernel.tables.lock());
        let edge_too = Arc::clone(&edge);
        let (mut writer, keeper) =
            Writer::new(kernels, store, config.clone(), settings.clone(), lists, edge_too)?;
        edge.outside.follow_hits(kernel.tables.lists.clone());
        let attached = kernel.attach(&interfaces);
        // What fails behind that leaves the new program where it is.
        writer.settle_clients(attached.is_ok() || !kernel.attached().is_empty())?;
        let mut upkeep = attached?;
        upkeep.reign = Arc::clone(&edge.reign);
        for attached in kernel.attached() {
            let Attached { interface, mode, adopted, .. } = attached;
            tracing::info!(interface, %mode, adopted, "attached");
        }
        writer.health = upkeep.health();
        let Kernel { tables, drops, samples, debug_log, superseded, .. } = kernel;
        let warden = Warden::new(tables.duplicate()?, Arc::clone(&edge), upkeep.health());
        let told = Told { drops, watch: Watch::new(tables, samples), debug: debug_log };
        Ok(Self {
            config,
            settings,
            edge,
            writer,
            keeper,
            warden,
            upkeep,
            orders,
            keys: (registry, key_orders, hasher),
            told,
            logs: (event_log, audit_log),
            lent,
            stamps,
            superseded,
            sockets,
        })
    }

    /// Gives up every capability, takes over from a former daemon if there is one, serves until SIGTERM,
    /// SIGINT or a successor, drains.
    pub fn run(self, former: Option<Predecessor>) -> anyhow::Result<()> {
        privilege::drop_all()?;

        let (stop, stopping) = watch::channel(false);
        let (enter, phase) = watch::channel(Phase::Waiting);
        let ((event_log, audit_log), writer, orders) = (self.logs, self.writer, self.orders);
        let event_log = spawn("events", move || event_log.run())?;
        let audit_log = spawn("audit", move || audit_log.run())?;
        let keeper = self.keeper;
        let keeper = spawn("keeper", move || keeper.run())?;
        // A long list takes a while to be written, and nobody waits for it.
        let lists = self.settings.clone();
        let kept = spawn("kept", move || operator::keep_lists(&lists))?;
        let (upkeep, (stop_upkeep, upkeep_stops)) = (self.upkeep, UnixStream::pair()?);
        let upkeep = spawn("upkeep", move || upkeep.run(&upkeep_stops))?;
        let writer = spawn("verdicts", move || writer.run(&orders))?;
        let (warden, (stop_warden, warden_stops)) = (self.warden, channel());
        let warden = spawn("warden", move || warden.run(&warden_stops))?;
        let (dir, quotas, (stop_quotas, quotas_stop)) =
            (self.settings.state.dir.clone(), Arc::clone(&self.edge), channel());
        let quotas = spawn("quotas", move || quota::keep(&dir, &quotas, &quotas_stop))?;
        let (dir, sources, (stop_sources, sources_stop)) =
            (self.settings.state.dir.clone(), Arc::clone(&self.edge), channel());
        let sources = spawn("sources", move || shared::keep(&dir, &sources, &sources_stop))?;
        let (registry, key_orders, hasher) = self.keys;
        let registry = spawn("keys", move || registry.run(&key_orders))?;
        let hasher = spawn("hasher", move || hasher.run())?;
        let issuers = issuers::keeper(&self.edge.feeds, stopping.clone());
        let issuers = spawn("issuers", move || issuers.run())?;
        let outside = outside::keeper(Arc::clone(&self.edge), stopping.clone());
        let outside = spawn("outside", move || outside.run())?;
        let mut workers = Vec::new();
        let Sockets { clients, control, metrics, handover, heritage } = self.sockets;
        for (index, listeners) in clients.into_iter().enumerate() {
            let (edge, phase) = (Arc::clone(&self.edge), phase.clone());
            let drain = self.settings.server.drain_timeout;
            let work = move || request::run(edge, index, listeners, phase, drain);
            workers.push(spawn(&format!("worker-{index}"), work)?);
        }
        let edge = Arc::clone(&self.edge);
        let (upstreams, looked_after) = watch::channel(edge.plan.load().upstreams.clone());
        let (resolved, resolutions) = watch::channel(());
        let checks = spawn("upstreams", move || upstream::checks::run(looked_after, resolved))?;
        let (tell_outcome, outcomes) = unbounded_channel();
        let giver = Giver {
            listener: handover,
            heritage,
            edge: Arc::clone(&edge),
            store: self.lent.0,
            tables: self.lent.1,
            settings: self.settings.clone(),
            told: tell_outcome,
        };
        let (stop_giver, giver_stops) = UnixStream::pair()?;
        let giver = spawn("handover", move || giver.run(&giver_stops))?;
        let superseded = self.superseded;
        let office = Office { former, superseded, phase: enter.clone(), outcomes };
        let drain_timeout = self.settings.server.drain_timeout;
        let operator = Operator::new(self.edge, self.config, self.settings, upstreams, self.stamps);
        let (ended, former) =
            serving::serve(operator, (control, metrics), self.told, resolutions, office)?;

        serving::say_farewell(ended);
        edge.events.tell(Event::Stopped);
        let deadline = Instant::now() + drain_timeout;
        // It holds the listeners as well: with them open, clients would wait for nobody.
        drop(stop_giver);
        join(giver)?;
        stop.send_replace(true);
        enter.send_replace(Phase::Draining);
        for worker in workers {
            join(worker)??;
        }
        // The one before this may drain still, and has nobody else to tell its audit entries to.
        former.map_or(Ok(()), |former| join_until(former, deadline))?;
        drop((stop_quotas, stop_sources, stop_warden));
        join(quotas)?;
        join(sources)?;
        join(warden)?;
        join(issuers)??;
        join(outside)??;
        // With a successor, both have nothing more to do and may be gone.
        let _ = edge.orders.send(Order::Stop);
        join(writer)?;
        if let Some(_turn) = edge.reign.turn() {
            edge.outside.finish();
        }
        let _ = edge.key_orders.stop();
        join(registry)?;
        join(keeper)?;
        join(kept)?;
        drop(stop_upkeep);
        join(upkeep)?;
        join_until(checks, Instant::now() + LAST_EVENTS)?;
        drop(edge);
        // It ends with the last that could ask it, in the middle of no hash.
        join_until(hasher, Instant::now() + LAST_EVENTS)?;
        // Nobody can tell of events any more; a destination that hangs is not waited for long.
        join_until(audit_log, Instant::now() + LAST_EVENTS)?;
        join_until(event_log, Instant::now() + LAST_EVENTS)
    }
}

/// What the kernel programs tell.
struct Told {
    drops: Drops,
    watch: Watch,
    debug: Option<DebugLog>,
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    Ok(thread::Builder::new().name(name.to_owned()).spawn(work)?)
}

fn join<T>(thread: JoinHandle<T>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

/// Joins a thread, if it ends in time.
fn join_until<T>(thread: JoinHandle<T>, deadline: Instant) -> anyhow::Result<()> {
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            tracing::warn!(thread = thread.thread().name(), "left behind: it has not ended");
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    join(thread).map(|_| ())
}

/// What waits for the writer besides signals.
const ORDERS_MAX: usize = 4_096;
/// Renewals, exposures and operators' commands that wait for the thread of the keys.
const KEY_ORDERS_MAX: usize = 4_096;
/// For the last events to be written, at the end.
const LAST_EVENTS: Duration = Duration::from_secs(2);
