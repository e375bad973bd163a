//! The daemon's life: build all that can fail, give up every power, then run, then drain.

mod certificates;
mod decided;
mod exposition;
mod operator;
mod sockets;
mod told;
mod traffic;

use std::{
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use edge_identity::jwt::denylist::Denylist;
use edge_policy::verdict::Identities;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{LocalSet, spawn_local},
};

use self::{
    decided::Watchers,
    operator::Operator,
    sockets::{bind, provide_descriptors},
    traffic::Watch,
};
use crate::{
    audit::{Audit, AuditLog},
    clock,
    config::Settings,
    control::{self, Command, Reply},
    decisions::Decisions,
    events::{Event, EventLog, Events},
    geo,
    issuers::{self, Feeds},
    kernel::{Attached, DebugLog, Drops, Kernel, LoadSettings, Upkeep},
    keys::{
        self, Registry, masters, pepper,
        slow::{Hasher, Slow},
    },
    listen, memory,
    metrics::Metrics,
    notify::notify,
    outside::{self, Outside},
    penalties::Penalties,
    plan, privilege, quota, replay,
    request::{self, Edge, Entrance, proof_nonces},
    scrape,
    signals::Signals,
    store, upstream,
    verdict::{self, Keeper, Order, Warden, Writer},
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
    /// For each worker, its listeners.
    listeners: Vec<Vec<(TcpListener, Entrance)>>,
    control: UnixListener,
    metrics: TcpListener,
}

impl App {
    /// Does everything that can fail or needs a privilege.
    pub fn build(config: PathBuf, settings: Settings) -> anyhow::Result<Self> {
        let feeds = Feeds::default();
        let restore = |spec| quota::restore(&settings, spec);
        let plan = plan::plan(&settings, None, &feeds, restore)?;
        let workers = match settings.server.workers {
            0 => thread::available_parallelism()?.get(),
            workers => workers,
        };
        provide_descriptors(&settings, workers);
        let metrics_of = Arc::new(Metrics::new(workers));
        let (audit, audit_log) = Audit::open(&settings.audit, Arc::clone(&metrics_of.audit))?;
        let (events, event_log) =
            Events::open(&settings.log, audit.clone()).context("cannot open the event log")?;
        let (store, damage) = store::Store::open(&settings.state.dir, clock::unix_ms() / 1000)?;
        if let Some(damage) = damage {
            tracing::error!(damage, "the store was damaged");
        }
        let (store, peppers) = (Arc::new(store), pepper::make(&settings.keys)?);
        masters::make(&settings.signing)?;
        let (masters, replays) = (masters::load(&settings.signing)?, replay::open(&settings)?);
        let keys = keys::load(&store)?;
        let listeners = bind(&settings, workers)?;
        let metrics = listen::bind(settings.metrics.listen, 1)
            .with_context(|| format!("cannot listen on {}", settings.metrics.listen))?
            .remove(0);
        let control = control::bind(&settings.control.socket)
            .with_context(|| format!("cannot listen on {}", settings.control.socket.display()))?;

        let (queue, orders) = sync_channel(Signals::room(workers) + ORDERS_MAX);
        let (key_queue, key_orders) = sync_channel(KEY_ORDERS_MAX);
        let to_keys = keys::Orders::new(key_queue);
        let (slow, hasher) =
            Slow::new(Arc::clone(&store), to_keys.clone(), Arc::clone(&metrics_of));
        feeds.publish(&plan.issuers);
        let outside = Outside::new(&settings);
        let sheets = outside.sheets();
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).context("no randomness")?;
        let edge = Arc::new(Edge {
            plan: ArcSwap::from_pointee(plan),
            feeds,
            outside,
            denylist: Denylist::default(),
            proof_nonces: proof_nonces(&settings.tokens).context("no randomness")?,
            changed: tokio::sync::watch::Sender::new(()),
            keys,
            key_orders: to_keys,
            slow,
            peppers: ArcSwap::from_pointee(peppers),
            masters: ArcSwap::from_pointee(masters),
            replays,
            crowd: Arc::default(),
            penalties: Penalties::default(),
            listed: arc_swap::ArcSwapOption::empty(),
            identities: Identities::new(secret),
            signals: Signals::new(queue.clone(), workers),
            decisions: Decisions::default(),
            orders: queue,
            metrics: metrics_of,
            events,
            audit,
        });
        // The tables are filled before the program that reads them sees its first packet.
        let mut kernel = Kernel::load(&LoadSettings {
            pin_dir: settings.kernel.pin_dir.clone(),
            debug: settings.kernel.debug,
            policy: plan::kernel_policy(&settings),
            lists: verdict::list_capacity(&settings, &sheets, &store)?,
        })?;
        let kernels = (kernel.tables.duplicate()?, kernel.take_twin()?);
        let registry = Registry::new(Arc::clone(&store), Arc::clone(&edge));
        let edge_too = Arc::clone(&edge);
        let (mut writer, keeper) =
            Writer::new(kernels, store, config.clone(), settings.clone(), sheets, edge_too)?;
        edge.outside.follow_hits(kernel.tables.lists.clone());
        let upkeep = kernel.attach(&plan::interfaces(&settings.kernel))?;
        for attached in kernel.attached() {
            let Attached { interface, mode, adopted, .. } = attached;
            tracing::info!(interface, %mode, adopted, "attached");
        }
        writer.health = upkeep.health();
        operator::keep_lists(&settings);
        let Kernel { tables, drops, samples, debug_log, .. } = kernel;
        let warden = Warden::new(tables.duplicate()?, Arc::clone(&edge));
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
            listeners,
            control,
            metrics,
        })
    }

    /// Gives up every capability, serves until SIGTERM or SIGINT, drains.
    pub fn run(self) -> anyhow::Result<()> {
        privilege::drop_all()?;

        let (stop, stopping) = watch::channel(false);
        let ((event_log, audit_log), writer, orders) = (self.logs, self.writer, self.orders);
        let event_log = spawn("events", move || event_log.run())?;
        let audit_log = spawn("audit", move || audit_log.run())?;
        let keeper = self.keeper;
        let keeper = spawn("keeper", move || keeper.run())?;
        let (upkeep, (stop_upkeep, upkeep_stops)) = (self.upkeep, UnixStream::pair()?);
        let upkeep = spawn("upkeep", move || upkeep.run(&upkeep_stops))?;
        let writer = spawn("verdicts", move || writer.run(&orders))?;
        let (warden, (stop_warden, warden_stops)) = (self.warden, channel());
        let warden = spawn("warden", move || warden.run(&warden_stops))?;
        let (dir, quotas, (stop_quotas, quotas_stop)) =
            (self.settings.state.dir.clone(), Arc::clone(&self.edge), channel());
        let quotas = spawn("quotas", move || quota::keep(&dir, &quotas, &quotas_stop))?;
        let (registry, key_orders, hasher) = self.keys;
        let registry = spawn("keys", move || registry.run(&key_orders))?;
        let hasher = spawn("hasher", move || hasher.run())?;
        let issuers = issuers::keeper(&self.edge.feeds, stopping.clone());
        let issuers = spawn("issuers", move || issuers.run())?;
        let outside = outside::keeper(Arc::clone(&self.edge), stopping.clone());
        let outside = spawn("outside", move || outside.run())?;
        let mut workers = Vec::new();
        for (index, listeners) in self.listeners.into_iter().enumerate() {
            let (edge, stopping) = (Arc::clone(&self.edge), stopping.clone());
            let drain = self.settings.server.drain_timeout;
            let work = move || request::run(edge, index, listeners, stopping, drain);
            workers.push(spawn(&format!("worker-{index}"), work)?);
        }
        let edge = Arc::clone(&self.edge);
        let (upstreams, looked_after) = watch::channel(edge.plan.load().upstreams.clone());
        let (resolved, resolutions) = watch::channel(());
        let checks = spawn("upstreams", move || upstream::checks::run(looked_after, resolved))?;
        let operator = Operator::new(self.edge, self.config, self.settings, upstreams);
        serve_control(operator, self.control, self.metrics, self.told, resolutions)?;

        notify("STOPPING=1");
        edge.events.tell(Event::Stopped);
        stop.send_replace(true);
        for worker in workers {
            join(worker)??;
        }
        drop((stop_quotas, stop_warden));
        join(quotas)?;
        join(warden)?;
        join(issuers)??;
        join(outside)??;
        edge.orders.send(Order::Stop).context("the verdict writer is gone")?;
        join(writer)?;
        edge.key_orders.stop()?;
        join(registry)?;
        join(keeper)?;
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

/// The control plane, on the main thread: it answers while the workers are flooded.
fn serve_control(
    operator: Operator,
    control: UnixListener,
    metrics: TcpListener,
    told: Told,
    mut resolutions: watch::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(
        LocalSet::new().run_until(async move {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut hangup = signal(SignalKind::hangup())?;
            let edge = Arc::clone(&operator.edge);
            let operator = Rc::new(tokio::sync::Mutex::new(operator));

            let listener = tokio::net::TcpListener::from_std(metrics)?;
            let scraped = Arc::clone(&edge);
            spawn_local(scrape::serve(listener, move |path| {
                exposition::page(Arc::clone(&scraped), path)
            }));
            spawn_local(told::drops(told.drops, Arc::clone(&edge)));
            spawn_local(memory::watch(Arc::clone(&edge)));
            spawn_local(certificates::tend(Arc::clone(&edge)));
            spawn_local(geo::tend(Arc::clone(&edge)));
            spawn_local(certificates::fetch(Arc::clone(&edge)));
            if let Some(log) = told.debug {
                spawn_local(told::debug(log));
            }
            let watch = Rc::new(told.watch);
            let watching = Rc::clone(&watch);
            spawn_local(async move { watching.run().await });
            let (commanded, asked) = (Rc::clone(&operator), Arc::clone(&edge));
            let watchers = Watchers::default();
            spawn_local(control::serve(control, move |command, peer| {
                let (operator, watch) = (Rc::clone(&commanded), Rc::clone(&watch));
                let (edge, watchers) = (Arc::clone(&asked), watchers.clone());
                // A task of its own: who asked may give up or be cut off, the work is done to its end.
                let work = spawn_local(async move {
                    match command {
                        Command::Top { sort, limit } => watch.top(sort, limit).await,
                        Command::Watch { from } => watchers.wait(&edge, from).await,
                        Command::AuthzExplain(question) => match edge.explain(&question) {
                            Ok(access) => Reply::Access(Box::new(access)),
                            Err(why) => Reply::Refused(why),
                        },
                        Command::Feed(command) => operator::of_feeds(&edge, command).await,
                        command => operator.lock().await.obey(command, peer).await,
                    }
                });
                async move {
                    work.await.unwrap_or_else(|_| Reply::Refused("the command broke off".into()))
                }
            }));

            operator.lock().await.await_names(&mut resolutions).await;
            let renamed = Rc::clone(&operator);
            spawn_local(async move {
                while resolutions.changed().await.is_ok() {
                    renamed.lock().await.follow_names().await;
                }
            });

            let following = Rc::clone(&operator);
            spawn_local(async move {
                loop {
                    tokio::time::sleep(LOOK_AT_SECRETS).await;
                    following.lock().await.follow_secrets();
                }
            });

            // A task of its own: an end that is asked for does not wait for a reload.
            spawn_local(async move {
                while hangup.recv().await.is_some() {
                    // Failure is logged, counted and shown by `edgectl status`.
                    let _ = operator.lock().await.reload().await;
                }
            });

            tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
            edge.events.tell(Event::Started { version: env!("CARGO_PKG_VERSION") });
            notify("READY=1");
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
            }
        }),
    )
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

/// How soon a secret that changes in its file is read again, at the latest.
const LOOK_AT_SECRETS: Duration = Duration::from_secs(2);
/// What waits for the writer besides signals.
const ORDERS_MAX: usize = 4_096;
/// Renewals, exposures and operators' commands that wait for the thread of the keys.
const KEY_ORDERS_MAX: usize = 4_096;
/// For the last events to be written, at the end.
const LAST_EVENTS: Duration = Duration::from_secs(2);
