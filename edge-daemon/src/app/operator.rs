//! Operators' commands on their way to the writer, and the reload of the configuration.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc::SyncSender},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::{certificates, overview::overview};
use crate::{
    audit, clock,
    config::{self, Settings, settings},
    control::{Command, Peer, Reply, feeds::FeedCommand, keys::KeyCommand, protocol::Entries},
    events::Event,
    keys::{self, masters, pepper},
    leftovers::{self, Named},
    notify::{self, notify},
    plan::{self, PlanError},
    quota,
    request::{Edge, Plan},
    secret::Stamp,
    upstream::{Upstream, names},
    verdict::Order,
};

/// What an operator reaches: the configuration's file, and the writer behind the edge.
pub(super) struct Operator {
    pub(super) edge: Arc<Edge>,
    pub(super) config: PathBuf,
    pub(super) settings: Settings,
    /// The upstreams that are looked after.
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    /// The files of the secrets, as they were when these were read.
    stamps: Vec<Option<Stamp>>,
    /// As they were when these could not be used last.
    refused: Vec<Option<Stamp>>,
}

/// A state of each file that holds a secret.
pub(super) fn stamps(settings: &Settings) -> Vec<Option<Stamp>> {
    settings.secrets().iter().map(|(origin, _)| origin.stamp()).collect()
}

/// The states that files had `before` they were read; of one that was made since, its first.
fn as_read(before: Vec<Option<Stamp>>, settings: &Settings) -> Vec<Option<Stamp>> {
    before.into_iter().zip(stamps(settings)).map(|(before, made)| before.or(made)).collect()
}

impl Operator {
    pub(super) fn new(
        edge: Arc<Edge>,
        config: PathBuf,
        settings: Settings,
        upstreams: watch::Sender<Vec<Arc<Upstream>>>,
        stamps: Vec<Option<Stamp>>,
    ) -> Self {
        let stamps = as_read(stamps, &settings);
        Self { edge, config, settings, upstreams, stamps, refused: Vec::new() }
    }

    /// Waits, bounded, until servers that are known by name have addresses.
    pub(super) async fn await_names(&mut self, resolutions: &mut watch::Receiver<()>) {
        let upstreams = self.edge.plan.load().upstreams.clone();
        let lacks = || upstreams.iter().any(|upstream| names::lacks_addresses(upstream));
        let all = async { while lacks() && resolutions.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(FIRST_LOOKUPS, all).await;
        self.follow_names().await;
    }

    /// Puts the addresses that names mean now on the allow list: no limit may cut off their answers. Whether they are there.
    pub(super) async fn follow_names(&mut self) -> bool {
        let resolved = resolved(&self.edge.plan.load().upstreams);
        if resolved == self.settings.resolved {
            return true;
        }
        let settings = Settings { resolved, ..self.settings.clone() };
        let applied = self.apply(&settings).await;
        match &applied {
            Ok(()) => self.settings = settings,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "servers' new addresses are not on the allow list");
            }
        }
        applied.is_ok()
    }

    /// Puts what is in force in force once more, where another daemon may have changed it.
    pub(super) async fn insist(&self) {
        if let Err(error) = self.apply(&self.settings).await {
            let error = format!("{error:#}");
            tracing::error!(error, "what another daemon changed in the kernel stays changed");
        }
    }

    /// Has the writer put settings in force.
    async fn apply(&self, settings: &Settings) -> anyhow::Result<()> {
        let (answer, answered) = oneshot::channel();
        send(&self.edge.orders, Order::Apply(Box::new(settings.clone()), answer)).await?;
        answered.await.context("the verdict writer is gone")?
    }

    pub(super) async fn obey(&mut self, command: Command, peer: Peer) -> Reply {
        if matches!(command, Command::Reload) {
            return match self.reload().await {
                Ok(()) => Reply::Done("the configuration is in force".into()),
                Err(error) => Reply::Refused(format!("{error:#}")),
            };
        }
        if matches!(command, Command::Overview) {
            return Reply::Overview(Box::new(overview(&self.settings, &self.edge)));
        }
        if let Command::Key(command) = command {
            return self.ask_of_keys(command, peer).await;
        }
        if let Command::Servers { what } = &command {
            return what.obey(&self.edge.plan.load().upstreams);
        }
        if matches!(&command, Command::Token(command) if command.is_put_off()) {
            let audit = self.edge.audit.clone();
            if !waited(move || audit.flush(audit::PATIENCE)).await {
                return Reply::unnoticed();
            }
        }
        let (answer, answered) = oneshot::channel();
        let sent = send(&self.edge.orders, Order::Command(command, peer, answer)).await;
        match (sent, answered.await) {
            (Ok(()), Ok((reply, None))) => reply,
            (Ok(()), Ok((reply, Some(kept)))) => {
                reply.told(waited(move || kept.within(audit::PATIENCE)).await)
            }
            _ => Reply::Refused("the verdict writer is gone".into()),
        }
    }

    async fn ask_of_keys(&self, command: KeyCommand, peer: Peer) -> Reply {
        let (answer, answered) = oneshot::channel();
        let mut order = keys::Order::Command(command, peer, answer);
        while let Err(unsent) = self.edge.key_orders.ask(order) {
            let Some(unsent) = unsent else { return Reply::Refused(KEYS_GONE.into()) };
            order = unsent;
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        answered.await.unwrap_or_else(|_| Reply::Refused(KEYS_GONE.into()))
    }

    /// Reads the configuration again. Nothing changes unless all of it can be put in force.
    pub(super) async fn reload(&mut self) -> anyhow::Result<()> {
        notify::reloading();
        let result = self.try_reload().await;
        if result.is_err() {
            // What was looked up for it serves all the same.
            self.follow_names().await;
        }
        let metrics = &self.edge.metrics;
        let (count, word) = match &result {
            Ok(()) => (&metrics.reloads_ok, "ok"),
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "reload refused; the former stays");
                (&metrics.reloads_refused, "refused")
            }
        };
        count.fetch_add(1, Relaxed);
        self.edge.events.tell(Event::Reload { result: word });
        let told = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error:#}")),
        };
        let _ = send(&self.edge.orders, Order::Reloaded(told)).await;
        notify("READY=1");
        result
    }

    /// What is to be in force, with what limits have counted so far.
    fn plan(&self, settings: &Settings) -> Result<Plan, PlanError> {
        let former = self.edge.plan.load();
        plan::plan(settings, Some(&former), &self.edge.feeds, |spec| {
            let shared = &former.shared;
            let apart = [&former.handshakes, &shared.requests, &shared.handshakes];
            let counted = apart.into_iter().find(|rules| rules.get(&spec.name).is_some());
            quota::carry(counted.unwrap_or(&former.limits), settings, spec)
        })
    }

    async fn try_reload(&mut self) -> anyhow::Result<()> {
        let (mut settings, warnings) = config::reload(&self.config, &self.settings)?;
        if !warnings.0.is_empty() {
            tracing::warn!("{warnings}");
        }
        refuse_what_needs_a_restart(&self.settings, &settings)?;
        // Before any is read: one that changes meanwhile is read again.
        let stamps = stamps(&settings);
        // Another pepper may be made; one that was lost must not be.
        let is_same = settings.keys.pepper == self.settings.keys.pepper;
        let peppers = if is_same { pepper::load } else { pepper::make };
        let (plan, peppers) = (self.plan(&settings)?, peppers(&settings.keys)?);
        let masters = masters::load(&settings.signing)?;
        look_up(&plan.upstreams).await;
        settings.resolved = resolved(&plan.upstreams);
        self.apply(&settings).await?;
        self.upstreams.send_replace(plan.upstreams.clone());
        self.edge.adopt(plan);
        self.edge.outside.publish(&settings);
        certificates::look(&self.edge, true);
        self.edge.peppers.store(Arc::new(peppers));
        self.edge.masters.store(Arc::new(masters));
        self.stamps = as_read(stamps, &settings);
        keep_lists(&settings);
        self.settings = settings;
        Ok(())
    }

    /// Removes the files of what has not been configured for long.
    pub(super) async fn sweep(&self) {
        let (edge, state) = (Arc::clone(&self.edge), self.settings.state.dir.clone());
        let named = Named::by(&self.settings);
        let sweep = move || {
            // A successor's files are its own.
            let Some(_turn) = edge.reign.turn() else { return };
            let now_s = i64::try_from(clock::unix_ms() / 1000).unwrap_or(0);
            leftovers::sweep(&state, &named, now_s);
        };
        if let Err(error) = tokio::task::spawn_blocking(sweep).await {
            tracing::error!(%error, "the state folder cannot be looked after");
        }
    }

    /// Reads the secrets again if the file of one has changed, under the configuration in force.
    pub(super) fn follow_secrets(&mut self) {
        let stamps = stamps(&self.settings);
        if stamps == self.stamps {
            return;
        }
        let read = || {
            let (keys, signing) = (&self.settings.keys, &self.settings.signing);
            anyhow::Ok((self.plan(&self.settings)?, pepper::load(keys)?, masters::load(signing)?))
        };
        match read() {
            Ok((plan, peppers, masters)) => {
                self.edge.adopt(plan);
                self.edge.peppers.store(Arc::new(peppers));
                self.edge.masters.store(Arc::new(masters));
                tracing::info!("a secret has changed; the new one is in use");
                self.stamps = stamps;
            }
            // It is read until it can be used, which may be another file's fault, and told of once.
            Err(_) if self.refused == stamps => {}
            Err(error) => {
                self.refused = stamps;
                let error = format!("{error:#}");
                tracing::error!(error, "a secret has changed and cannot be used; the former stays");
            }
        }
    }
}

/// Waits for the audit log on a thread of its own; `false` if that cannot be.
async fn waited(wait: impl FnOnce() -> bool + Send + 'static) -> bool {
    tokio::task::spawn_blocking(wait).await.unwrap_or(false)
}

/// Answers about feeds, without holding up other commands.
pub(super) async fn of_feeds(edge: &Edge, command: FeedCommand) -> Reply {
    match command {
        FeedCommand::List => Reply::Feeds(Entries::of(edge.outside.show())),
        FeedCommand::Refresh { name, force } => match edge.outside.refresh(&name, force).await {
            Ok(done) => Reply::Done(format!("feed '{name}': {done}")),
            Err(why) => Reply::Refused(format!("feed '{name}': {why}")),
        },
    }
}

/// Where HTTPS is listened for; what a listener asks of its clients may change.
fn addresses(server: &settings::Server) -> Vec<SocketAddr> {
    server.https.iter().map(|listener| listener.address).collect()
}

/// Keeps the list files for the next start. Without it, that one takes them as it finds them.
pub(super) fn keep_lists(settings: &Settings) {
    if let Err(error) = config::keep(&settings.state.dir, &settings.lists) {
        tracing::warn!(%error, "the list files could not be kept for the next start");
    }
}

/// What only the start can do, because the powers for it are gone.
fn refuse_what_needs_a_restart(old: &Settings, new: &Settings) -> anyhow::Result<()> {
    let changed = [
        ("kernel.interfaces", old.kernel.interfaces != new.kernel.interfaces),
        ("kernel.attach", old.kernel.attach != new.kernel.attach),
        ("kernel.pin_dir", old.kernel.pin_dir != new.kernel.pin_dir),
        ("lists.networks_max", old.lists.networks_max != new.lists.networks_max),
        ("kernel.debug", old.kernel.debug != new.kernel.debug),
        ("kernel.ipv4_prefix", old.kernel.client.v4 != new.kernel.client.v4),
        ("kernel.ipv6_prefix", old.kernel.client.v6 != new.kernel.client.v6),
        ("server.https", addresses(&old.server) != addresses(&new.server)),
        ("server.http", old.server.http != new.server.http),
        ("server.workers", old.server.workers != new.server.workers),
        ("server.drain_timeout", old.server.drain_timeout != new.server.drain_timeout),
        ("tokens.proof_age", old.tokens.proof_age != new.tokens.proof_age),
        ("tokens.cache_bytes", old.tokens.cache_bytes != new.tokens.cache_bytes),
        ("signing.window", old.signing.policy.window_s != new.signing.policy.window_s),
        ("signing.nonces_max", old.signing.nonces_max != new.signing.nonces_max),
        ("signing.nonce_file", old.signing.nonce_file != new.signing.nonce_file),
        ("state.dir", old.state != new.state),
        ("control.socket", old.control != new.control),
        ("metrics.listen", old.metrics != new.metrics),
        ("audit", old.audit != new.audit),
        ("log", old.log != new.log),
    ];
    let changed: Vec<_> = changed.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
    if !changed.is_empty() {
        bail!("needs a restart: {} changed", changed.join(", "));
    }
    Ok(())
}

/// Puts an order in the queue, however full signals have made it: an operator is never lost.
pub(super) async fn send(orders: &SyncSender<Order>, mut order: Order) -> anyhow::Result<()> {
    use std::sync::mpsc::TrySendError::{Disconnected, Full};
    loop {
        match orders.try_send(order) {
            Ok(()) => return Ok(()),
            Err(Full(unsent)) => order = unsent,
            Err(Disconnected(_)) => bail!("the verdict writer is gone"),
        }
        tokio::time::sleep(QUEUE_PAUSE).await;
    }
}

const KEYS_GONE: &str = "the thread of the keys is gone";

/// Looks up the names of upstreams of which one has no address yet. Waits a while at most.
async fn look_up(upstreams: &[Arc<Upstream>]) {
    let new = upstreams.iter().filter(|upstream| names::lacks_addresses(upstream));
    let mut looks = JoinSet::new();
    for upstream in new {
        let upstream = Arc::clone(upstream);
        looks.spawn(async move { names::resolve(&upstream, || ()).await });
    }
    let all = async { while looks.join_next().await.is_some() {} };
    if tokio::time::timeout(FIRST_LOOKUPS, all).await.is_err() {
        tracing::warn!("names of servers are not looked up yet");
    }
}

/// The addresses of servers that are known by name, with their upstream's.
fn resolved(upstreams: &[Arc<Upstream>]) -> Vec<(String, IpAddr)> {
    let named = upstreams.iter().filter(|upstream| names::has_names(upstream));
    let of = |upstream: &Arc<Upstream>| {
        let name = upstream.settings.name.clone();
        upstream.addresses().into_iter().map(move |address| (name.clone(), address))
    };
    named.flat_map(of).collect()
}

/// How long the start and a reload wait for names to be looked up.
const FIRST_LOOKUPS: Duration = Duration::from_secs(3);
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
