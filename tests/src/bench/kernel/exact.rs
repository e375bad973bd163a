//! Measure 5: how exact a limit is, on both CPUs at once and through a spoofed flood.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    UDP_LENGTH,
    receivers::{number_after, without_lists, write},
    rounds::{interleaved, turn},
    udp_frame,
};
use crate::{
    bench::{
        Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report,
        bpf::Sources,
        flood::{Flood, Pace},
        need_two_cores,
    },
    lab::Lab,
    netns::run,
};

/// What of one source is admitted that sends far more than its limit from both CPUs, each of which
/// has a receive queue: the error of the rate.
pub(in crate::bench) fn admitted(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let turns =
        [turn("alone", || rate(false, effort)), turn("in the flood", || rate(true, effort))];
    let [alone, flooded] = interleaved(&turns, "packets a second", effort, report)?;
    for (name, rates) in [("alone", alone), ("beside 2^32 random sources", flooded)] {
        report.add(&Line {
            measure: 5,
            name: format!("admitted rate of one source on both CPUs, {name}, error"),
            rounds: rates.iter().map(|rate| (rate / f64::from(LIMIT) - 1.0).abs()).collect(),
            unit: "share of the limit",
            goal: Goal::AtMost(0.01),
            reference: format!("its limit of {LIMIT} packets a second"),
        });
    }
    Ok(())
}

/// Packets a second that one source gets through, alone or among spoofed ones.
fn rate(is_flooded: bool, effort: Effort) -> Result<f64> {
    let lab = Lab::new()?;
    for (home, interface) in [(&lab.edge, "edge0"), (&lab.net, "edge")] {
        run(home.command("ethtool").args(["-L", interface, "rx", "2", "tx", "2"]))?;
    }
    // The burst outlasts any pause that the scheduler makes the senders take.
    let limit = format!(r#"{{ rate = "{LIMIT}/s", burst = {LIMIT} }}"#);
    let _edged = without_lists(lab.edged()?).set("kernel.packet_rate", &limit).start()?;
    // What the filter passed is seen next at the interface's ingress, before anything can be lost.
    let rules = "table netdev bench {\n\
        counter admitted {\n}\n\
        chain ingress {\n\
        type filter hook ingress device edge0 priority 0;\n\
        ip saddr 192.0.2.77 counter name admitted drop\n}\n}\n";
    run(lab.edge.command("nft").arg("-f").arg(write(&lab, "count.nft", rules)?))?;
    let measure = || {
        // The burst is over by then.
        std::thread::sleep(Duration::from_millis(500));
        let (before, start) = (count(&lab)?, Instant::now());
        std::thread::sleep(Duration::from_secs(effort.seconds.max(2)));
        let admitted = count(&lab)? - before;
        Ok(admitted as f64 / start.elapsed().as_secs_f64())
    };
    let cpus = [LOAD_CPU, MEASURED_CPU];
    let frame = udp_frame(UDP_LENGTH);
    let source = Flood { frame: frame.clone(), sources: Sources::V4(vec![[192, 0, 2, 77]]) };
    let spoofed = Flood { frame, sources: Sources::AnyV4 };
    source.beside_on(&lab, &cpus, Pace::Full, || {
        if is_flooded { spoofed.beside_on(&lab, &cpus, Pace::Full, measure) } else { measure() }
    })
}

fn count(lab: &Lab) -> Result<u64> {
    let mut show = lab.edge.command("nft");
    let shown = run(show.args(["list", "counter", "netdev", "bench", "admitted"]))?;
    number_after(&shown, "packets")
}

const LIMIT: u32 = 20_000;
