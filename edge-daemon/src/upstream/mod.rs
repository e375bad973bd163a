//! The servers behind the edge, as all workers share them: how each is, how much it has to do.
//!
//! What one worker has for itself, its connections, is in `request::upstream`.

pub mod checks;
pub mod dial;
mod drained;
mod line;
pub mod names;
mod tally;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use edge_policy::upstream::{
    balance,
    circuit::Circuit,
    health::{Health, Standing},
};

use self::line::Line;
pub use self::{
    line::Place,
    tally::{Counts, Failure, Tally},
};
use crate::{
    clock,
    config::settings::{self, Address},
    tls::{Connector, Expiry, UpstreamTlsError},
};

/// One upstream. It outlives a reload that does not change it.
pub struct Upstream {
    /// As configured.
    pub settings: settings::Upstream,
    /// Its servers of now: names may come to mean others.
    servers: ArcSwap<Vec<Arc<Server>>>,
    /// What operators drained, in their words: servers as they are labelled, or the names that lead to them.
    drained: Mutex<BTreeSet<String>>,
    /// Whether it is asked at all.
    pub circuit: Circuit,
    in_flight: Arc<AtomicUsize>,
    /// Requests that wait for one in flight to end.
    line: Arc<Line>,
    /// How many configurations were before this one.
    era: u64,
    tls: Option<ArcSwap<Connector>>,
    renewed_ns: AtomicU64,
    workers: usize,
    /// Retries that the budget refused.
    pub retries_refused: AtomicU64,
    resolutions: AtomicU64,
    resolutions_failed: AtomicU64,
    /// Whether its names led to more addresses than are asked.
    is_over: AtomicBool,
}

/// One server.
pub struct Server {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What it is called in logs and metrics: its address, after the name that led to it.
    pub label: String,
    /// Its place in the configuration.
    place: usize,
    /// Its weight beside the others.
    pub weight: u32,
    hash: u64,
    /// What its certificate must name.
    tls_name: String,
    /// How it is.
    pub health: Health,
    in_flight: Arc<AtomicUsize>,
    /// One for each worker.
    tallies: Box<[Tally]>,
    checks_good: AtomicU64,
    checks_bad: AtomicU64,
}

/// Where a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket.
    Unix(PathBuf),
}

/// A request in flight, counted as such until this is dropped.
pub struct Slot {
    upstream: Arc<Upstream>,
    server: Arc<Server>,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.in_flight.fetch_sub(1, Relaxed);
        self.upstream.in_flight.fetch_sub(1, Relaxed);
        self.upstream.line.wake();
    }
}

impl Upstream {
    /// An upstream that knows what `former` does of its names, of servers that stay and how many requests they have, and
    /// what operators drained.
    ///
    /// # Errors
    /// If its certificates cannot be used.
    pub fn new(
        settings: settings::Upstream,
        workers: usize,
        former: Option<&Self>,
    ) -> Result<Arc<Self>, UpstreamTlsError> {
        let tls =
            settings.tls.as_ref().map(|tls| Connector::load(tls, settings.http2)).transpose()?;
        let drained = former.map(Self::drained).unwrap_or_default();
        let line = former.map(|former| Arc::clone(&former.line)).unwrap_or_default();
        let this = Self {
            servers: ArcSwap::default(),
            drained: Mutex::new(drained),
            circuit: Circuit::default(),
            in_flight: former.map(|former| Arc::clone(&former.in_flight)).unwrap_or_default(),
            era: former.map_or(0, |former| former.era + 1),
            line,
            tls: tls.map(ArcSwap::from_pointee),
            renewed_ns: AtomicU64::new(0),
            workers,
            retries_refused: AtomicU64::new(0),
            resolutions: AtomicU64::new(0),
            resolutions_failed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            settings,
        };
        let servers = this.settings.servers.iter().enumerate().map(|(place, server)| {
            let endpoints = match &server.address {
                Address::Ip(address) => vec![Endpoint::Tcp(*address)],
                Address::Unix(path) => vec![Endpoint::Unix(path.clone())],
                name @ Address::Name(..) => former.map_or_else(Vec::new, |all| all.found(name)),
            };
            endpoints.into_iter().map(|endpoint| this.server(place, endpoint, former)).collect()
        });
        this.put(names::shared(servers.collect(), names::ADDRESSES_MAX));
        Ok(Arc::new(this))
    }

    /// Takes effect, with certificates that were read for it: whoever waits for what was before it has no say any more.
    pub fn begin(&self, read: Option<Connector>) {
        self.renew(read);
        self.line.era.store(self.era, Relaxed);
    }

    /// Where a name of its servers leads to now.
    fn found(&self, name: &Address) -> Vec<Endpoint> {
        let place = self.settings.servers.iter().position(|server| server.address == *name);
        let servers = self.servers();
        let found = servers.iter().filter(|server| Some(server.place) == place);
        found.map(|server| server.endpoint.clone()).collect()
    }

    /// What is new under an unchanged configuration: its certificates.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn reread(&self) -> Result<Option<Connector>, UpstreamTlsError> {
        let tls = self.settings.tls.as_ref();
        tls.map(|tls| Connector::load(tls, self.settings.http2)).transpose()
    }

    /// Takes up what was read again.
    pub fn renew(&self, read: Option<Connector>) {
        if let (Some(tls), Some(connector)) = (&self.tls, read) {
            let former = tls.swap(Arc::new(connector));
            if !tls.load().is_same(&former) {
                self.renewed_ns.store(clock::boot_ns(), Relaxed);
            }
        }
    }

    /// When its certificates became others, in boot time; what was opened before is not asked again.
    pub fn renewed_ns(&self) -> u64 {
        self.renewed_ns.load(Relaxed)
    }

    /// When its certificates end.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        self.tls.as_ref().map_or_else(Vec::new, |tls| tls.load().expiries().to_vec())
    }

    /// Its servers of now.
    pub fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// Puts these in the place of its servers. What operators drained stays so, though it was gone meanwhile.
    fn put(&self, servers: Vec<Arc<Server>>) {
        let drained = self.words();
        drained::drain_all(&servers, &drained);
        self.servers.store(Arc::new(servers));
    }

    /// Opens a connection to one of its servers.
    ///
    /// # Errors
    /// If it cannot be reached, or does not prove who it is.
    pub async fn dial(&self, server: &Server) -> io::Result<dial::Stream> {
        let connector = self.tls.as_ref().map(ArcSwap::load_full);
        dial::dial(&server.endpoint, connector.as_deref(), &server.tls_name).await
    }

    /// A slot for one more request to a server.
    ///
    /// # Errors
    /// If it or the upstream has as many in flight as it may.
    pub fn slot(self: &Arc<Self>, server: &Arc<Server>) -> Result<Slot, Full> {
        let take = |count: &AtomicUsize, most| {
            count.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1)).map_err(|_| Full)
        };
        take(&server.in_flight, self.settings.server_requests_max)?;
        take(&self.in_flight, self.settings.requests_max).inspect_err(|_| {
            server.in_flight.fetch_sub(1, Relaxed);
        })?;
        Ok(Slot { upstream: Arc::clone(self), server: Arc::clone(server) })
    }

    /// Whether anybody waits for a slot.
    pub fn has_line(&self) -> bool {
        self.line.len() > 0
    }

    /// Whether these servers are those of now, so that whoever waits behind has no others to look for.
    pub fn is_current(&self, servers: &Arc<Vec<Arc<Server>>>) -> bool {
        Arc::ptr_eq(servers, &self.servers.load()) && self.line.era.load(Relaxed) <= self.era
    }

    /// A place among those that wait for a slot, if there is room; before all others for one that `goes_first`.
    pub fn wait(&self, goes_first: bool) -> Option<Place<'_>> {
        self.line.join(self.settings.queue_max, goes_first)
    }

    /// Servers that are asked, and all of them.
    pub fn up(&self, now_ns: u64) -> (usize, usize) {
        let servers = self.servers.load();
        let up = servers.iter().filter(|s| s.health.standing(now_ns) == Standing::Up).count();
        (up, servers.len())
    }

    /// Notes that a request to a server failed, and ejects it if that was one too many.
    pub fn failed(&self, server: &Server) {
        let now_ns = clock::boot_ns();
        let (up, all) = self.up(now_ns);
        if server.health.failed(&self.settings.ejection, up, all, now_ns) {
            let (upstream, server) = (&self.settings.name, &server.label);
            tracing::warn!(upstream, server, "ejected: too many requests in a row failed");
        }
    }

    /// The addresses of its servers of now.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let servers = self.servers.load();
        let ip = |server: &Arc<Server>| match server.endpoint {
            Endpoint::Tcp(address) => Some(address.ip()),
            Endpoint::Unix(_) => None,
        };
        servers.iter().filter_map(ip).collect()
    }

    /// A server, as far as it is known from a `former` time.
    fn server(&self, place: usize, endpoint: Endpoint, former: Option<&Self>) -> Arc<Server> {
        let server = &self.settings.servers[place];
        let (label, own_name) = match (&server.address, &endpoint) {
            (Address::Name(name, port), Endpoint::Tcp(address)) => {
                (format!("{name}:{port}/{}", address.ip()), name.clone())
            }
            (_, Endpoint::Tcp(address)) => (address.to_string(), address.ip().to_string()),
            (_, Endpoint::Unix(path)) => (format!("unix:{}", path.display()), String::new()),
        };
        let told = self.settings.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let servers = former.map(Self::servers).unwrap_or_default();
        let known = servers.iter().find(|known| known.label == label);
        let judged = known
            .filter(|_| former.is_some_and(|former| former.settings.asks_the_same(&self.settings)));
        Arc::new(Server {
            hash: balance::hash(label.as_bytes()),
            label,
            place,
            weight: server.weight,
            tls_name: told.unwrap_or(own_name),
            endpoint,
            health: judged.map(|known| known.health.as_checked()).unwrap_or_default(),
            in_flight: known.map(|known| Arc::clone(&known.in_flight)).unwrap_or_default(),
            tallies: (0..self.workers).map(|_| Tally::default()).collect(),
            checks_good: AtomicU64::new(0),
            checks_bad: AtomicU64::new(0),
        })
    }
}

impl Server {
    /// As one that may be chosen, if it is fit; `index` is its place among the servers of now.
    pub fn candidate(
        &self,
        index: usize,
        settings: &settings::Upstream,
        now_ns: u64,
    ) -> Option<balance::Candidate> {
        if self.health.standing(now_ns) != Standing::Up {
            return None;
        }
        let slow_ns = u64::try_from(settings.slow_start.as_nanos()).unwrap_or(u64::MAX);
        Some(balance::Candidate {
            index,
            weight: self.health.weight(self.weight, slow_ns, now_ns),
            load: self.in_flight.load(Relaxed) as u64,
            name: self.hash,
        })
    }

    /// What a worker counts.
    pub fn tally(&self, worker: usize) -> &Tally {
        &self.tallies[worker % self.tallies.len()]
    }
}

impl Upstream {
    /// Lookups of names that succeeded, and those that failed.
    #[must_use]
    pub fn lookups(&self) -> [u64; 2] {
        [&self.resolutions, &self.resolutions_failed].map(|count| count.load(Relaxed))
    }

    /// Requests that wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.line.len() as u64
    }
}
