//! One server, and one worker's kept connections to it.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::connection::Connection;

/// One server, as one worker sees it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// Connections that wait for a request, the latest last: the warmest is taken first and
    /// the others get a chance to grow old.
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Server {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, idle: RefCell::default() }
    }

    /// The warmest connection that is done with its last request. One that still sends somebody's
    /// body, because the answer came early, is left to finish or to grow old.
    pub(super) fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|kept| kept.since.elapsed() < IDLE_MAX && !kept.connection.is_closed());
        let ready = idle.iter().rposition(|kept| kept.connection.is_ready())?;
        Some(idle.remove(ready).connection)
    }

    /// Keeps a connection for the next request, if there may be one.
    pub(super) fn put(&self, connection: Connection) {
        if !connection.is_closed() {
            self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
        }
    }
}

/// How long a connection is kept without a request: less than the 5 s after which common
/// servers (Node among them) close it, so that the race is rare.
const IDLE_MAX: Duration = Duration::from_secs(4);
