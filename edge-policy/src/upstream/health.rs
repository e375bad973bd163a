//! Which servers are fit to be asked: by checks that the edge makes, and by how requests fare.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// How many checks in a row change what is thought of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRule {
    /// Failures until it is down.
    pub fall: u32,
    /// Successes until it is up again.
    pub rise: u32,
}

/// When requests that fail take a server out of the round, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionRule {
    /// Failures in a row; 0: never.
    pub failures: u32,
    /// How long the first time; each further time twice as long.
    pub first_ns: u64,
    /// How long at most.
    pub most_ns: u64,
    /// Percent of an upstream's servers that must stay, however they fare.
    pub keep_percent: u32,
}

/// What is known of one server. All workers and the checks write it.
#[derive(Debug, Default)]
pub struct Health {
    /// Whether checks found it down.
    is_down: AtomicBool,
    /// Checks in a row that said otherwise than what is thought of it.
    streak: AtomicU32,
    /// Whether an operator took it out of the round.
    is_drained: AtomicBool,
    /// Requests in a row that failed.
    failures: AtomicU32,
    /// How often it was ejected since it last did well.
    strikes: AtomicU32,
    /// Until when it is ejected.
    ejected_until_ns: AtomicU64,
    /// Since when it is in the round again; 0: from the start.
    back_since_ns: AtomicU64,
    ejections: AtomicU64,
}

/// How a server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is asked.
    Up,
    /// Checks found it down.
    Down,
    /// Too many requests in a row failed.
    Ejected,
    /// An operator took it out.
    Drained,
}

impl Standing {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Drained => "drained",
        }
    }
}

impl Health {
    /// The same server under other settings: what checks found stays, what requests made of it does not.
    #[must_use]
    pub fn as_checked(&self) -> Self {
        Self { is_down: AtomicBool::new(self.is_down.load(Relaxed)), ..Self::default() }
    }

    /// How it stands now.
    #[must_use]
    pub fn standing(&self, now_ns: u64) -> Standing {
        if self.is_drained.load(Relaxed) {
            Standing::Drained
        } else if self.is_down.load(Relaxed) {
            Standing::Down
        } else if now_ns < self.ejected_until_ns.load(Relaxed) {
            Standing::Ejected
        } else {
            Standing::Up
        }
    }

    /// Notes what a check found. Whether that changes what is thought of it.
    pub fn checked(&self, good: bool, rule: CheckRule, now_ns: u64) -> bool {
        let is_down = self.is_down.load(Relaxed);
        if good != is_down {
            self.streak.store(0, Relaxed);
            return false;
        }
        let needed = if good { rule.rise } else { rule.fall };
        if self.streak.fetch_add(1, Relaxed) + 1 < needed {
            return false;
        }
        self.streak.store(0, Relaxed);
        self.is_down.store(!good, Relaxed);
        if good {
            self.come_back(now_ns);
        }
        true
    }

    /// Takes it out of the round or puts it back. Whether that changes anything.
    pub fn drain(&self, drained: bool, now_ns: u64) -> bool {
        let changes = self.is_drained.swap(drained, Relaxed) != drained;
        if changes && !drained {
            self.ejected_until_ns.store(0, Relaxed);
            self.come_back(now_ns);
        }
        changes
    }

    /// Whether an operator took it out of the round.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Relaxed)
    }

    /// Notes a request that went well. A server that held out as long as it was last sent away
    /// for is no longer held to its past.
    pub fn succeeded(&self, rule: &EjectionRule, now_ns: u64) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        let strikes = self.strikes.load(Relaxed);
        if strikes != 0 {
            let until = self.ejected_until_ns.load(Relaxed);
            if now_ns > until.saturating_add(length(rule, strikes - 1)) {
                self.strikes.store(0, Relaxed);
            }
        }
    }

    /// Notes a request that failed; `up` of `all` servers are in the round, this one included.
    /// Whether it is ejected now.
    pub fn failed(&self, rule: &EjectionRule, up: usize, all: usize, now_ns: u64) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        let left = up.saturating_sub(1) * 100;
        if rule.failures == 0
            || failures < rule.failures
            || left < all * rule.keep_percent as usize
            || left == 0
            || self.standing(now_ns) != Standing::Up
        {
            return false;
        }
        self.failures.store(0, Relaxed);
        let strikes = self.strikes.fetch_add(1, Relaxed);
        let until = now_ns.saturating_add(length(rule, strikes));
        self.ejected_until_ns.store(until, Relaxed);
        self.back_since_ns.store(until, Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        true
    }

    /// How often it was ejected.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// A weight, in hundredths, for a server that is `slow_ns` in coming back to its full share.
    #[must_use]
    pub fn weight(&self, weight: u32, slow_ns: u64, now_ns: u64) -> u64 {
        let full = u64::from(weight) * 100;
        let back = self.back_since_ns.load(Relaxed);
        let age = now_ns.saturating_sub(back);
        if back == 0 || age >= slow_ns {
            return full;
        }
        // Never below a tenth: it must be asked to become warm.
        let share = u128::from(full) * u128::from(age) / u128::from(slow_ns);
        u64::try_from(share).unwrap_or(full).max(full / 10).max(1)
    }

    fn come_back(&self, now_ns: u64) {
        self.failures.store(0, Relaxed);
        self.back_since_ns.store(now_ns.max(1), Relaxed);
    }
}

/// How long a server is ejected that was ejected so many times before.
fn length(rule: &EjectionRule, strikes: u32) -> u64 {
    rule.first_ns.saturating_mul(1_u64.checked_shl(strikes).unwrap_or(u64::MAX)).min(rule.most_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: CheckRule = CheckRule { fall: 3, rise: 2 };
    const EJECT: EjectionRule =
        EjectionRule { failures: 3, first_ns: 100, most_ns: 350, keep_percent: 50 };

    #[test]
    fn checks_in_a_row_change_the_mind() {
        let health = Health::default();
        let check = |good| health.checked(good, CHECKS, 7);
        assert_eq!([check(false), check(false), check(true)], [false; 3], "a good one between");
        assert_eq!([check(false), check(false), check(false)], [false, false, true]);
        assert_eq!(health.standing(7), Standing::Down);
        assert_eq!(
            [check(true), check(false), check(true), check(true)],
            [false, false, false, true]
        );
        assert_eq!(health.standing(7), Standing::Up);
    }

    #[test]
    fn failures_in_a_row_eject_for_longer_each_time() {
        let health = Health::default();
        let fail = |now_ns| (0..3).filter(|_| health.failed(&EJECT, 2, 2, now_ns)).count();
        assert_eq!(fail(0), 1);
        assert_eq!((health.standing(99), health.standing(100)), (Standing::Ejected, Standing::Up));
        assert_eq!(fail(100), 1);
        assert_eq!((health.standing(299), health.standing(300)), (Standing::Ejected, Standing::Up));
        assert_eq!(fail(300), 1, "the longest");
        assert_eq!((health.standing(649), health.standing(650)), (Standing::Ejected, Standing::Up));
        // It does well, but not for long enough; then for long enough.
        health.succeeded(&EJECT, 700);
        assert_eq!(fail(700), 1);
        assert_eq!(health.standing(1_049), Standing::Ejected);
        health.succeeded(&EJECT, 2_000);
        assert_eq!(fail(2_000), 1);
        assert_eq!(health.standing(2_100), Standing::Up, "as if it were the first time");
        assert_eq!(health.ejections(), 5);
    }

    #[test]
    fn a_good_request_between_forgives() {
        let health = Health::default();
        for _ in 0..10 {
            assert!(!health.failed(&EJECT, 4, 4, 0) && !health.failed(&EJECT, 4, 4, 0));
            health.succeeded(&EJECT, 0);
        }
    }

    #[test]
    fn never_are_too_few_left() {
        for (up, all, ejected) in [(1, 1, false), (2, 2, true), (2, 4, false), (3, 4, true)] {
            let health = Health::default();
            let any = (0..9).any(|_| health.failed(&EJECT, up, all, 0));
            assert_eq!(any, ejected, "{up} of {all}");
        }
        let never_last = EjectionRule { keep_percent: 0, ..EJECT };
        assert!(!(0..9).any(|_| Health::default().failed(&never_last, 1, 3, 0)));
        let off = EjectionRule { failures: 0, ..EJECT };
        let health = Health::default();
        assert!(!(0..9).any(|_| health.failed(&off, 4, 4, 0)));
    }

    #[test]
    fn an_operator_has_the_last_word() {
        let health = Health::default();
        assert!(health.drain(true, 5) && !health.drain(true, 5));
        assert_eq!(health.standing(9), Standing::Drained);
        assert!(health.drain(false, 9));
        assert_eq!(health.standing(9), Standing::Up);
    }

    #[test]
    fn a_server_that_comes_back_begins_with_a_part_of_its_share() {
        let health = Health::default();
        assert_eq!(health.weight(2, 1_000, 5), 200, "not at the start");
        health.drain(true, 0);
        health.drain(false, 1_000);
        assert_eq!(health.weight(2, 1_000, 1_000), 20);
        assert_eq!(health.weight(2, 1_000, 1_500), 100);
        assert_eq!(health.weight(2, 1_000, 2_000), 200);
        assert_eq!(health.weight(2, 0, 1_000), 200, "slow start is off");
    }
}
