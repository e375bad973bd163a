//! Measure 9: damaged and nested frames without number, beside the model, on the wire, and on
//! xdp-filter.

use std::{net::IpAddr, time::Instant};

use anyhow::Result;
use edge_common::Reason;

use super::receivers::XdpFilter;
use crate::{
    bench::{Effort, Goal, Line, Report, version},
    corpus::{Corpus, refused},
    delivery::{Delivered, Delivery},
    differential::Guard,
    lab::Lab,
    model::{standing, world},
};

/// The program and the model on the same frames; then other frames on the wire, once without a
/// filter, once behind the product, once behind xdp-filter.
pub(in crate::bench) fn differential(effort: Effort, report: &mut Report) -> Result<()> {
    let frames = if effort.is_quick() { 100_000 } else { 10_000_000 };
    // Every run has frames of its own; a failure names the seed.
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let start = Instant::now();
    Guard::new("bench")?.compare(Corpus { seed }, 0..frames)?;
    let seconds = start.elapsed().as_secs_f64();
    report.note(&format!("seed {seed}: {frames} frames judged alike in {seconds:.0} s"));
    report.add(&Line {
        measure: 9,
        name: "fuzzed frames that the program and the model judge alike, none otherwise".to_owned(),
        rounds: vec![frames as f64],
        unit: "frames",
        goal: Goal::AtLeast(10e6),
        reference: format!("model read off the RFCs, seed {seed}"),
    });
    delivered(frames / 10, Corpus { seed: seed + 1 }, report)
}

/// Sends frames at each filter and counts the packets that sockets receive.
fn delivered(frames: u64, corpus: Corpus, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let delivery = Delivery::new(&lab, MTU)?;
    let addresses = refused(&world());
    // xdp-filter knows no networks: what it was not told of is not held against it.
    let is_refused = |source: IpAddr| addresses.contains(&source);
    let is_ours =
        |source| matches!(standing(&world(), source), Some(Reason::DenyList | Reason::Ban));
    let open = delivery.send(corpus, 0..frames)?;
    let theirs = {
        let all: Vec<_> = addresses.iter().copied().collect();
        let _filter = XdpFilter::load(&lab, &all)?;
        delivery.send(corpus, 0..frames)?
    };
    let mut guard = lab.edge.enter(|| Guard::new("wire"))?;
    let _upkeep = lab.edge.enter(|| guard.attach("edge0"))?;
    let ours = delivery.send(corpus, 0..frames)?;
    let others = |delivered: &Delivered| delivered.from(|source| !is_ours(source));
    report.note(&format!(
        "{} frames on the wire; packets that reached a socket, from refused and other sources: \
         unfiltered {} and {}, edged {} and {}, xdp-filter {} and {}",
        ours.sent,
        open.from(is_refused),
        others(&open),
        ours.from(is_ours),
        others(&ours),
        theirs.from(is_refused),
        others(&theirs),
    ));
    let mut add = |name: &str, value: u64, goal, reference: String| {
        report.add(&Line {
            measure: 9,
            name: name.to_owned(),
            rounds: vec![value as f64],
            unit: "packets",
            goal,
            reference,
        });
    };
    let sent = format!("{} frames on the wire, sockets for every protocol", ours.sent);
    let leaks = "packets from refused sources that reach a socket";
    add(leaks, ours.from(is_ours), Goal::Exactly(0.0), sent.clone());
    add("packets from others that do", others(&ours), Goal::AtLeast(frames as f64 / 20.0), sent);
    let name = format!("{leaks}, {}", version("xdp-filter"));
    add(&name, theirs.from(is_refused), Goal::AtLeast(0.0), "for the table only".to_owned());
    Ok(())
}

/// What xdp-filter's program, which takes no frames in several buffers, leaves an interface.
const MTU: u16 = 3000;
