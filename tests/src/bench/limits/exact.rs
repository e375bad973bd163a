//! Measure 2: what each algorithm admits of one key that two cores hammer, beside the plainest
//! exact account of the same requests.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use edge_policy::limit::{
    meter::{Bucket, Meter, Now, Window},
    table::Table,
};

use crate::bench::{Effort, Goal, Line, Report};

/// For each algorithm, by how much it differs from its reference.
pub(in crate::bench) fn admitted(effort: Effort, report: &mut Report) -> Result<()> {
    let bucket = Bucket::new(RATE, SECOND_NS, BURST).expect("in range");
    let window = Window::Ns(SECOND_NS);
    let algorithms: [(&str, Meter, Begin); 4] = [
        ("token bucket", Meter::TokenBucket(bucket), || Account::Bucket {
            held: BURST as f64,
            at: 0,
        }),
        ("leaky bucket", Meter::LeakyBucket(bucket), || Account::Bucket {
            held: BURST as f64,
            at: 0,
        }),
        ("fixed window", Meter::FixedWindow { limit: RATE, window }, || {
            Account::Windows(BTreeMap::new())
        }),
        ("sliding window", Meter::SlidingWindow { limit: RATE, window_ns: SECOND_NS }, || {
            Account::Log(VecDeque::new())
        }),
    ];
    for (name, meter, account) in algorithms {
        let rounds = (0..effort.rounds).map(|_| difference(&meter, account(), effort));
        report.add(&Line {
            measure: 2,
            name: format!("{name}: one key, two cores, admitted beside the reference"),
            rounds: rounds.collect(),
            unit: "part",
            goal: Goal::AtMost(0.01),
            reference: "an exact account behind a lock".to_owned(),
        });
    }
    report.add(&Line {
        measure: 2,
        name: "concurrent: one key, most requests at once beside the limit".to_owned(),
        rounds: (0..effort.rounds).map(|_| excess(effort)).collect(),
        unit: "part",
        goal: Goal::AtMost(0.01),
        reference: "the limit".to_owned(),
    });
    Ok(())
}

/// The part by which the most requests at once differ from the limit.
fn excess(effort: Effort) -> f64 {
    let meter = Meter::Concurrent { limit: AT_ONCE };
    let (table, at_once, most) = (Table::new(7), AtomicU64::new(0), AtomicU64::new(0));
    let (began, lasts) = (Instant::now(), Duration::from_secs(effort.seconds));
    let now = Now { boot_ns: SECOND_NS, unix_ns: EPOCH_NS };
    thread::scope(|scope| {
        for _ in 0..2 * AT_ONCE {
            scope.spawn(|| {
                while began.elapsed() < lasts {
                    let Ok(charged) = table.charge(&meter, 1 << 40, 1, now) else { continue };
                    most.fetch_max(at_once.fetch_add(1, Relaxed) + 1, Relaxed);
                    thread::yield_now();
                    at_once.fetch_sub(1, Relaxed);
                    table.release(&meter, charged.hold);
                }
            });
        }
    });
    (most.into_inner() as f64 / AT_ONCE as f64 - 1.0).abs()
}

/// The part by which what was admitted differs from what the account admits.
fn difference(meter: &Meter, account: Account, effort: Effort) -> f64 {
    let (table, account) = (Table::new(7), Mutex::new(account));
    let (ours, theirs) = (AtomicU64::new(0), AtomicU64::new(0));
    let (began, lasts) = (Instant::now(), Duration::from_secs(effort.seconds + 2));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while began.elapsed() < lasts {
                    let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let now = Now { boot_ns: SECOND_NS + ns, unix_ns: EPOCH_NS + ns };
                    let charged = table.charge(meter, 1 << 40, 1, now);
                    let admits = account.lock().expect("no panic").admits(EPOCH_NS + ns);
                    ours.fetch_add(u64::from(charged.is_ok()), Relaxed);
                    theirs.fetch_add(u64::from(admits), Relaxed);
                }
            });
        }
    });
    let (ours, theirs) = (ours.load(Relaxed) as f64, theirs.load(Relaxed) as f64);
    (ours / theirs - 1.0).abs()
}

/// An account of nothing yet.
type Begin = fn() -> Account;

/// The plainest exact account of a limit.
enum Account {
    /// Tokens, and when they were counted.
    Bucket { held: f64, at: u64 },
    /// The count of each window.
    Windows(BTreeMap<u64, u64>),
    /// When each request came that was admitted within the last second.
    Log(VecDeque<u64>),
}

impl Account {
    fn admits(&mut self, ns: u64) -> bool {
        match self {
            Self::Bucket { held, at } => {
                let since = ns.saturating_sub((*at).max(EPOCH_NS));
                *held = (*held + since as f64 * RATE as f64 / SECOND_NS as f64).min(BURST as f64);
                *at = ns.max(*at);
                let fits = *held >= 1.0;
                *held -= f64::from(u8::from(fits));
                fits
            }
            Self::Windows(counts) => {
                let count = counts.entry(ns / SECOND_NS).or_default();
                let fits = *count < RATE;
                *count += u64::from(fits);
                fits
            }
            Self::Log(times) => {
                while times.front().is_some_and(|first| first + SECOND_NS <= ns) {
                    times.pop_front();
                }
                let fits = (times.len() as u64) < RATE;
                if fits {
                    times.push_back(ns);
                }
                fits
            }
        }
    }
}

/// Requests a second that are admitted; both cores offer many times that.
const RATE: u64 = 10_000;
const BURST: u64 = 1_000;
/// Requests in flight that are admitted, of twice as many.
const AT_ONCE: u64 = 4;
const SECOND_NS: u64 = 1_000_000_000;
/// The beginning of a second of the calendar.
const EPOCH_NS: u64 = 1_700_000_000 * SECOND_NS;
