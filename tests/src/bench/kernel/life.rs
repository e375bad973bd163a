//! Measures 8 and 11: what outlives crashes, restarts, upgrades and swaps, and how exact the count
//! of open connections stays.

use anyhow::Result;

use crate::{
    bench::{Effort, Goal, Line, Report},
    churn::churn,
    daemon::Edged,
    lab::Lab,
    siege::siege,
};

/// A hundred disturbances of each kind under a flood of sources that may not pass.
pub(in crate::bench) fn besieged(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = unlimited(&lab)?;
    let rounds = if effort.is_quick() { 2 } else { 100 };
    let siege = siege(&lab, &mut edged, rounds)?;
    report.note(&format!("{rounds} of each: {siege:?}"));
    for (name, value, unit, goal) in [
        ("packets that reached a socket", siege.leaked as f64, "packets", Goal::Exactly(0.0)),
        ("bans lost", f64::from(siege.bans_lost), "bans", Goal::Exactly(0.0)),
        ("a ban's end, off by", siege.expired_off.as_secs_f64(), "s", Goal::AtMost(0.5)),
    ] {
        report.add(&Line {
            measure: 8,
            name: format!(
                "kill -9, restart, upgrade and list swap, {rounds} each, flooded: {name}"
            ),
            rounds: vec![value],
            unit,
            goal,
            reference: format!("{} datagrams of denied sources", siege.sent),
        });
    }
    Ok(())
}

/// A million connections that end in every way, through a crash and a restart.
pub(in crate::bench) fn counted(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = unlimited(&lab)?;
    let connections = if effort.is_quick() { 10_000 } else { 1_000_000 };
    let (drift, corrected) = churn(&lab, &mut edged, connections, |tenth, edged| {
        match tenth {
            3 => edged.kill9()?,
            6 => drop(edged.terminate()?),
            _ => return Ok(()),
        }
        edged.start_again()
    })?;
    // A count that the censuses made would not drift either.
    let corrections = (connections / CORRECTED_ONE_IN) as f64;
    for (name, value, goal) in [
        ("drift", drift as f64, Goal::Exactly(0.0)),
        ("set right by censuses on the way", corrected as f64, Goal::AtMost(corrections)),
    ] {
        report.add(&Line {
            measure: 11,
            name: format!("open connections after {connections} opens and closes: {name}"),
            rounds: vec![value],
            unit: "connections",
            goal,
            reference: "the sockets themselves".to_owned(),
        });
    }
    Ok(())
}

/// A census reads while connections come and go, and may rarely set one right that needs nothing.
const CORRECTED_ONE_IN: u64 = 5_000;

/// The product without what would cut the load short.
fn unlimited(lab: &Lab) -> Result<Edged<'_>> {
    lab.edged()?
        .set("kernel.packet_rate", r#""off""#)
        .set("kernel.connection_rate", r#""off""#)
        .set("kernel.open_connections_max", "0")
        .start()
}
