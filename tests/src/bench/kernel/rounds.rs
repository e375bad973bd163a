//! Measurements that are taken in turns, so that what disturbs one disturbs all.

use anyhow::{Context, Result};

use crate::bench::{Effort, Report, report::median};

/// One of the measurements that take turns.
pub(super) struct Turn<'a> {
    name: &'static str,
    measure: Box<dyn Fn() -> Result<f64> + 'a>,
}

/// A measurement under a name.
pub(super) fn turn<'a>(name: &'static str, measure: impl Fn() -> Result<f64> + 'a) -> Turn<'a> {
    Turn { name, measure: Box::new(measure) }
}

/// Takes all in turns, so many rounds; what each gave in each round.
pub(super) fn interleaved<const N: usize>(
    turns: &[Turn<'_>; N],
    unit: &str,
    effort: Effort,
    report: &Report,
) -> Result<[Vec<f64>; N]> {
    let mut all = [const { Vec::new() }; N];
    for round in 1..=effort.rounds {
        for (turn, values) in turns.iter().zip(&mut all) {
            values.push((turn.measure)().context(turn.name)?);
        }
        let values = turns.iter().zip(&all).map(|(turn, values)| (turn.name, values[round - 1]));
        report.note(&format!("round {round}: {}", line(values, unit)));
    }
    let medians = turns.iter().zip(&all).map(|(turn, values)| (turn.name, median(values)));
    report.note(&format!("medians: {}", line(medians, unit)));
    Ok(all)
}

/// Ours over theirs, round by round.
pub(super) fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// What is left without the base, round by round.
pub(super) fn net(gross: &[f64], base: &[f64]) -> Vec<f64> {
    gross.iter().zip(base).map(|(gross, base)| gross - base).collect()
}

fn line<'a>(values: impl Iterator<Item = (&'a str, f64)>, unit: &str) -> String {
    let each: Vec<_> = values.map(|(name, value)| format!("{name} {value:.0}")).collect();
    format!("{} {unit}", each.join(", "))
}
