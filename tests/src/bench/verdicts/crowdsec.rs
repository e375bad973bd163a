//! Measure 2: a hundred thousand decisions of Debian's `CrowdSec`, from its answer into the kernel.

use std::{fmt::Write as _, fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::super::version;
use crate::{
    bench::{Effort, Goal, Line, Report},
    client::{reaches, until},
    crowdsec::CrowdSec,
    lab::{ATTACKER, Lab},
};

pub(super) fn decisions(effort: Effort, report: &mut Report) -> Result<()> {
    let count: u32 = if effort.is_quick() { 10_000 } else { 100_000 };
    let lab = Lab::new()?;
    let crowdsec = CrowdSec::start(&lab.edge, lab.dir())?;
    let mut bulk = format!("duration,reason,scope,type,value\n24h,bulk,Ip,ban,{ATTACKER}\n");
    for n in 1..count {
        writeln!(bulk, "24h,bulk,Ip,ban,{}", Ipv4Addr::from(0x0b00_0000 + n * 2_003))?;
    }
    let file = lab.dir().join("bulk.csv");
    fs::write(&file, bulk)?;
    crowdsec.cscli(&["decisions", "import", "-i", &file.display().to_string()])?;
    let (mut taken, mut asked) = (Vec::new(), Vec::new());
    let section = crowdsec.section("");
    for _ in 0..effort.rounds {
        let _ = fs::remove_dir_all(lab.dir().join("state"));
        let _ = fs::remove_file(lab.dir().join("edged.log"));
        let edged = lab.edged()?.set("log.level", "\"debug\"").append(&section)?.start()?;
        let mut told = None;
        until("all are in force", Duration::from_secs(60), || {
            told = told_of(&edged.log(), count);
            Ok(told.is_some())
        })?;
        let [answer, took] = told.context("found above")?;
        taken.push(took);
        asked.push(answer + took);
        ensure!(!reaches(&lab, ATTACKER, 443), "they are not in force");
    }
    for (name, rounds) in [
        ("from its answer into the kernel", taken),
        ("from the question into the kernel, its own time included", asked),
    ] {
        report.add(&Line {
            measure: 2,
            name: format!("{count} decisions, {name}"),
            rounds,
            unit: "s",
            goal: Goal::AtMost(2.0),
            reference: format!("a local API of {}, SQLite", crowdsec_version()),
        });
    }
    Ok(())
}

fn crowdsec_version() -> String {
    let text = version("cscli");
    if text.contains("crowdsec") { text } else { "Debian's crowdsec".to_owned() }
}

/// What the daemon says of the decisions: seconds until their answer was there, and from there on.
fn told_of(log: &str, count: u32) -> Option<[f64; 2]> {
    let wanted = format!("networks={count} ");
    let line = log.lines().find(|line| line.contains("in force") && line.contains(&wanted))?;
    let seconds = |key: &str| -> Option<f64> {
        let text = line.split_once(key)?.1.split_whitespace().next()?;
        let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match &text[number.len()..] {
            "s" => 1.0,
            "ms" => 1e-3,
            _ => 1e-6,
        };
        Some(number.parse::<f64>().ok()? * unit)
    };
    Some([seconds("answered=")?, seconds("took=")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_the_log() {
        let log = "x decisions are in force networks=10 changes=10 whole=true answered=1.5s took=250.5ms\n";
        assert_eq!(told_of(log, 10), Some([1.5, 0.2505]));
        assert_eq!(told_of(log, 1), None);
    }
}
