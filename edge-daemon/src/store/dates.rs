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
    /// It is over by any clock from `now_ms` on, whatever its dates say.
    pub fn settle(&mut self, now_ms: u64) {
        let is_future = self.is_future(now_ms);
        self.until_ms = if is_future { self.since_ms } else { self.until_ms.min(now_ms) };
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

#[cfg(test)]
mod tests {
    use edge_policy::verdict::{Culprit, Origin, Step};

    use super::*;

    #[test]
    fn what_is_settled_is_over_and_no_older_than_it_is() {
        let now_ms = 1_800_000_000_000;
        for (since_ms, until_ms, settled_ms) in [
            (now_ms - 9_000, now_ms + 9_000, now_ms),
            (now_ms - 9_000, now_ms - 1_000, now_ms - 1_000),
            (now_ms + 2 * SKEW_MS, now_ms + 3 * SKEW_MS, now_ms + 2 * SKEW_MS),
        ] {
            let mut record = BanRecord {
                culprit: Culprit::Account("anna".into()),
                step: Step::Ban,
                since_ms,
                until_ms,
                strikes: 1,
                reason: "jail".into(),
                scenario: String::new(),
                origin: Origin::Operator,
                spared: None,
                evidence: Vec::new(),
                milder: Vec::new(),
            };
            record.settle(now_ms);
            assert_eq!(record.until_ms, settled_ms);
            assert!(record.ends_ms(now_ms) <= now_ms);
        }
    }
}
