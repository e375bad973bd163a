//! Measures 1, 2 and 12: what a packet of a listed source costs, and one of an unlisted in IPv6.

use anyhow::Result;
use edge_common::Reason;

use super::{
    BROKEN, NETWORKS, UDP_LENGTH,
    networks::List,
    receivers::{Trial, denying, nft_rules, without_lists},
    rounds::{interleaved, net, ratios, turn},
    udp_frame, udp6_frame,
};
use crate::bench::{
    Effort, Goal, Line, Report,
    bpf::{Action, Lpm, Program},
    flood::Flood,
    need_two_cores, version,
};

/// Drop cost of 100k networks, random listed sources, beside every other way of doing it.
pub(in crate::bench) fn listed(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let list = List::v4(NETWORKS);
    let (addresses, few) = (list.addresses(), list.addresses().first(FILTER_MAX));
    let trial = |list: &List| Trial {
        flood: Flood { frame: udp_frame(UDP_LENGTH), sources: list.inside() },
        effort,
    };
    let (all, singles, some) = (trial(&list), trial(&addresses), trial(&few));
    let bare = Program::bare(Action::Drop)?;
    let lpm = Lpm::new(&list.0, false)?;
    let intervals = nft_rules("flags interval;", &list.joined(", "));
    let hash = nft_rules("", &addresses.joined(", "));
    let turns = [
        turn("edged", || all.edged(Reason::DenyList, |setup, lab| denying(setup, lab, &list))),
        turn("bare XDP_DROP", || all.program(&bare)),
        turn("LPM trie", || all.lpm(&lpm, true)),
        turn("nft interval set", || all.nft("netdev bench", &intervals)),
        turn("iptables ipset hash:net", || all.ipset(&list)),
        turn("nft hash set", || singles.nft("netdev bench", &hash)),
        turn("xdp-filter", || some.xdp_filter(&few)),
    ];
    let [ours, bare, lpm, intervals, ipset, hash, filter] =
        interleaved(&turns, "ns a packet", effort, report)?;
    let mut add = |measure, against: &[f64], goal, reference: String| {
        report.add(&Line {
            measure,
            name: "drop from 65 536 sources in 100k CIDRs, receiver CPU".to_owned(),
            rounds: ratios(&ours, against),
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference,
        });
    };
    let (nft, iptables) = (version("nft"), version("iptables-legacy"));
    add(1, &lpm, 0.333, "LPM trie in XDP, the same list".to_owned());
    add(1, &intervals, 0.2, format!("{nft}, netdev ingress, interval set, the same list"));
    add(1, &ipset, 0.333, format!("{iptables}, raw, {}, hash:net", version("ipset")));
    add(1, &hash, 0.5, format!("{nft}, netdev ingress, hash set of 100k addresses"));
    add(1, &filter, 1.0, format!("{}, its maximum of 10k addresses", version("xdp-filter")));
    add(2, &bare, 2.5, "XDP_DROP, two instructions".to_owned());
    Ok(())
}

/// IPv6, 100k prefixes: listed and unlisted sources beside an LPM trie.
pub(in crate::bench) fn listed_v6(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let list = List::v6(NETWORKS);
    let inside = Trial { flood: Flood { frame: udp6_frame(8), sources: list.inside() }, effort };
    let outside =
        Trial { flood: Flood { frame: udp6_frame(BROKEN), sources: list.outside() }, effort };
    let (lpm, none) = (Lpm::new(&list.0, true)?, Lpm::new(&[], true)?);
    let turns = [
        turn("edged, listed", || {
            inside.edged(Reason::DenyList, |setup, lab| denying(setup, lab, &list))
        }),
        turn("LPM trie, listed", || inside.lpm(&lpm, true)),
        turn("edged, unlisted", || {
            outside.edged(Reason::MalformedPacket, |setup, lab| denying(setup, lab, &list))
        }),
        turn("edged without lists", || {
            outside.edged(Reason::MalformedPacket, |setup, _| Ok(without_lists(setup)))
        }),
        turn("LPM trie, unlisted", || outside.lpm(&lpm, false)),
        turn("its twin without lists", || outside.lpm(&none, false)),
    ];
    let [ours, lpm, unlisted, base, lpm_unlisted, lpm_base] =
        interleaved(&turns, "ns a packet", effort, report)?;
    let mut add = |name: &str, rounds, goal| {
        report.add(&Line {
            measure: 12,
            name: format!("IPv6, 65 536 {name} sources, 100k prefixes, receiver CPU"),
            rounds,
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference: "LPM trie in XDP, the same list".to_owned(),
        });
    };
    let net_ratio = ratios(&net(&unlisted, &base), &net(&lpm_unlisted, &lpm_base));
    add("unlisted (net of the program without lists)", net_ratio, 0.5);
    add("listed", ratios(&ours, &lpm), 0.6);
    Ok(())
}

/// What xdp-filter takes: 10 000 entries at most.
const FILTER_MAX: usize = 10_000;
