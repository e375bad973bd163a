//! What a worker looks after that no request does.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Worker, http1};
use crate::memory;

impl Worker {
    /// Looks again and again: deadlines, gathered reports, connections to upstreams that nobody asks for, and memory.
    pub(super) async fn tend(&self) {
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
            if self.edge.metrics.memory.is_full() {
                self.timers.wake_all();
            }
            if self.edge.metrics.memory.is_short() {
                memory::give_back();
            }
        }
    }

    /// Has connections hold less if so many requests in flight might take all the memory that is left.
    pub(super) fn spare(&self, in_flight: usize) {
        http1::spare(self.edge.metrics.memory.is_scarce(in_flight));
    }
}

/// How often deadlines are looked at, and so how late one may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS_PER_SWEEP: u32 = 10;
