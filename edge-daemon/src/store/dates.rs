//! Records from the future, as a host without a battery for its clock has them after a boot: none lasts for
//! longer than it was to, however far behind the clock is. On disk they keep their dates: once the clock is
//! set, those are true.

use edge_identity::fleet::SKEW_MS;

use super::{BanRecord, Contents, ListRecord};

impl ListRecord {
    /// When it ends by a clock that shows `now_ms`; `None`: never.
    #[must_use]
    pub fn ends_ms(&self, now_ms: u64) -> Option<u64> {
        self.until_ms.map(|until_ms| ends_ms(self.added_ms, until_ms, now_ms))
    }

    /// Whether it begins later than a clock may be wrong.
    #[must_use]
    pub const fn is_future(&self, now_ms: u64) -> bool {
        is_future(self.added_ms, now_ms)
    }
}

impl BanRecord {
    /// It has lasted its time, whatever its dates say: it is over by any clock.
    pub fn settle(&mut self) {
        self.until_ms = self.since_ms;
        self.milder.clear();
    }

    /// When it ends by a clock that shows `now_ms`.
    #[must_use]
    pub fn ends_ms(&self, now_ms: u64) -> u64 {
        ends_ms(self.since_ms, self.until_ms, now_ms)
    }

    /// Whether it begins later than a clock may be wrong.
    #[must_use]
    pub const fn is_future(&self, now_ms: u64) -> bool {
        is_future(self.since_ms, now_ms)
    }
}

impl Contents {
    /// How many records that end begin later than a clock may be wrong.
    #[must_use]
    pub fn count_future(&self, now_ms: u64) -> usize {
        let listed = self.allow.iter().chain(&self.deny);
        let listed = listed.filter(|record| record.until_ms.is_some() && record.is_future(now_ms));
        listed.count() + self.bans.iter().filter(|ban| ban.is_future(now_ms)).count()
    }
}

/// What begins in the future begins now.
fn ends_ms(since_ms: u64, until_ms: u64, now_ms: u64) -> u64 {
    if is_future(since_ms, now_ms) {
        now_ms.saturating_add(until_ms.saturating_sub(since_ms))
    } else {
        until_ms
    }
}

const fn is_future(since_ms: u64, now_ms: u64) -> bool {
    since_ms > now_ms.saturating_add(SKEW_MS)
}
