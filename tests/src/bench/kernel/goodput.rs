//! Measure 6: what honest clients still get beside a flood.

use std::{cell::RefCell, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{
    NETWORKS, UDP_LENGTH,
    networks::List,
    receivers::{denying, nft_rules, polled, without_lists, write},
    rounds::{interleaved, turn},
    udp_frame,
};
use crate::{
    bench::{
        Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report,
        flood::{Flood, Pace, before_processes, offered, poller},
        gateway::Peer,
        need_two_cores, pin,
        report::median,
        version,
    },
    daemon::certify,
    lab::{EDGE, Lab},
    netns::run,
};

/// The share of their requests that clients of a moderate rate get answered beside a flood, of
/// what they get without: behind nftables and behind the product. The same web server serves them,
/// on the core that takes in the packets.
///
/// The thread that takes them in comes before the web server, for both alike, as a card's interrupts
/// come before processes: left to the fair scheduler, it would get half of the core at most, and the
/// web server the other half, whatever a packet costs. Both come before whatever else the host does,
/// and so do the clients and, behind them, the flood's sender on the other core.
///
/// Twice: both sides refuse the same networks, for which nftables needs a set of intervals; and the
/// same addresses, for which it has its fastest set, so that the flood must be a larger one.
pub(in crate::bench) fn beside_flood(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let networks = List::v4(NETWORKS);
    beside(&networks, ("flags interval;", "100k networks", "interval set"), effort, report)?;
    beside(&networks.addresses(), ("", "100k addresses", "hash set"), effort, report)
}

/// Beside a flood from all over a list: the kind of set that nftables has it in, what it is a list of, and the set's name.
fn beside(
    list: &List,
    (kind, what, set): (&str, &str, &str),
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    report.note(&format!("{what}, in nftables' {set}:"));
    let flood = Flood { frame: udp_frame(UDP_LENGTH), sources: list.inside() };
    let rules = nft_rules(kind, &list.joined(", "));
    let rate = sufficient(&flood, &rules, effort, report)?;
    let came = [const { RefCell::new(Vec::new()) }; 2];
    let note = |kept: Result<Kept>, came: &RefCell<Vec<f64>>| {
        let kept = kept?;
        came.borrow_mut().push(kept.came);
        Ok(kept.percent)
    };
    let turns = [
        turn("edged", || note(behind_edged(&flood, list, rate, effort), &came[0])),
        turn("nftables", || note(behind_nft(&flood, &rules, rate, effort), &came[1])),
    ];
    let [ours, theirs] = interleaved(&turns, "% of the goodput kept", effort, report)?;
    let nft = version("nft");
    let kept = median(&theirs);
    let [came, theirs] = came.each_ref().map(|came| median(&came.borrow()));
    report.note(&format!("{came:.0} packets/s came to edged, {theirs:.0} to nftables"));
    ensure!(came >= theirs * 0.9, "edged had less of a flood than nftables");
    ensure!(kept <= 50.0, "nftables keeps {kept:.0} % of the goodput");
    report.add(&Line {
        measure: 6,
        name: format!("HTTPS goodput beside {came:.0} packets/s from {what} that are denied"),
        rounds: ours,
        unit: "% of the flood-free goodput",
        goal: Goal::AtLeast(95.0),
        reference: format!("{nft}, {set} of the same, which keeps {kept:.0} %"),
    });
    Ok(())
}

/// The rate of a flood at which nftables keeps a half at most: one step beyond the least at which the middle of three
/// rounds does, since in one alone it may have been the host.
fn sufficient(flood: &Flood, rules: &str, effort: Effort, report: &Report) -> Result<u32> {
    for step in 1..=STEPS {
        let rate = step * STEP;
        let mut rounds = Vec::new();
        while rounds.len() < 3 && rounds.iter().filter(|kept| **kept > 50.0).count() < 2 {
            let Kept { percent, came } = behind_nft(flood, rules, rate, effort)?;
            report
                .note(&format!("{rate} packets/s, {came:.0} came: nftables keeps {percent:.0} %"));
            rounds.push(percent);
        }
        if median(&rounds) <= 50.0 {
            return Ok(rate + STEP);
        }
    }
    bail!("nftables keeps more than a half at any rate that this sender reaches")
}

fn behind_nft(flood: &Flood, rules: &str, rate: u32, effort: Effort) -> Result<Kept> {
    let lab = polled()?;
    run(lab.edge.command("nft").arg("-f").arg(write(&lab, "rules.nft", rules)?))?;
    kept(&lab, flood, rate, effort)
}

fn behind_edged(flood: &Flood, list: &List, rate: u32, effort: Effort) -> Result<Kept> {
    let lab = Lab::new()?;
    // The clients are one address, and honest: no limit is to cut them short.
    let _edged = denying(without_lists(lab.edged()?), &lab, list)?
        .set("kernel.packet_rate", r#""off""#)
        .start()?;
    kept(&lab, flood, rate, effort)
}

/// What a flood left.
struct Kept {
    /// Of the goodput without it.
    percent: f64,
    /// Its packets a second, those included that a full ring had no room for.
    came: f64,
}

/// The goodput beside the flood, of that without.
fn kept(lab: &Lab, flood: &Flood, rate: u32, effort: Effort) -> Result<Kept> {
    certify(lab.dir())?;
    let server = Peer::nginx(lab, "server", PORT, &server(lab), MEASURED_CPU)?;
    let script = write(lab, "think.lua", THINK)?;
    pin(poller(lab, &lab.edge, "edge0")?, MEASURED_CPU)?;
    before_processes(server.worker, 1)?;
    goodput(lab, &script, 1)?;
    let quiet = goodput(lab, &script, effort.seconds)?;
    let (beside, came) = flood.beside(lab, Pace::Strict(rate), || {
        let (before, start) = (offered(lab)?, Instant::now());
        let beside = goodput(lab, &script, effort.seconds)?;
        Ok((beside, (offered(lab)? - before) as f64 / start.elapsed().as_secs_f64()))
    })?;
    drop(server);
    ensure!(quiet > 1000.0, "only {quiet} requests a second without a flood");
    Ok(Kept { percent: beside / quiet * 100.0, came })
}

/// Good answers a second to clients that pause between their requests.
fn goodput(lab: &Lab, script: &PathBuf, seconds: u64) -> Result<f64> {
    // The flood's sender has the same core, and is to take nothing from the clients.
    let mut wrk = lab.client.command("chrt");
    wrk.args(["-f", "2", "taskset", "-c", &LOAD_CPU.to_string()]);
    wrk.args(["wrk", "-t1", "-c64", &format!("-d{seconds}s")]);
    let said = run(wrk.arg("-s").arg(script).arg(format!("https://{EDGE}:{PORT}/")))?;
    ensure!(!said.contains("Non-2xx"), "{said}");
    let line = said.lines().find_map(|l| l.strip_prefix("Requests/sec:"));
    Ok(line.context("no rate")?.trim().parse()?)
}

fn server(lab: &Lab) -> String {
    let dir = lab.dir().display();
    format!(
        "http {{ access_log off; keepalive_requests 100000000;\n\
         server {{ listen {PORT} ssl;\n\
         ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;\n\
         location / {{ return 200 \"{}\"; }} }} }}\n",
        "x".repeat(1024)
    )
}

/// 64 clients with 10 ms between an answer and the next request: a third of what the core can do.
const THINK: &str = "function delay() return 10 end\n";
/// Packets a second: the flood grows by so many, so often.
const STEP: u32 = 125_000;
const STEPS: u32 = 24;
const PORT: u16 = 9445;
