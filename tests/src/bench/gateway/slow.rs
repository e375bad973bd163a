//! Measure 8: thousands of connections that trickle their heads or bodies or do not read, beside clients that behave.

use std::{
    fs,
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustls::NamedGroup;

use super::{
    DESCRIPTORS, EDGED_PORT, client,
    latency::{at_rate, percentile},
    on_load_core, open, own_upstream,
};
use crate::{
    attack::{Crowd, Kind, attackers},
    bench::{
        Effort, Goal, Line, MEASURED_CPU, Report, flood::behind_processes, need_two_cores, pin,
    },
    daemon::Edged,
    lab::Lab,
    load::{Client, descriptors, get},
};

/// What one attack did.
struct Seen {
    /// The most memory over the ceiling.
    filled: f64,
    added_mib: f64,
    /// Connections of the attack that were open at once.
    open: usize,
    /// Percent of the good requests that were served.
    served: f64,
    /// The 99th percentile of good clients over that without the attack.
    slowed: f64,
}

/// Each kind in turn, so many rounds, each against a daemon of its own.
pub(super) fn attacks(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = own_upstream(&lab)?;
    // Each attacker takes two of the daemon's: one is the upstream's.
    let room = usize::try_from(descriptors(DESCRIPTORS)?)? / 2 - 500;
    let count = if effort.is_quick() { 1_000 } else { 10_000.min(room) };
    let mut all = [const { Vec::new() }; KINDS.len()];
    for round in 1..=effort.rounds {
        for ((kind, name), seen) in KINDS.iter().zip(&mut all) {
            let one = attack(&lab, *kind, count, effort).context(*name)?;
            report.note(&format!(
                "round {round}, {name}: {} connections at once, {:.1} MiB added, {:.2} % served, p99 x{:.2}",
                one.open, one.added_mib, one.served, one.slowed
            ));
            seen.push(one);
        }
    }
    for ((_, name), seen) in KINDS.iter().zip(&all) {
        add(name, count, seen, report);
    }
    Ok(())
}

fn add(name: &str, count: usize, seen: &[Seen], report: &mut Report) {
    let open = seen.iter().map(|one| one.open).min().unwrap_or(0);
    let added = seen.iter().map(|one| one.added_mib).fold(0.0, f64::max);
    let mut line = |what: &str, rounds, unit, goal, reference: &str| {
        report.add(&Line {
            measure: 8,
            name: format!("{what}, beside {count} connections with {name}"),
            rounds,
            unit,
            goal,
            reference: reference.to_owned(),
        });
    };
    line(
        "most memory held / ceiling",
        seen.iter().map(|one| one.filled).collect(),
        "ratio",
        Goal::AtMost(1.0),
        &format!("memory_max = {CEILING_MIB} MiB; {added:.1} MiB added by {open} at once or more"),
    );
    line(
        "good requests served",
        seen.iter().map(|one| one.served).collect(),
        "%",
        Goal::Exactly(100.0),
        "every one",
    );
    line(
        "p99 of good clients / without the attack",
        seen.iter().map(|one| one.slowed).collect(),
        "ratio",
        Goal::AtMost(2.0),
        "the same daemon before",
    );
}

fn attack(lab: &Lab, kind: Kind, count: usize, effort: Effort) -> Result<Seen> {
    let edged = open(lab)?
        .set("bounds.connections_max", "20000")
        .set("bounds.requests_max", "20000")
        .set("upstream.0.requests_max", "20000")
        .set("upstream.0.server_requests_max", "20000")
        .set("bounds.memory_max", &format!("\"{CEILING_MIB}MiB\""))
        .start()?;
    pin(edged.pid(), MEASURED_CPU)?;
    let client = client(&edged.ca, EDGED_PORT, NamedGroup::X25519)?;
    let seconds = if effort.is_quick() { 1 } else { 10 };
    at_rate(&lab.edge, &client, RATE, 1)?;
    // The same clients: what they cost each other on the core that they share is no part of the attack.
    let (_, before) = good(lab, &client, seconds)?;
    let before = percentile(before, 99.0)?;
    let base = resident(edged.pid())?;
    let crowd = Arc::new(Crowd::default());
    let (most, (served, during)) = std::thread::scope(|scope| -> Result<_> {
        let attackers = scope.spawn(|| {
            // What their own work costs is no delay of the edge's.
            behind_processes()?;
            let attack = async || attackers(FIRST, &client, kind, count, &crowd).await;
            on_load_core(&lab.edge, attack)
        });
        let watcher = scope.spawn(|| most_memory(&edged, &crowd));
        let good = crowd.full(count).and_then(|()| good(lab, &client, seconds));
        crowd.is_over.store(true, Relaxed);
        let most = watcher.join().expect("no panic");
        attackers.join().expect("no panic")?;
        Ok((most?, good?))
    })?;
    Ok(Seen {
        filled: most / CEILING_MIB as f64,
        added_mib: most - base,
        open: crowd.most.load(Relaxed),
        served,
        slowed: percentile(during, 99.0)? / before,
    })
}

/// Good clients for a while: those that keep their connections, at a steady rate, and one that connects for each request. How
/// many percent were served, and the latencies of the former.
fn good(lab: &Lab, client: &Client, seconds: u64) -> Result<(f64, Vec<f64>)> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let (kept, anew) = std::thread::scope(|scope| {
        let anew = scope.spawn(|| {
            on_load_core(&lab.edge, || async move {
                let (mut asked, mut served) = (0, 0);
                while Instant::now() < end {
                    let answer = async { client.connect().await?.ask(&get("/")).await };
                    asked += 1;
                    served += u32::from(answer.await.is_ok());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok((asked, served))
            })
        });
        // One that is not served ends the whole of it.
        let kept = at_rate(&lab.edge, client, RATE, seconds);
        (kept, anew.join().expect("no panic"))
    });
    let (kept, (asked, served)) = (kept.context("good clients")?, anew?);
    ensure!(asked > 0, "nobody connected anew");
    let asked = kept.len() as f64 + f64::from(asked);
    let served = kept.len() as f64 + f64::from(served);
    Ok((served / asked * 100.0, kept))
}

/// The most MiB that the daemon held until the attack was over.
fn most_memory(edged: &Edged<'_>, crowd: &Crowd) -> Result<f64> {
    let mut most = 0.0_f64;
    while !crowd.is_over.load(Relaxed) {
        most = most.max(resident(edged.pid())?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(most)
}

/// MiB of a process that are in memory.
fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = text.split(' ').nth(1).context("statm")?.parse::<f64>()?;
    Ok(pages * 4096.0 / f64::from(1 << 20))
}

const KINDS: [(Kind, &str); 3] = [
    (Kind::Head, "slow heads"),
    (Kind::Body, "slow bodies"),
    (Kind::Read, "answers that are not read"),
];
/// What the daemon is told to hold at the most.
const CEILING_MIB: u64 = 1024;
/// Requests a second of good clients: a small part of what the edge can do, as the p99 is to tell of the attack.
const RATE: f64 = 500.0;
/// The first of the attackers' addresses.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
