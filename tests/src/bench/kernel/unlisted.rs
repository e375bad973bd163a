//! Measure 3: what the lists cost a source that is not on them.

use anyhow::Result;
use edge_common::Reason;

use super::{
    BROKEN, NETWORKS,
    networks::List,
    receivers::{Trial, denying, without_lists},
    rounds::{interleaved, net, ratios, turn},
    udp_frame,
};
use crate::bench::{
    Effort, Goal, Line, Report,
    bpf::{Lpm, Sources},
    flood::Flood,
    need_two_cores,
};

/// Random sources out of all of IPv4, of which a list names one in twenty, net of the same program
/// without lists: 1k, 100k and 1M networks, beside LPM tries of as many.
pub(in crate::bench) fn lookups(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lists = [1_000, NETWORKS, 1_000_000].map(List::v4);
    let [few, some, many] = &lists;
    let trial =
        Trial { flood: Flood { frame: udp_frame(BROKEN), sources: Sources::AnyV4 }, effort };
    let lpm_none = Lpm::new(&[], false)?;
    let (lpm_some, lpm_many) = (Lpm::new(&some.0, false)?, Lpm::new(&many.0, false)?);
    let edged = |list| {
        trial.edged(Reason::MalformedPacket, |setup, lab| denying(without_lists(setup), lab, list))
    };
    let turns = [
        turn("edged without lists", || {
            trial.edged(Reason::MalformedPacket, |setup, _| Ok(without_lists(setup)))
        }),
        turn("1k", || edged(few)),
        turn("100k", || edged(some)),
        turn("1M", || edged(many)),
        turn("twin without lists", || trial.lpm(&lpm_none, false)),
        turn("LPM 100k", || trial.lpm(&lpm_some, false)),
        turn("LPM 1M", || trial.lpm(&lpm_many, false)),
    ];
    let [base, few, some, many, lpm_base, lpm_some, lpm_many] =
        interleaved(&turns, "ns a packet", effort, report)?;
    let [few, some, many] = [few, some, many].map(|gross| net(&gross, &base));
    let [lpm_some, lpm_many] = [lpm_some, lpm_many].map(|gross| net(&gross, &lpm_base));
    for (name, rounds, goal, reference) in [
        ("100k", ratios(&some, &lpm_some), 0.143, "LPM trie in XDP, the same list, net"),
        ("1M", ratios(&many, &lpm_many), 0.1, "LPM trie in XDP, the same list, net"),
        ("1M", ratios(&many, &few), 1.3, "edged with 1k CIDRs, net"),
    ] {
        report.add(&Line {
            measure: 3,
            name: format!(
                "{name} CIDRs, 2^32 random sources, receiver CPU net of the program without lists"
            ),
            rounds,
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference: reference.to_owned(),
        });
    }
    Ok(())
}
