//! The latest signals, so that a verdict can show what led to it. Fixed memory: a ring, in which the
//! signals of each client are linked, so that finding them costs as many steps as there are.

use std::collections::HashMap;

use edge_common::Source;

use super::signal::Signal;

#[derive(Debug)]
pub(super) struct Trail {
    ring: Vec<Trace>,
    most: usize,
    /// Number of the next signal.
    next: u64,
    /// Number of the last signal of each client in the ring.
    last: HashMap<Source, u64>,
}

#[derive(Debug)]
struct Trace {
    signal: Signal,
    /// Number of the one before it of the same client.
    before: Option<u64>,
}

impl Trail {
    pub(super) fn new(most: usize) -> Self {
        Self { ring: Vec::new(), most, next: 0, last: HashMap::new() }
    }

    pub(super) fn push(&mut self, signal: Signal) {
        let number = self.next;
        self.next += 1;
        let before = self.last.insert(signal.source, number);
        let trace = Trace { signal, before };
        if self.ring.len() < self.most {
            return self.ring.push(trace);
        }
        let place = (number % self.most as u64) as usize;
        let gone = std::mem::replace(&mut self.ring[place], trace);
        let first = number - self.most as u64;
        if self.last.get(&gone.signal.source) == Some(&first) {
            self.last.remove(&gone.signal.source);
        }
    }

    /// The signals of a client, the latest first.
    pub(super) fn of(&self, source: &Source) -> impl Iterator<Item = &Signal> {
        let mut next = self.last.get(source).copied();
        std::iter::from_fn(move || {
            let trace = self.at(next?)?;
            next = trace.before;
            Some(&trace.signal)
        })
    }

    /// All signals, the latest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Signal> {
        (0..self.next).rev().map_while(|number| Some(&self.at(number)?.signal))
    }

    pub(super) fn forget(&mut self, source: &Source) {
        self.last.remove(source);
    }

    fn at(&self, number: u64) -> Option<&Trace> {
        let is_kept = number < self.next && self.next - number <= self.most as u64;
        if is_kept { self.ring.get((number % self.most as u64) as usize) } else { None }
    }
}
