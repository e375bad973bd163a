//! Each meter against the plainest exact account of the same rule.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::{bucket::TICKS_PER_NS, *};

const SECOND: u64 = 1_000_000_000;
const EPOCH: u64 = 1_700_000_000 * SECOND;

fn at(ns: u64) -> Now {
    Now { boot_ns: ns, unix_ns: EPOCH + ns }
}

/// A meter with the state of one key.
struct Key {
    meter: Meter,
    state: State,
}

impl Key {
    fn new(meter: Meter) -> Self {
        Self { meter, state: 0 }
    }

    /// The delay of an admitted request.
    fn ask(&mut self, cost: u64, ns: u64) -> Option<u64> {
        match self.meter.charge(self.state, cost, at(ns)) {
            Outcome::Admit { state, delay_ns, .. } => {
                assert!(state < 1 << STATE_BITS);
                self.state = state;
                Some(delay_ns)
            }
            Outcome::Refuse { .. } => None,
        }
    }
}

fn token(count: u64, size: u64) -> Meter {
    Meter::TokenBucket(Bucket::new(count, SECOND, size).unwrap())
}

/// Requests: how long after the one before, and what they cost.
fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..400_000_000_u64, 1..4_u64), 1..200)
}

#[test]
fn a_part_of_a_bucket_is_as_much_slower_and_takes_as_long_to_fill() {
    let admitted = |meter: Meter, seconds: u64| {
        let mut key = Key::new(meter);
        (0..seconds * 1_000).filter(|ms| key.ask(1, ms * 1_000_000).is_some()).count()
    };
    for (parts, wanted) in [(1_000_000, 60), (500_000, 30), (250_000, 15), (100_000, 6)] {
        let admitted = admitted(token(10, 10).part(parts), 5);
        assert!(admitted.abs_diff(wanted) <= 1, "{parts}: {admitted}");
    }
    for nodes in 2..=60 {
        let part = token(10, 4 * nodes).part(u32::try_from(1_000_000 / nodes).unwrap());
        assert_eq!(part.most(), 4, "an even part of {nodes}");
        let less = token(10, 4 * nodes - 1).part(u32::try_from(1_000_000 / nodes).unwrap());
        assert_eq!(less.most(), 3, "{nodes}");
    }
    assert_eq!(token(10, 5_000_000).part(1_000_000).most(), 5_000_000);
    // Of a bucket for one, whoever may have a part of it may have one.
    assert!(admitted(token(10, 1).part(500_000), 2).abs_diff(10) <= 1);
    assert_eq!(admitted(token(10, 1).part(1), 2), 0);
    // A part that was tiny for a while is not paid for afterwards.
    let mut key = Key::new(token(10, 10).part(1));
    assert_eq!(key.ask(1, 1), None);
    key.meter = token(10, 10).part(500_000);
    assert!(key.ask(1, 2).is_some());
}

proptest! {
    #[test]
    fn a_token_bucket_is_exact(count in 1..50_u64, size in 1..40_u64, requests in requests()) {
        let mut key = Key::new(token(count, size));
        // Tokens, in parts of which `interval` make one: what the bucket holds, to the last part.
        let interval = u128::from(SECOND) * TICKS_PER_NS / u128::from(count);
        let full = interval * u128::from(size);
        let (mut held, mut last, mut ns) = (full, 0, 0);
        for (gap, cost) in requests {
            ns += gap;
            held = full.min(held + u128::from(ns - last) * TICKS_PER_NS);
            last = ns;
            let price = interval * u128::from(cost);
            let fits = held >= price;
            prop_assert_eq!(key.ask(cost, ns).is_some(), fits);
            if fits {
                held -= price;
            }
        }
    }

    #[test]
    fn a_leaky_bucket_serves_in_turn(count in 1..50_u64, size in 1..40_u64, requests in requests()) {
        let mut key = Key::new(Meter::LeakyBucket(Bucket::new(count, SECOND, size).unwrap()));
        let interval = SECOND * 1024 / count;
        // When each request that was admitted is served, and for how long, in ticks.
        let mut served: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut free, mut ns) = (0, 0);
        for (gap, cost) in requests {
            ns += gap;
            let now = ns * 1024;
            let start = now.max(free);
            let takes = interval * cost;
            let fits = start + takes - now <= interval * size;
            let delay = key.ask(cost, ns);
            prop_assert_eq!(delay, fits.then(|| (start - now).div_ceil(1024)));
            if fits {
                free = start + takes;
                let is_after = |(last, takes): &(u64, u64)| last + takes <= start;
                prop_assert!(served.back().is_none_or(is_after));
                served.push_back((start, takes));
            }
        }
    }

    #[test]
    fn a_fixed_window_is_exact(limit in 1..30_u64, window_s in 1..10_u64, requests in requests()) {
        let window_ns = window_s * SECOND;
        let mut key = Key::new(Meter::FixedWindow { limit, window: Window::Ns(window_ns) });
        let (mut counts, mut ns) = (HashMap::new(), 0);
        for (gap, cost) in requests {
            ns += gap;
            let count: &mut u64 = counts.entry((EPOCH + ns) / window_ns).or_default();
            let fits = *count + cost <= limit;
            prop_assert_eq!(key.ask(cost, ns).is_some(), fits);
            if fits {
                *count += cost;
            }
        }
    }

    #[test]
    fn a_sliding_window_is_its_formula(
        limit in 1..30_u64, window_s in 1..10_u64, requests in requests(),
    ) {
        let window_ns = window_s * SECOND;
        let mut key = Key::new(Meter::SlidingWindow { limit, window_ns });
        let (mut counts, mut ns) = (HashMap::<u64, u64>::new(), 0);
        for (gap, cost) in requests {
            ns += gap;
            let (number, since) = ((EPOCH + ns) / window_ns, (EPOCH + ns) % window_ns);
            let last = counts.get(&(number - 1)).copied().unwrap_or(0);
            let this = counts.entry(number).or_default();
            // In whole nanoseconds of a request, so that nothing is rounded.
            let used = u128::from(last) * u128::from(window_ns - since)
                + u128::from(*this + cost) * u128::from(window_ns);
            let fits = used <= u128::from(limit) * u128::from(window_ns);
            prop_assert_eq!(key.ask(cost, ns).is_some(), fits);
            if fits {
                *this += cost;
            }
        }
    }

    /// Who waits as told is admitted; for one who does not, nothing has changed.
    #[test]
    fn waiting_as_told_is_enough(which in 0..4_usize, limit in 1..20_u64, requests in requests()) {
        let meter = [
            token(limit, limit),
            Meter::LeakyBucket(Bucket::new(limit, SECOND, limit).unwrap()),
            Meter::FixedWindow { limit, window: Window::Ns(SECOND) },
            Meter::SlidingWindow { limit, window_ns: SECOND },
        ][which];
        let (mut key, mut ns) = (Key::new(meter), 0);
        for (gap, cost) in requests {
            ns += gap / 16;
            let Outcome::Refuse { wait_ns, left } = meter.charge(key.state, cost, at(ns)) else {
                key.ask(cost, ns);
                continue;
            };
            prop_assert!(left.remaining <= limit);
            prop_assert_eq!(wait_ns.is_none(), cost > limit);
            if let Some(wait_ns) = wait_ns {
                prop_assert!(wait_ns > 0);
                prop_assert!(key.ask(cost, ns + wait_ns).is_some(), "{meter:?} after {wait_ns}");
                ns += wait_ns;
            }
        }
    }

    #[test]
    fn fullness_tells_who_is_refused(which in 0..5_usize, limit in 1..20_u64, requests in requests()) {
        let meter = [
            token(limit, limit),
            Meter::LeakyBucket(Bucket::new(limit, SECOND, limit).unwrap()),
            Meter::FixedWindow { limit, window: Window::Ns(SECOND) },
            Meter::SlidingWindow { limit, window_ns: SECOND },
            Meter::Concurrent { limit },
        ][which];
        let (mut key, mut ns) = (Key::new(meter), 0);
        prop_assert_eq!(meter.fullness(0, at(0)), 0);
        for (gap, _) in requests {
            ns += gap / 16;
            let full = meter.fullness(key.state, at(ns)) == FULL;
            let refused = key.ask(1, ns).is_none();
            prop_assert!(full == refused || meter.is_concurrent() && full);
            prop_assert!(refused || meter.fullness(key.state, at(ns)) > 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is offered evenly is admitted as the log of all requests would admit it, to 1 %.
    #[test]
    fn a_sliding_window_is_near_the_log(
        limit in 100..400_u64, over in 12..40_u64, phase in 0..SECOND,
    ) {
        let window_ns = SECOND;
        let mut key = Key::new(Meter::SlidingWindow { limit, window_ns });
        let gap = window_ns * 10 / (limit * over);
        let (mut log, mut exact, mut admitted) = (VecDeque::new(), 0_u64, 0_u64);
        let mut ns = phase;
        while ns < phase + 150 * window_ns {
            while log.front().is_some_and(|first| first + window_ns <= ns) {
                log.pop_front();
            }
            if (log.len() as u64) < limit {
                log.push_back(ns);
                exact += 1;
            }
            admitted += u64::from(key.ask(1, ns).is_some());
            ns += gap;
        }
        let error = (admitted as f64 / exact as f64 - 1.0).abs();
        prop_assert!(error <= 0.01, "{admitted} against {exact}");
    }
}

#[test]
fn a_monthly_quota_ends_with_the_month() {
    // 2023-11-14T22:13:20Z and the days that are left of November.
    let meter = Meter::FixedWindow { limit: 1, window: Window::Month };
    let mut key = Key::new(meter);
    assert!(key.ask(1, 0).is_some());
    let Outcome::Refuse { wait_ns: Some(wait_ns), .. } = meter.charge(key.state, 1, at(0)) else {
        panic!("admitted")
    };
    assert_eq!(wait_ns / SECOND, 16 * 86_400 + 3_600 + 46 * 60 + 40);
    assert!(key.ask(1, wait_ns - 1).is_none());
    assert!(key.ask(1, wait_ns).is_some());
}

#[test]
fn a_clock_that_is_set_back_frees_nobody() {
    for meter in [
        Meter::FixedWindow { limit: 3, window: Window::Ns(SECOND) },
        Meter::SlidingWindow { limit: 3, window_ns: SECOND },
    ] {
        let mut key = Key::new(meter);
        while key.ask(1, 5 * SECOND).is_some() {}
        assert!(key.ask(1, 4 * SECOND).is_none(), "{meter:?}");
    }
}

#[test]
fn a_window_far_ahead_is_of_no_clock_and_locks_nobody_out() {
    let day = 86_400 * SECOND;
    for (ahead_ns, window) in
        [(80 * day, Window::Month), (2 * day, Window::Ns(day)), (400 * day, Window::Ns(SECOND))]
    {
        let mut key = Key::new(Meter::FixedWindow { limit: 3, window });
        while key.ask(1, ahead_ns).is_some() {}
        assert_eq!((0..9).filter(|_| key.ask(1, 0).is_some()).count(), 3, "{window:?}");
    }
}

#[test]
fn what_never_fits_is_told_so() {
    for meter in [token(1, 5), Meter::FixedWindow { limit: 5, window: Window::Month }] {
        let Outcome::Refuse { wait_ns, .. } = meter.charge(0, 6, at(0)) else { panic!("admitted") };
        assert_eq!(wait_ns, None);
    }
}

#[test]
fn rates_out_of_range_are_refused() {
    assert!(Bucket::new(0, SECOND, 1).is_none());
    assert!(Bucket::new(1, SECOND, 0).is_none());
    assert!(Bucket::new(2 * SECOND, SECOND, 1).is_none());
    assert!(Bucket::new(1, 86_400 * SECOND, 401).is_none());
    assert!(Bucket::new(1_000_000, SECOND, 1_000_000).is_some());
}
