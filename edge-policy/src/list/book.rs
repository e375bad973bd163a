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
    Ends, Numbers, Span, View,
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
    /// A new image, as it touches too much for the overlay; and so far these writes.
    Large(Vec<Write>),
}

/// Why an entry cannot be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no number left for it.
    NoNumber,
    /// It takes a new image, and the last one had no room for what is listed already.
    NoImage,
}

/// A table whose image comes in force: what is to be done for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// What brings the overlay and the ends up to the image, to be done before it is in force.
    pub writes: Vec<Write>,
    /// Numbers with their ends: what lasts longer does so before the image is in force, what ends
    /// sooner once no packet can be under way that saw the former; see [`Book::settle`].
    pub ends: Vec<(u32, u64)>,
    /// Numbers that are free once the overlay is settled and no packet can be under way that saw
    /// it before.
    pub free: Vec<u32>,
}

/// Both lists.
#[derive(Clone, Debug)]
pub struct Book {
    listed: View,
    /// Changes that let an entry end sooner and wait for an image; until when the kernel has it.
    waiting: BTreeMap<(Span, Class), u64>,
    overlay: BTreeMap<Span, Ids>,
    /// What the overlay needs to hold beside the image in the making.
    fresh: BTreeSet<Span>,
    /// Networks that the overlay holds at most.
    overlay_max: usize,
    /// Whether the last image had no room for all entries.
    is_full: bool,
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
        // Of a change that goes on unaltered the kernel may not know yet.
        let gone: HashSet<u32> = next.gone.iter().copied().collect();
        let unaltered = former.moved.into_iter().filter(|(id, _)| !gone.contains(id));
        next.moved = unaltered.chain(next.moved).collect();
        next.gone.extend(former.gone);
        next
    }
}

impl Book {
    /// Empty lists, with an overlay of so many networks at most.
    #[must_use]
    pub fn new(overlay_max: usize) -> Self {
        Self {
            listed: View::default(),
            waiting: BTreeMap::new(),
            overlay: BTreeMap::new(),
            fresh: BTreeSet::new(),
            overlay_max,
            is_full: false,
        }
    }

    /// Lets a network's entry in a class end then, with 0 at once: it is off the list.
    ///
    /// # Errors
    /// [`Refused`] if there is no room for it; then nothing has changed.
    pub fn set(
        &mut self,
        class: Class,
        net: IpNet,
        until: u64,
        numbers: &mut Numbers,
    ) -> Result<Change, Refused> {
        let (span, key) = (Span::of(net), (Span::of(net), class));
        let former = self.listed.state(span, class);
        let known = former.map_or(0, |state| state.until);
        let before = self.waiting.get(&key).copied().unwrap_or(known);
        if known == until {
            let done = Vec::new();
            return Ok(if before == until { Change::Small(done) } else { Change::Large(done) });
        }
        let mut touched = self.overlaid(span);
        touched.push(span);
        if until < before {
            // Those that outlast it now and did not before: nobody has named them so far.
            let uncovered = move |end: u64| (until.max(1)..before).contains(&end);
            touched.extend(self.inside(span, class, uncovered).take(TOUCHED_MAX));
        }
        let is_large = touched.len() > TOUCHED_MAX || {
            let new = touched.iter().filter(|span| !self.overlay.contains_key(span)).count();
            self.overlay.len() + new > self.overlay_max
        };
        if is_large && self.is_full && until > known {
            return Err(Refused::NoImage);
        }
        let id = match former {
            Some(state) => state.id,
            None => numbers.take(1).ok().and_then(|mut ids| ids.pop()).ok_or(Refused::NoNumber)?,
        };
        self.listed.changes.insert(key, State { until, id });
        let ends = Write::Until(id, until);
        if is_large && until < before {
            self.waiting.insert(key, before);
            return Ok(Change::Large(Vec::new()));
        }
        self.waiting.remove(&key);
        if is_large {
            return Ok(Change::Large(vec![ends]));
        }
        let spoken = self.speak(touched);
        Ok(Change::Small(if until > before {
            std::iter::once(ends).chain(spoken).collect()
        } else {
            spoken.into_iter().chain([ends]).collect()
        }))
    }

    /// Forgets an entry that has ended by itself, which the kernel has not been minding since.
    pub fn forget(&mut self, class: Class, net: IpNet) {
        let span = Span::of(net);
        if let Some(state) = self.listed.state(span, class) {
            self.listed.changes.insert((span, class), State { until: 0, id: state.id });
        }
    }

    /// Begins a new image with all changes so far. What changes from here on is not in it.
    /// Whoever begins one says then whether it was [`Book::adopt`]ed or [`Book::abandon`]ed.
    pub fn snapshot(&mut self) -> Snapshot {
        let changes = Arc::new(std::mem::take(&mut self.listed.changes));
        self.listed.folding = Some(Arc::clone(&changes));
        self.fresh.clear();
        Snapshot { table: Arc::clone(&self.listed.table), changes }
    }

    /// Takes the table whose image comes in force, numbered.
    pub fn adopt(&mut self, next: Successor) -> Adopted {
        self.listed.table = Arc::new(next.table);
        self.listed.folding = None;
        self.is_full = false;
        // An entry that has come back since keeps its number.
        let back: HashSet<u32> = self.listed.changes.values().map(|state| state.id).collect();
        let mut free = next.gone;
        free.retain(|id| !back.contains(id));
        for ((span, class), state) in &mut self.listed.changes {
            // One that was listed here and in the table meanwhile has two.
            if let Some(same) =
                self.listed.table.get(*span, *class).filter(|same| same.id != state.id)
            {
                free.push(std::mem::replace(&mut state.id, same.id));
            }
        }
        self.waiting.retain(|key, until| {
            let Some(change) = self.listed.changes.get(key) else { return false };
            if let Some(state) = self.listed.table.get(key.0, key.1) {
                *until = state.until;
            }
            change.until < *until
        });
        let ends = self.without_changed(next.moved);
        // The image was numbered without them.
        let changed = self.listed.changes.iter().filter(|(key, _)| !self.waiting.contains_key(key));
        let changed = changed.map(|(_, state)| Write::Until(state.id, state.until));
        let mut writes: Vec<_> = changed.collect();
        let fresh = self.fresh.iter().copied().collect();
        writes.extend(self.speak(fresh));
        Adopted { writes, ends, free }
    }

    /// Goes on without the image that was begun, which perhaps had no room for all entries.
    /// Whether there was one.
    pub fn abandon(&mut self, is_full: bool) -> bool {
        let Some(folding) = self.listed.folding.take() else { return false };
        self.is_full = is_full;
        let mut changes = Arc::unwrap_or_clone(folding);
        changes.append(&mut self.listed.changes);
        self.listed.changes = changes;
        self.fresh = self.overlay.keys().copied().collect();
        true
    }

    /// What is to be done once no packet can be under way that saw the former image: the ends of
    /// [`Book::adopt`], but for what has changed since; and what the overlay holds and the image
    /// says as well is removed.
    pub fn settle(&mut self, ends: Vec<(u32, u64)>) -> Vec<Write> {
        let ends = self.without_changed(ends);
        let stale: Vec<_> =
            self.overlay.keys().filter(|s| !self.fresh.contains(s)).copied().collect();
        let remove = |span: &Span| {
            self.overlay.remove(span);
            Write::Remove(span.net())
        };
        let ends = ends.into_iter().map(|(id, until)| Write::Until(id, until));
        ends.chain(stale.iter().map(remove)).collect()
    }

    /// The ends without those of entries that have changed since the image and whose new end the
    /// kernel has.
    fn without_changed(&self, mut ends: Vec<(u32, u64)>) -> Vec<(u32, u64)> {
        let changed = self.listed.changes.iter().filter(|(key, _)| !self.waiting.contains_key(key));
        let changed: HashSet<u32> = changed.map(|(_, state)| state.id).collect();
        ends.retain(|(id, _)| !changed.contains(id));
        ends
    }

    /// The entry of a class that decides about an address: its network, end and number.
    #[must_use]
    pub fn decides(&self, class: Class, address: IpAddr) -> Option<(IpNet, u64, u32)> {
        let (span, state) = self.listed.best(Span::of(address.into()), class)?;
        Some((span.net(), state.until, state.id))
    }

    /// The end and the number of a network's entry in a class.
    #[must_use]
    pub fn entry(&self, class: Class, net: IpNet) -> Option<(u64, u32)> {
        let state = self.listed.state(Span::of(net), class).filter(|state| state.until > 0)?;
        Some((state.until, state.id))
    }

    /// Whether a network has a number in a class: it needs no other to be listed again.
    #[must_use]
    pub fn has_number(&self, class: Class, net: IpNet) -> bool {
        self.listed.state(Span::of(net), class).is_some()
    }

    /// Every entry that is listed, some of them twice: its class, network and number.
    pub fn entries(&self) -> impl Iterator<Item = (Class, IpNet, u32)> + '_ {
        let settled = self.listed.table.entries().map(|(class, net, _, id)| (class, net, id));
        let changes =
            self.listed.folding.as_deref().into_iter().chain([&self.listed.changes]).flatten();
        let listed = changes.filter(|(_, state)| state.until > 0);
        settled.chain(listed.map(|((span, class), state)| (*class, span.net(), state.id)))
    }

    /// What is listed now, for whoever wants to know without asking again.
    #[must_use]
    pub fn view(&self) -> View {
        self.listed.clone()
    }

    /// The end that the kernel is to have of a network's entry in a class, and the number.
    #[must_use]
    pub fn end(&self, class: Class, net: IpNet) -> Option<(u64, u32)> {
        let key = (Span::of(net), class);
        let state = self.listed.state(key.0, class)?;
        Some((self.waiting.get(&key).copied().unwrap_or(state.until), state.id))
    }

    /// The ends that the kernel is to have of all entries, unless an image has come in force and what
    /// the former needed is not cleared away yet.
    #[must_use]
    pub fn ends(&self) -> Ends {
        Ends::new(self.listed.clone(), &self.waiting)
    }

    /// Whether anything has changed since the image in force was begun.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let folding = self.listed.folding.as_ref().is_some_and(|folding| !folding.is_empty());
        folding || !self.listed.changes.is_empty() || !self.overlay.is_empty()
    }

    /// The networks in the overlay.
    pub fn overlaid_nets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.overlay.keys().map(|span| span.net())
    }

    /// What the overlay says of a network.
    #[must_use]
    pub fn overlaid_ids(&self, net: &IpNet) -> Option<Ids> {
        self.overlay.get(&Span::of(*net)).copied()
    }

    /// How many they are.
    #[must_use]
    pub fn overlaid_len(&self) -> usize {
        self.overlay.len()
    }

    /// What the overlay is to say of these networks, where that is new.
    fn speak(&mut self, spans: Vec<Span>) -> Vec<Write> {
        let mut writes = Vec::new();
        for span in spans {
            self.fresh.insert(span);
            let best = Class::ALL.map(|class| self.listed.best(span, class));
            let ids = table::ids(best.map(|best| best.map_or(State::OFF, |(_, state)| state)));
            if ids == Ids::default() {
                writes.extend(self.overlay.remove(&span).map(|_| Write::Remove(span.net())));
            } else if self.overlay.insert(span, ids) != Some(ids) {
                writes.push(Write::Put(span.net(), ids));
            }
        }
        writes
    }

    /// The networks inside of a network that are listed in a class with such an end, some of them
    /// twice.
    fn inside<'a>(
        &'a self,
        span: Span,
        class: Class,
        wanted: impl Fn(u64) -> bool + Copy + 'a,
    ) -> impl Iterator<Item = Span> + 'a {
        let changes = self.listed.folding.as_deref().into_iter().chain([&self.listed.changes]);
        let changed = changes.flat_map(move |changes| {
            let inside = changes.range((span, Class::Allow)..);
            let inside = inside.take_while(move |((s, _), _)| span.contains(*s));
            inside.filter(move |((s, c), _)| *c == class && *s != span).map(|((s, _), _)| *s)
        });
        let changed =
            changed.filter(move |s| self.listed.state(*s, class).is_some_and(|s| wanted(s.until)));
        // One that has changed since the table is among the changed.
        let settled = self.listed.table.inside(span, class, wanted).filter(move |s| {
            let folding =
                self.listed.folding.as_deref().is_some_and(|it| it.contains_key(&(*s, class)));
            !folding && !self.listed.changes.contains_key(&(*s, class))
        });
        changed.chain(settled)
    }

    /// What the overlay holds inside of a network, itself not among them.
    fn overlaid(&self, span: Span) -> Vec<Span> {
        let inside = self.overlay.range(span..).take_while(|(s, _)| span.contains(**s));
        inside.map(|(s, _)| *s).filter(|s| *s != span).collect()
    }
}

/// Networks that a change may touch in the overlay.
const TOUCHED_MAX: usize = 1_000;
