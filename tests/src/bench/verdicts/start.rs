//! Measure 3: from the start of the process to the first accepted connection, with a million networks
//! listed.

use std::{collections::BTreeSet, fmt::Write as _, fs, net::Ipv4Addr, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    bench::{Effort, Goal, Line, Report},
    client::reaches,
    lab::{ATTACKER, Lab},
};

pub(super) fn with_a_million(effort: Effort, report: &mut Report) -> Result<()> {
    let networks = if effort.is_quick() { 100_000 } else { 1_000_000 };
    let lab = Lab::new()?;
    let mut list = format!("{ATTACKER}\n");
    for address in scattered(networks - 1) {
        writeln!(list, "{address}")?;
    }
    let file = lab.dir().join("million.txt");
    fs::write(&file, &list)?;
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let setup = lab.edged()?.set("lists.deny_files", &format!("[{file:?}]"));
        let began = Instant::now();
        let edged = setup.start()?;
        rounds.push(began.elapsed().as_secs_f64());
        ensure!(!reaches(&lab, ATTACKER, 443), "it takes connections and does not enforce");
        let listed = edged.metrics()?.sum("edged_list_networks", &[]);
        ensure!(listed >= f64::from(networks), "{listed} networks are in force");
    }
    report.add(&Line {
        measure: 3,
        name: "start to ready, with all listed networks enforced".into(),
        rounds,
        unit: "s",
        goal: Goal::AtMost(1.5),
        reference: format!("{} networks from a file, read and compiled", list.lines().count()),
    });
    Ok(())
}

/// So many addresses over the unicast space, but for the lab's own and private ones.
fn scattered(count: u32) -> BTreeSet<Ipv4Addr> {
    let spread = (1_u32..).map(|n| Ipv4Addr::from(n.wrapping_mul(2_654_435_761)));
    let is_fit = |address: &Ipv4Addr| {
        let first = address.octets()[0];
        (1..=191).contains(&first) && ![10, 100, 127, 169, 172].contains(&first)
    };
    spread.filter(is_fit).take(count as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ() {
        assert_eq!(scattered(10_000).len(), 10_000);
    }
}
