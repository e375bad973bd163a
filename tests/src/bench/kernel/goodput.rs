//! Measure 6: what honest clients still get beside a flood.

use std::path::PathBuf;

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
        flood::{Flood, Pace, poller},
        gateway::Peer,
        need_two_cores, pin, version,
    },
    daemon::certify,
    lab::{EDGE, Lab},
    netns::run,
};

/// The share of their requests that clients of a moderate rate get answered beside a flood, of
/// what they get without: behind nftables and behind the product. The same web server serves them,
/// on the core that takes in the packets.
pub(in crate::bench) fn beside_flood(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let list = List::v4(NETWORKS).addresses();
    let flood = Flood { frame: udp_frame(UDP_LENGTH), sources: list.inside() };
    let rules = nft_rules("", &list.joined(", "));
    let rate = sufficient(&flood, &rules, effort, report)?;
    let turns = [
        turn("edged", || behind_edged(&flood, &list, rate, effort)),
        turn("nftables", || behind_nft(&flood, &rules, rate, effort)),
    ];
    let [ours, theirs] = interleaved(&turns, "% of the goodput kept", effort, report)?;
    let nft = version("nft");
    let kept = crate::bench::report::median(&theirs);
    report.add(&Line {
        measure: 6,
        name: format!("HTTPS goodput beside {rate} packets/s from 100k denied addresses"),
        rounds: ours,
        unit: "% of the flood-free goodput",
        goal: Goal::AtLeast(95.0),
        reference: format!("{nft}, hash set of 100k addresses, which keeps {kept:.0} %"),
    });
    Ok(())
}

/// The rate of a flood at which nftables keeps a half at most.
fn sufficient(flood: &Flood, rules: &str, effort: Effort, report: &Report) -> Result<u32> {
    for rate in RATES {
        let kept = behind_nft(flood, rules, rate, effort)?;
        report.note(&format!("{rate} packets/s: nftables keeps {kept:.0} %"));
        if kept <= 50.0 {
            return Ok(rate);
        }
    }
    bail!("nftables keeps more than a half at any rate that this sender reaches")
}

fn behind_nft(flood: &Flood, rules: &str, rate: u32, effort: Effort) -> Result<f64> {
    let lab = polled()?;
    run(lab.edge.command("nft").arg("-f").arg(write(&lab, "rules.nft", rules)?))?;
    kept(&lab, flood, rate, effort)
}

fn behind_edged(flood: &Flood, list: &List, rate: u32, effort: Effort) -> Result<f64> {
    let lab = Lab::new()?;
    // The clients are one address, and honest: no limit is to cut them short.
    let _edged = denying(without_lists(lab.edged()?), &lab, list)?
        .set("kernel.packet_rate", r#""off""#)
        .start()?;
    kept(&lab, flood, rate, effort)
}

/// The goodput beside the flood in percent of that without.
fn kept(lab: &Lab, flood: &Flood, rate: u32, effort: Effort) -> Result<f64> {
    certify(lab.dir())?;
    let server = Peer::nginx(lab, "server", PORT, &server(lab), MEASURED_CPU)?;
    let script = write(lab, "think.lua", THINK)?;
    pin(poller(lab, &lab.edge, "edge0")?, MEASURED_CPU)?;
    goodput(lab, &script, 1)?;
    let quiet = goodput(lab, &script, effort.seconds)?;
    let beside =
        flood.beside(lab, Pace::PerSecond(rate), || goodput(lab, &script, effort.seconds))?;
    drop(server);
    ensure!(quiet > 1000.0, "only {quiet} requests a second without a flood");
    Ok(beside / quiet * 100.0)
}

/// Good answers a second to clients that pause between their requests.
fn goodput(lab: &Lab, script: &PathBuf, seconds: u64) -> Result<f64> {
    let mut wrk = lab.client.command("taskset");
    wrk.args(["-c", &LOAD_CPU.to_string(), "wrk", "-t1", "-c64", &format!("-d{seconds}s")]);
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
const RATES: [u32; 6] = [250_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000];
const PORT: u16 = 9445;
