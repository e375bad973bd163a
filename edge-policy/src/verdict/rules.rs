//! What the engine goes by, and how long verdicts last.

use super::{Distinct, Kind, Scenario};

/// What the engine goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The scenarios; of two that overflow at once the harsher speaks, else the first.
    pub scenarios: Vec<Scenario>,
    /// How many times longer each further verdict lasts.
    pub factor: u64,
    /// How long a verdict lasts at most.
    pub longest_ns: u64,
    /// By how many percent the length of a verdict may be off, either way.
    pub jitter: u64,
    /// After each such time without an offence one earlier verdict is forgotten.
    pub forget_after_ns: u64,
    /// Culprits whose verdicts are remembered at once.
    pub culprits_max: usize,
}

/// Which signals any scenario is about, so that no others are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// By whether their sender proved to be somebody, and by the index of their kind.
    kinds: [[bool; Kind::COUNT]; 2],
    /// Kinds of which no scenario counts more than the paths that differ.
    by_path: [bool; Kind::COUNT],
    /// Whether any scenario goes by where addresses are from.
    places: bool,
}

impl Wanted {
    /// What these scenarios want.
    #[must_use]
    pub fn by(scenarios: &[Scenario]) -> Self {
        let of = |index: usize| scenarios.iter().filter(move |own| own.filter.weights[index] > 0);
        let wants = |index, proven| {
            of(index).any(|own| own.filter.proven.is_none_or(|asked| asked == proven))
        };
        Self {
            kinds: [false, true].map(|proven| std::array::from_fn(|index| wants(index, proven))),
            by_path: std::array::from_fn(|index| {
                of(index).all(|own| own.distinct == Some(Distinct::Path))
            }),
            places: scenarios.iter().any(Scenario::asks_place),
        }
    }

    /// Whether a signal of this kind is wanted, of somebody who proved to be somebody or did not.
    #[must_use]
    pub const fn has(&self, kind: Kind, is_proven: bool) -> bool {
        self.kinds[is_proven as usize][kind.index()]
    }

    /// Whether signals are to tell where they are from.
    #[must_use]
    pub const fn has_places(&self) -> bool {
        self.places
    }

    /// Whether a signal tells nothing new if one of the same kind, sender and path was sent just now.
    #[must_use]
    pub const fn is_by_path(&self, kind: Kind) -> bool {
        self.by_path[kind.index()]
    }
}

impl Rules {
    /// How long the n-th verdict lasts: `factor` times the one before it, up to the longest, and a
    /// little off, so that nobody can tell to the second when to come back.
    pub(super) fn length_ns(&self, first_ns: u64, strikes: u32, random: u64) -> u64 {
        let times = self.factor.max(1).saturating_pow(strikes.saturating_sub(1));
        let length = u128::from(first_ns.saturating_mul(times).min(self.longest_ns));
        let span = length * u128::from(self.jitter) / 100;
        let off = ((span * 2 + 1) * u128::from(random)) >> 64;
        let length = u64::try_from(length + off - span).unwrap_or(u64::MAX);
        length.min(self.longest_ns).max(1)
    }

    /// What is left of so many strikes, the last of which ends or ended then.
    pub(super) fn strikes_left(&self, strikes: u32, until_ns: i128, now_ns: u64) -> u32 {
        let since_ns = (i128::from(now_ns) - until_ns).max(0);
        let forgotten = since_ns / i128::from(self.forget_after_ns.max(1));
        strikes.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}
