//! Verdicts: from the bad act to the dropped packet, a million networks at the start, a NAT.

use std::{
    fmt::Write as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Effort, Goal, Line, Measures, Report};
use crate::{
    client::{HOST, until},
    daemon::Edged,
    lab::{CLIENT, FRIEND, Lab},
    origin::Origin,
    talk::Dial,
};

/// Measure 1 is the latency of a ban, 3 the start with a million networks, 5 the NAT.
pub(super) const MEASURES: Measures = &[(&[1], latency), (&[3], start), (&[5], nat)];

/// From the sixth wrong key to the kernel's table, and to the first packet that is dropped, while a
/// friend's mistakes keep the writer busy.
fn latency(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("limits.per_source", "\"off\"")
        .set("limits.global", "\"off\"")
        .set("limits.handshakes", "\"off\"")
        .start()?;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let (mut to_map, mut to_drop) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..2 {
            let (stop, sent, lab, edged) = (Arc::clone(&stop), Arc::clone(&sent), &lab, &edged);
            scope.spawn(move || disturb(lab, edged, &stop, &sent));
        }
        let done = attackers(&lab, &edged, effort.rounds * 20, &mut to_map, &mut to_drop);
        stop.store(true, Relaxed);
        done
    })?;
    let rate = sent.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
    let lost = edged.metrics()?.value("edged_signals_lost_total");
    let reference =
        format!("{} bans under {rate:.0} signals/s over TLS, {lost} lost", to_map.len());
    for (name, mut values, most) in [
        ("bad event to kernel map, p99", to_map, 1.0),
        ("ban to next packet dropped, p99", to_drop, 5.0),
    ] {
        values.sort_by(f64::total_cmp);
        let p99 = values.get(values.len() * 99 / 100).copied().context("no ban")?;
        report.add(&Line {
            measure: 1,
            name: name.into(),
            rounds: vec![p99],
            unit: "ms",
            goal: Goal::AtMost(most),
            reference: reference.clone(),
        });
    }
    Ok(())
}

/// Asks for what there is not, over one connection, from an address that is never banned.
fn disturb(lab: &Lab, edged: &Edged<'_>, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let dial = Dial::new(&edged.ca, HOST)?;
    while !stop.load(Relaxed) {
        let mut talk = dial.connect(lab, FRIEND)?;
        while !stop.load(Relaxed) && talk.get(HOST, "/", &["X-API-Key: edged_x"]).is_ok() {
            sent.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

/// One address after the other guesses keys until it is dropped.
fn attackers(
    lab: &Lab,
    edged: &Edged<'_>,
    count: usize,
    to_map: &mut Vec<f64>,
    to_drop: &mut Vec<f64>,
) -> Result<()> {
    for n in 0..count {
        let address = format!("198.51.{}.{}", 101 + n / 200, 1 + n % 200);
        lab.attacker.ip(&format!("addr add {address}/32 dev eth0"))?;
        lab.edge.ip(&format!("route add {address}/32 dev edge0"))?;
        let args = ["-sk", "--max-time", "1", "--interface", &address, "-H", "X-API-Key: edged_x"];
        let url = format!("https://{}/?n=[1-7]", crate::lab::EDGE);
        let mut curl = lab.attacker.command("curl");
        let _ = curl.args(args).args(["-o", "/dev/null", &url]).output()?;
        let event = edged.event("ban", &address)?;
        to_map.push(event["latency_us"].as_f64().context("latency")? / 1000.0);
        let dropped = || -> Result<Option<f64>> {
            let list = edged.bans()?;
            let ban = list.iter().find(|ban| ban["culprit"] == address.as_str());
            Ok(ban.and_then(|ban| ban["first_drop_us"].as_f64()))
        };
        until("a packet is dropped", Duration::from_secs(5), || Ok(dropped()?.is_some()))?;
        to_drop.extend(dropped()?.map(|us| us / 1000.0));
    }
    Ok(())
}

/// From the start of the process to the first accepted connection, with a million networks listed.
fn start(effort: Effort, report: &mut Report) -> Result<()> {
    let networks = if effort.rounds > 1 { 1_000_000_u32 } else { 100_000 };
    let lab = Lab::new()?;
    let mut list = String::new();
    for n in 0..networks {
        // Scattered over the unicast space, but for the lab's own.
        let spread = n.wrapping_mul(2_654_435_761) | 1;
        let [a, b, c, d] = spread.to_be_bytes();
        if !(1..=191).contains(&a) || [10, 100, 127, 169, 172].contains(&a) {
            continue;
        }
        writeln!(list, "{a}.{b}.{c}.{d}")?;
    }
    let file = lab.dir().join("million.txt");
    fs::write(&file, &list)?;
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let setup = lab.edged()?.set("lists.deny_files", &format!("[{file:?}]"));
        let began = Instant::now();
        let edged = setup.start()?;
        rounds.push(began.elapsed().as_secs_f64());
        ensure!(edged.metrics()?.value("edged_enforced_ratio") >= 0.0);
    }
    report.add(&Line {
        measure: 3,
        name: "start to ready, with all listed networks enforced".into(),
        rounds,
        unit: "s",
        goal: Goal::AtMost(1.5),
        reference: format!("{} networks from a file, read and compiled", list.lines().count()),
    });
    Ok(())
}

/// Two hundred good clients and one that guesses, all at one address.
fn nat(effort: Effort, report: &mut Report) -> Result<()> {
    let good = if effort.rounds > 1 { 200 } else { 20 };
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("limits.per_source", "\"off\"")
        .set("limits.handshakes", "\"off\"")
        .start()?;
    let keys = (0..good).map(|n| edged.key(&format!("n{n}"))).collect::<Result<Vec<_>>>()?;
    let dial = Dial::new(&edged.ca, HOST)?;
    let ask = |key: &str| -> Result<u16> {
        Ok(dial.connect(&lab, CLIENT)?.get(HOST, "/", &[&format!("X-API-Key: {key}")])?.status)
    };
    let (mut rounds, mut refused) = (Vec::new(), 0);
    for _ in 0..effort.rounds {
        let mut lost = 0;
        for key in &keys {
            lost += u32::from(ask(key).ok() != Some(200));
            refused += u32::from(ask("edged_x").ok() == Some(403));
        }
        rounds.push(f64::from(lost));
    }
    ensure!(refused > 0, "the attacker was never refused");
    ensure!(edged.bans()?.iter().all(|ban| ban["step"] == "403"), "somebody was banned");
    report.add(&Line {
        measure: 5,
        name: format!("good requests lost, of {good} clients and 1 attacker at one address"),
        rounds,
        unit: "requests",
        goal: Goal::Exactly(0.0),
        reference: "nobody attacked".into(),
    });
    Ok(())
}
