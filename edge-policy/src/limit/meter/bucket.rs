//! A bucket by its rate and its size (GCRA, ITU-T I.371). State: the time at which it is empty again, in ticks.

use super::{
    super::{
        lease::{NODES_MAX, WHOLE},
        standing::Left,
    },
    DAY_NS, Now, Outcome, State, narrow,
};

/// A rate and how far ahead of it a key may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// [`TICKS_PER_NS`] of a nanosecond between two requests.
    pub(super) interval: u64,
    /// Requests that fit.
    pub(super) size: u64,
}

impl Bucket {
    /// `count` requests in `period_ns`, of which `size` fit; `None` if any is zero, if the rate is
    /// beyond one a nanosecond, or if the bucket takes more than [`FILL_NS_MAX`].
    #[must_use]
    pub fn new(count: u64, period_ns: u64, size: u64) -> Option<Self> {
        let interval = u128::from(period_ns) * TICKS_PER_NS / u128::from(count.max(1));
        let whole = interval.checked_mul(u128::from(size))?;
        let fits = count > 0
            && size > 0
            && interval >= TICKS_PER_NS
            && whole <= u128::from(FILL_NS_MAX) * TICKS_PER_NS;
        fits.then_some(Self { interval: u64::try_from(interval).ok()?, size })
    }

    /// A bucket of so many millionths of the rate: it holds as many less, and takes as long to fill.
    /// One that may have it holds one at the least; less than one of [`NODES_MAX`] parts is nothing,
    /// or a single request would be paid for by the thousand when the part grows.
    #[must_use]
    pub fn part(self, millionths: u32) -> Self {
        let share = u128::from(millionths.clamp(1, WHOLE));
        let interval = u128::from(self.interval) * u128::from(WHOLE) / share;
        // A share is known to a millionth: a third of twelve is four.
        let size = narrow(u128::from(self.size) * (share + 1) / u128::from(WHOLE)).min(self.size);
        let least = u64::from(share >= u128::from(WHOLE) / NODES_MAX as u128);
        Self { interval: narrow(interval), size: size.max(least) }
    }

    /// A bucket of so many times the rate, up to one a nanosecond: it holds as many more, and takes as long to
    /// fill.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        let interval = (self.interval / times.max(1)).max(narrow(TICKS_PER_NS));
        Self { interval, size: narrow(self.capacity() / u128::from(interval)) }
    }

    /// Nanoseconds between two requests.
    #[must_use]
    pub fn interval_ns(self) -> f64 {
        self.interval as f64 / TICKS_PER_NS as f64
    }

    /// Requests that fit.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Nanoseconds in which it empties.
    #[must_use]
    pub fn fill_ns(self) -> u64 {
        ns(self.capacity())
    }

    /// Ticks that it holds.
    pub(super) fn capacity(self) -> u128 {
        u128::from(self.interval) * u128::from(self.size)
    }

    /// Ticks by which a key's state is ahead of the clock.
    pub(super) fn ahead(state: State, now: Now) -> u128 {
        state.saturating_sub(u128::from(now.boot_ns) * TICKS_PER_NS)
    }

    fn left(self, ahead: u128) -> Left {
        let left = self.capacity().saturating_sub(ahead) / u128::from(self.interval);
        Left { limit: self.size, remaining: narrow(left), reset_ns: ns(ahead) }
    }

    pub(super) fn charge(self, state: State, cost: u64, now: Now) -> Outcome {
        let ahead = Self::ahead(state, now);
        let after = ahead + u128::from(self.interval) * u128::from(cost);
        match after.checked_sub(self.capacity()) {
            None | Some(0) => Outcome::Admit {
                state: u128::from(now.boot_ns) * TICKS_PER_NS + after,
                left: self.left(after),
                delay_ns: 0,
            },
            Some(over) => {
                let ever = cost <= self.size;
                let wait_ns = ever.then(|| ns(over));
                Outcome::Refuse { left: self.left(ahead), wait_ns }
            }
        }
    }
}

pub(super) fn ns(ticks: u128) -> u64 {
    narrow(ticks.div_ceil(TICKS_PER_NS))
}

/// The longest that a bucket may take to empty: 400 days.
pub const FILL_NS_MAX: u64 = 400 * DAY_NS;

/// The finest part of a nanosecond that a bucket counts: a rate of a million a second is then kept
/// to one part in a million.
pub(super) const TICKS_PER_NS: u128 = 1 << 10;
