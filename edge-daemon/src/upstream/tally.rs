//! What is counted of a server.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use http::StatusCode;

use super::Server;
use crate::metrics::Spread;

/// What one worker counts of one server.
#[derive(Default)]
#[repr(align(128))]
pub struct Tally {
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
    unreachable: AtomicU64,
    timeout: AtomicU64,
    invalid: AtomicU64,
    /// Connections that were opened.
    pub connects: AtomicU64,
    /// Requests that came here after another server, or another connection, failed them.
    pub retries: AtomicU64,
    /// Connections kept without a request, now.
    pub idle: AtomicUsize,
    /// From the request's way to the server to the head of its answer.
    pub latency: Spread,
}

/// How an exchange failed, where the server is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Unreachable,
    /// No connection, no head or no body in time.
    Timeout,
    /// No HTTP, or not to its end.
    Invalid,
}

impl Tally {
    /// Counts an answer.
    pub fn answered(&self, status: StatusCode, after: Duration) {
        let class = usize::from(status.as_u16() / 100).min(5);
        self.answers[class].fetch_add(1, Relaxed);
        self.latency.observe(after);
    }

    /// Counts a failure.
    pub fn failed(&self, failure: Failure) {
        let count = match failure {
            Failure::Unreachable => &self.unreachable,
            Failure::Timeout => &self.timeout,
            Failure::Invalid => &self.invalid,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// What is counted of one server, of all workers together.
pub struct Counts {
    /// Requests that it has in flight.
    pub in_flight: u64,
    /// Connections kept without a request.
    pub idle: u64,
    /// Answers by the first digit of their status.
    pub answers: [u64; 6],
    /// Failures by kind.
    pub failures: [(&'static str, u64); 3],
    /// Connections that were begun.
    pub connects: u64,
    /// Requests that came here after another server failed them.
    pub retries: u64,
}

impl Server {
    /// What is counted of it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let sum = |of: &dyn Fn(&Tally) -> u64| self.tallies.iter().map(of).sum();
        let load = |count: &AtomicU64| count.load(Relaxed);
        Counts {
            in_flight: self.in_flight.load(Relaxed) as u64,
            idle: sum(&|tally| tally.idle.load(Relaxed) as u64),
            answers: std::array::from_fn(|class| sum(&|tally| load(&tally.answers[class]))),
            failures: [
                ("unreachable", sum(&|tally| load(&tally.unreachable))),
                ("timeout", sum(&|tally| load(&tally.timeout))),
                ("invalid", sum(&|tally| load(&tally.invalid))),
            ],
            connects: sum(&|tally| load(&tally.connects)),
            retries: sum(&|tally| load(&tally.retries)),
        }
    }

    /// How long it took to answer, of each worker.
    #[must_use]
    pub fn latencies(&self) -> Vec<&Spread> {
        self.tallies.iter().map(|tally| &tally.latency).collect()
    }

    /// Checks that found it well, and those that did not.
    #[must_use]
    pub fn checks(&self) -> [u64; 2] {
        [&self.checks_good, &self.checks_bad].map(|count| count.load(Relaxed))
    }
}
