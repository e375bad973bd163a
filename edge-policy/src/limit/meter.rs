//! The algorithms: what one key's past makes of its next request.
//!
//! A key's whole past is a state of 80 bits, so that it fits beside the key's mark into one word
//! that a compare-and-swap replaces. Each algorithm is one pure function from state, cost and time
//! to the next state or a refusal; zero is the state of a key that was never seen.

mod bucket;
mod compare;

use self::bucket::ns;
pub use self::bucket::{Bucket, FILL_NS_MAX};
use super::standing::Left;
use crate::calendar;

/// The past of one key, in the lower [`STATE_BITS`] bits.
pub type State = u128;

/// Bits of a state.
pub const STATE_BITS: u32 = 80;

/// The two clocks that limits go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic nanoseconds, for what flows.
    pub boot_ns: u64,
    /// Unix time in nanoseconds, for windows that people read off the wall.
    pub unix_ns: u64,
}

/// How requests are counted, and how many are admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meter {
    /// So many in each window of the calendar. Twice as many may come around a window's end.
    FixedWindow {
        /// Requests in a window; below 2^40.
        limit: u64,
        /// The window.
        window: Window,
    },
    /// So many in the time just past: this window's count and the part of the last one's that the
    /// time still covers, as if that had been spread evenly.
    SlidingWindow {
        /// Requests in any such time; below 2^28.
        limit: u64,
        /// The time, in nanoseconds.
        window_ns: u64,
    },
    /// A bucket of tokens that fills at a rate; each request takes some (GCRA, ITU-T I.371).
    TokenBucket(Bucket),
    /// A bucket that leaks at a rate: requests wait in it for their turn, and leave evenly spaced.
    LeakyBucket(Bucket),
    /// So many at once, however long each takes.
    Concurrent {
        /// Requests in flight; below 2^40.
        limit: u64,
    },
}

/// A window of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// So many nanoseconds, counted from the epoch: a day begins at midnight.
    Ns(u64),
    /// A calendar month.
    Month,
}

/// What a meter says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is admitted.
    Admit {
        /// The key's state from now on.
        state: State,
        /// What is left.
        left: Left,
        /// How long the request has to wait for its turn.
        delay_ns: u64,
    },
    /// It is refused, and changes nothing.
    Refuse {
        /// What is left.
        left: Left,
        /// After how long it would be admitted if nothing else came; `None`: never.
        wait_ns: Option<u64>,
    },
}

impl Window {
    /// The number of the window at a time, and how far the time is from its begin and its end.
    fn at(self, unix_ns: u64) -> (u64, u64, u64) {
        match self {
            Self::Ns(length) => {
                let (number, since) = (unix_ns / length, unix_ns % length);
                (number, since, length - since)
            }
            Self::Month => {
                // A month goes by its first day, as good a number as any.
                let (first, next) = calendar::month(unix_ns / DAY_NS);
                (first, unix_ns - first * DAY_NS, next * DAY_NS - unix_ns)
            }
        }
    }

    /// What the next window's number is more than this one's, at the most.
    const fn step(self) -> u64 {
        if matches!(self, Self::Month) { 31 } else { 1 }
    }
}

impl Meter {
    /// What is said of a request that costs so much.
    #[must_use]
    pub fn charge(&self, state: State, cost: u64, now: Now) -> Outcome {
        match *self {
            Self::TokenBucket(bucket) => bucket.charge(state, cost, now),
            Self::LeakyBucket(bucket) => match bucket.charge(state, cost, now) {
                Outcome::Admit { state: after, left, .. } => {
                    let delay_ns = ns(Bucket::ahead(state, now));
                    Outcome::Admit { state: after, left, delay_ns }
                }
                refused @ Outcome::Refuse { .. } => refused,
            },
            Self::FixedWindow { limit, window } => fixed(limit, window, state, cost, now),
            Self::SlidingWindow { limit, window_ns } => sliding(limit, window_ns, state, cost, now),
            Self::Concurrent { limit } => {
                let left =
                    |held| Left { limit, remaining: limit.saturating_sub(held), reset_ns: 0 };
                let held = narrow(state);
                match held.checked_add(1).filter(|held| *held <= limit) {
                    Some(more) => {
                        Outcome::Admit { state: more.into(), left: left(more), delay_ns: 0 }
                    }
                    // Any of them may end right now.
                    None => Outcome::Refuse { left: left(held), wait_ns: Some(0) },
                }
            }
        }
    }

    /// An edge's part of it, in millionths. Of what is no rate there are no parts.
    #[must_use]
    pub fn part(self, millionths: u32) -> Self {
        match self {
            Self::TokenBucket(bucket) => Self::TokenBucket(bucket.part(millionths)),
            Self::LeakyBucket(bucket) => Self::LeakyBucket(bucket.part(millionths)),
            whole => whole,
        }
    }

    /// What is so many times as wide. Of what is no rate there is nothing wider.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        match self {
            Self::TokenBucket(bucket) => Self::TokenBucket(bucket.times(times)),
            Self::LeakyBucket(bucket) => Self::LeakyBucket(bucket.times(times)),
            same => same,
        }
    }

    /// How full a key is, from 0, as if it had never been seen, to [`FULL`], where the next request
    /// is refused. A request in flight is never forgotten: it will be given back.
    #[must_use]
    pub fn fullness(&self, state: State, now: Now) -> u32 {
        if state == 0 {
            return 0;
        }
        let part = |used: u128, of: u128| match (used, used * u128::from(FULL) / of.max(1)) {
            (0, _) => 0,
            (_, part) => u32::try_from(part).unwrap_or(FULL).clamp(1, FULL - 1),
        };
        match (*self, self.charge(state, 1, now)) {
            (Self::Concurrent { .. }, _) | (_, Outcome::Refuse { .. }) => FULL,
            (Self::TokenBucket(bucket) | Self::LeakyBucket(bucket), _) => {
                part(Bucket::ahead(state, now), bucket.capacity())
            }
            (Self::FixedWindow { limit, .. } | Self::SlidingWindow { limit, .. }, admitted) => {
                let Outcome::Admit { left, .. } = admitted else { return FULL };
                // One was charged to ask.
                part(u128::from(limit - left.remaining.min(limit - 1) - 1), limit.into())
            }
        }
    }

    /// What a key has used up by two states: in one window both together, else the fuller.
    #[must_use]
    pub fn both(&self, one: State, other: State, now: Now) -> State {
        match *self {
            Self::FixedWindow { limit, .. } if one >> COUNT_BITS == other >> COUNT_BITS => {
                let count = narrow(one & COUNT) + narrow(other & COUNT);
                one & !COUNT | u128::from(count.min(limit))
            }
            _ => std::cmp::max_by_key(one, other, |state| self.fullness(*state, now)),
        }
    }

    /// Whether it is of a window that is yet to come: the clock was ahead then, or is behind now.
    #[must_use]
    pub fn is_ahead(&self, state: State, now: Now) -> bool {
        let Self::FixedWindow { window, .. } = *self else { return false };
        let (number, ..) = window.at(now.unix_ns);
        narrow(state >> COUNT_BITS) > number + window.step()
    }

    /// After how long nothing is left of what was charged to a key.
    #[must_use]
    pub fn memory_ns(&self) -> u64 {
        match *self {
            Self::TokenBucket(bucket) | Self::LeakyBucket(bucket) => bucket.fill_ns(),
            Self::FixedWindow { window: Window::Ns(length), .. } => length,
            Self::FixedWindow { window: Window::Month, .. } => 31 * DAY_NS,
            Self::SlidingWindow { window_ns, .. } => window_ns.saturating_mul(2),
            // Requests are given back.
            Self::Concurrent { .. } => 0,
        }
    }

    /// The state after a request that was admitted has ended.
    #[must_use]
    pub fn release(&self, state: State) -> State {
        match self {
            Self::Concurrent { .. } => state.saturating_sub(1),
            _ => state,
        }
    }

    /// Whether it holds on to requests until they end.
    #[must_use]
    pub const fn is_concurrent(&self) -> bool {
        matches!(self, Self::Concurrent { .. })
    }

    /// The time its limit speaks of in seconds, if it speaks of one; for a bucket the time in which
    /// it empties.
    #[must_use]
    pub fn window_s(&self) -> Option<u64> {
        let seconds = |ns: u64| ns.div_ceil(1_000_000_000);
        match *self {
            Self::FixedWindow { window: Window::Ns(length), .. } => Some(seconds(length)),
            Self::FixedWindow { window: Window::Month, .. } => Some(30 * seconds(DAY_NS)),
            Self::SlidingWindow { window_ns, .. } => Some(seconds(window_ns)),
            Self::TokenBucket(b) | Self::LeakyBucket(b) => Some(seconds(b.fill_ns())),
            Self::Concurrent { .. } => None,
        }
    }
}

/// State: the window's number above a count of [`COUNT_BITS`].
fn fixed(limit: u64, window: Window, state: State, cost: u64, now: Now) -> Outcome {
    let (number, _, left_ns) = window.at(now.unix_ns);
    let (kept, count) = (narrow(state >> COUNT_BITS), narrow(state & COUNT));
    // A clock that was set back a little goes on with the window it left.
    let is_kept = (number..=number + window.step()).contains(&kept);
    let (number, count) = if is_kept { (kept, count) } else { (number, 0) };
    let left = |count| Left {
        limit,
        remaining: limit.saturating_sub(count),
        reset_ns: if count == 0 { 0 } else { left_ns },
    };
    match count.checked_add(cost).filter(|after| *after <= limit) {
        Some(after) => Outcome::Admit {
            state: u128::from(number) << COUNT_BITS | u128::from(after),
            left: left(after),
            delay_ns: 0,
        },
        None => {
            let wait_ns = (cost <= limit).then_some(left_ns);
            Outcome::Refuse { left: left(count), wait_ns }
        }
    }
}

/// State: the window's number, the last window's count and this one's, [`SLIDING_BITS`] each.
fn sliding(limit: u64, window_ns: u64, state: State, cost: u64, now: Now) -> Outcome {
    let (number, since_ns, left_ns) = Window::Ns(window_ns).at(now.unix_ns);
    let number = number & WINDOW;
    let (kept, last, this) = (
        narrow(state >> (2 * SLIDING_BITS)),
        narrow(state >> SLIDING_BITS & SLIDING),
        narrow(state & SLIDING),
    );
    let (last, this) = match number.wrapping_sub(kept) & WINDOW {
        // A clock that was set back a little goes on where it was.
        0 | WINDOW => (last, this),
        1 => (this, 0),
        _ => (0, 0),
    };
    // What the time just past still holds of the last window, rounded up.
    let share = |count: u64, left_ns: u64| {
        let part = u128::from(count) * u128::from(left_ns);
        narrow(part.div_ceil(u128::from(window_ns)))
    };
    let used = share(last, left_ns) + this;
    let left = |used: u64, this: u64| Left {
        limit,
        remaining: limit.saturating_sub(used),
        reset_ns: match (this, used) {
            (0, 0) => 0,
            (0, _) => left_ns,
            _ => left_ns + window_ns,
        },
    };
    if used.checked_add(cost).is_some_and(|after| after <= limit) {
        let counts = u128::from(last) << SLIDING_BITS | u128::from(this + cost);
        return Outcome::Admit {
            state: u128::from(number) << (2 * SLIDING_BITS) | counts,
            left: left(used + cost, this + cost),
            delay_ns: 0,
        };
    }
    // The room that `count` of the window before must leave, and when it does.
    let until = |count: u64, room: u64| {
        let kept_ns = u128::from(room) * u128::from(window_ns) / u128::from(count.max(1));
        window_ns - narrow(kept_ns).min(window_ns)
    };
    let wait_ns = if cost > limit {
        None
    } else if this + cost <= limit {
        Some(until(last, limit - this - cost).saturating_sub(since_ns).max(1))
    } else {
        Some(left_ns + until(this, limit - cost))
    };
    Outcome::Refuse { left: left(used, this), wait_ns }
}

fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// [`Meter::fullness`] of a key whose next request is refused.
pub const FULL: u32 = u32::MAX;

const DAY_NS: u64 = 86_400 * 1_000_000_000;

const COUNT_BITS: u32 = 40;
const COUNT: u128 = (1 << COUNT_BITS) - 1;

/// Requests of a fixed window and in flight at once are counted up to here.
pub const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

const SLIDING_BITS: u32 = 28;
const SLIDING: u128 = (1 << SLIDING_BITS) - 1;
/// The bits of a window's number that are kept beside two counts.
const WINDOW: u64 = (1 << (STATE_BITS - 2 * SLIDING_BITS)) - 1;

/// Requests of a sliding window are counted up to here.
pub const SLIDING_MAX: u64 = (1 << SLIDING_BITS) - 1;

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
