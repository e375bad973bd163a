//! What is counted of verdicts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_policy::verdict::{Spared, Step};
use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge};

/// What is counted of verdicts.
#[derive(Default)]
pub struct VerdictCounts {
    steps: [AtomicU64; Step::ALL.len()],
    spared: [AtomicU64; SPARED.len()],
    /// Penalties in force at the request plane.
    pub penalties_active: AtomicU64,
    /// What asked for a person.
    pub alarms: AtomicU64,
}

impl VerdictCounts {
    /// Counts a verdict.
    pub fn count(&self, step: Step) {
        self.steps[step as usize].fetch_add(1, Relaxed);
    }

    /// Counts a verdict that a guard softened or narrowed.
    pub fn spare(&self, why: Spared) {
        self.spared[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn families(&self) -> [MetricFamily; 4] {
        let steps = Step::ALL.map(|(name, step)| {
            counter(&[("step", name)], self.steps[step as usize].load(Relaxed))
        });
        let spared = SPARED
            .map(|why| counter(&[("guard", why.name())], self.spared[why as usize].load(Relaxed)));
        let total = |name, help, metrics| family(name, help, MetricType::COUNTER, metrics);
        [
            total("edged_verdicts_total", "Verdicts by their step.", steps.to_vec()),
            total("edged_spared_total", "Verdicts that a guard softened.", spared.to_vec()),
            total("edged_alarms_total", "Alarms.", vec![counter(&[], self.alarms.load(Relaxed))]),
            family(
                "edged_penalties_active",
                "Penalties in force at the request plane.",
                MetricType::GAUGE,
                [gauge(&[], self.penalties_active.load(Relaxed))],
            ),
        ]
    }
}

/// Every guard, in the order of its number.
const SPARED: [Spared; 5] =
    [Spared::NeverBan, Spared::Vital, Spared::Shared, Spared::Unproven, Spared::Cap];
