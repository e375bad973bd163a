//! Measure 1: what it costs to charge a request to its limits, on every core at once.

use std::{hint::black_box, thread, time::Duration};

use anyhow::{Result, ensure};
use edge_common::{Reason, Source};
use edge_policy::limit::{
    Caller, Facts, Only, Part, Rule, Rules, Spec,
    meter::{Bucket, Meter, Now, Window},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    bench::{Effort, Goal, Line, Report},
    random::Random,
};

/// Limits with a million keys, asked on all cores, by source alone and five at a request: of keys that come again and again,
/// and of any of the million, where each is a wait for memory.
pub(in crate::bench) fn costs(effort: Effort, report: &mut Report) -> Result<()> {
    let one: Rules = [rule("one", &[Part::Source], token())].into_iter().collect();
    let window = Window::Ns(60 * SECOND_NS);
    let five: Rules = [
        rule("source", &[Part::Source], token()),
        rule("user", &[Part::User], Meter::SlidingWindow { limit: 1 << 20, window_ns: MINUTE_NS }),
        rule("route", &[Part::User, Part::Route], Meter::FixedWindow { limit: 1 << 20, window }),
        rule("at-once", &[Part::Source, Part::Method], token()),
        rule("global", &[], Meter::FixedWindow { limit: 1 << 39, window }),
    ]
    .into_iter()
    .collect();
    let (asked, mut costs) = ([HOT, KEYS], [const { [const { Vec::new() }; 2] }; 2]);
    let mut begin_ns = 0;
    for _ in 0..effort.rounds {
        for (asked, costs) in asked.into_iter().zip(&mut costs) {
            // Time goes on: the keys remember it.
            begin_ns += MINUTE_NS;
            costs[0].push(cost_ns(&one, effort, begin_ns, (asked, false))?);
            costs[1].push(cost_ns(&five, effort, begin_ns, (asked, true))?);
        }
    }
    for (asked, costs) in asked.into_iter().zip(costs) {
        let which = if asked == KEYS { "any of a million keys" } else { "hot, of a million keys" };
        let kinds = [("one limit check", 150.0), ("five limits on a request", 500.0)];
        for ((kind, goal), rounds) in kinds.into_iter().zip(costs) {
            report.add(&Line {
                measure: 1,
                name: format!("{kind}, {which}, all cores, CPU time"),
                rounds,
                unit: "ns",
                goal: Goal::AtMost(goal),
                reference: "none".to_owned(),
            });
        }
    }
    Ok(())
}

/// CPU time of a request, the middle of all cores.
fn cost_ns(
    rules: &Rules,
    effort: Effort,
    begin_ns: u64,
    (asked, late): (u64, bool),
) -> Result<f64> {
    let cores = thread::available_parallelism()?.get();
    let costs: Result<Vec<f64>> = thread::scope(|scope| {
        let work = |core: usize| move || core_ns(rules, core, effort, (begin_ns, asked, late));
        let threads: Vec<_> = (0..cores).map(|core| scope.spawn(work(core))).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    Ok(super::super::report::median(&costs?))
}

fn core_ns(
    rules: &Rules,
    core: usize,
    effort: Effort,
    (begin_ns, asked, late): (u64, u64, bool),
) -> Result<f64> {
    let mut random = Random::new(core as u64 + 1);
    let users: Vec<String> = (0..1_024).map(|n| format!("user-{core}-{n}")).collect();
    let claim = |_: &str| None;
    let mut ask = |at: u64, key: Option<u64>| {
        let source = key.unwrap_or_else(|| random.next() % asked) as u32;
        let source = Source::v4((0x0a00_0000 | source).to_be_bytes());
        let now = Now { boot_ns: at, unix_ns: 1_700_000_000 * SECOND_NS + at };
        let Ok(early) = rules.admit_source(source, now) else { return false };
        if !late {
            return true;
        }
        let user = users[random.next() as usize % users.len()].as_str();
        let caller = Some(Caller { user: ["key", user], key: None, tier: None, claim: &claim });
        let facts = Facts { caller, route: "/api/orders", ..Facts::of(source, 1) };
        rules.admit(&facts, &early, now).is_ok()
    };
    // Every key is known before.
    (0..KEYS).for_each(|key| _ = black_box(ask(begin_ns, Some(key))));
    let (count, began) = (REQUESTS * effort.seconds, cpu_time()?);
    let admitted = (0..count).filter(|n| black_box(ask(begin_ns + n * 1_000, None))).count();
    let ran = cpu_time()?.saturating_sub(began);
    ensure!(
        admitted as u64 == count,
        "{admitted} of {count} were admitted: none was to be refused"
    );
    Ok(ran.as_nanos() as f64 / count as f64)
}

/// What the calling thread has run.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// It holds a minute's worth: a core may be behind another by the length of a round.
fn token() -> Meter {
    Meter::TokenBucket(Bucket::new(1_000_000, SECOND_NS, 60_000_000).expect("in range"))
}

fn rule(name: &str, by: &[Part], meter: Meter) -> Rule {
    let spec = Spec {
        name: name.into(),
        by: by.to_vec(),
        only: Only::default(),
        meter: Some(meter),
        tiers: Vec::new(),
        keys_max: if by.is_empty() { 1 } else { KEYS as usize },
        shadow: false,
        fleet: false,
        persist: false,
        reason: Reason::RequestLimit,
    };
    Rule::new(spec, None, *b"a secret of ours")
}

const KEYS: u64 = 1_000_000;
/// Keys that come again and again, of each kind: a core's cache holds them.
const HOT: u64 = 4_096;
/// Requests of a core for each second of effort.
const REQUESTS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const MINUTE_NS: u64 = 60 * SECOND_NS;
