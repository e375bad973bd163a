//! The entries of both lists in order: what an image is compiled from.

use std::{cmp::Reverse, collections::BTreeMap};

use edge_common::list::{Class, Ids};
use ipnet::IpNet;

use super::{
    Span, image,
    image::{Full, Used},
};
use edge_common::list::Line;

/// An entry of a list: a network, until when, and the number under which the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item<A> {
    pub(super) first: A,
    pub(super) bits: u8,
    pub(super) class: Class,
    pub(super) id: u32,
    pub(super) until: u64,
}

/// The entries of both lists, each network once in each class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    v4: Vec<Item<u32>>,
    v6: Vec<Item<u128>>,
    /// By class and family: which prefix lengths there are, a bit each.
    lengths: (u64, [u64; 3]),
}

/// Entries that were added, changed or, with an end of 0, removed.
pub(super) type Changes = BTreeMap<(Span, Class), State>;

/// Until when an entry lasts, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) until: u64,
    pub(super) id: u32,
}

/// A table on its way to take the place of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Successor {
    /// The new table.
    pub table: Table,
    /// Numbers of entries that it does not have any more.
    pub gone: Vec<u32>,
    /// Numbers of entries that go on, with their new ends; of a number that is there several
    /// times, the last.
    pub moved: Vec<(u32, u64)>,
    /// How many of its entries have no number yet.
    pub unnumbered: usize,
}

/// An address of a family.
pub(super) trait Address: Copy + Ord {
    fn last_of(self, bits: u8) -> Self;
    fn next(self) -> Option<Self>;
    fn previous(self) -> Self;
}

impl Address for u32 {
    fn last_of(self, bits: u8) -> Self {
        self | Self::MAX.checked_shr(bits.into()).unwrap_or(0)
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Self {
        self - 1
    }
}

impl Address for u128 {
    fn last_of(self, bits: u8) -> Self {
        self | Self::MAX.checked_shr(bits.into()).unwrap_or(0)
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Self {
        self - 1
    }
}

impl Table {
    /// The table of these entries, in any order; of a network that is there several times in a
    /// class, the latest end. Entries that `former` has keep their numbers.
    pub fn succeed(
        former: &Self,
        entries: impl IntoIterator<Item = (Class, IpNet, u64)>,
    ) -> Successor {
        let mut table = Self::default();
        for (class, net, until) in entries {
            table.push(Span::of(net), class, State { until, id: 0 });
        }
        sort(&mut table.v4);
        sort(&mut table.v6);
        table.note_lengths();
        let mut next = Successor::default();
        next.carry(&mut table.v4, &former.v4);
        next.carry(&mut table.v6, &former.v6);
        next.table = table;
        next
    }

    /// This table with changes, without the entries that have ended.
    pub(super) fn changed(&self, changes: &Changes, now_ns: u64) -> Successor {
        let mut next = Successor::default();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for ((span, class), State { until, id }) in changes {
            let (class, until, id) = (*class, *until, *id);
            match span.v4() {
                Some((first, bits)) => v4.push(Item { first, bits, class, id, until }),
                None => v6.push(Item { first: span.first, bits: span.bits, class, id, until }),
            }
        }
        v4.sort_unstable_by_key(Item::key);
        v6.sort_unstable_by_key(Item::key);
        next.table.v4 = merge(&self.v4, &v4, now_ns, &mut next.gone);
        next.table.v6 = merge(&self.v6, &v6, now_ns, &mut next.gone);
        next.table.note_lengths();
        // Of the large ones among them the kernel does not know yet.
        let live = changes.values().filter(|state| state.until > now_ns);
        next.moved.extend(live.map(|state| (state.id, state.until)));
        next
    }

    /// Writes the image of this table; which lines of it are used.
    ///
    /// # Errors
    /// [`Full`] if the lines do not suffice.
    pub fn compile(&self, lines: &mut [Line]) -> Result<Used, Full> {
        image::compile(&self.v4, &self.v6, lines)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every entry: its class, network, end and number.
    pub fn entries(&self) -> impl Iterator<Item = (Class, IpNet, u64, u32)> + '_ {
        let v4 = self.v4.iter().map(|i| (i.class, Span::from_v4(i.first, i.bits), i.until, i.id));
        let v6 = self.v6.iter();
        let v6 = v6.map(|i| (i.class, Span { first: i.first, bits: i.bits }, i.until, i.id));
        v4.chain(v6).map(|(class, span, until, id)| (class, span.net(), until, id))
    }

    /// Every number with its end, for entries that were numbered just now.
    pub fn numbers(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let v4 = self.v4.iter().map(|item| (item.id, item.until));
        v4.chain(self.v6.iter().map(|item| (item.id, item.until)))
    }

    pub(super) fn get(&self, span: Span, class: Class) -> Option<State> {
        if !self.has_length(span) {
            return None;
        }
        match span.v4() {
            Some((first, bits)) => find(&self.v4, (first, bits, class)),
            None => find(&self.v6, (span.first, span.bits, class)),
        }
    }

    /// The networks inside of a network that are listed in a class with such an end, itself not
    /// among them.
    pub(super) fn inside<'a>(
        &'a self,
        span: Span,
        class: Class,
        wanted: impl Fn(u64) -> bool + 'a,
    ) -> Box<dyn Iterator<Item = Span> + 'a> {
        match span.v4() {
            Some((first, bits)) => {
                let items = within(&self.v4, first, bits).iter();
                let items = items.filter(move |i| i.class == class && wanted(i.until));
                Box::new(items.map(|i| Span::from_v4(i.first, i.bits)))
            }
            None => {
                let items = within(&self.v6, span.first, span.bits).iter();
                let items = items.filter(move |i| i.class == class && wanted(i.until));
                Box::new(items.map(|i| Span { first: i.first, bits: i.bits }))
            }
        }
    }

    fn push(&mut self, span: Span, class: Class, State { until, id }: State) {
        match span.v4() {
            Some((first, bits)) => self.v4.push(Item { first, bits, class, id, until }),
            None => self.v6.push(Item { first: span.first, bits: span.bits, class, id, until }),
        }
    }

    fn note_lengths(&mut self) {
        for item in &self.v4 {
            self.lengths.0 |= 1 << item.bits;
        }
        for item in &self.v6 {
            self.lengths.1[usize::from(item.bits) / 64] |= 1 << (item.bits % 64);
        }
    }

    fn has_length(&self, span: Span) -> bool {
        match span.v4() {
            Some((_, bits)) => self.lengths.0 >> bits & 1 != 0,
            None => self.lengths.1[usize::from(span.bits) / 64] >> (span.bits % 64) & 1 != 0,
        }
    }
}

impl Successor {
    /// Numbers the entries that have none, from `ids`, of which there are `unnumbered`; the
    /// numbers that were used, with the ends of their entries.
    pub fn number(&mut self, ids: impl IntoIterator<Item = u32>) -> Vec<(u32, u64)> {
        let v4 = self.table.v4.iter_mut().map(|item| (&mut item.id, item.until));
        let v6 = self.table.v6.iter_mut().map(|item| (&mut item.id, item.until));
        let unnumbered = v4.chain(v6).filter(|(id, _)| **id == 0);
        let numbered = unnumbered.zip(ids).map(|((place, until), id)| {
            *place = id;
            (id, until)
        });
        self.unnumbered = 0;
        numbered.collect()
    }

    /// Takes the numbers of one family's entries from the former table.
    fn carry<A: Address>(&mut self, items: &mut [Item<A>], former: &[Item<A>]) {
        let mut former = former.iter().peekable();
        for item in items {
            while let Some(gone) = former.next_if(|former| former.key() < item.key()) {
                self.gone.push(gone.id);
            }
            match former.next_if(|former| former.key() == item.key()) {
                Some(same) => {
                    item.id = same.id;
                    if same.until != item.until {
                        self.moved.push((item.id, item.until));
                    }
                }
                None => self.unnumbered += 1,
            }
        }
        self.gone.extend(former.map(|gone| gone.id));
    }
}

impl<A: Address> Item<A> {
    /// What entries are ordered by: by address, then the widest first.
    fn key(&self) -> (A, u8, Class) {
        (self.first, self.bits, self.class)
    }

    fn state(&self) -> State {
        State { until: self.until, id: self.id }
    }
}

fn sort<A: Address>(items: &mut Vec<Item<A>>) {
    // What they are from has them in order: this sort merges what is sorted already.
    items.sort_by_key(|item| (item.key(), Reverse(item.until)));
    items.dedup_by_key(|item| item.key());
}

fn find<A: Address>(items: &[Item<A>], key: (A, u8, Class)) -> Option<State> {
    let at = items.binary_search_by_key(&key, Item::key).ok()?;
    Some(items[at].state())
}

fn within<A: Address>(items: &[Item<A>], first: A, bits: u8) -> &[Item<A>] {
    let from = items.partition_point(|item| (item.first, item.bits) <= (first, bits));
    let to = items.partition_point(|item| item.first <= first.last_of(bits));
    items.get(from..to).unwrap_or_default()
}

/// Both in one order, `changes` before `items`, without what has ended.
fn merge<A: Address>(
    items: &[Item<A>],
    changes: &[Item<A>],
    now_ns: u64,
    gone: &mut Vec<u32>,
) -> Vec<Item<A>> {
    let mut merged = Vec::with_capacity(items.len() + changes.len());
    let mut take = |item: Item<A>| {
        if item.until > now_ns { merged.push(item) } else { gone.push(item.id) }
    };
    let mut items = items.iter().copied().peekable();
    for change in changes {
        while let Some(item) = items.next_if(|item| item.key() < change.key()) {
            take(item);
        }
        items.next_if(|item| item.key() == change.key());
        take(*change);
    }
    items.for_each(take);
    merged
}

/// The best of each class, as an image or an overlay tells them.
pub(super) fn ids(best: [State; Class::COUNT]) -> Ids {
    best.map(|state| state.id)
}
