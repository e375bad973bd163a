//! What a rule has counted, tier by tier.
//!
//! A tier with numbers of its own has a table of its own: what a key has done is written in the terms
//! of one meter, and who loses its place to a new key is decided among those who are measured alike.

use std::sync::Arc;

use super::{Spec, meter::Meter, table::Table};

/// A meter, and the keys that it measures.
#[derive(Clone, Debug)]
pub struct Counted {
    /// How requests are counted.
    pub meter: Meter,
    /// What each key has done.
    pub table: Arc<Table>,
}

/// What a rule has counted of those without a tier that it knows, and of each that it does.
#[derive(Debug)]
pub(super) struct Counts {
    own: Option<Counted>,
    tiers: Vec<(String, Option<Counted>)>,
}

impl Counts {
    /// Counts that begin anew, but for those of the `former` that mean the same.
    pub(super) fn new(spec: &Spec, former: Option<&Self>) -> Self {
        let counted = |meter: Option<Meter>, former: Option<&Counted>| {
            let meter = meter?;
            let kept = former.filter(|former| former.meter.goes_on_as(&meter));
            let table = kept.map(|former| Arc::clone(&former.table));
            Some(Counted {
                meter,
                table: table.unwrap_or_else(|| Table::new(spec.keys_max).into()),
            })
        };
        let tier = |(name, meter): &(String, Option<Meter>)| {
            let former = former.and_then(|former| former.tier(name)?.as_ref());
            (name.clone(), counted(*meter, former))
        };
        Self {
            own: counted(spec.meter, former.and_then(|former| former.own.as_ref())),
            tiers: spec.tiers.iter().map(tier).collect(),
        }
    }

    /// By what a caller of this tier is counted; `None`: he is not.
    pub(super) fn of(&self, tier: Option<&str>) -> Option<&Counted> {
        tier.and_then(|tier| self.tier(tier)).unwrap_or(&self.own).as_ref()
    }

    /// Each, with the name of its tier.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<&str>, &Counted)> {
        let tiers =
            self.tiers.iter().map(|(name, counted)| (Some(name.as_str()), counted.as_ref()));
        let all = std::iter::once((None, self.own.as_ref())).chain(tiers);
        all.filter_map(|(name, counted)| Some((name, counted?)))
    }

    fn tier(&self, name: &str) -> Option<&Option<Counted>> {
        self.tiers.iter().find(|(tier, _)| tier == name).map(|(_, counted)| counted)
    }
}
