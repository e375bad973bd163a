//! One server, and one worker's kept connections to it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_common::Reason;
use http::StatusCode;

use super::{connection::Connection, failure};
use crate::{
    clock,
    upstream::{Server, Tally, Upstream},
};

/// One server, as one worker sees it.
pub(super) struct Pool {
    pub(super) server: Arc<Server>,
    upstream: Arc<Upstream>,
    worker: usize,
    /// Connections that wait for a request, the latest last: the warmest is taken first and
    /// the others get a chance to grow old.
    idle: RefCell<Vec<Idle>>,
    /// Whose turn it is to open a connection that several can share.
    pub(super) opening: tokio::sync::Mutex<()>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(super) fn new(upstream: &Arc<Upstream>, server: &Arc<Server>, worker: usize) -> Rc<Self> {
        let (upstream, server) = (Arc::clone(upstream), Arc::clone(server));
        Rc::new(Self {
            server,
            upstream,
            worker,
            idle: RefCell::default(),
            opening: Default::default(),
        })
    }

    /// The warmest connection that is done with its last request. One that still sends somebody's
    /// body, because the answer came early, is left to finish or to grow old.
    pub(super) fn take(&self) -> Option<Connection> {
        self.sweep();
        let mut idle = self.idle.borrow_mut();
        let ready = idle.iter().rposition(|kept| kept.connection.is_ready())?;
        if let Some(shared) = idle[ready].connection.share() {
            idle[ready].since = Instant::now();
            return Some(shared);
        }
        let taken = idle.remove(ready);
        self.tally().idle.store(idle.len(), Relaxed);
        Some(taken.connection)
    }

    /// Keeps a connection from the beginning, if several requests may use it.
    pub(super) fn share(&self, connection: &Connection) {
        if let Some(shared) = connection.share() {
            self.keep(shared);
        }
    }

    /// Keeps a connection for the next request, if there may be one. The coldest makes room.
    pub(super) fn put(&self, connection: Connection) {
        // One that is shared was kept when it was opened.
        if connection.share().is_none() {
            self.keep(connection);
        }
    }

    fn keep(&self, connection: Connection) {
        let settings = &self.upstream.settings;
        if connection.is_closed() || connection.age() >= settings.age_max || settings.idle_max == 0
        {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= settings.idle_max {
            idle.remove(0);
        }
        idle.push(Idle { connection, since: Instant::now() });
        self.tally().idle.store(idle.len(), Relaxed);
    }

    /// Closes what has waited too long or grown too old, and forgets what the other side closed.
    pub(super) fn sweep(&self) {
        let settings = &self.upstream.settings;
        let mut idle = self.idle.borrow_mut();
        if idle.is_empty() {
            return;
        }
        idle.retain(|kept| {
            (kept.connection.is_in_use() || kept.since.elapsed() < settings.idle_timeout)
                && kept.connection.age() < settings.age_max
                && !kept.connection.is_closed()
        });
        self.tally().idle.store(idle.len(), Relaxed);
    }

    pub(super) fn names(&self) -> (String, Rc<str>) {
        (self.upstream.settings.name.clone(), self.server.label.as_str().into())
    }

    pub(super) fn tally(&self) -> &Tally {
        self.server.tally(self.worker)
    }

    /// The server answered.
    pub(super) fn answered(&self, status: StatusCode, after: Duration) {
        self.tally().answered(status, after);
        self.server.health.succeeded(&self.upstream.settings.ejection, clock::boot_ns());
    }

    /// The server failed, if this reason means that it did.
    pub(super) fn failed(&self, reason: Reason) {
        if let Some(failure) = failure(reason) {
            self.tally().failed(failure);
            self.upstream.failed(&self.server);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tally().idle.store(0, Relaxed);
    }
}
