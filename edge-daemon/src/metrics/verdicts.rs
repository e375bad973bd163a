//! What is counted of verdicts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_policy::verdict::{Spared, Step};
use prometheus::proto::{Gauge, MetricFamily, MetricType};

use super::{counter, family, gauge, tokens::DenialCounts};

/// What is counted of verdicts.
#[derive(Default)]
pub struct VerdictCounts {
    steps: [AtomicU64; Step::ALL.len()],
    spared: [AtomicU64; SPARED.len()],
    /// Penalties in force at the request plane.
    pub penalties_active: AtomicU64,
    /// Verdicts that were lifted before their time because there was no room for them.
    pub evicted: AtomicU64,
    /// What asked for a person.
    pub alarms: AtomicU64,
    /// How much of what was decided the kernel enforces, in millionths, as of the last look.
    pub enforced_ppm: AtomicU64,
    /// How denials of tokens are kept.
    pub denials: DenialCounts,
    healed: [AtomicU64; HEALED.len()],
}

/// What another hand had changed in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healed {
    /// Bans that were missing, changed or nobody's.
    Ban,
    /// Words of the filter before them.
    Filter,
    /// Links by which the program is attached.
    Link,
    /// Images of the lists.
    List,
    /// Networks in the overlay of the lists.
    Overlay,
    /// The settings that the programs go by.
    Settings,
    /// Ends of entries of the lists.
    End,
}

const HEALED: [(&str, Healed); 7] = [
    ("ban", Healed::Ban),
    ("filter", Healed::Filter),
    ("link", Healed::Link),
    ("list", Healed::List),
    ("overlay", Healed::Overlay),
    ("settings", Healed::Settings),
    ("end", Healed::End),
];

impl VerdictCounts {
    /// Counts a verdict.
    pub fn count(&self, step: Step) {
        self.steps[step as usize].fetch_add(1, Relaxed);
    }

    /// Counts a verdict that a guard softened or narrowed.
    pub fn spare(&self, why: Spared) {
        self.spared[why as usize].fetch_add(1, Relaxed);
    }

    /// Counts what was put right.
    pub fn healed(&self, what: Healed, count: u64) {
        self.healed[what as usize].fetch_add(count, Relaxed);
    }

    pub(super) fn families(&self) -> [MetricFamily; 7] {
        let steps = Step::ALL.map(|(name, step)| {
            counter(&[("step", name)], self.steps[step as usize].load(Relaxed))
        });
        let spared = SPARED
            .map(|why| counter(&[("guard", why.name())], self.spared[why as usize].load(Relaxed)));
        let healed = HEALED.map(|(name, what)| {
            counter(&[("what", name)], self.healed[what as usize].load(Relaxed))
        });
        let mut ratio = Gauge::default();
        ratio.set_value(self.enforced_ppm.load(Relaxed) as f64 / 1e6);
        let mut enforced = gauge(&[], 0);
        enforced.set_gauge(ratio);
        let total = |name, help, metrics| family(name, help, MetricType::COUNTER, metrics);
        [
            total("edged_verdicts_total", "Verdicts by their step.", steps.to_vec()),
            total("edged_spared_total", "Verdicts that a guard softened.", spared.to_vec()),
            total("edged_healed_total", "What another hand had changed.", healed.to_vec()),
            family(
                "edged_enforced_ratio",
                "How much of what was decided the kernel enforces.",
                MetricType::GAUGE,
                [enforced],
            ),
            total("edged_alarms_total", "Alarms.", vec![counter(&[], self.alarms.load(Relaxed))]),
            total(
                "edged_bans_evicted_total",
                "Bans and penalties that there was no room for.",
                vec![counter(&[], self.evicted.load(Relaxed))],
            ),
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
const SPARED: [Spared; 6] =
    [Spared::NeverBan, Spared::Vital, Spared::Shared, Spared::Unproven, Spared::Cap, Spared::Led];
