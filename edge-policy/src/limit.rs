//! Request limits: who has how many requests left, and what the client is told of it.

use edge_common::limit::{self, Set, TICK_NS};
use edge_common::{Rate, Reason, Source, Verdict};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::denied::Denied;

/// Request limits, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For each client address.
    pub source: Rate,
    /// For each key.
    pub key: Rate,
    /// For all clients together.
    pub global: Rate,
}

/// Where a caller stands within a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that a full quota holds.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// Time until the quota is full again.
    pub reset_ns: u64,
}

/// The limiter of clients by address: fixed memory, however many addresses come.
#[derive(Debug)]
pub struct Table {
    sets: Box<[Set]>,
    seed: u64,
}

impl Table {
    /// A table of `sets` sets of [`limit::WAYS`] clients each, rounded up to a power of two.
    #[must_use]
    pub fn new(sets: usize, seed: u64) -> Self {
        let count = sets.max(1).next_power_of_two();
        Self { sets: (0..count).map(|_| Set::default()).collect(), seed }
    }

    /// Charges one request to a client.
    pub fn charge(&self, source: &Source, rate: Rate, now_ns: u64) -> Verdict {
        let (set, hash) = self.place(source);
        limit::charge(set, hash, rate, now_ns)
    }

    /// Ticks until a client's bucket is empty.
    #[must_use]
    pub fn peek(&self, source: &Source, rate: Rate, now_ns: u64) -> u64 {
        let (set, hash) = self.place(source);
        limit::peek(set, hash, rate, now_ns)
    }

    fn place(&self, source: &Source) -> (&Set, u64) {
        let hash = source.hash(self.seed);
        // The limiter tells clients apart by the upper bits; the lower ones choose the set.
        (&self.sets[hash as usize & (self.sets.len() - 1)], hash)
    }
}

/// Admits one request of a client, or refuses it for [`Reason::SourceRate`].
///
/// # Errors
/// If the client has no request left.
pub fn admit_source(
    table: &Table,
    source: &Source,
    rate: Rate,
    now_ns: u64,
) -> Result<Option<Standing>, Denied> {
    let (set, hash) = table.place(source);
    admit(set, hash, rate, now_ns, Reason::SourceRate)
}

/// Admits one request by a key, or refuses it for [`Reason::KeyRate`].
///
/// # Errors
/// If the key has no request left.
pub fn admit_key(usage: &Set, rate: Rate, now_ns: u64) -> Result<Option<Standing>, Denied> {
    admit(usage, ALONE, rate, now_ns, Reason::KeyRate)
}

/// Admits one request of anyone, or refuses it for [`Reason::GlobalRate`].
///
/// # Errors
/// If all clients together have no request left. The refusal does not tell where the edge stands.
pub fn admit_global(usage: &Set, rate: Rate, now_ns: u64) -> Result<(), Denied> {
    match admit(usage, ALONE, rate, now_ns, Reason::GlobalRate) {
        Ok(_) => Ok(()),
        Err(denied) => Err(Denied { standing: None, ..denied }),
    }
}

fn admit(
    set: &Set,
    hash: u64,
    rate: Rate,
    now_ns: u64,
    reason: Reason,
) -> Result<Option<Standing>, Denied> {
    if rate.is_off() {
        return Ok(None);
    }
    match limit::charge(set, hash, rate, now_ns) {
        Verdict::Admit { ahead } => Ok(Some(Standing::of(rate, ahead))),
        Verdict::Refuse { wait } => {
            let reset_ns = limit::peek(set, hash, rate, now_ns) * TICK_NS;
            let standing = Standing { limit: rate.burst(), remaining: 0, reset_ns };
            let wait_ns = Some(wait * TICK_NS);
            Err(Denied { wait_ns, standing: Some(standing), ..Denied::new(reason) })
        }
    }
}

impl Standing {
    fn of(rate: Rate, ahead: u64) -> Self {
        Self { limit: rate.burst(), remaining: rate.remaining(ahead), reset_ns: ahead * TICK_NS }
    }

    /// Of two standings the one with the smaller part of its limit left.
    #[must_use]
    pub fn tighter(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (Some(x), Some(y)) = (a, b) else { return a.or(b) };
        let left = |s: &Self, other: &Self| u128::from(s.remaining) * u128::from(other.limit);
        Some(if left(&x, &y) <= left(&y, &x) { x } else { y })
    }

    /// Sets `X-RateLimit-Limit`, `-Remaining` and `-Reset`, the last in unix seconds.
    pub fn write(&self, headers: &mut HeaderMap, now_ms: u64) {
        let reset_s = now_ms.saturating_add(self.reset_ns.div_ceil(1_000_000)).div_ceil(1000);
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(reset_s));
    }
}

/// The value of `Retry-After`: whole seconds, at least one, never too early.
#[must_use]
pub const fn retry_after_s(wait_ns: u64) -> u64 {
    let seconds = wait_ns.div_ceil(1_000_000_000);
    if seconds == 0 { 1 } else { seconds }
}

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The hash of the only one in a set of its own.
const ALONE: u64 = 1 << 48;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn standing(limit: u64, remaining: u64) -> Standing {
        Standing { limit, remaining, reset_ns: 0 }
    }

    #[test]
    fn a_client_is_told_what_is_left_and_when_to_return() {
        let table = Table::new(16, 7);
        let client = Source::v4([192, 0, 2, 1]);
        let rate = Rate::new(1, SECOND, 3).unwrap();
        for remaining in [2, 1, 0] {
            let admitted = admit_source(&table, &client, rate, 0).unwrap().unwrap();
            let reset_ns = (3 - remaining) * SECOND;
            assert_eq!(admitted, Standing { limit: 3, remaining, reset_ns });
        }
        let denied = admit_source(&table, &client, rate, SECOND / 2).unwrap_err();
        assert_eq!(denied.reason, Reason::SourceRate);
        assert_eq!(denied.wait_ns, Some(SECOND / 2));
        let expected = Standing { limit: 3, remaining: 0, reset_ns: 5 * SECOND / 2 };
        assert_eq!(denied.standing, Some(expected));
        assert_eq!(table.peek(&client, rate, SECOND / 2) * TICK_NS, 5 * SECOND / 2);
        assert!(admit_source(&table, &Source::v4([192, 0, 2, 2]), rate, 0).is_ok());
    }

    #[test]
    fn keys_and_all_together_have_quotas_of_their_own() {
        let rate = Rate::new(1, SECOND, 1).unwrap();
        let (key, global) = (Set::default(), Set::default());
        assert!(admit_key(&key, rate, 0).is_ok());
        assert_eq!(admit_key(&key, rate, 0).unwrap_err().reason, Reason::KeyRate);
        assert!(admit_global(&global, rate, 0).is_ok());
        let denied = admit_global(&global, rate, 0).unwrap_err();
        assert_eq!((denied.reason, denied.standing), (Reason::GlobalRate, None));
        assert_eq!(admit_key(&key, Rate::OFF, 0), Ok(None));
    }

    #[test]
    fn the_tightest_is_told() {
        let (a, b) = (Some(standing(100, 10)), Some(standing(10, 2)));
        assert_eq!(Standing::tighter(a, b), a);
        assert_eq!(Standing::tighter(b, a), a);
        assert_eq!(Standing::tighter(None, b), b);
        assert_eq!(Standing::tighter(None, None), None);
    }

    #[test]
    fn headers_round_up_in_seconds() {
        let mut headers = HeaderMap::new();
        Standing { limit: 100, remaining: 7, reset_ns: 1 }.write(&mut headers, 1_700_000_000_000);
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["x-ratelimit-remaining"], "7");
        assert_eq!(headers["x-ratelimit-reset"], "1700000001");
        assert_eq!([0, 1, SECOND, SECOND + 1].map(retry_after_s), [1, 1, 1, 2]);
    }

    proptest! {
        /// A client that waits as told is admitted, and not a tick earlier.
        #[test]
        fn waiting_as_told_is_enough(
            count in 1_u64..1000, burst in 1_u64..50, gaps in proptest::collection::vec(0_u64..SECOND, 1..100),
        ) {
            let table = Table::new(1, 7);
            let client = Source::v4([192, 0, 2, 1]);
            let rate = Rate::new(count, SECOND, burst).unwrap();
            let mut now = 0;
            for gap in gaps {
                now += gap / TICK_NS * TICK_NS;
                if let Err(denied) = admit_source(&table, &client, rate, now) {
                    let wait = denied.wait_ns.unwrap();
                    prop_assert!(admit_source(&table, &client, rate, now + wait - TICK_NS).is_err());
                    now += wait;
                    prop_assert!(admit_source(&table, &client, rate, now).is_ok());
                }
            }
        }
    }
}
