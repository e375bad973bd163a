//! What a bench says: one line a figure, for people or as JSON.

use serde_json::json;

/// A bound that a figure is held against.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
    /// No more and no less.
    Exactly(f64),
}

/// One figure.
pub struct Line {
    /// The number of the measure.
    pub measure: u32,
    /// What is compared with what.
    pub name: String,
    /// The figure of each round; their median is the value.
    pub rounds: Vec<f64>,
    /// The unit.
    pub unit: &'static str,
    /// What it should be.
    pub goal: Goal,
    /// What it was measured against.
    pub reference: String,
}

/// The figures of an area.
pub struct Report {
    area: String,
    json: bool,
    measures: usize,
    met: usize,
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
            Self::Exactly(bound) => value == bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("<={bound}"),
            Self::AtLeast(bound) => format!(">={bound}"),
            Self::Exactly(bound) => format!("=={bound}"),
        }
    }
}

impl Report {
    /// A report on an area.
    #[must_use]
    pub fn new(area: &str, json: bool) -> Self {
        Self { area: area.to_owned(), json, measures: 0, met: 0 }
    }

    /// Says what is going on, to people only.
    pub fn note(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Adds a figure and prints it.
    pub fn add(&mut self, line: &Line) {
        let value = rounded(median(&line.rounds));
        let met = line.goal.is_met(value);
        self.measures += 1;
        self.met += usize::from(met);
        if !self.json {
            let word = if met { "met" } else { "not met" };
            let (name, unit, goal) = (&line.name, line.unit, line.goal.text());
            println!(
                "{} {}: {name}: {value} {unit} (goal {goal}: {word}; against {})",
                self.area, line.measure, line.reference
            );
            return;
        }
        let rounds: Vec<f64> = line.rounds.iter().copied().map(rounded).collect();
        let out = json!({
            "area": self.area, "measure": line.measure.to_string(), "name": line.name,
            "value": value, "unit": line.unit, "goal": line.goal.text(), "met": met,
            "rounds": rounds, "reference": line.reference, "load1": load(),
        });
        println!("{out}");
    }

    /// Prints how many goals were met.
    pub fn close(&self) {
        let (area, measures, met) = (&self.area, self.measures, self.met);
        if self.json {
            println!("{}", json!({"area": area, "measures": measures, "met": met}));
        } else {
            println!("{area}: {met} of {measures} goals are met");
        }
    }
}

/// The middle of the values; 0 without any.
#[must_use]
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Three digits after the point: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The load average of the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_median_and_decides() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(Goal::AtMost(0.5).is_met(0.5) && !Goal::AtMost(0.5).is_met(0.501));
        assert!(Goal::AtLeast(2.0).is_met(2.0) && !Goal::AtLeast(2.0).is_met(1.9));
        assert!(Goal::Exactly(0.0).is_met(0.0) && !Goal::Exactly(0.0).is_met(0.001));
    }
}
