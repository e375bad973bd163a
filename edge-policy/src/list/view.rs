//! What is listed now, for whoever judges by it without the kernel.

use std::{net::IpAddr, sync::Arc};

use edge_common::list::Class;

use super::{
    Span,
    table::{Changes, State, Table},
};

/// What is listed: a table, and what has changed since. A copy costs no more than the changes.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub(super) table: Arc<Table>,
    /// Changes that the image in the making has.
    pub(super) folding: Option<Arc<Changes>>,
    /// Changes that no image has.
    pub(super) changes: Changes,
}

impl View {
    /// Whether an address is denied at a time: an entry that denies it has not ended, and none that
    /// allows or spares it has.
    #[must_use]
    pub fn denies(&self, address: IpAddr, now: u64) -> bool {
        self.holds(Class::Deny, address, now) && !self.allows(address, now)
    }

    /// Whether an address is allowed or spared at a time: no list, ban or limit is for it.
    #[must_use]
    pub fn allows(&self, address: IpAddr, now: u64) -> bool {
        self.holds(Class::Allow, address, now) || self.holds(Class::Spare, address, now)
    }

    fn holds(&self, class: Class, address: IpAddr, now: u64) -> bool {
        let best = self.best(Span::of(address.into()), class);
        best.is_some_and(|(_, state)| now < state.until)
    }

    /// The entry that outlasts all others of its class that cover a network; of those that end
    /// together, the longest.
    pub(super) fn best(&self, span: Span, class: Class) -> Option<(Span, State)> {
        let covers = span.covers().filter_map(|cover| Some((cover, self.state(cover, class)?)));
        covers
            .filter(|(_, state)| state.until > 0)
            .max_by_key(|(cover, state)| (state.until, cover.bits))
    }

    pub(super) fn state(&self, span: Span, class: Class) -> Option<State> {
        let key = (span, class);
        let changed = self.changes.get(&key).copied();
        let folding = || self.folding.as_ref()?.get(&key).copied();
        changed.or_else(folding).or_else(|| self.table.get(span, class))
    }
}
