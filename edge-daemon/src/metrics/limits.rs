//! What request limits have counted.

use std::sync::atomic::Ordering::Relaxed;

use edge_policy::limit::{Rule, Rules};
use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family};

/// A metric's name, its help, and how a rule counts it.
type Count = (&'static str, &'static str, fn(&Rule) -> u64);

pub(super) fn families(rules: &[&Rules]) -> Vec<MetricFamily> {
    let counts: [Count; 4] = [
        ("edged_limit_refused_total", "Requests that a limit refused.", |rule| {
            rule.state().refused.load(Relaxed)
        }),
        (
            "edged_limit_would_refuse_total",
            "Requests that a limit in the shadow would have refused.",
            |rule| rule.state().would_refuse.load(Relaxed),
        ),
        (
            "edged_limit_evicted_total",
            "Keys of a limit that lost their place before they were idle.",
            |rule| rule.losses().0,
        ),
        (
            "edged_limit_crowded_total",
            "Requests that met the place that the newcomers of a full set share, admitted or refused.",
            |rule| rule.losses().1,
        ),
    ];
    let of = |(name, help, count): Count| {
        let all = rules.iter().flat_map(|rules| rules.iter());
        let metrics = all.map(|rule| counter(&[("limit", &rule.spec.name)], count(rule)));
        family(name, help, MetricType::COUNTER, metrics)
    };
    counts.map(of).into()
}
