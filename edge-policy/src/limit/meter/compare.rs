//! What two meters are to one another.

use super::Meter::{self, Concurrent, FixedWindow, LeakyBucket, SlidingWindow, TokenBucket};

impl Meter {
    /// Whether what it has written is right for the next: windows as long, or a rate that is no looser, so
    /// that what is owed is owed for no longer than it was.
    #[must_use]
    pub fn goes_on_as(&self, next: &Self) -> bool {
        match (self, next) {
            (TokenBucket(own), TokenBucket(next)) | (LeakyBucket(own), LeakyBucket(next)) => {
                own.interval <= next.interval
            }
            _ => self.is_alike(next),
        }
    }

    /// Whether the other never refuses what this one admits.
    #[must_use]
    pub fn is_as_strict_as(&self, other: &Self) -> bool {
        let is_slower = match (self, other) {
            (TokenBucket(own), TokenBucket(other)) | (LeakyBucket(own), LeakyBucket(other)) => {
                own.interval >= other.interval
            }
            _ => self.is_alike(other),
        };
        is_slower && self.most() <= other.most()
    }

    /// What may be charged at once; what costs more is refused for ever.
    #[must_use]
    pub const fn most(&self) -> u64 {
        match *self {
            FixedWindow { limit, .. } | SlidingWindow { limit, .. } | Concurrent { limit } => limit,
            TokenBucket(bucket) | LeakyBucket(bucket) => bucket.size,
        }
    }

    /// Whether both count in the same windows, or at once.
    fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (FixedWindow { window: own, .. }, FixedWindow { window: other, .. }) => own == other,
            (SlidingWindow { window_ns: own, .. }, SlidingWindow { window_ns: other, .. }) => {
                own == other
            }
            (Concurrent { .. }, Concurrent { .. }) => true,
            _ => false,
        }
    }
}
