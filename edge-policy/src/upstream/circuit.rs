//! When to stop asking an upstream that fails: refusing at once spares it the load and the
//! client the wait.
//!
//! Closed, all requests pass; too large a share of failures opens it; open, none pass until its
//! time is over; then half open: one at a time is let through, and decides.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// When a circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Percent of failures that open it; over 100 never does.
    pub failures_percent: u64,
    /// Requests in a window below which no share is trusted.
    pub requests_min: u64,
    /// The window.
    pub window_ns: u64,
    /// How long it stays open before one is let through.
    pub open_ns: u64,
}

/// The circuit of one upstream.
#[derive(Debug, Default)]
pub struct Circuit {
    /// Number of the window, requests in it, failures among them: 16, 24 and 24 bits.
    window: AtomicU64,
    /// Until when nothing passes; 0 is closed.
    until_ns: AtomicU64,
    /// When a trial closed it last.
    closed_ns: AtomicU64,
    /// How often it opened.
    opened: AtomicU64,
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Pass.
    Free,
    /// Pass, to find out whether the upstream is well again; until when nobody else does.
    Trial(u64),
    /// Not pass; the circuit looks again in so many nanoseconds.
    Shut(u64),
}

impl Circuit {
    /// Asks for passage.
    pub fn enter(&self, rule: &Rule, now_ns: u64) -> Passage {
        let until = self.until_ns.load(Relaxed);
        if until == 0 {
            return Passage::Free;
        }
        if now_ns < until {
            return Passage::Shut(until - now_ns);
        }
        // One wins, and the others wait for what it finds, or for as long again if it never tells.
        let next = now_ns.saturating_add(rule.open_ns).max(1);
        match self.until_ns.compare_exchange(until, next, Relaxed, Relaxed) {
            Ok(_) => Passage::Trial(next),
            Err(_) => Passage::Shut(rule.open_ns),
        }
    }

    /// Lets the next one pass in the place of a trial that found nothing out, unless another has found
    /// something out since.
    pub fn give_back(&self, trial_ns: u64, now_ns: u64) {
        let _ = self.until_ns.compare_exchange(trial_ns, now_ns.max(1), Relaxed, Relaxed);
    }

    /// Notes how a request ended that passed, and when it began. What began before a trial went well tells nothing
    /// of now by its failure.
    pub fn note(&self, rule: &Rule, passage: Passage, failed: bool, [began_ns, now_ns]: [u64; 2]) {
        if let Passage::Trial(trial_ns) = passage {
            if failed {
                // One that fails late tells nothing of what a later one finds out.
                let until = now_ns.saturating_add(rule.open_ns).max(1);
                let _ = self.until_ns.compare_exchange(trial_ns, until, Relaxed, Relaxed);
            } else {
                self.window.store(0, Relaxed);
                self.closed_ns.store(now_ns, Relaxed);
                self.until_ns.store(0, Relaxed);
            }
            return;
        }
        if failed && began_ns < self.closed_ns.load(Relaxed) {
            return;
        }
        let number = (now_ns / rule.window_ns.max(1)) & 0xffff;
        let add = |word: u64| {
            let same = word >> 48 == number;
            let (total, bad) = if same { (word >> 24 & MASK, word & MASK) } else { (0, 0) };
            let (total, bad) = ((total + 1).min(MASK), (bad + u64::from(failed)).min(MASK));
            Some(number << 48 | total << 24 | bad)
        };
        let before = self.window.fetch_update(Relaxed, Relaxed, add);
        let now = before.ok().and_then(add).unwrap_or(0);
        let (total, bad) = (now >> 24 & MASK, now & MASK);
        if failed && total >= rule.requests_min && bad * 100 >= total * rule.failures_percent {
            let until = now_ns.saturating_add(rule.open_ns).max(1);
            if self.until_ns.compare_exchange(0, until, Relaxed, Relaxed).is_ok() {
                self.opened.fetch_add(1, Relaxed);
            }
        }
    }

    /// Whether it is open, or half open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.until_ns.load(Relaxed) != 0
    }

    /// How often it has opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }
}

const MASK: u64 = (1 << 24) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule =
        Rule { failures_percent: 50, requests_min: 4, window_ns: 1_000, open_ns: 500 };

    fn pass(circuit: &Circuit, now_ns: u64, failed: bool) -> Passage {
        let passage = circuit.enter(&RULE, now_ns);
        if !matches!(passage, Passage::Shut(_)) {
            circuit.note(&RULE, passage, failed, [now_ns; 2]);
        }
        passage
    }

    #[test]
    fn a_share_of_failures_opens_it_and_a_trial_closes_it() {
        let circuit = Circuit::default();
        for (now_ns, failed) in [(10, false), (20, true), (30, true)] {
            assert_eq!(pass(&circuit, now_ns, failed), Passage::Free);
            assert!(!circuit.is_open(), "too few to tell");
        }
        assert_eq!(pass(&circuit, 40, true), Passage::Free);
        assert!(circuit.is_open());
        assert_eq!(pass(&circuit, 50, false), Passage::Shut(490));
        // Half open: one at a time.
        assert_eq!(circuit.enter(&RULE, 540), Passage::Trial(1_040));
        assert_eq!(circuit.enter(&RULE, 541), Passage::Shut(499));
        circuit.note(&RULE, Passage::Trial(1_040), true, [540, 550]);
        assert_eq!(circuit.enter(&RULE, 600), Passage::Shut(450));
        assert_eq!(pass(&circuit, 1_050, false), Passage::Trial(1_550));
        assert!(!circuit.is_open());
        assert_eq!(pass(&circuit, 1_060, true), Passage::Free, "and begins anew");
        assert!(!circuit.is_open());
        assert_eq!(circuit.opened(), 1);
    }

    #[test]
    fn a_trial_that_found_nothing_out_is_the_next_ones() {
        let circuit = Circuit::default();
        circuit.give_back(1, 5);
        assert!(!circuit.is_open());
        assert!((0..4).all(|now_ns| pass(&circuit, now_ns, true) == Passage::Free));
        assert_eq!(circuit.enter(&RULE, 600), Passage::Trial(1_100));
        circuit.give_back(1_100, 610);
        assert_eq!(circuit.enter(&RULE, 611), Passage::Trial(1_111));
        assert!(matches!(circuit.enter(&RULE, 612), Passage::Shut(_)));
    }

    #[test]
    fn a_trial_that_is_given_back_late_undoes_nothing() {
        for failed in [true, false] {
            let circuit = Circuit::default();
            assert!((0..4).all(|now_ns| pass(&circuit, now_ns, true) == Passage::Free));
            assert_eq!(circuit.enter(&RULE, 600), Passage::Trial(1_100));
            assert_eq!(pass(&circuit, 1_100, failed), Passage::Trial(1_600));
            circuit.give_back(1_100, 1_110);
            let after = if failed { Passage::Shut(489) } else { Passage::Free };
            assert_eq!(circuit.enter(&RULE, 1_111), after);
        }
    }

    #[test]
    fn a_trial_that_ends_late_closes_but_does_not_open() {
        let circuit = Circuit::default();
        assert!((0..4).all(|now_ns| pass(&circuit, now_ns, true) == Passage::Free));
        let trials = [600, 1_100, 1_600].map(|now_ns| circuit.enter(&RULE, now_ns));
        assert_eq!(trials, [1_100, 1_600, 2_100].map(Passage::Trial));
        circuit.note(&RULE, trials[0], true, [600, 1_610]);
        assert_eq!(circuit.enter(&RULE, 2_099), Passage::Shut(1), "the last one has the word");
        // An upstream that takes longer than the circuit stays open is well all the same.
        circuit.note(&RULE, trials[1], false, [1_100, 1_620]);
        assert!(!circuit.is_open());
        circuit.note(&RULE, trials[2], true, [1_600, 1_700]);
        assert!(!circuit.is_open());
    }

    #[test]
    fn a_trial_that_never_tells_is_followed_by_another() {
        let circuit = Circuit::default();
        assert!((0..4).all(|now_ns| pass(&circuit, now_ns, true) == Passage::Free));
        assert_eq!(circuit.enter(&RULE, 600), Passage::Trial(1_100));
        assert!(matches!(circuit.enter(&RULE, 1_099), Passage::Shut(_)));
        assert_eq!(circuit.enter(&RULE, 1_100), Passage::Trial(1_600));
    }

    #[test]
    fn what_began_before_it_closed_does_not_open_it_again() {
        let circuit = Circuit::default();
        assert!((0..4).all(|now_ns| pass(&circuit, now_ns, true) == Passage::Free));
        assert_eq!(pass(&circuit, 600, false), Passage::Trial(1_100));
        (0..9).for_each(|_| circuit.note(&RULE, Passage::Free, true, [4, 700]));
        assert!(!circuit.is_open());
        (0..4).for_each(|_| circuit.note(&RULE, Passage::Free, true, [600, 710]));
        assert!(circuit.is_open());
    }

    #[test]
    fn windows_do_not_add_up() {
        let circuit = Circuit::default();
        for window in 0..100 {
            for at in [1, 2, 3] {
                assert_eq!(pass(&circuit, window * 1_000 + at, true), Passage::Free);
            }
        }
        assert!(!circuit.is_open());
    }

    #[test]
    fn successes_outweigh_failures() {
        let circuit = Circuit::default();
        for n in 0..100 {
            assert_eq!(pass(&circuit, n, n % 5 > 2), Passage::Free);
        }
        assert!(!circuit.is_open());
    }
}
