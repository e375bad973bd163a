//! Both lists as they stand: the table that an image was compiled from, what has changed since,
//! and the overlay that says so to the kernel until the next image does.
//!
//! The kernel asks the image and the overlay, and obeys whoever of them names a running entry. The
//! overlay is asked by longest match, so each of its networks names the latest-ending of all
//! entries that cover it. Then both only ever say what is true, and nothing is missing if every
//! change puts into the overlay the network itself and, where it ends earlier than before, those
//! inside of it that this uncovers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use edge_common::list::{Class, Ids};
use ipnet::IpNet;

use super::{
    Span,
    table::{self, Changes, State, Successor, Table},
};

/// One write to the kernel's tables. They are to be done in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The entry of this number ends then.
    Until(u32, u64),
    /// The overlay names these entries for the network.
    Put(IpNet, Ids),
    /// The overlay does not hold the network any more.
    Remove(IpNet),
}

/// What it takes to make a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These writes.
    Small(Vec<Write>),
    /// A new image: it touches too much for the overlay.
    Large,
}

/// There is no number left for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoNumber;

/// The numbers of entries. Those from 1 on are given out; a number that was given back is given
/// out again.
#[derive(Clone, Debug)]
pub struct Numbers {
    next: u32,
    end: u32,
    free: Vec<u32>,
}

impl Numbers {
    /// Numbers below `end`.
    #[must_use]
    pub fn new(end: u32) -> Self {
        Self { next: 1, end, free: Vec::new() }
    }

    /// Takes so many, all or none.
    ///
    /// # Errors
    /// [`NoNumber`] if there are not as many.
    pub fn take(&mut self, count: usize) -> Result<Vec<u32>, NoNumber> {
        let used = self.free.len().min(count);
        if (self.end - self.next) as usize + used < count {
            return Err(NoNumber);
        }
        let mut taken = self.free.split_off(self.free.len() - used);
        let fresh = (count - used) as u32;
        taken.extend(self.next..self.next + fresh);
        self.next += fresh;
        Ok(taken)
    }

    /// Gives numbers back.
    pub fn give_back(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.free.extend(numbers);
    }

    /// Numbers in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.next as usize - 1 - self.free.len()
    }

    /// Numbers there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.end as usize - 1
    }
}

/// Both lists.
#[derive(Clone, Debug)]
pub struct Book {
    table: Arc<Table>,
    /// Changes that the image in the making has.
    folding: Option<Arc<Changes>>,
    /// Changes that no image has.
    changes: Changes,
    overlay: BTreeMap<Span, Ids>,
    /// What the overlay needs to hold beside the image in the making.
    fresh: BTreeSet<Span>,
    /// Networks that the overlay holds at most.
    overlay_max: usize,
}

/// What an image is made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    table: Arc<Table>,
    changes: Arc<Changes>,
}

impl Snapshot {
    /// The table with its changes, without what has ended.
    #[must_use]
    pub fn fold(&self, now_ns: u64) -> Successor {
        self.table.changed(&self.changes, now_ns)
    }

    /// The table that these entries make in its place; see [`Table::succeed`].
    #[must_use]
    pub fn replace(&self, entries: impl IntoIterator<Item = (Class, IpNet, u64)>) -> Successor {
        // The changes have numbers, too, that go on or are free.
        let former = if self.changes.is_empty() {
            return Table::succeed(&self.table, entries);
        } else {
            self.table.changed(&self.changes, 0)
        };
        let mut next = Table::succeed(&former.table, entries);
        next.gone.extend(former.gone);
        next
    }
}

impl Book {
    /// Empty lists, with an overlay of so many networks at most.
    #[must_use]
    pub fn new(overlay_max: usize) -> Self {
        Self {
            table: Arc::default(),
            folding: None,
            changes: Changes::new(),
            overlay: BTreeMap::new(),
            fresh: BTreeSet::new(),
            overlay_max,
        }
    }

    /// Lets a network's entry in a class end then, with 0 at once: it is off the list.
    ///
    /// # Errors
    /// [`NoNumber`] if it is new and cannot be numbered; then nothing has changed.
    pub fn set(
        &mut self,
        class: Class,
        net: IpNet,
        until: u64,
        numbers: &mut Numbers,
    ) -> Result<Change, NoNumber> {
        let span = Span::of(net);
        let former = self.state(span, class);
        if former.map_or(0, |state| state.until) == until {
            return Ok(Change::Small(Vec::new()));
        }
        let (id, before) = match former {
            Some(state) => (state.id, state.until),
            None => (numbers.take(1)?.pop().ok_or(NoNumber)?, 0),
        };
        self.changes.insert((span, class), State { until, id });
        let mut touched = self.overlaid(span);
        touched.push(span);
        if until < before {
            // Those that outlast it now and did not before: nobody has named them so far.
            let uncovered = |state: State| (until.max(1)..before).contains(&state.until);
            touched.extend(self.inside(span, class).filter(|(_, s)| uncovered(*s)).map(|(s, _)| s));
        }
        if touched.len() > TOUCHED_MAX || self.overlay.len() + touched.len() > self.overlay_max {
            return Ok(Change::Large);
        }
        let spoken = self.speak(touched);
        let ends = Write::Until(id, until);
        Ok(Change::Small(if until > before {
            std::iter::once(ends).chain(spoken).collect()
        } else {
            spoken.into_iter().chain([ends]).collect()
        }))
    }

    /// Forgets an entry that has ended by itself, which the kernel has not been minding since.
    pub fn forget(&mut self, class: Class, net: IpNet) {
        let span = Span::of(net);
        if let Some(state) = self.state(span, class) {
            self.changes.insert((span, class), State { until: 0, id: state.id });
        }
    }

    /// Begins a new image with all changes so far. What changes from here on is not in it.
    /// Whoever begins one says then whether it was [`Book::adopt`]ed or [`Book::abandon`]ed.
    pub fn snapshot(&mut self) -> Snapshot {
        let changes = Arc::new(std::mem::take(&mut self.changes));
        self.folding = Some(Arc::clone(&changes));
        self.fresh.clear();
        Snapshot { table: Arc::clone(&self.table), changes }
    }

    /// Takes the table whose image is in force, numbered; the writes that bring the overlay up to
    /// it, and the numbers that are free once no packet can be under way that saw the former.
    pub fn adopt(&mut self, next: Successor) -> (Vec<Write>, Vec<u32>) {
        self.table = Arc::new(next.table);
        self.folding = None;
        // An entry that has come back since keeps its number.
        let back: HashSet<u32> = self.changes.values().map(|state| state.id).collect();
        let mut free = next.gone;
        free.retain(|id| !back.contains(id));
        for ((span, class), state) in &mut self.changes {
            // One that was listed here and in the table meanwhile has two.
            if let Some(same) = self.table.get(*span, *class).filter(|same| same.id != state.id) {
                free.push(std::mem::replace(&mut state.id, same.id));
            }
        }
        let fresh = self.fresh.iter().copied().collect();
        (self.speak(fresh), free)
    }

    /// Goes on without the image that was begun.
    pub fn abandon(&mut self) {
        let Some(folding) = self.folding.take() else { return };
        let mut changes = Arc::unwrap_or_clone(folding);
        changes.append(&mut self.changes);
        self.changes = changes;
        self.fresh = self.overlay.keys().copied().collect();
    }

    /// What the overlay holds and the image in force says as well: to be removed, once no packet
    /// can be under way that saw the former image.
    pub fn settle(&mut self) -> Vec<Write> {
        let stale: Vec<_> =
            self.overlay.keys().filter(|s| !self.fresh.contains(s)).copied().collect();
        let remove = |span: &Span| {
            self.overlay.remove(span);
            Write::Remove(span.net())
        };
        stale.iter().map(remove).collect()
    }

    /// The entry of a class that decides about an address: its network, end and number.
    #[must_use]
    pub fn decides(&self, class: Class, address: IpAddr) -> Option<(IpNet, u64, u32)> {
        let (span, state) = self.best(Span::of(address.into()), class)?;
        Some((span.net(), state.until, state.id))
    }

    /// The end and the number of a network's entry in a class.
    #[must_use]
    pub fn entry(&self, class: Class, net: IpNet) -> Option<(u64, u32)> {
        let state = self.state(Span::of(net), class).filter(|state| state.until > 0)?;
        Some((state.until, state.id))
    }

    /// Networks in the overlay.
    #[must_use]
    pub fn overlaid_len(&self) -> usize {
        self.overlay.len()
    }

    /// What the overlay is to say of these networks, where that is new.
    fn speak(&mut self, spans: Vec<Span>) -> Vec<Write> {
        let mut writes = Vec::new();
        for span in spans {
            self.fresh.insert(span);
            let best = Class::ALL.map(|class| self.best(span, class));
            let ids = table::ids(best.map(|best| best.map_or(State::OFF, |(_, state)| state)));
            if ids == [0; 3] {
                writes.extend(self.overlay.remove(&span).map(|_| Write::Remove(span.net())));
            } else if self.overlay.insert(span, ids) != Some(ids) {
                writes.push(Write::Put(span.net(), ids));
            }
        }
        writes
    }

    /// The entry that outlasts all others of its class that cover a network; of those that end
    /// together, the longest.
    fn best(&self, span: Span, class: Class) -> Option<(Span, State)> {
        let covers = span.covers().filter_map(|cover| Some((cover, self.state(cover, class)?)));
        covers
            .filter(|(_, state)| state.until > 0)
            .max_by_key(|(cover, state)| (state.until, cover.bits))
    }

    fn state(&self, span: Span, class: Class) -> Option<State> {
        let key = (span, class);
        let changed = self.changes.get(&key).copied();
        let folding = || self.folding.as_ref()?.get(&key).copied();
        changed.or_else(folding).or_else(|| self.table.get(span, class))
    }

    /// All entries of a class inside of a network, some of them twice.
    fn inside(&self, span: Span, class: Class) -> impl Iterator<Item = (Span, State)> + '_ {
        let range = move |changes: &'_ Changes| -> Vec<Span> {
            let inside = changes
                .range((span, Class::Allow)..)
                .take_while(move |((s, _), _)| span.contains(*s));
            inside.filter(|((s, c), _)| *c == class && *s != span).map(|((s, _), _)| *s).collect()
        };
        let folding = self.folding.as_ref().map(|folding| range(folding)).unwrap_or_default();
        let changed = range(&self.changes).into_iter().chain(folding);
        let changed = changed.filter_map(move |s| Some((s, self.state(s, class)?)));
        // One that has changed since the table is as it is now.
        let settled = self.table.inside(span, class);
        let now = move |(s, _)| Some((s, self.state(s, class)?));
        changed.chain(settled.filter_map(now))
    }

    /// What the overlay holds inside of a network, itself not among them.
    fn overlaid(&self, span: Span) -> Vec<Span> {
        let inside = self.overlay.range(span..).take_while(|(s, _)| span.contains(**s));
        inside.map(|(s, _)| *s).filter(|s| *s != span).collect()
    }
}

/// Networks that a change may touch in the overlay.
const TOUCHED_MAX: usize = 1_000;
