//! A connection in use, from the head of an answer to its last byte.

use std::rc::Rc;

use edge_common::Reason;
use http::{Response, StatusCode, header::CONTENT_TYPE};

use super::{connection::Connection, failure, pool::Pool};
use crate::upstream::Slot;

/// A connection in use, with its place among the requests in flight. Given back when its answer is
/// complete, closed when dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Connection,
    _slot: Slot,
    /// Whether its answer was served with its head, as no end of it is to be waited for.
    is_served: bool,
}

impl Lease {
    /// Of an answer whose head is there. A client that leaves before its end tells nothing of the server.
    pub(super) fn new<T>(
        pool: Rc<Pool>,
        connection: Connection,
        slot: Slot,
        answer: &Response<T>,
    ) -> Self {
        let mut this = Self { pool, connection, _slot: slot, is_served: false };
        if is_endless(answer) {
            this.serve();
        }
        this
    }

    /// The answer is complete: the connection may serve another request.
    pub(crate) fn give_back(mut self) {
        self.serve();
        self.pool.put(self.connection);
    }

    /// The answer is as good as complete: nobody wants the rest.
    pub(crate) fn leave(mut self) {
        self.serve();
    }

    fn serve(&mut self) {
        if !std::mem::replace(&mut self.is_served, true) {
            self.pool.served();
        }
    }

    /// The answer broke off, or did not come in time; the server may be to blame.
    pub(crate) fn broke_off(self, reason: Reason) {
        self.pool.failed(reason);
        if !self.is_served && failure(reason).is_some() {
            self.pool.note(true);
        }
    }
}

/// Whether an answer goes on until somebody leaves: another protocol, or events.
fn is_endless<T>(answer: &Response<T>) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    answer.status() == StatusCode::SWITCHING_PROTOCOLS
        || kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}
