//! Few lines of a log in the place of many.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Lets one line a second into the log: writing it takes time from every request.
#[derive(Default)]
pub(crate) struct Throttle(Cell<Option<Instant>>);

impl Throttle {
    pub(crate) fn may_log(&self) -> bool {
        let may = self.0.get().is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if may {
            self.0.set(Some(Instant::now()));
        }
        may
    }
}
