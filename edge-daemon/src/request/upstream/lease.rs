//! A connection in use, from the head of an answer to its last byte.

use std::{
    future::Future as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use edge_common::Reason;
use tokio::time::{Sleep, sleep_until};

use super::{connection::Connection, pool::Pool};
use crate::upstream::Slot;

/// A connection in use, with its place among the requests in flight. Given back when its answer is
/// complete, closed when dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Connection,
    _slot: Slot,
    /// When the answer last moved.
    moved: Instant,
    /// When the whole of it must be there.
    until: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Lease {
    pub(super) fn new(
        pool: Rc<Pool>,
        connection: Connection,
        slot: Slot,
        until: Option<Instant>,
    ) -> Self {
        Self { pool, connection, _slot: slot, moved: Instant::now(), until, alarm: None }
    }

    /// The answer is complete: the connection may serve another request.
    pub(crate) fn give_back(self) {
        self.pool.put(self.connection);
    }

    /// The answer broke off, or did not come in time, and the server is to blame.
    pub(crate) fn broke_off(&self, reason: Reason) {
        self.pool.failed(reason);
    }

    /// A part of the answer came.
    pub(crate) fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// Ready once the server, whose turn it is, has taken too long over the next part, or over
    /// the whole.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let next = self.moved + self.pool.body_timeout();
        let due = self.until.map_or(next, |until| until.min(next)).into();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        alarm.as_mut().poll(cx)
    }
}
