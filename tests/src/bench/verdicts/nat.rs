//! Measure 5: two hundred good clients and one that guesses, all at one address.

use anyhow::{Result, ensure};

use crate::{
    bench::{Effort, Goal, Line, Report},
    lab::Lab,
    nat::Nat,
    origin::Origin,
};

pub(super) fn neighbours(effort: Effort, report: &mut Report) -> Result<()> {
    let good = if effort.is_quick() { 20 } else { 200 };
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    // As shipped: what so many ask together is more than one client may.
    let edged = lab.edged()?.with_shipped_limits().start()?;
    let nat = Nat::new(&lab, &edged, good)?;
    let (mut rounds, mut refused) = (Vec::new(), 0);
    for _ in 0..effort.rounds {
        let mut lost = 0;
        for n in 0..good {
            lost += u32::from(nat.good(n).ok() != Some(200));
            refused += u32::from(nat.guess(n).ok() == Some(403));
        }
        rounds.push(f64::from(lost));
    }
    ensure!(refused > 0, "the attacker was never refused");
    ensure!(edged.bans()?.iter().all(|ban| ban["step"] == "403"), "somebody was banned");
    report.add(&Line {
        measure: 5,
        name: format!("good requests lost, of {good} clients and 1 attacker at one address"),
        rounds,
        unit: "requests",
        goal: Goal::Exactly(0.0),
        reference: format!("{refused} guesses of the attacker were refused meanwhile"),
    });
    Ok(())
}
