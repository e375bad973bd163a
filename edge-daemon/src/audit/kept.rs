//! What somebody waits for to be on disk: a line of its own, or all that was told.

use std::{
    sync::{
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use super::{Audit, Entry};
use crate::{clock, events::Event};

/// How long an operator waits for the log, before a change and after it: a reply is due within ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Whether one line is on disk, as soon as that is known.
#[must_use]
pub struct Kept(Receiver<bool>);

impl Kept {
    /// Waits for so long, at most; `false` if it is not known by then.
    #[must_use]
    pub fn within(self, most: Duration) -> bool {
        self.0.recv_timeout(most) == Ok(true)
    }
}

impl Audit {
    /// Tells of what happened, and of what becomes of that line alone, whatever others lose meanwhile.
    pub fn tell_kept(&self, event: Event) -> Kept {
        self.demand(|done| Entry::Awaited(clock::unix_ms(), Box::new(event), done))
    }

    /// Waits until what waits to be written is on disk, or for so long; whether it is. What was lost
    /// before is not: [`super::Counts::lost`] counts it.
    #[must_use]
    pub fn flush(&self, most: Duration) -> bool {
        self.demand(Entry::Flush).within(most)
    }

    /// There is room beside what requests fill, so that no flood of theirs is in an operator's way.
    fn demand(&self, entry: impl FnOnce(SyncSender<bool>) -> Entry) -> Kept {
        let (done, kept) = sync_channel(1);
        let entry = entry(done);
        let lines = entry.lines();
        self.counts.waiting.fetch_add(lines, Relaxed);
        if self.queue.try_send(entry).is_err() {
            self.counts.waiting.fetch_sub(lines, Relaxed);
            self.counts.lost.fetch_add(lines as u64, Relaxed);
        }
        Kept(kept)
    }
}
