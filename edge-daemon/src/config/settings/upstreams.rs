//! `[[upstream]]`, as checked.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use edge_policy::upstream::{
    balance::Balance,
    circuit,
    health::{CheckRule, EjectionRule},
};
use http::StatusCode;

use super::Certificate;

/// `[[upstream]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// What routes call it.
    pub name: String,
    /// Its servers; never empty.
    pub servers: Vec<Server>,
    /// How requests are spread over them.
    pub balance: Balance,
    /// To an open connection, TLS handshake included.
    pub connect_timeout: Duration,
    /// From the last byte of the request to the first of the answer.
    pub response_timeout: Duration,
    /// Between two parts of the answer's body.
    pub body_timeout: Duration,
    /// From the request's way upstream to the last byte of the answer; `None`: as long as it moves.
    pub total_timeout: Option<Duration>,
    /// Requests in flight, of all workers together.
    pub requests_max: usize,
    /// The same for each server.
    pub server_requests_max: usize,
    /// Requests that wait for one of those to end.
    pub queue_max: usize,
    /// How long they wait.
    pub queue_timeout: Duration,
    /// Connections that each worker keeps to each server without a request.
    pub idle_max: usize,
    /// How long it keeps them.
    pub idle_timeout: Duration,
    /// How old a connection may be when it takes a request.
    pub age_max: Duration,
    /// How often a request is sent to another server.
    pub retries_max: u32,
    /// Retries for a hundred requests.
    pub retry_budget: u32,
    /// Statuses after which a safe request is sent to another server.
    pub retry_statuses: Vec<StatusCode>,
    /// How long a server that comes back takes to its full share; zero: at once.
    pub slow_start: Duration,
    /// How often names are looked up again.
    pub resolve_every: Duration,
    /// Checks that the edge makes; `None`: none.
    pub check: Option<Check>,
    /// When failing requests take a server out of the round.
    pub ejection: EjectionRule,
    /// When failing requests stop all of them.
    pub circuit: circuit::Rule,
    /// Whether it is spoken to over HTTP/2.
    pub http2: bool,
    /// How it is spoken to over TLS; `None`: in the clear.
    pub tls: Option<Tls>,
}

impl Upstream {
    /// Whether what was found out about servers by these settings holds by others: they are spoken to in the same way,
    /// and asked the same by checks.
    #[must_use]
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let asked = |check: &Option<Check>| {
            check.as_ref().map(|check| (check.path.clone(), check.host.clone(), check.status))
        };
        (self.http2, &self.tls, asked(&self.check))
            == (other.http2, &other.tls, asked(&other.check))
    }
}

/// One of an upstream's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// How much of the requests it gets, beside the others.
    pub weight: u32,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At an address of its own.
    Ip(SocketAddr),
    /// At every address that a name has, with this port.
    Name(String, u16),
    /// Behind a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[upstream.check]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked for.
    pub path: String,
    /// The host that is asked for; `None`: the server's own name or address.
    pub host: Option<String>,
    /// How often.
    pub interval: Duration,
    /// How long it may take, connection included.
    pub timeout: Duration,
    /// How many in a row change what is thought of a server.
    pub rule: CheckRule,
    /// Statuses of a server that is well, first and last.
    pub status: [u16; 2],
}

/// `[upstream.tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM: who may sign the servers' certificates.
    pub ca: PathBuf,
    /// The name on their certificate; `None`: the one they are configured by.
    pub server_name: Option<String>,
    /// SHA-256 digests of the keys they may have; empty: any that is signed.
    pub pins: Vec<[u8; 32]>,
    /// What the edge shows them.
    pub client: Option<Certificate>,
}

impl Upstream {
    /// The addresses that are written in the configuration.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.servers.iter().filter_map(|server| match server.address {
            Address::Ip(address) => Some(address),
            Address::Name(..) | Address::Unix(_) => None,
        })
    }

    /// Every file it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.tls.iter().flat_map(|tls| {
            let client = tls.client.iter().flat_map(|client| [&client.chain, &client.key]);
            std::iter::once(&tls.ca).chain(client)
        })
    }

    /// The same, to be changed.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.tls.iter_mut().flat_map(|tls| {
            let client = tls.client.iter_mut().flat_map(|c| [&mut c.chain, &mut c.key]);
            std::iter::once(&mut tls.ca).chain(client)
        })
    }
}

/// Where distributions keep the authorities that they trust.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
