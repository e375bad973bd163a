//! When the lists are compiled anew: soon after the changes go quiet, and in the end anyway; on a
//! thread of its own, so that no ban waits for it.

use std::{
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use edge_common::list::OVERLAY_MAX;

use crate::{
    clock,
    kernel::{KernelError, Lists},
};

/// The changes that no image has yet, and the image in the making.
#[derive(Default)]
pub(super) struct Folding {
    first_change: Option<Instant>,
    last_change: Option<Instant>,
    is_urgent: bool,
    running: Option<JoinHandle<Result<(), KernelError>>>,
}

impl Folding {
    /// Notes a change; an urgent one has no effect before the next image.
    pub(super) fn note(&mut self, is_urgent: bool, now: Instant) {
        self.first_change.get_or_insert(now);
        self.last_change = Some(now);
        self.is_urgent |= is_urgent;
    }

    /// Begins an image if it is time for one and none is being made.
    pub(super) fn look(&mut self, lists: &Lists, now: Instant) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        if let Some(Err(error)) = self.running.take().and_then(|running| running.join().ok()) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "the lists cannot be compiled; the former stay in force");
            self.note(false, now);
        }
        if !self.is_due(now, lists.sizes().overlay) {
            return;
        }
        let folded = lists.clone();
        let run = move || folded.fold(clock::boot_ns());
        match Builder::new().name("lists".into()).spawn(run) {
            Ok(running) => *self = Self { running: Some(running), ..Self::default() },
            Err(error) => tracing::error!(%error, "no thread to compile the lists"),
        }
    }

    fn is_due(&self, now: Instant, overlay: u64) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        self.is_urgent
            || since(self.last_change) >= Some(QUIET)
            || since(self.first_change) >= Some(WAIT_MAX)
            || self.first_change.is_some() && overlay > u64::from(OVERLAY_MAX) / 2
    }
}

/// Changes that follow each other faster are compiled together.
const QUIET: Duration = Duration::from_secs(1);
/// However many follow.
const WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_compiled_when_they_go_quiet_or_go_on_for_long() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut folding = Folding::default();
        assert!(!folding.is_due(at(60_000), 9_999));
        folding.note(false, at(0));
        assert!(!folding.is_due(at(999), 1) && folding.is_due(at(1_000), 1));
        for ms in (0..9_900).step_by(300) {
            folding.note(false, at(ms));
            assert!(!folding.is_due(at(ms + 1), 1), "{ms}");
        }
        assert!(folding.is_due(at(10_000), 1));
        assert!(folding.is_due(at(9_900), 5_000));
        let mut folding = Folding::default();
        folding.note(true, at(0));
        assert!(folding.is_due(at(0), 0));
    }
}
