//! From the configuration as checked to what requests are judged by.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    sync::{Arc, LazyLock},
};

use edge_common::{map::Kind, service::Service};
use edge_identity::{
    access::Rules, assertion::Signer, jwt::dpop::Nonces, key, policy::Set, roles::Roles,
};
use edge_policy::{
    forwarded::Trusted,
    head,
    limit::{
        Rule, Spec,
        lease::{self, WHOLE},
    },
    route::{Access, Route, Routes},
    shield::{Overrides, Secured},
    verdict::{self, Wanted},
};
use http::header::STRICT_TRANSPORT_SECURITY;

use crate::{
    config::{
        policy,
        settings::{self, Fragments, MissingFeatures, Settings},
    },
    geo::{self, Geo},
    issuers::{self, Feeds, Issuers},
    kernel,
    request::{Listener, Lures, Plan, SharedSource, Tally, bear::Terms, proof_nonces},
    secret::{BYTES_MIN, Fault, Secret},
    tls::{self, Connector, TlsError, UpstreamTlsError},
    upstream::Upstream,
};

/// Makes the plan; reads the certificates and their keys, and issuers' keys that lie on this host.
/// What can be kept of the former is. `rule` puts a limit in force, with what it has counted before.
pub fn plan(
    settings: &Settings,
    former: Option<&Plan>,
    feeds: &Feeds,
    mut rule: impl FnMut(Spec) -> io::Result<Rule>,
) -> Result<Plan, PlanError> {
    // No edge has the whole of a fleet's limit before the first lease.
    let alone = settings.fleet.as_ref().map_or(WHOLE, |fleet| lease::alone(fleet.nodes));
    let bounds = settings.bounds.clone();
    let routes = settings.routes.iter().map(route).collect();
    let former_upstreams = former.map_or(&[][..], |plan| &plan.upstreams);
    let (upstreams, connectors) = upstreams(settings, former_upstreams)?;
    Ok(Plan {
        head: head::Bounds {
            uri_bytes_max: bounds.uri_bytes_max,
            headers_max: bounds.headers_max,
            header_bytes_max: bounds.header_bytes_max,
        },
        bounds,
        handshakes: std::iter::once(rule(settings.handshakes.clone())?).collect(),
        shared: SharedSource {
            requests: std::iter::once(rule(settings.shared[0].clone())?).collect(),
            handshakes: std::iter::once(rule(settings.shared[1].clone())?).collect(),
        },
        geo: Geo::new(&settings.geo, former.map(|plan| &plan.geo))?,
        alone,
        limits: settings.limits.iter().cloned().map(rule).collect::<Result<_, _>>()?,
        routes: Routes::new(routes).map_err(|_| PlanError::Routes)?,
        issuers: Issuers::new(&settings.issuers, feeds)?,
        tokens: settings.tokens.clone(),
        proof_nonces: nonces(&settings.tokens, former)?,
        upstreams,
        connectors,
        tallies: settings.policies.iter().map(|_| Tally::default()).collect(),
        rules: rules(settings)?,
        certificates: settings.client_certificates.clone(),
        signer: signer(&settings.upstream_identity)?,
        tls: tls::Front::new(settings.tls.clone(), former.map(|plan| &plan.tls))?,
        listeners: settings.server.https.iter().map(|l| listener(settings, l)).collect(),
        trusted: Trusted::new(settings.server.trusted_proxies.clone()),
        naming: settings.server.forwarded_header,
        key_rules: key::Rules {
            prefix: settings.keys.prefix.clone(),
            refuse_exposed: settings.keys.refuse_exposed,
        },
        keys: settings.keys.clone(),
        signing: settings.signing.clone(),
        wanted: Wanted::by(&settings.verdicts.scenarios),
        lures: Lures::new(settings),
        terms: Terms {
            delay: settings.verdicts.delay,
            never_ban: settings.verdicts.never_ban.clone(),
            shared_within: settings.verdicts.shared_within,
        },
        client: settings.kernel.client,
        aborts_on_close: settings.server.aborts_on_close,
        secured: secured(&settings.server.security_headers),
        https_port: settings.server.https.first().map_or(443, |listener| listener.address.port()),
    })
}

/// The nonces of DPoP proofs. Those that are told stay good unless they are to be good for another
/// time.
fn nonces(tokens: &settings::Tokens, former: Option<&Plan>) -> Result<Arc<Nonces>, PlanError> {
    let is_same = |former: &&Plan| former.tokens.proof_nonces == tokens.proof_nonces;
    match former.filter(is_same) {
        Some(former) => Ok(Arc::clone(&former.proof_nonces)),
        None => proof_nonces(tokens).map(Arc::new).map_err(PlanError::Randomness),
    }
}

/// The security headers where no route has a word: over plain HTTP, which must promise no TLS (RFC 6797, 7.2), and over
/// TLS.
fn secured(usual: &Overrides) -> [Secured; 2] {
    let others = usual.iter().filter(|(name, _)| *name != STRICT_TRANSPORT_SECURITY);
    let in_clear = others.cloned().chain([(STRICT_TRANSPORT_SECURITY, None)]).collect();
    [Secured::new(&in_clear), Secured::new(usual)]
}

/// Who signs what upstreams are told, if anybody.
fn signer(settings: &settings::UpstreamIdentity) -> Result<Option<Signer>, PlanError> {
    if !settings.is_signed {
        return Ok(None);
    }
    let secret = match &settings.key {
        Some(origin) => origin.read().and_then(|secret| secret.at_least(BYTES_MIN))?,
        None => OWN_SECRET.clone().map_err(|fault| io::Error::other(fault.to_string()))?,
    };
    let (issuer, audience) = (settings.issuer.clone(), settings.audience.clone());
    let (life_s, period_s) = (settings.life.as_secs(), settings.rotate.as_secs());
    Ok(Some(Signer::new(secret.expose(), issuer, audience, life_s, period_s)))
}

/// A secret of this process, the same through every reload.
static OWN_SECRET: LazyLock<Result<Secret, getrandom::Error>> = LazyLock::new(|| {
    let mut bytes = vec![0; BYTES_MIN];
    getrandom::fill(&mut bytes).map(|()| Secret::new(bytes))
});

/// What routes go by: roles, and the policies cut for the routes that ask them.
fn rules(settings: &Settings) -> Result<Rules, PlanError> {
    let roles = Roles::new(&settings.roles).map_err(|_| PlanError::Roles)?;
    let sets = settings.policies.iter().enumerate().map(|(n, set)| {
        let (numbers, labels): (Vec<_>, Vec<_>) = policy::routes_of(settings, n).unzip();
        let (policies, _) = policy::load(set, &labels).map_err(|_| PlanError::Policies)?;
        let routes = numbers.into_iter().zip(labels.iter().map(String::as_str));
        Ok(Set::new(set.name.clone(), set.shadow, &policies, routes))
    });
    let sets: Result<_, PlanError> = sets.collect();
    Ok(Rules { roles, sets: sets? })
}

/// How signals are judged.
#[must_use]
pub fn verdicts(verdicts: &settings::Verdicts) -> verdict::Rules {
    verdict::Rules {
        scenarios: verdicts.scenarios.clone(),
        factor: u64::from(verdicts.factor),
        longest_ns: ns(verdicts.longest),
        jitter: u64::from(verdicts.jitter),
        forget_after_ns: ns(verdicts.forget_after),
        culprits_max: verdicts.culprits_max,
    }
}

/// What the kernel programs go by. The edge's own listeners are offered by themselves.
#[must_use]
pub fn kernel_policy(settings: &Settings) -> kernel::Policy {
    let Settings { kernel: packets, server, .. } = settings;
    let mut prefixes = packets.prefix_limits.iter();
    let prefix =
        |limit: &settings::PrefixLimit| kernel::Prefix { bits: limit.prefix, factor: limit.factor };
    let own = server.addresses().map(|address| Service::Tcp(address.port()));
    kernel::Policy {
        defence: defence(settings),
        prefixes: std::array::from_fn(|_| prefixes.next().map(prefix)),
        open_max: packets.open_connections_max,
        client: packets.client,
        drop_fragments: packets.fragments == Fragments::Drop,
        services: packets
            .services
            .as_ref()
            .map(|offers| offers.iter().flat_map(|offer| offer.services()).chain(own).collect()),
        signatures: packets.signatures.iter().map(|signature| signature.rule).collect(),
        monitored: packets.monitor.clone(),
        event_rate: packets.event_rate,
        run_with_less: packets.missing_features == MissingFeatures::RunWithLess,
        ..kernel::Policy::UNLIMITED
    }
    .limit(Kind::Packets, packets.packet_rate)
    .limit(Kind::Bytes, packets.byte_rate)
    .limit(Kind::Udp, packets.udp_rate)
    .limit(Kind::Icmp, packets.icmp_rate)
    .limit(Kind::Connections, packets.connection_rate)
}

/// The interfaces to guard, each in the mode it asks for.
#[must_use]
pub fn interfaces(settings: &settings::Kernel) -> Vec<kernel::Wanted> {
    let wanted = settings.interfaces.iter().map(|interface| kernel::Wanted {
        interface: interface.name.clone(),
        mode: interface.attach.unwrap_or(settings.attach).into(),
    });
    wanted.collect()
}

/// What is done against floods of TCP: the server's listeners are protected, and those ports that
/// are named, on every address.
fn defence(settings: &Settings) -> kernel::Defence {
    let cookies = &settings.kernel.syn_cookies;
    let server = &settings.server;
    let named = cookies.ports.iter().flat_map(|port| {
        let every = [IpAddr::from([0; 4]), IpAddr::from([0_u16; 8])];
        every.map(|address| SocketAddr::new(address, *port))
    });
    kernel::Defence {
        syn_cookies: cookies.mode.into(),
        unsolicited: cookies.unsolicited.into(),
        unsolicited_rate: cookies.unsolicited_rate,
        listeners: server.addresses().chain(named).collect(),
        interfaces: settings.kernel.interfaces.iter().map(|i| i.name.clone()).collect(),
    }
}

fn listener(settings: &Settings, listener: &settings::Listener) -> Listener {
    Listener {
        client_auth: listener.client_auth.unwrap_or(settings.tls.clients.auth),
        proxy_protocol: listener.proxy_protocol,
        port: listener.address.port(),
    }
}

/// The upstreams, and the certificates of those that go on. One that did not change does, with its connections and what is
/// known of its servers.
fn upstreams(settings: &Settings, former: &[Arc<Upstream>]) -> Result<Upstreams, UpstreamTlsError> {
    let workers = match settings.server.workers {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        workers => workers,
    };
    let upstream = |wanted: &settings::Upstream| {
        let former = former.iter().find(|former| former.settings.name == wanted.name);
        Ok(match former {
            Some(same) if same.settings == *wanted => (Arc::clone(same), same.reread()?),
            former => (Upstream::new(wanted.clone(), workers, former.map(Arc::as_ref))?, None),
        })
    };
    settings.upstreams.iter().map(upstream).collect()
}

type Upstreams = (Vec<Arc<Upstream>>, Vec<Option<Connector>>);

fn route(route: &settings::Route) -> Route {
    Route {
        at: route.at.clone(),
        certificate: route.client_certificate,
        access: match &route.needs {
            None => Access::Anyone,
            Some(needs) => Access::Needs(Box::new(needs.clone())),
        },
        upstream: route.upstream,
        rewrite: route.rewrite.clone(),
        upgrades: route.upgrades.clone(),
        login: route.login.clone().map(Arc::new),
        host_sent: route.upstream_host.clone(),
        kept: route.keep_headers.clone(),
        answers: Arc::new(route.answers.clone()),
        cost: route.cost,
    }
}

fn ns(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a configuration that reads well cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Two routes answer the same requests. The configuration's reader has said so already.
    #[error("routes contradict each other")]
    Routes,
    /// No limit can be put in force.
    #[error("cannot begin a limit")]
    Limit(#[from] io::Error),
    /// There is no randomness.
    #[error("no randomness")]
    Randomness(#[source] io::Error),
    /// Roles include each other. The configuration's reader has said so already.
    #[error("roles contradict each other")]
    Roles,
    /// The secret of upstream identity cannot be used.
    #[error("[upstream_identity] key: {0}")]
    Secret(#[from] Fault),
    /// Policies make no sense. The configuration's reader has said so already.
    #[error("policies make no sense")]
    Policies,
    /// The certificate cannot be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A database of addresses is no good.
    #[error("[geo]")]
    Geo(#[from] geo::Fault),
    /// The keys of an issuer are no good.
    #[error("the keys of an issuer")]
    Issuers(#[from] issuers::Fault),
    /// An upstream cannot be spoken to over TLS.
    #[error(transparent)]
    Upstream(#[from] UpstreamTlsError),
}

impl From<settings::When> for kernel::When {
    fn from(when: settings::When) -> Self {
        match when {
            settings::When::Off => Self::Off,
            settings::When::Auto => Self::Auto,
            settings::When::Always => Self::Always,
        }
    }
}

impl From<settings::Attach> for kernel::AttachMode {
    fn from(attach: settings::Attach) -> Self {
        match attach {
            settings::Attach::Auto => Self::Auto,
            settings::Attach::Generic => Self::Generic,
            settings::Attach::Native => Self::Native,
        }
    }
}
