//! The two clocks: boot time, which rates and bans go by, and the calendar, which people read.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use edge_policy::calendar::rfc3339;
use edge_policy::limit::meter::Now;
use nix::time::{ClockId, clock_gettime};

thread_local! {
    static RECENT_NS: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds since boot, suspend included: the clock that the kernel programs compare bans to.
#[must_use]
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the clock exists since Linux 2.6.39");
    let now_ns = u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
    RECENT_NS.set(now_ns);
    now_ns
}

/// What [`boot_ns`] told this thread last: for what happens right after somebody has asked, and so
/// never across a wait.
#[must_use]
pub fn recent_ns() -> u64 {
    RECENT_NS.get()
}

/// Milliseconds since some time, by a clock that is cheap to read and a few milliseconds late.
#[must_use]
pub fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .expect("the clock exists since Linux 2.6.32");
    u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970, as certificates count them.
#[must_use]
pub fn unix_s() -> i64 {
    i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX)
}

/// Both clocks, for request limits.
#[must_use]
pub fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    Now { boot_ns: boot_ns(), unix_ns }
}

/// Shows the calendar as a `Date` header tells it; written once a second by each thread.
pub fn date(show: impl FnOnce(&str)) {
    thread_local! {
        static WRITTEN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now_s = unix_ms() / 1000;
    WRITTEN.with_borrow_mut(|(second, date)| {
        if *second != now_s || date.is_empty() {
            *date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now_s));
            *second = now_s;
        }
        show(date);
    });
}

/// The boot time at which the calendar shows `unix_ms`; 0 if that was before boot.
#[must_use]
pub fn boot_ns_at(unix_ms: u64) -> u64 {
    u64::try_from(signed_boot_ns_at(unix_ms).max(0)).unwrap_or(u64::MAX)
}

/// The same; less than nothing if that was before boot.
#[must_use]
pub fn signed_boot_ns_at(unix_ms: u64) -> i128 {
    let ahead_ms = i128::from(unix_ms) - i128::from(self::unix_ms());
    i128::from(boot_ns()) + ahead_ms * i128::from(NS_PER_MS)
}

/// What the calendar shows at that boot time, in milliseconds since 1970.
#[must_use]
pub fn unix_ms_at(boot_ns: u64) -> u64 {
    let now = self::boot_ns();
    if boot_ns >= now {
        unix_ms().saturating_add((boot_ns - now) / NS_PER_MS)
    } else {
        unix_ms().saturating_sub((now - boot_ns) / NS_PER_MS)
    }
}

const NS_PER_MS: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_convert_into_each_other() {
        let later = unix_ms() + 90_000;
        assert!(unix_ms_at(boot_ns_at(later)).abs_diff(later) <= 2);
        assert_eq!(boot_ns_at(0), 0);
        assert_eq!(boot_ns_at(u64::MAX), u64::MAX);
        let ago_ms = 1_000_000_000_000;
        let before = signed_boot_ns_at(unix_ms() - ago_ms);
        let now = u64::try_from(before + i128::from(ago_ms * NS_PER_MS)).expect("long before boot");
        assert!(now.abs_diff(boot_ns()) < 1_000 * NS_PER_MS);
    }
}
