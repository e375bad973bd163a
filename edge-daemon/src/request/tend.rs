//! What a worker looks after that no request does.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Worker, http1};
use crate::memory;

impl Worker {
    /// Looks again and again: deadlines, gathered reports, connections to upstreams that nobody asks for, and memory.
    pub(super) async fn tend(&self) {
        let mut short_for = 0;
        loop {
            for _ in 0..LOOKS_PER_SWEEP {
                tokio::time::sleep(LOOK_EVERY).await;
                self.counters.beat();
                self.timers.note_short(self.edge.metrics.memory.is_short());
                self.timers.look();
                self.send_gathered();
                self.grants.send();
                self.spare(self.edge.metrics.requests.load(Relaxed));
            }
            self.access.flush();
            self.view().upstreams.iter().for_each(|upstream| upstream.sweep());
            let is_full = self.edge.metrics.memory.is_full();
            if is_full {
                self.timers.wake_all();
            }
            short_for = if self.edge.metrics.memory.is_short() { short_for + 1 } else { 0 };
            if is_full || gives_back(short_for) {
                memory::give_back();
            }
        }
    }

    /// Has connections hold less if so many requests in flight might take all the memory that is left.
    pub(super) fn spare(&self, in_flight: usize) {
        http1::spare(self.edge.metrics.memory.is_scarce(in_flight));
    }
}

/// Whether memory that has been short for so many sweeps is to be given back: that takes time, and below the ceiling it is
/// for the case that there is more to give than the allocator gave by itself.
const fn gives_back(short_for: u32) -> bool {
    short_for % SWEEPS_PER_RETURN == 1
}

/// How often deadlines are looked at, and so how late one may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS_PER_SWEEP: u32 = 10;
const SWEEPS_PER_RETURN: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_as_it_becomes_short_and_then_at_times() {
        let returns: Vec<u32> = (0..30).filter(|sweeps| gives_back(*sweeps)).collect();
        assert_eq!(returns, [1, 11, 21]);
    }
}
