//! What a client is told of the limits it was charged to.

use http::{HeaderMap, HeaderName};

use crate::lines::Lines;

/// What is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Requests that a full quota holds.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// Time until the quota is full again; for one who is refused, until there is room for him.
    pub reset_ns: u64,
}

/// Where a caller stands within a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is left.
    pub left: Left,
    /// The time that the limit speaks of, in seconds; `None`: it speaks of requests at once.
    pub window_s: Option<u64>,
}

impl Standing {
    /// Of two standings the one with the smaller part of its limit left.
    #[must_use]
    pub fn tighter(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (Some(x), Some(y)) = (a, b) else { return a.or(b) };
        let part = |s: &Left, other: &Left| u128::from(s.remaining) * u128::from(other.limit);
        Some(if part(&x.left, &y.left) <= part(&y.left, &x.left) { x } else { y })
    }

    /// Adds `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10) and the older
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`, the last in unix seconds. The policy goes by
    /// one name whichever rule it is: which one is the operator's to know.
    pub fn write(&self, lines: &mut Lines, now_ms: u64) {
        let Left { limit, remaining, reset_ns } = self.left;
        let reset_s = now_ms.saturating_add(reset_ns.div_ceil(1_000_000)).div_ceil(1000);
        lines.write(FIELDS[0], limit);
        lines.write(FIELDS[1], remaining);
        lines.write(FIELDS[2], reset_s);
        match self.window_s {
            None => {
                let unit = "\"concurrent-requests\"";
                lines.write(FIELDS[3], format_args!("\"default\";q={limit};qu={unit}"));
            }
            Some(window_s) => {
                lines.write(FIELDS[3], format_args!("\"default\";q={limit};w={window_s}"));
            }
        }
        let until_s = reset_ns.div_ceil(1_000_000_000);
        lines.write(FIELDS[4], format_args!("\"default\";r={remaining};t={until_s}"));
    }

    /// Takes from an answer what only the edge says while it has something to say of it.
    pub fn strip(headers: &mut HeaderMap) {
        let is_ours = |name: &&HeaderName| FIELDS.contains(&name.as_str());
        let gone: Vec<_> = headers.keys().filter(is_ours).cloned().collect();
        for name in gone {
            headers.remove(name);
        }
    }
}

/// The value of `Retry-After`: whole seconds, at least one, never too early.
#[must_use]
pub const fn retry_after_s(wait_ns: u64) -> u64 {
    let seconds = wait_ns.div_ceil(1_000_000_000);
    if seconds == 0 { 1 } else { seconds }
}

const FIELDS: [&str; 5] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit-policy",
    "ratelimit",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(limit: u64, remaining: u64) -> Standing {
        Standing { left: Left { limit, remaining, reset_ns: 0 }, window_s: Some(60) }
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
        const SECOND: u64 = 1_000_000_000;
        let mut lines = Lines::default();
        let left = Left { limit: 100, remaining: 7, reset_ns: 1 };
        Standing { left, window_s: Some(60) }.write(&mut lines, 1_700_000_000_000);
        let mut headers = HeaderMap::new();
        lines.set(&mut headers);
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["x-ratelimit-remaining"], "7");
        assert_eq!(headers["x-ratelimit-reset"], "1700000001");
        assert_eq!(headers["ratelimit-policy"], r#""default";q=100;w=60"#);
        assert_eq!(headers["ratelimit"], r#""default";r=7;t=1"#);
        let mut lines = Lines::default();
        Standing { left, window_s: None }.write(&mut lines, 0);
        lines.set(&mut headers);
        assert_eq!(headers["ratelimit-policy"], r#""default";q=100;qu="concurrent-requests""#);
        assert_eq!([0, 1, SECOND, SECOND + 1].map(retry_after_s), [1, 1, 1, 2]);
    }
}
