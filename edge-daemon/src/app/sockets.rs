//! The sockets that clients come in by, and descriptors for all who do.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
};

use anyhow::Context as _;

use crate::{
    config::Settings,
    control,
    handover::{self, Heritage},
    listen::{self, Inherited},
    request::Entrance,
};

/// All that is listened on.
pub(super) struct Sockets {
    /// For each worker, its listeners for clients.
    pub(super) clients: Vec<Vec<(TcpListener, Entrance)>>,
    /// For `edgectl`.
    pub(super) control: UnixListener,
    /// For scrapes.
    pub(super) metrics: TcpListener,
    /// For a successor.
    pub(super) handover: UnixListener,
    /// All of them once more, for a successor.
    pub(super) heritage: Heritage,
}

impl Sockets {
    /// Takes what is given, and makes the rest.
    pub(super) fn open(
        settings: &Settings,
        workers: usize,
        given: &mut Inherited,
    ) -> anyhow::Result<Self> {
        let mut heritage = Heritage::default();
        let https = settings.server.https.iter().enumerate();
        let https = https.map(|(n, listener)| (listener.address, Entrance::Https(n)));
        let http = settings.server.http.iter().map(|address| (*address, Entrance::Http));
        let mut clients: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for (address, entrance) in https.chain(http) {
            let sockets = tcp(address, workers, given, &mut heritage)?;
            for (own, sockets) in clients.iter_mut().zip(sockets) {
                own.extend(sockets.into_iter().map(|socket| (socket, entrance)));
            }
        }
        let metrics = tcp(settings.metrics.listen, 1, given, &mut heritage)?;
        let metrics = metrics.into_iter().flatten().next().context("a socket for the metrics")?;
        let control = unix(&settings.control.socket, given, &mut heritage)?;
        let handover = unix(&handover::socket(settings), given, &mut heritage)?;
        for place in given.left() {
            tracing::warn!(place, "a listener that was given is not in the configuration");
        }
        Ok(Self { clients, control, metrics, handover, heritage })
    }
}

fn tcp(
    address: SocketAddr,
    workers: usize,
    given: &mut Inherited,
    heritage: &mut Heritage,
) -> anyhow::Result<Vec<Vec<TcpListener>>> {
    let mut open = || {
        let given = given.take(address)?;
        // Of each that is given, one; a clone of it is no more.
        for listener in &given {
            heritage.tcp.push(listener.try_clone()?);
        }
        let is_new = given.is_empty();
        let sockets = listen::bind(address, workers, given)?;
        if is_new {
            for listener in sockets.iter().flatten() {
                heritage.tcp.push(listener.try_clone()?);
            }
        }
        io::Result::Ok(sockets)
    };
    open().with_context(|| format!("cannot listen on {address}"))
}

fn unix(
    path: &Path,
    given: &mut Inherited,
    heritage: &mut Heritage,
) -> anyhow::Result<UnixListener> {
    let mut open = || {
        let socket = given.take_unix(path).map_or_else(|| control::bind(path), Ok)?;
        heritage.unix.push(socket.try_clone()?);
        io::Result::Ok(socket)
    };
    open().with_context(|| format!("cannot listen on {}", path.display()))
}

/// A connection is a descriptor or two: takes as many as the system gives, and says so if they
/// are fewer than the configuration's bounds may need.
pub(super) fn provide_descriptors(settings: &Settings, workers: usize) {
    let needed = descriptors_needed(settings, workers);
    match raise_descriptor_limit() {
        Ok(given) if given < needed => {
            tracing::warn!(given, needed, "fewer descriptors than the bounds may need");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open descriptors"),
    }
}

/// Descriptors open at once when every bound on connections is reached.
fn descriptors_needed(settings: &Settings, workers: usize) -> u64 {
    // In use, and kept by each worker for each server.
    let upstreams = settings.upstreams.iter().map(|upstream| {
        let kept = workers.saturating_mul(upstream.servers.len()).saturating_mul(upstream.idle_max);
        kept.saturating_add(upstream.requests_max)
    });
    let connections = upstreams.fold(settings.bounds.connections_max, usize::saturating_add);
    connections.saturating_add(DESCRIPTORS_OWN) as u64
}

/// Raises the soft limit to the hard one, which it returns.
fn raise_descriptor_limit() -> nix::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Descriptors that are not connections: listeners, kernel tables, logs, the store.
const DESCRIPTORS_OWN: usize = 100;
