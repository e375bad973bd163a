//! Request limits: what a check costs, and how exact it is from both cores.

mod check;
mod exact;

use super::Measures;

/// The measures by number.
pub(super) const MEASURES: Measures = &[(&[1], check::costs), (&[2], exact::admitted)];
