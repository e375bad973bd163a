//! Measure 7: a list of a million networks takes another's place under the eyes of a prober.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::{
    networks::List,
    receivers::{without_lists, write},
};
use crate::{
    bench::{Effort, Goal, Line, Report},
    client::until,
    lab::{ATTACKER, CLIENT, EDGE, Lab},
};

/// What a prober saw.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    passed: AtomicU64,
    /// Packets of a source that both lists name.
    leaked: AtomicU64,
}

/// Swaps two lists back and forth: both name one prober, neither names the other.
pub(in crate::bench) fn lists(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let both = format!("{ATTACKER}\n");
    let networks = if effort.is_quick() { super::NETWORKS } else { NETWORKS };
    // They share no more than a list has by chance with any other.
    let [one, other] = [List::v4(networks), List::v4_of(networks, OTHER)];
    let files = [("one.txt", &one), ("other.txt", &other)]
        .map(|(name, list)| write(&lab, name, &(both.clone() + &list.text())));
    let [one, other] = files;
    let [one, other] = [one?, other?].map(|file| format!("[{file:?}]"));
    let edged = without_lists(lab.edged()?).set("lists.deny_files", &one).start()?;
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let (mut times_ms, mut compiled_ms) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| probe(&lab, &seen, &stop));
        let swapped = (0..effort.rounds * 2).try_for_each(|round| {
            edged.edit("lists.deny_files", if round % 2 == 0 { &other } else { &one })?;
            let generation = edged.metrics()?.value(GENERATION);
            let start = Instant::now();
            edged.tell("reload")?;
            until("the list is in force", Duration::from_secs(60), || {
                Ok(edged.metrics()?.value(GENERATION) > generation)
            })?;
            times_ms.push(start.elapsed().as_secs_f64() * 1e3);
            compiled_ms.push(edged.metrics()?.value("edged_list_compile_seconds") * 1e3);
            report.note(&format!("swap {round}: {:.0} ms", times_ms[round]));
            anyhow::Ok(())
        });
        stop.store(true, Relaxed);
        probing.join().expect("no panic")?;
        swapped
    })?;
    let [sent, passed, leaked] = [&seen.sent, &seen.passed, &seen.leaked].map(|n| n.load(Relaxed));
    report.note(&format!("prober: {sent} sent each, {passed} passed, {leaked} leaked"));
    ensure!(sent > 1000, "the prober sent {sent} packets only");
    for (name, rounds, reference) in [
        ("compiled and put in force", compiled_ms, "the daemon's own clock"),
        ("from the order until it is in force, files read", times_ms, "wall clock of a reload"),
    ] {
        report.add(&Line {
            measure: 7,
            name: format!("a swap of {networks} networks, {name}"),
            rounds,
            unit: "ms",
            goal: Goal::AtMost(300.0),
            reference: reference.to_owned(),
        });
    }
    report.add(&Line {
        measure: 7,
        name: "wrong verdicts that a prober saw meanwhile".to_owned(),
        rounds: vec![(sent - passed + leaked) as f64],
        unit: "packets",
        goal: Goal::Exactly(0.0),
        reference: format!("{sent} packets of a listed and of an unlisted source each"),
    });
    Ok(())
}

/// Sends from a listed and an unlisted source by turns, and counts whose packets arrive.
fn probe(lab: &Lab, seen: &Seen, stop: &AtomicBool) -> Result<()> {
    let inbox = lab.edge.enter(|| UdpSocket::bind((EDGE, PORT))).context("bind the inbox")?;
    setsockopt(&inbox, RcvBufForce, &(16 << 20))?;
    inbox.set_nonblocking(true)?;
    let sender = |home: &crate::netns::Netns, source: &str| {
        home.enter(|| {
            let socket = UdpSocket::bind((source, 0))?;
            socket.connect((EDGE, PORT))?;
            Ok::<_, anyhow::Error>(socket)
        })
    };
    let (good, bad) = (sender(&lab.client, CLIENT)?, sender(&lab.attacker, ATTACKER)?);
    let take = || {
        while let Ok((_, from)) = inbox.recv_from(&mut [0; 8]) {
            let is_leak = from.ip().to_string() == ATTACKER;
            if is_leak { &seen.leaked } else { &seen.passed }.fetch_add(1, Relaxed);
        }
    };
    while !stop.load(Relaxed) {
        bad.send(b"bad")?;
        good.send(b"good")?;
        seen.sent.fetch_add(1, Relaxed);
        take();
        std::thread::sleep(Duration::from_micros(50));
    }
    // What is under way may still arrive; what is lost does not.
    let arrived = || {
        take();
        Ok(seen.passed.load(Relaxed) == seen.sent.load(Relaxed))
    };
    let _ = until("the last probes arrive", Duration::from_secs(1), arrived);
    Ok(())
}

/// How often compiled lists were put in force.
const GENERATION: &str = "edged_list_generation";
const NETWORKS: usize = 1_000_000;
/// The seed of the other list.
const OTHER: u64 = 0x07e4;
const PORT: u16 = 4000;
