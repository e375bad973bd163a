//! The configuration as checked: plain data, every value in its final type and within its range.
//!
//! `config/edged.toml` annotates every key; the names here are the names there.

mod access;
mod crowdsec;
mod feed;
mod fleet;
mod geo;
mod issuer;
mod packets;
mod signing;
mod tls;
mod upstreams;
mod verdicts;
mod webhook;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use edge_identity::{certificate::Mapping, roles::Role};
pub use edge_policy::route::{Answers, Match, Requirement, Rewrite};
use edge_policy::{
    forwarded::Naming, limit, list::reasons::Reasons, login::Login, shield::Overrides,
};
use ipnet::IpNet;

pub use self::access::{Audit, Granted, HashPolicy, Keys, PolicyFile, PolicySet, UpstreamIdentity};
pub use self::crowdsec::Crowdsec;
pub use self::feed::{Feed, FeedPlace};
pub use self::fleet::{Fleet, Server as FleetServer};
pub use self::geo::Geo;
pub use self::issuer::{Issuer, KeySource, Tokens};
pub use self::packets::{
    Attach, Fragments, Interface, Kernel, MissingFeatures, NamedSignature, PrefixLimit, SynCookies,
    When,
};
pub use self::signing::Signing;
pub use self::tls::{Acme, Certificate, ClientAuth, Clients, Listener, Tls, UnknownName};
pub use self::upstreams::{
    Address, Check, SYSTEM_CA, Server as UpstreamServer, Tls as UpstreamTls, Upstream,
};
pub use self::verdicts::Verdicts;
pub use self::webhook::Webhook;
pub use super::offer::Offer;
use crate::secret::{BYTES_MIN, Origin};

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `[kernel]`: what happens to packets.
    pub kernel: Kernel,
    /// `[lists]`: networks by hand.
    pub lists: Lists,
    /// `[[feed]]`, in the order of the file; names are unique.
    pub feeds: Vec<Feed>,
    /// `[crowdsec]`: whose decisions are enforced.
    pub crowdsec: Option<Crowdsec>,
    /// `[geo]`: where addresses are from.
    pub geo: Geo,
    /// `[fleet]`: with whom bans and limits are shared.
    pub fleet: Option<Fleet>,
    /// `[[webhook]]`, in the order of the file; names are unique.
    pub webhooks: Vec<Webhook>,
    /// `[server]`: where clients connect.
    pub server: Server,
    /// `[tls]`: the certificate.
    pub tls: Tls,
    /// `[bounds]`: what one client may occupy.
    pub bounds: Bounds,
    /// `[limits]` and `[[limit]]`, in the order in which requests are charged.
    pub limits: Vec<limit::Spec>,
    /// `handshakes` of `[limits]`: TLS handshakes per client.
    pub handshakes: limit::Spec,
    /// What those who share a source may do together: requests, and TLS handshakes.
    pub shared: [limit::Spec; 2],
    /// `[keys]`: API keys.
    pub keys: Keys,
    /// `[[issuer]]`, in the order of the file; names are unique, and so is each `issuer`.
    pub issuers: Vec<Issuer>,
    /// `[tokens]`: what tokens may take.
    pub tokens: Tokens,
    /// `[signing]`: signed requests.
    pub signing: Signing,
    /// `[[upstream]]`, in the order of the file; names are unique.
    pub upstreams: Vec<Upstream>,
    /// The addresses that names of servers mean now, with their upstream's name. Not from the file.
    pub resolved: Vec<(String, IpAddr)>,
    /// `[[route]]`, in the order of the file; host and path are unique together.
    pub routes: Vec<Route>,
    /// `[upstream_identity]`: what upstreams are told of a request's sender beside plain headers.
    pub upstream_identity: UpstreamIdentity,
    /// `[[client_certificate]]`, in the order of the file: whom client certificates stand for.
    pub client_certificates: Vec<Mapping>,
    /// `[[policy]]`, in the order of the file; names are unique.
    pub policies: Vec<PolicySet>,
    /// `[[role]]`, in the order of the file; names are unique.
    pub roles: Vec<Role>,
    /// `[verdicts]` and `[[scenario]]`: from misdeeds to bans.
    pub verdicts: Verdicts,
    /// `[audit]`: the log of who tried what.
    pub audit: Audit,
    /// `[state]`: what persists.
    pub state: State,
    /// `[control]`: where `edgectl` connects.
    pub control: Control,
    /// `[metrics]`: where Prometheus connects.
    pub metrics: Metrics,
    /// `[log]`: what is told, and where.
    pub log: Log,
}

impl Settings {
    /// Every address that a server behind the edge has, with its upstream's name.
    pub fn upstream_addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let written = self.upstreams.iter().flat_map(|upstream| {
            upstream.addresses().map(|address| (upstream.name.as_str(), address.ip()))
        });
        written.chain(self.resolved.iter().map(|(name, address)| (name.as_str(), *address)))
    }

    /// Every secret that is named, and the least of bytes that it must have.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&Origin, usize)> {
        let issuers = self.issuers.iter().filter_map(|issuer| match &issuer.keys {
            KeySource::Static(files) => Some(&files.secrets),
            KeySource::Fetched(_) => None,
        });
        let all = self.made_secrets().into_iter().chain(&self.keys.former_peppers);
        let all = all.chain(&self.signing.former_masters).chain(issuers.flatten());
        let all = all.chain(&self.upstream_identity.key).map(|origin| (origin, BYTES_MIN));
        // What others made up is as long as they like.
        let given = self.crowdsec.iter().flat_map(Crowdsec::secrets);
        let given = given.chain(self.fleet.iter().flat_map(Fleet::secrets));
        let all = all.chain(self.fleet.iter().map(|fleet| (&fleet.secret, BYTES_MIN)));
        let all = all.chain(self.webhooks.iter().map(|webhook| (&webhook.secret, BYTES_MIN)));
        all.chain(given.map(|origin| (origin, 1))).collect()
    }

    /// Those that are made at the first start if their file is not there.
    pub(super) fn made_secrets(&self) -> [&Origin; 3] {
        [&self.keys.pepper, &self.signing.master, &self.audit.key]
    }

    fn secrets_mut(&mut self) -> impl Iterator<Item = &mut Origin> {
        let (keys, signing) = (&mut self.keys, &mut self.signing);
        let issuers = self.issuers.iter_mut().filter_map(|issuer| match &mut issuer.keys {
            KeySource::Static(files) => Some(&mut files.secrets),
            KeySource::Fetched(_) => None,
        });
        let made = [&mut keys.pepper, &mut signing.master, &mut self.audit.key];
        let all = made.into_iter().chain(&mut keys.former_peppers);
        let all = all.chain(&mut signing.former_masters).chain(issuers.flatten());
        let given = self.crowdsec.iter_mut().flat_map(Crowdsec::secrets_mut);
        let given = given.chain(self.fleet.iter_mut().flat_map(Fleet::secrets_mut));
        let webhooks = self.webhooks.iter_mut().map(|webhook| &mut webhook.secret);
        all.chain(&mut self.upstream_identity.key).chain(given).chain(webhooks)
    }

    /// Takes relative paths of secrets from this folder.
    pub(super) fn resolve_secrets(&mut self, base: &Path) {
        self.secrets_mut().for_each(|origin| origin.resolve(base));
    }
}

/// `[lists]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Networks that are never dropped.
    pub allow: List,
    /// Networks that are dropped.
    pub deny: List,
    /// Networks for which the kernel's tables have room; more if more are configured at the start.
    pub networks_max: u32,
    /// Percent of its networks that a file may lose from one reading to the next.
    pub shrink_max: u32,
}

/// The networks of one list: those in the configuration and those in its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Networks in the configuration file itself.
    pub nets: Vec<IpNet>,
    /// List files; empty of networks until `load` has read them.
    pub files: Vec<ListFile>,
}

/// A list file and what it held when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its networks, each once, in the order of the file; shared by all copies.
    pub nets: Arc<[Line]>,
    /// Why they are listed, by line, as far as it says.
    pub reasons: Arc<Reasons>,
    /// Lines that were not taken.
    pub skipped: usize,
    /// When it was read, in unix seconds.
    pub read_s: u64,
    /// When it was put there as it is, in unix seconds.
    pub changed_s: u64,
    /// Whether these are the networks of an earlier reading, because the last one was not good.
    pub is_stale: bool,
}

/// A network in a list file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The network.
    pub net: IpNet,
    /// The number of its line, from 1.
    pub number: u32,
}

impl List {
    /// Every network, with the list file it is from (`None`: the configuration itself).
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Option<&Path>)> {
        let own = self.nets.iter().map(|net| (*net, None));
        let filed = self.files.iter();
        own.chain(filed.flat_map(|f| f.nets.iter().map(|line| (line.net, Some(f.path.as_path())))))
    }
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Listeners for HTTPS; never empty.
    pub https: Vec<Listener>,
    /// Listeners that redirect to HTTPS.
    pub http: Vec<SocketAddr>,
    /// Threads of the request plane; 0 is one per core.
    pub workers: usize,
    /// How long open requests may take after SIGTERM.
    pub drain_timeout: Duration,
    /// Whether a client that ends its connection gives up the request it waits for.
    pub aborts_on_close: bool,
    /// Whose word on the address of a client is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they name it.
    pub forwarded_header: Naming,
    /// The security headers of all answers, where a route does not say otherwise.
    pub security_headers: Overrides,
}

impl Server {
    /// Where it listens, for HTTPS and for HTTP.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.https.iter().map(|listener| listener.address).chain(self.http.iter().copied())
    }
}

/// `[bounds]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Client connections at once.
    pub connections_max: usize,
    /// Requests in flight.
    pub requests_max: usize,
    /// HTTP/2 streams per connection.
    pub streams_max: u32,
    /// Connections that one client may hold.
    pub source_connections_max: usize,
    /// Bytes of memory at which no new work is taken; 0: three quarters of the host's.
    pub memory_max: u64,
    /// Frames of HTTP/2 that a client may waste at once, and in ten seconds.
    pub http2_waste_max: u32,
    /// TLS handshakes at once.
    pub handshakes_max: usize,
    /// Of those, how many one client may be in.
    pub source_handshakes_max: usize,
    /// From the first byte of a connection to the end of its TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to its last header.
    pub header_timeout: Duration,
    /// A connection without a request; a body without a byte.
    pub idle_timeout: Duration,
    /// Bytes of a request target.
    pub uri_bytes_max: usize,
    /// Header fields.
    pub headers_max: usize,
    /// Bytes of a header section.
    pub header_bytes_max: usize,
    /// Bytes of a request body.
    pub body_bytes_max: u64,
    /// A connection that changed its protocol, without a byte from either side.
    pub tunnel_timeout: Duration,
    /// Bytes a second that a client must send of its body; 0: none.
    pub body_rate_min: u64,
    /// Bytes a second that a client must take of its answer; 0: none.
    pub answer_rate_min: u64,
    /// Requests after which an HTTP/1 connection ends.
    pub requests_per_connection: u64,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which requests it is for.
    pub at: Match,
    /// Whether the connection must have come with a client certificate.
    pub client_certificate: bool,
    /// What it asks of its callers; `None`: nothing.
    pub needs: Option<Requirement>,
    /// Index into [`Settings::upstreams`].
    pub upstream: usize,
    /// What one request is charged to limits.
    pub cost: u64,
    /// What its paths become on their way upstream.
    pub rewrite: Option<Rewrite>,
    /// The protocols that its connections may change to.
    pub upgrades: Vec<String>,
    /// That it is a login, and how it tells a failure.
    pub login: Option<Login>,
    /// The host that the upstream is told; `None`: the one the client asked for.
    pub upstream_host: Option<String>,
    /// Claims of its clients that the upstream gets all the same.
    pub keep_headers: Vec<http::HeaderName>,
    /// What is done to its answers.
    pub answers: Answers,
}

/// `[state]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Folder of the store.
    pub dir: PathBuf,
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The unix socket.
    pub socket: PathBuf,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where Prometheus scrapes.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least that is logged.
    pub level: Level,
    /// Where security events go.
    pub events: Events,
    /// Where a line for each request goes; `None`: nowhere.
    pub access: Option<Events>,
    /// What those lines look like.
    pub access_format: AccessFormat,
}

/// What the lines of the access log look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object a line.
    Json,
    /// As Apache and nginx write it, and a little more.
    Combined,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Where security events go, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Events {
    /// To standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}
