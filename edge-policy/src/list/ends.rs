//! The ends that the kernel is to have of each entry, for whoever compares.

use std::collections::{BTreeMap, HashMap};

use edge_common::list::Class;
use ipnet::IpNet;

use super::{Span, View};

/// The ends of all entries, as they were at one moment. A copy costs no more than the changes.
#[derive(Debug)]
pub struct Ends {
    view: View,
    /// Of the numbers of entries that have changed since the table.
    changed: HashMap<u32, (Class, Span, u64)>,
}

impl Ends {
    /// Those of what is listed; of what waits for an image, those until then.
    pub(super) fn new(view: View, waiting: &BTreeMap<(Span, Class), u64>) -> Self {
        let changes = view.folding.as_deref().into_iter().chain([&view.changes]).flatten();
        let changed = changes.map(|((span, class), state)| {
            let until = waiting.get(&(*span, *class)).copied().unwrap_or(state.until);
            (state.id, (*class, *span, until))
        });
        let changed = changed.collect();
        Self { view, changed }
    }

    /// The entries of which the kernel has another end, as `found` tells it by their numbers. What has
    /// ended at this time has ended, whatever its end was: nobody minds it any more.
    pub fn differing<'a>(
        &'a self,
        found: impl Fn(u32) -> u64 + Copy + 'a,
        now: u64,
    ) -> impl Iterator<Item = (Class, IpNet)> + 'a {
        let differs = move |id, until| differs(found(id), until, now);
        let settled = self.view.table.entries();
        let settled = settled
            .filter(move |(.., until, id)| differs(*id, *until) && !self.changed.contains_key(id));
        let settled = settled.map(|(class, net, ..)| (class, net));
        let changed = self.changed.iter().filter(move |(id, (.., until))| differs(**id, *until));
        settled.chain(changed.map(|(_, (class, span, _))| (*class, span.net())))
    }
}

/// Whether an end is another than it is to be, at a time.
#[must_use]
pub const fn differs(found: u64, wanted: u64, now: u64) -> bool {
    found != wanted && (found > now || wanted > now)
}
