//! Measure 4: a ban on one edge, and the first packet that another one drops, through a real Redis
//! while both edges are busy.

use std::time::Duration;

use anyhow::Result;

use super::scene::{Ticker, address, first_drop_ms, open_behind_proxy, p99, under_signals};
use crate::{
    bench::{Effort, Goal, Line, Report},
    client::until,
    daemon::Edged,
    fleet::Hub,
    lab::Lab,
};

pub(super) fn from_edge_to_edge(effort: Effort, report: &mut Report) -> Result<()> {
    let (one, two) = (Lab::new()?, Lab::new()?);
    let hub = Hub::start(&[&one, &two])?;
    let a = open_behind_proxy(&one)?.append(&hub.section(0, &one, "")?)?.start()?;
    let b = open_behind_proxy(&two)?.append(&hub.section(1, &two, "")?)?.start()?;
    for edged in [&a, &b] {
        until("it is connected", Duration::from_secs(15), || {
            Ok(edged.metrics()?.value("edged_fleet_connected") == 1.0)
        })?;
    }
    let count = effort.rounds * 40;
    let ((delays, other), rate) = under_signals(&one, &a, (1, SIGNALS), || {
        under_signals(&two, &b, (1, SIGNALS), || bans(&two, (&a, &b), count))
    })?;
    report.add(&Line {
        measure: 4,
        name: "ban on one edge to the first packet dropped by another, p99".to_owned(),
        rounds: vec![p99(delays)?],
        unit: "ms",
        goal: Goal::AtMost(250.0),
        reference: format!("{count} bans through Redis, under {rate:.0} and {other:.0} signals/s"),
    });
    Ok(())
}

/// Bans one address after the other on one edge; milliseconds until the other drops it. Both are on
/// this host, so their clocks are one.
fn bans(lab: &Lab, (a, b): (&Edged<'_>, &Edged<'_>), count: usize) -> Result<Vec<f64>> {
    let mut delays = Vec::new();
    for n in 0..count {
        let address = address(lab, n)?;
        let _ticker = Ticker::start(lab, &address)?;
        a.tell(&format!("ban add {address} --ttl 1h"))?;
        delays.push(first_drop_ms(b, &address)?);
    }
    Ok(delays)
}

/// What the writer of each edge has to do beside.
const SIGNALS: u32 = 5_000;
