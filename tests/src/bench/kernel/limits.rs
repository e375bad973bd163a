//! Measure 4: what the limits per source cost under spoofed sources.

use anyhow::Result;
use edge_common::{Reason, map};

use super::{
    UDP_LENGTH,
    receivers::{Trial, without_lists},
    rounds::{interleaved, net, ratios, turn},
    udp_frame,
};
use crate::{
    bench::{
        Effort, Goal, Line, Report,
        bpf::{Action, Program, Sources},
        flood::Flood,
        need_two_cores,
    },
    random::Random,
};

/// The whole program with its packet rate on, and an LRU hash, under 2^32 random sources and under
/// 8192. All of them are within their limits and pass, so what a bare `XDP_PASS` costs, which is
/// the network stack's part, is taken off; the stack gives up at once on a frame that is not
/// addressed to this host.
pub(in crate::bench) fn spoofed(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let frame = udp_frame(UDP_LENGTH);
    let mut random = Random::new(8);
    let few = (0..8192).map(|_| (random.next() as u32).to_be_bytes()).collect();
    let any = Trial { flood: Flood { frame: frame.clone(), sources: Sources::AnyV4 }, effort };
    let few = Trial { flood: Flood { frame, sources: Sources::V4(few) }, effort };
    let (pass, lru) = (Program::bare(Action::Pass)?, Program::lru_limit(LRU_SOURCES)?);
    let edged = |trial: &Trial| {
        trial.edged(Reason::Pass, |setup, _| {
            Ok(without_lists(setup)
                .set("kernel.packet_rate", r#"{ rate = "1000000/s", burst = 1000000 }"#))
        })
    };
    let turns = [
        turn("bare XDP_PASS", || any.program(&pass)),
        turn("edged, 2^32 sources", || edged(&any)),
        turn("edged, 8k sources", || edged(&few)),
        turn("LRU hash, 2^32 sources", || any.program(&lru)),
        turn("LRU hash, 8k sources", || few.program(&lru)),
    ];
    let [base, ours, ours_few, lru, _] = interleaved(&turns, "ns a packet", effort, report)?;
    let [ours, ours_few, lru] = [ours, ours_few, lru].map(|gross| net(&gross, &base));
    for (rounds, goal, reference) in [
        (ratios(&ours, &lru), 0.25, format!("LRU_HASH in XDP, {LRU_SOURCES} sources, net")),
        (ratios(&ours, &ours_few), 2.0, "edged under 8192 sources, net".to_owned()),
    ] {
        report.add(&Line {
            measure: 4,
            name: "2^32 random sources with a limit each, receiver CPU net of XDP_PASS".to_owned(),
            rounds,
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference,
        });
    }
    Ok(())
}

/// As many as the product keeps cells for: four in a set.
const LRU_SOURCES: u32 = map::CLIENT_SETS * 4;
