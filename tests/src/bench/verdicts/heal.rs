//! Measure 7: how long what another hand took out of the kernel's table is missing.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use edge_common::Source;

use super::scene::{open, p99};
use crate::{
    bench::{Effort, Goal, Line, Report},
    client::until,
    lab::{ATTACKER, Lab},
    tamper::{bpftool, pinned},
};

/// A ban is deleted behind the daemon's back, again and again, at times that the daemon's own looks do
/// not know of.
pub(super) fn of_a_ban(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let edged = open(&lab)?.start()?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1d"))?;
    let table = pinned(Path::new(&lab.pin_dir()), "BANS")?;
    let table = table.to_string_lossy();
    let source = Source::from(ATTACKER.parse::<std::net::IpAddr>()?);
    let mut missing_ms = Vec::new();
    for n in 0..effort.rounds * 10 {
        std::thread::sleep(Duration::from_millis(37 * (n as u64 % 17)));
        bpftool(&["map", "delete", "pinned", &table], source)?;
        let deleted = Instant::now();
        until("the ban is back", Duration::from_secs(10), || {
            Ok(bpftool(&["map", "lookup", "pinned", &table], source).is_ok())
        })?;
        missing_ms.push(deleted.elapsed().as_secs_f64() * 1000.0);
    }
    let reference = format!("{} deletions by bpftool", missing_ms.len());
    report.add(&Line {
        measure: 7,
        name: "a ban that another hand deleted is back, p99".to_owned(),
        rounds: vec![p99(missing_ms)?],
        unit: "ms",
        goal: Goal::AtMost(2000.0),
        reference,
    });
    Ok(())
}
