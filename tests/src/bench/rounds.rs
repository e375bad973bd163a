//! Measurements that are taken in turns, so that what disturbs one disturbs all.

use anyhow::{Context, Result};

use super::{Effort, Report, report::median};

/// One of the measurements that take turns.
pub(in crate::bench) struct Turn<'a> {
    name: &'a str,
    measure: Box<dyn Fn() -> Result<f64> + 'a>,
}

/// A measurement under a name.
pub(in crate::bench) fn turn<'a>(
    name: &'a str,
    measure: impl Fn() -> Result<f64> + 'a,
) -> Turn<'a> {
    Turn { name, measure: Box::new(measure) }
}

/// Takes all in turns, so many rounds; what each gave in each round.
pub(in crate::bench) fn interleaved<const N: usize>(
    turns: &[Turn<'_>; N],
    unit: &str,
    effort: Effort,
    report: &Report,
) -> Result<[Vec<f64>; N]> {
    let mut all = [const { Vec::new() }; N];
    for round in 1..=effort.rounds {
        for (turn, values) in turns.iter().zip(&mut all) {
            values.push((turn.measure)().context(turn.name.to_owned())?);
        }
        let values = turns.iter().zip(&all).map(|(turn, values)| (turn.name, values[round - 1]));
        report.note(&format!("round {round}: {}", line(values, unit)));
    }
    let medians = turns.iter().zip(&all).map(|(turn, values)| (turn.name, median(values)));
    report.note(&format!("medians: {}", line(medians, unit)));
    Ok(all)
}

/// Ours over theirs, round by round.
pub(in crate::bench) fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// What is left without the base, round by round.
pub(in crate::bench) fn net(gross: &[f64], base: &[f64]) -> Vec<f64> {
    gross.iter().zip(base).map(|(gross, base)| gross - base).collect()
}

fn line<'a>(values: impl Iterator<Item = (&'a str, f64)>, unit: &str) -> String {
    let each: Vec<_> = values
        .map(|(name, value)| match value {
            1000.0.. => format!("{name} {value:.0}"),
            _ => format!("{name} {value:.2}"),
        })
        .collect();
    format!("{} {unit}", each.join(", "))
}
