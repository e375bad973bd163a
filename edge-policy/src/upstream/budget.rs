//! How many requests may be sent a second time: a share of those that are sent a first time, so
//! that a struggling upstream is never asked for much more than it is when all is well.

/// One worker's budget. A request earns its share of a retry, a retry costs a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Hundredths of a retry.
    saved: u32,
    /// What one request earns, in hundredths of a retry.
    percent: u32,
}

impl Budget {
    /// A budget of so many retries for a hundred requests; [`RESERVE`] of them to begin with, if
    /// there are to be any.
    #[must_use]
    pub const fn new(percent: u32) -> Self {
        Self { saved: if percent == 0 { 0 } else { RESERVE * 100 }, percent }
    }

    /// A request is sent for the first time.
    pub fn earn(&mut self) {
        self.saved = (self.saved + self.percent).min(RESERVE * 100);
    }

    /// Whether a request may be sent again.
    pub fn spend(&mut self) -> bool {
        let left = self.saved.checked_sub(100);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

/// Retries that may come at once: what calm times save up.
pub const RESERVE: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests() {
        let mut budget = Budget::new(20);
        let retries = (0..1_000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(retries.count(), 200 + RESERVE as usize - 1);
    }

    #[test]
    fn a_budget_of_nothing_is_nothing() {
        let mut budget = Budget::new(0);
        budget.earn();
        assert!(!budget.spend());
    }

    #[test]
    fn calm_times_save_no_more_than_the_reserve() {
        let mut budget = Budget::new(100);
        (0..1_000).for_each(|_| budget.earn());
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), RESERVE as usize);
    }
}
