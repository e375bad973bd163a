//! The request plane: from the accepted socket to the last byte of the answer.
//!
//! It never touches the kernel's tables. What it sees of abuse it reports as a [`Signal`](edge_policy::verdict::Signal);
//! `verdict` decides and writes.

mod access;
mod answer;
mod assertion;
pub(crate) mod bear;
mod body;
mod certificate;
mod charge;
mod entry;
mod exchange;
mod front;
mod going;
mod http1;
mod http2;
mod identify;
mod incoming;
mod keys;
mod login;
mod lures;
mod observed;
mod path;
mod plain;
mod report;
mod serve;
mod shaking;
mod signed;
mod tend;
mod throttle;
mod timers;
mod token;
mod upstream;
mod watch;

use std::{
    cell::{Cell, RefCell},
    io,
    net::TcpListener,
    rc::Rc,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use arc_swap::ArcSwap;
use edge_common::{ClientWidth, Reason};
use edge_identity::{
    assertion::Signer,
    certificate::Mapping,
    jwt::{denylist::Denylist, dpop::Nonces},
    key::{self, KeyRing, Peppers},
    signed::Masters,
};
use edge_policy::{
    forwarded::{Naming, Trusted},
    head,
    limit::Rules,
    list::View as Listed,
    route::Routes,
    shield::Secured,
    verdict::{Identities, Wanted},
};
use tokio::{
    runtime::LocalOptions,
    sync::{Notify, watch::Receiver},
};

pub use self::{
    access::Tally,
    charge::SharedSource,
    lures::Lures,
    serve::{Entrance, Phase},
    token::nonces as proof_nonces,
};
use self::{
    assertion::Assertions, front::Visitor, report::Reports, shaking::Turnstile, throttle::Throttle,
    timers::Timers, token::Tokens, upstream::Upstream,
};
use crate::{
    audit::{Audit, Grants},
    config::settings,
    crowd::Crowd,
    decisions::Decisions,
    events::{Events, access as log},
    geo::Geo,
    handover::{Reign, Remembered},
    issuers::{Feeds, Issuers},
    keys::{Orders, slow::Slow},
    metrics::{Counters, Metrics},
    outside::Outside,
    penalties::Penalties,
    signals::Signals,
    tls, upstream as servers,
    verdict::Order,
};

/// What all workers share.
pub struct Edge {
    /// What requests are judged by; replaced whole at a reload.
    pub plan: ArcSwap<Plan>,
    /// Where issuers' keys come from.
    pub feeds: Feeds,
    /// What comes from outside of the host.
    pub outside: Outside,
    /// Tokens that operators deny.
    pub denylist: Denylist,
    /// Told when the plan, or what clients' certificates are judged by, has changed.
    pub changed: tokio::sync::watch::Sender<()>,
    /// The keys that are known.
    pub keys: KeyRing,
    /// The way to the thread that changes them.
    pub key_orders: Orders,
    /// The way to the thread that checks slow hashes.
    pub slow: Slow,
    /// The secrets of the keys' digests; replaced whole when they are read again.
    pub peppers: ArcSwap<Peppers>,
    /// Those from which the secrets of keys that sign are derived; replaced whole, too.
    pub masters: ArcSwap<Masters>,
    /// What came once and must not come again.
    pub replays: Remembered,
    /// Who holds how many connections.
    pub crowd: Arc<Crowd>,
    /// Who is in how many TLS handshakes.
    pub shaking: Arc<Crowd>,
    /// Verdicts that the kernel does not enforce.
    pub penalties: Penalties,
    /// What the lists say: whom they allow bears no verdict, and the kernel sees no clients behind trusted proxies.
    pub listed: ArcSwap<Listed>,
    /// Who succeeded from where of late.
    pub identities: Identities,
    /// The workers' way to the verdict writer.
    pub signals: Signals,
    /// What it decides.
    pub decisions: Decisions,
    /// The way to the verdict writer.
    pub orders: SyncSender<Order>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Security events.
    pub events: Events,
    /// The log of who tried what.
    pub audit: Audit,
    /// Whose it is to change what outlives the daemon.
    pub reign: Arc<Reign>,
}

impl Edge {
    /// Puts a plan in force, and has the keys fetched that it needs.
    pub fn adopt(&self, mut plan: Plan) {
        let read = std::mem::take(&mut plan.connectors);
        plan.upstreams.iter().zip(read).for_each(|(upstream, read)| upstream.begin(read));
        plan.limits.begin(plan.alone);
        self.feeds.publish(&plan.issuers);
        self.plan.store(Arc::new(plan));
        self.changed.send_replace(());
    }
}

/// What requests are judged by: the part of the configuration that the request plane reads.
pub struct Plan {
    /// Bounds of connections and requests.
    pub bounds: settings::Bounds,
    /// Bounds of a request's head, as `edge-policy` wants them.
    pub head: head::Bounds,
    /// Request rates.
    pub limits: Rules,
    /// What this edge may use of a fleet's limit before its first lease.
    pub alone: u32,
    /// Where addresses are from.
    pub geo: Arc<Geo>,
    /// Where requests go and who may send them there.
    pub routes: Routes,
    /// Whose tokens are taken.
    pub issuers: Issuers,
    /// What tokens may take.
    pub tokens: settings::Tokens,
    /// The nonces that DPoP proofs must carry, if they must.
    pub proof_nonces: Arc<Nonces>,
    /// Where they go, in the order that `routes` knows them by.
    pub upstreams: Vec<Arc<servers::Upstream>>,
    /// The certificates of those that go on, until they are taken up.
    pub connectors: Vec<Option<tls::Connector>>,
    /// Who signs what upstreams are told of a request's sender, if anybody.
    pub signer: Option<Signer>,
    /// Whom client certificates stand for.
    pub certificates: Vec<Mapping>,
    /// Roles and policies.
    pub rules: edge_identity::access::Rules,
    /// What each set of policies said so far.
    pub tallies: Vec<Tally>,
    /// The certificates, and what else handshakes go by.
    pub tls: Arc<tls::Front>,
    /// What each listener for HTTPS asks of its clients.
    pub listeners: Vec<Listener>,
    /// Whose word on the address of a client is taken.
    pub trusted: Trusted,
    /// The header in which they name it.
    pub naming: Naming,
    /// TLS handshakes per client.
    pub handshakes: Rules,
    /// What those who share a source may do together.
    pub shared: SharedSource,
    /// By what keys are judged.
    pub key_rules: key::Rules,
    /// How keys are kept.
    pub keys: settings::Keys,
    /// Which signed requests are taken.
    pub signing: settings::Signing,
    /// The signals that a scenario asks for; others are not sent.
    pub wanted: Wanted,
    /// What is laid out for those who look for a way in.
    pub lures: Lures,
    /// How verdicts are borne.
    pub terms: bear::Terms,
    /// How much of an address stands for one client.
    pub client: ClientWidth,
    /// Whether a client that ends its connection gives up the request it waits for.
    pub aborts_on_close: bool,
    /// The security headers of answers that no route has a word on, over plain HTTP and over TLS.
    pub secured: [Secured; 2],
    /// The port that plain HTTP is sent to.
    pub https_port: u16,
}

/// What a listener for HTTPS asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Whether it asks for certificates.
    pub client_auth: settings::ClientAuth,
    /// Whether it takes connections from trusted proxies alone, with a PROXY header.
    pub proxy_protocol: bool,
    /// Its port, which upstreams are told.
    pub port: u16,
}

/// One worker: what its thread has for itself.
pub(crate) struct Worker {
    pub(crate) edge: Arc<Edge>,
    /// Its number.
    index: usize,
    pub(crate) counters: Arc<Counters>,
    /// The plan in force and this worker's connections to its upstreams.
    view: RefCell<Rc<View>>,
    /// Number of the next request, and the secret that hides it.
    next_request: Cell<(u64, u64)>,
    /// Client connections that this worker serves, and who waits for the last of them to end.
    visitors: Cell<usize>,
    left: Notify,
    complaints: Throttle,
    /// Error pages of upstreams.
    originals: Throttle,
    reports: Reports,
    tokens: Tokens,
    /// Whom it let in, for the audit log.
    grants: Grants,
    /// Lines of the access log.
    access: log::Buffer,
    /// Deadlines.
    pub(crate) timers: Rc<Timers>,
    /// By which the long steps of TLS handshakes pass.
    turnstile: Turnstile,
    /// Whether connections are to end with their next answer.
    pub(crate) stopping: Cell<bool>,
    /// Whether HTTP/1 connections without a request are to end as well: not at once, because their
    /// next request may be under way.
    pub(crate) ends_idle: Cell<bool>,
}

/// A plan with one worker's connections to its upstreams.
pub(crate) struct View {
    pub(crate) plan: Arc<Plan>,
    upstreams: Vec<Rc<Upstream>>,
    assertions: Assertions,
}

impl View {
    /// What `former` has of upstreams that are the same is taken over, connections and all.
    fn new(plan: Arc<Plan>, worker: usize, former: &[Rc<Upstream>]) -> Self {
        let upstreams = plan.upstreams.iter().map(|shared| {
            let same = former.iter().find(|former| Arc::ptr_eq(&former.shared, shared));
            same.map_or_else(|| Upstream::new(Arc::clone(shared), worker), Rc::clone)
        });
        Self { upstreams: upstreams.collect(), plan, assertions: Assertions::default() }
    }
}

impl Worker {
    fn new(edge: Arc<Edge>, index: usize) -> io::Result<Self> {
        let mut secret = [0; 8];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let view = RefCell::new(Rc::new(View::new(edge.plan.load_full(), index, &[])));
        let counters = edge.metrics.worker(index);
        let next_request = Cell::new((0, u64::from_ne_bytes(secret)));
        let tokens = token::tokens(&edge.plan.load().tokens)?;
        Ok(Self {
            grants: Grants::new(edge.audit.clone()),
            access: log::Buffer::new(edge.events.access.clone()),
            edge,
            counters,
            index,
            view,
            next_request,
            visitors: Cell::new(0),
            left: Notify::new(),
            complaints: Throttle::default(),
            originals: Throttle::new(ORIGINALS_MAX),
            reports: Reports::default(),
            tokens,
            timers: Timers::new(),
            turnstile: Turnstile::new(),
            stopping: Cell::new(false),
            ends_idle: Cell::new(false),
        })
    }

    /// The plan in force. Requests under a former one keep what they hold.
    pub(crate) fn view(&self) -> Rc<View> {
        let current = self.edge.plan.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.plan, &current) {
            let next = View::new(Arc::clone(&current), self.index, &view.upstreams);
            *view = Rc::new(next);
        }
        Rc::clone(&view)
    }

    /// A name for a request that no other has and that tells nothing of how many there were.
    fn request_id(&self) -> String {
        let (number, secret) = self.next_request.get();
        self.next_request.set((number + 1, secret));
        let hidden = [secret.to_le_bytes(), number.to_le_bytes()];
        blake3::hash(hidden.as_flattened()).to_hex()[..32].to_owned()
    }

    /// Waits until every client has had its last answer, which tells it to connect anew. Who asks for
    /// nothing for a while is let go without one.
    async fn drain(&self) {
        if tokio::time::timeout(LAST_REQUESTS, self.empty()).await.is_err() {
            self.ends_idle.set(true);
            self.timers.wake_all();
            self.empty().await;
        }
    }

    /// Waits until the last client connection has ended.
    async fn empty(&self) {
        while self.visitors.get() > 0 {
            self.left.notified().await;
        }
    }

    /// Counts, tells and reports a client's fault that no request carries.
    fn refuse_connection(&self, visitor: &Visitor, reason: Reason) {
        self.counters.count(reason);
        self.edge.events.refused(visitor.address, reason);
        self.report_connection(visitor, reason, visitor.ja4());
    }
}

/// One worker's life, on a thread of its own: accept while it is time to; then drain.
pub fn run(
    edge: Arc<Edge>,
    index: usize,
    listeners: Vec<(TcpListener, Entrance)>,
    mut phase: Receiver<Phase>,
    drain_timeout: Duration,
) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default())?;
    let worker = Rc::new(Worker::new(edge, index)?);
    let _guard = runtime.enter();
    for (listener, entrance) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn_local(serve::accept(Rc::clone(&worker), listener, entrance, phase.clone()));
    }
    let tended = Rc::clone(&worker);
    runtime.spawn_local(async move { tended.tend().await });
    let turning = Rc::clone(&worker);
    runtime.spawn_local(async move { turning.turnstile.turn().await });
    let drained = runtime.block_on(async {
        let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
        worker.stopping.set(true);
        worker.timers.wake_all();
        tokio::time::timeout(drain_timeout, worker.drain()).await
    });
    worker.send_gathered();
    worker.grants.send();
    if drained.is_err() {
        let connections = worker.visitors.get();
        tracing::warn!(worker = index, connections, "cut off at the drain deadline");
    }
    Ok(())
}

/// Error pages that a worker logs within a second.
const ORIGINALS_MAX: u32 = 10;
/// How long a connection without a request stays open for one when the daemon ends.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
