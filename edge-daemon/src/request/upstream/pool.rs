//! One server, and one worker's kept connections to it.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_common::Reason;
use edge_policy::upstream::circuit::Passage;
use http::StatusCode;

use super::{super::watch::Turn, connection::Connection, failure};
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
    since_ns: u64,
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

    /// The warmest connection that is done with its last request and fit for another. One that still
    /// sends somebody's body, because the answer came early, is left to finish or to grow old.
    pub(super) fn take(&self, now_ns: u64) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        for at in (0..idle.len()).rev() {
            let kept = &idle[at];
            if !kept.connection.is_ready() {
                continue;
            }
            if let Some(shared) = kept.connection.share().filter(|_| self.is_fit(kept, now_ns)) {
                return Some(shared);
            }
            let taken = idle.remove(at);
            self.tally().idle.store(idle.len(), Relaxed);
            if self.is_fit(&taken, now_ns) {
                return Some(taken.connection);
            }
        }
        None
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
        if connection.is_closed() || settings.idle_max == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= settings.idle_max {
            idle.remove(0);
        }
        idle.push(Idle { connection, since_ns: clock::boot_ns() });
        self.tally().idle.store(idle.len(), Relaxed);
    }

    /// Closes what has waited too long or grown too old, and forgets what the other side closed.
    pub(super) fn sweep(&self) {
        let now_ns = clock::boot_ns();
        let mut idle = self.idle.borrow_mut();
        idle.retain(|kept| self.is_fit(kept, now_ns));
        self.tally().idle.store(idle.len(), Relaxed);
    }

    fn is_fit(&self, kept: &Idle, now_ns: u64) -> bool {
        let Idle { connection, since_ns } = kept;
        let settings = &self.upstream.settings;
        let since = |then_ns: u64| Duration::from_nanos(now_ns.saturating_sub(then_ns));
        (since(connection.used_ns().max(*since_ns)) < settings.idle_timeout
            || connection.is_in_use())
            && since(connection.opened_ns()) < settings.age_max
            && connection.opened_ns() >= self.upstream.renewed_ns()
            && !connection.is_stale()
    }

    pub(super) fn tally(&self) -> &Tally {
        self.server.tally(self.worker)
    }

    /// The head of an answer is there.
    pub(super) fn answered(&self, status: StatusCode, began_ns: u64) {
        let took = Duration::from_nanos(clock::boot_ns().saturating_sub(began_ns));
        self.tally().answered(status, took);
    }

    /// The server did its part of a request.
    pub(super) fn succeeded(&self, now_ns: u64) {
        self.server.health.succeeded(&self.upstream.settings.ejection, now_ns);
    }

    /// Tells the circuit how a request went: when its head came, and now.
    pub(super) fn note(&self, failed: bool, times: [u64; 2]) {
        let rule = &self.upstream.settings.circuit;
        self.upstream.circuit.note(rule, Passage::Free, failed, times);
    }

    /// Whether it was longer ago than the circuit's window.
    pub(super) fn is_past_window(&self, began_ns: u64) -> bool {
        let ago_ns = clock::boot_ns().saturating_sub(began_ns);
        ago_ns > self.upstream.settings.circuit.window_ns
    }

    /// The server failed.
    pub(super) fn failed(&self) {
        self.upstream.failed(&self.server);
    }

    /// The server failed, if this reason means that it did, and others did not use its time up.
    pub(super) fn failed_for(&self, reason: Reason, turn: &Turn) {
        if let Some(failure) = failure(reason).filter(|_| !turn.is_excused()) {
            self.tally().failed(failure);
            self.failed();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tally().idle.store(0, Relaxed);
    }
}
