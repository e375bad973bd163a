//! Whether connections find room to be counted: told when that changes, and not each time.

use std::time::{Duration, Instant};

/// What was seen of a counter of those that found none.
#[derive(Debug)]
pub(super) struct Room {
    lost: u64,
    /// When it last rose; `None`: they find room.
    since: Option<Instant>,
}

impl Room {
    /// With what was counted before.
    pub(super) fn new(lost: u64) -> Self {
        Self { lost, since: None }
    }

    /// Whether there is room, if that is news: there is again when none was lost for a while.
    pub(super) fn look(&mut self, lost: u64, now: Instant) -> Option<bool> {
        if lost > std::mem::replace(&mut self.lost, lost) {
            return self.since.replace(now).is_none().then_some(false);
        }
        let is_over = self.since.is_some_and(|since| now.duration_since(since) >= QUIET);
        is_over.then(|| {
            self.since = None;
            true
        })
    }
}

const QUIET: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let (mut room, start) = (Room::new(7), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(room.look(7, at(0)), None);
        assert_eq!(room.look(8, at(1)), Some(false));
        assert_eq!(room.look(90, at(2)), None);
        assert_eq!(room.look(90, at(61)), None);
        assert_eq!(room.look(90, at(62)), Some(true));
        assert_eq!(room.look(90, at(200)), None);
        assert_eq!(room.look(91, at(201)), Some(false));
    }
}
