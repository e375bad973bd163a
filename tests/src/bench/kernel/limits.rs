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
        bpf::{Program, Sources},
        flood::Flood,
        need_two_cores,
    },
    random::Random,
};

/// One limit for each source, of its packets, in the product and in an LRU hash, under 2^32 random
/// sources and under 8192. All of them are within it and pass. The cost of a limit is what it adds
/// to the same program without one: of the product, which does a lot besides that its twin does not
/// do, and of the twin. The network stack's part goes with it; that gives up at once on a frame that
/// is not addressed to this host.
pub(in crate::bench) fn spoofed(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let frame = udp_frame(UDP_LENGTH);
    let mut random = Random::new(8);
    let few = (0..8192).map(|_| (random.next() as u32).to_be_bytes()).collect();
    let any = Trial { flood: Flood { frame: frame.clone(), sources: Sources::AnyV4 }, effort };
    let few = Trial { flood: Flood { frame, sources: Sources::V4(few) }, effort };
    let (none, lru) = (Program::without_limit()?, Program::lru_limit(LRU_SOURCES)?);
    let edged = |trial: &Trial, rate: &str| {
        trial.edged(Reason::Pass, |setup, _| {
            let off = ["byte_rate", "udp_rate", "icmp_rate", "connection_rate"];
            let setup = without_lists(setup).set("kernel.packet_rate", rate);
            Ok(off.iter().fold(setup, |setup, key| setup.set(&format!("kernel.{key}"), r#""off""#)))
        })
    };
    let (limit, off) = (r#"{ rate = "1000000/s", burst = 1000000 }"#, r#""off""#);
    let turns = [
        turn("edged without a limit, 2^32 sources", || edged(&any, off)),
        turn("edged, 2^32 sources", || edged(&any, limit)),
        turn("edged without a limit, 8k sources", || edged(&few, off)),
        turn("edged, 8k sources", || edged(&few, limit)),
        turn("twin without a limit", || any.program(&none)),
        turn("LRU hash, 2^32 sources", || any.program(&lru)),
    ];
    let [base, ours, base_few, ours_few, none, lru] =
        interleaved(&turns, "ns a packet", effort, report)?;
    let (ours, ours_few) = (net(&ours, &base), net(&ours_few, &base_few));
    let lru = net(&lru, &none);
    for (rounds, goal, reference) in [
        (ratios(&ours, &lru), 0.25, format!("LRU_HASH in XDP, {LRU_SOURCES} sources, net")),
        (ratios(&ours, &ours_few), 2.0, "edged under 8192 sources, net".to_owned()),
    ] {
        report.add(&Line {
            measure: 4,
            name: "2^32 random sources with a limit each, receiver CPU net of the same program without it".to_owned(),
            rounds,
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference,
        });
    }
    Ok(())
}

/// As many as the product keeps cells for: four in a set.
const LRU_SOURCES: u32 = map::KIND_SETS * 4;
