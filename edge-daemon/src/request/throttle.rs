//! Few lines of a log in the place of many.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Lets so many lines a second into the log: writing them takes time from every request.
pub(crate) struct Throttle {
    most: u32,
    began: Cell<Option<Instant>>,
    lines: Cell<u32>,
}

impl Throttle {
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, began: Cell::new(None), lines: Cell::new(0) }
    }

    pub(crate) fn may_log(&self) -> bool {
        if self.began.get().is_none_or(|began| began.elapsed() >= Duration::from_secs(1)) {
            self.began.set(Some(Instant::now()));
            self.lines.set(0);
        }
        let may = self.lines.get() < self.most;
        self.lines.set(self.lines.get() + u32::from(may));
        may
    }
}

impl Default for Throttle {
    /// One line a second.
    fn default() -> Self {
        Self::new(1)
    }
}
