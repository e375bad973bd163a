//! A connection in use, from the head of an answer to its last byte.

use std::rc::Rc;

use edge_common::Reason;

use super::{connection::Connection, pool::Pool};
use crate::upstream::Slot;

/// A connection in use, with its place among the requests in flight. Given back when its answer is
/// complete, closed when dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Connection,
    _slot: Slot,
}

impl Lease {
    pub(super) fn new(pool: Rc<Pool>, connection: Connection, slot: Slot) -> Self {
        Self { pool, connection, _slot: slot }
    }

    /// The answer is complete: the connection may serve another request.
    pub(crate) fn give_back(self) {
        self.pool.put(self.connection);
    }

    /// The upstream, and its server.
    pub(crate) fn names(&self) -> (String, Rc<str>) {
        self.pool.names()
    }

    /// The answer broke off, or did not come in time; the server may be to blame.
    pub(crate) fn broke_off(&self, reason: Reason) {
        self.pool.failed(reason);
    }
}
