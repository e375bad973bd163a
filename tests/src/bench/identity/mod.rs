//! Who is it, and may it: what credentials cost, and what no attacker gets.

mod signed;

pub(super) use signed::victim;

use super::Measures;

/// The measures by number.
pub(super) const MEASURES: Measures = &[(&[7], signed::replays)];
