//! A connection in use, from the head of an answer to its last byte.

use std::rc::Rc;

use edge_common::Reason;
use http::{Response, StatusCode, header::CONTENT_TYPE};

use super::{connection::Connection, failure, pool::Pool};
use crate::{clock, upstream::Slot};

/// A connection in use, with its place among the requests in flight. Given back when its answer is
/// complete, closed when dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Connection,
    _slot: Slot,
    /// When its head was there, in boot time.
    began_ns: u64,
    /// Whether its answer counts for its server already, as no end of it is to be waited for.
    is_served: bool,
    /// Whether it counts for the circuit.
    is_noted: bool,
}

impl Lease {
    /// Of an answer whose head is there. A client that leaves before its end tells nothing of the server.
    pub(super) fn new<T>(
        pool: Rc<Pool>,
        connection: Connection,
        slot: Slot,
        answer: &Response<T>,
    ) -> Self {
        let began_ns = clock::boot_ns();
        let (is_served, is_noted) = (false, false);
        let mut this = Self { pool, connection, _slot: slot, began_ns, is_served, is_noted };
        if is_endless(answer) {
            this.serve();
        }
        this
    }

    /// A part of the answer came. What goes on for longer than the circuit's window did well for the circuit, which
    /// is about what happens now; for the server it is the end that counts.
    pub(crate) fn goes_on(&mut self) {
        if !self.is_noted && self.pool.is_past_window(self.began_ns) {
            self.note(false, clock::boot_ns());
        }
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

    /// Another server is asked instead, as this one's answer has a status for which that is done: it answered, and the
    /// request is not at its end.
    pub(super) fn pass_by(mut self) {
        self.succeed(clock::boot_ns());
    }

    fn serve(&mut self) {
        let now_ns = clock::boot_ns();
        self.succeed(now_ns);
        self.note(false, now_ns);
    }

    fn succeed(&mut self, now_ns: u64) {
        if !std::mem::replace(&mut self.is_served, true) {
            self.pool.succeeded(now_ns);
        }
    }

    fn note(&mut self, failed: bool, now_ns: u64) {
        if !std::mem::replace(&mut self.is_noted, true) {
            self.pool.note(failed, [self.began_ns, now_ns]);
        }
    }

    /// The answer broke off, or did not come in time; the server may be to blame.
    pub(crate) fn broke_off(mut self, reason: Reason) {
        let Some(failure) = failure(reason) else { return };
        self.pool.tally().failed(failure);
        if !self.is_served {
            self.pool.failed();
            self.note(true, clock::boot_ns());
        }
    }
}

/// Whether an answer goes on until somebody leaves: another protocol, events, or calls that stream.
fn is_endless<T>(answer: &Response<T>) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    answer.status() == StatusCode::SWITCHING_PROTOCOLS
        || kind.is_some_and(|kind| {
            let kind = kind.trim().to_ascii_lowercase();
            kind == "text/event-stream" || kind.starts_with("application/grpc")
        })
}
