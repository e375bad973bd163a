//! Measure 1: from the sixth wrong key to the kernel's table, and to the first packet that is dropped,
//! while others' mistakes keep the writer busy.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::scene::{Ticker, address, first_drop_ms, open_behind_proxy, p99, under_signals};
use crate::{
    bench::{Effort, Goal, Line, Report},
    client::{HOST, until},
    daemon::Edged,
    lab::Lab,
    origin::Origin,
    talk::Dial,
};

pub(super) fn of_a_ban(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = open_behind_proxy(&lab)?.start()?;
    let count = effort.rounds * 40;
    let ((to_map, to_drop), rate) =
        under_signals(&lab, &edged, (4, SIGNALS), || attackers(&lab, &edged, count))?;
    let metrics = edged.metrics()?;
    let [lost, evicted] =
        ["signals_lost", "watched_evicted"].map(|n| metrics.value(&format!("edged_{n}_total")));
    let reference = format!(
        "{count} bans under {rate:.0} signals/s over TLS, each of another source: {lost} lost, {evicted} \
         buckets evicted"
    );
    let line = |name: &str, rounds, unit, goal| Line {
        measure: 1,
        name: name.to_owned(),
        rounds,
        unit,
        goal,
        reference: reference.clone(),
    };
    let most = Goal::AtMost;
    report.add(&line("bad event to kernel map, p99", vec![p99(to_map)?], "ms", most(1.0)));
    report.add(&line("ban to next packet dropped, p99", vec![p99(to_drop)?], "ms", most(5.0)));
    let goal = Goal::AtLeast(f64::from(SIGNALS));
    report.add(&line("signals a second meanwhile", vec![rate], "signals/s", goal));
    Ok(())
}

/// One address after the other guesses keys until it is banned; milliseconds from its last guess to the
/// kernel's table, and from there to the first dropped packet.
fn attackers(lab: &Lab, edged: &Edged<'_>, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let dial = Dial::new(&edged.ca, HOST)?;
    let mut events = BufReader::new(File::open(lab.dir().join("events.jsonl"))?);
    let (mut to_map, mut to_drop) = (Vec::new(), Vec::new());
    for n in 0..count {
        let address = address(lab, n)?;
        let mut talk = dial.connect(lab, &address)?;
        let _ticker = Ticker::start(lab, &address)?;
        for _ in 0..6 {
            // The last answer may come too late to come at all.
            let _ = talk.get(HOST, "/", &["X-API-Key: edged_x"]);
        }
        let event = ban_of(&mut events, &address)?;
        to_map.push(event["latency_us"].as_f64().context("latency")? / 1000.0);
        to_drop.push(first_drop_ms(edged, &address)?);
    }
    Ok((to_map, to_drop))
}

/// The next ban of this client, as the events tell it: only new lines are read.
fn ban_of(events: &mut BufReader<File>, client: &str) -> Result<Value> {
    let (mut line, mut found) = (String::new(), None);
    until(&format!("{client} is banned"), Duration::from_secs(10), || {
        while events.read_line(&mut line)? > 0 {
            if !line.ends_with('\n') {
                break;
            }
            if line.contains("\"event\":\"ban\"") && line.contains(client) {
                found = Some(serde_json::from_str(&line)?);
            }
            line.clear();
        }
        Ok(found.is_some())
    })?;
    found.context("found above")
}

/// What the writer has to do beside.
const SIGNALS: u32 = 50_000;
