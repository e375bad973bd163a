//! The latest signals, so that a verdict can show what led to it. Fixed memory: a ring, in which the
//! signals of each client, principal and account are linked, so that finding them costs as many steps as
//! there are.

use std::collections::HashMap;

use super::{culprit::Culprit, signal::Signal};

#[derive(Debug)]
pub(super) struct Trail {
    ring: Vec<Trace>,
    most: usize,
    /// Number of the next signal.
    next: u64,
    /// Number of the last signal in the ring of whoever signals are found by.
    last: HashMap<Culprit, u64>,
}

#[derive(Debug)]
struct Trace {
    signal: Signal,
    /// Numbers of the ones before it, each of the same client, principal or account.
    before: [Option<u64>; 3],
}

/// By whom a signal is found again, each in its place.
fn found_by(signal: &Signal) -> [Option<Culprit>; 3] {
    let principal = signal.principal.clone().map(Culprit::Principal);
    let account = signal.account.clone().map(Culprit::Account);
    [Some(Culprit::Source(signal.source)), principal, account]
}

impl Trail {
    pub(super) fn new(most: usize) -> Self {
        Self { ring: Vec::new(), most, next: 0, last: HashMap::new() }
    }

    pub(super) fn push(&mut self, signal: Signal) {
        let number = self.next;
        self.next += 1;
        let before = found_by(&signal).map(|who| self.last.insert(who?, number));
        let trace = Trace { signal, before };
        if self.ring.len() < self.most {
            return self.ring.push(trace);
        }
        let place = (number % self.most as u64) as usize;
        let gone = std::mem::replace(&mut self.ring[place], trace);
        let first = number - self.most as u64;
        for who in found_by(&gone.signal).into_iter().flatten() {
            if self.last.get(&who) == Some(&first) {
                self.last.remove(&who);
            }
        }
    }

    /// The signals of a client, a principal or an account, the latest first.
    pub(super) fn of(&self, who: &Culprit) -> impl Iterator<Item = &Signal> {
        let place = match who {
            Culprit::Principal(_) => 1,
            Culprit::Account(_) => 2,
            _ => 0,
        };
        let mut next = self.last.get(who).copied();
        std::iter::from_fn(move || {
            let trace = self.at(next?)?;
            next = trace.before[place];
            Some(&trace.signal)
        })
    }

    /// All signals, the latest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Signal> {
        (0..self.next).rev().map_while(|number| Some(&self.at(number)?.signal))
    }

    pub(super) fn forget(&mut self, who: &Culprit) {
        self.last.remove(who);
    }

    fn at(&self, number: u64) -> Option<&Trace> {
        let is_kept = number < self.next && self.next - number <= self.most as u64;
        if is_kept { self.ring.get((number % self.most as u64) as usize) } else { None }
    }
}
