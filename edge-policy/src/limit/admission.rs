//! What rules admitted, and what a request in flight holds of them.

use std::sync::Arc;

use super::{
    State,
    meter::Meter,
    standing::Standing,
    table::{Hold, Table},
};

/// What rules admitted.
#[derive(Debug, Default)]
pub struct Admission {
    /// The tightest of the limits that it was charged to.
    pub standing: Option<Standing>,
    /// How long it has to wait for its turn.
    pub delay_ns: u64,
    /// What it holds until it ends.
    pub held: Vec<Held>,
    /// The limits in the shadow that would have refused it, and have counted that.
    pub(super) would_refuse: Vec<Arc<State>>,
}

/// A place among the requests in flight, given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    table: Arc<Table>,
    meter: Meter,
    hold: Hold,
}

impl Held {
    pub(super) const fn new(table: Arc<Table>, meter: Meter, hold: Hold) -> Self {
        Self { table, meter, hold }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.table.release(&self.meter, self.hold);
    }
}

impl Admission {
    /// Counts in what one more rule admitted.
    #[inline]
    pub(super) fn add(&mut self, standing: Standing, delay_ns: u64) {
        self.standing = Standing::tighter(self.standing, Some(standing));
        self.delay_ns = self.delay_ns.max(delay_ns);
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.standing = Standing::tighter(self.standing, other.standing);
        self.delay_ns = self.delay_ns.max(other.delay_ns);
        self.held.extend(other.held);
        self.would_refuse.extend(other.would_refuse);
        self
    }
}
