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
    /// Images that failed one after the other, and when to try again.
    failures: u32,
    not_before: Option<Instant>,
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
        match self.running.take().map(JoinHandle::join) {
            None => {}
            Some(Ok(Ok(()))) => self.failures = 0,
            Some(Ok(Err(error))) => self.failed(&format!("{:#}", anyhow::Error::from(error)), now),
            Some(Err(_)) => self.failed("their thread panicked", now),
        }
        if !self.is_due(now, lists.sizes().overlay) {
            return;
        }
        let folded = lists.clone();
        let run = move || folded.fold(clock::boot_ns());
        match Builder::new().name("lists".into()).spawn(run) {
            Ok(running) => {
                let running = Some(running);
                *self = Self { running, failures: self.failures, ..Self::default() };
            }
            Err(error) => tracing::error!(%error, "no thread to compile the lists"),
        }
    }

    /// Notes that the changes still wait, and for how long.
    fn failed(&mut self, error: &str, now: Instant) {
        let pause = QUIET.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        tracing::error!(error, ?pause, "the lists cannot be compiled; the former stay in force");
        self.note(false, now);
    }

    fn is_due(&self, now: Instant, overlay: u64) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let is_ripe = self.is_urgent
            || since(self.last_change) >= Some(QUIET)
            || since(self.first_change) >= Some(WAIT_MAX)
            || self.first_change.is_some() && overlay > u64::from(OVERLAY_MAX) / 2;
        is_ripe && self.not_before.is_none_or(|at| now >= at)
    }
}

/// Changes that follow each other faster are compiled together.
const QUIET: Duration = Duration::from_secs(1);
/// However many follow.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The longest pause after an image that failed.
const PAUSE_MAX: Duration = Duration::from_secs(60);

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
    #[test]
    fn an_image_that_fails_again_and_again_is_tried_less_and_less_often() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut folding = Folding::default();
        for (failed, due) in [(0, 1), (1, 3), (3, 7), (7, 15), (15, 31), (31, 63), (63, 123)] {
            folding.failed("full", at(failed));
            folding.note(true, at(failed));
            assert!(!folding.is_due(at(due - 1), 9_999), "{failed}");
            assert!(folding.is_due(at(due), 0), "{failed}");
        }
    }
}
