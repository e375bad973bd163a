//! What is counted of policies: what each set said.

use std::sync::atomic::Ordering::Relaxed;

use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family};
use crate::request::Plan;

/// What the sets in force said so far.
#[must_use]
pub fn family_of(plan: &Plan) -> MetricFamily {
    let sets = plan.rules.sets.iter().zip(&plan.tallies);
    let metrics = sets.flat_map(|(set, tally)| {
        let said = [
            ("permit", &tally.permit),
            ("forbid", &tally.forbid),
            ("no_permit", &tally.no_permit),
            ("failed", &tally.failed),
        ];
        let mode = if set.shadow { "shadow" } else { "enforce" };
        said.map(|(ruling, count)| {
            let labels = [("set", set.name.as_str()), ("mode", mode), ("ruling", ruling)];
            counter(&labels, count.load(Relaxed))
        })
    });
    let help = "What each set of policies said, since its policies were loaded.";
    family("edged_policy_rulings_total", help, MetricType::COUNTER, metrics)
}
