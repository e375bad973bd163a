//! The image of both lists, as `edge_common::list` lays it out.
//!
//! One sweep over the entries in order, with a stack of those that cover the place, gives disjoint
//! ranges; each has the latest-ending entry of every class that covers it, so that an entry that
//! ends early never opens a hole in one that lasts. Of two that end together the longer prefix
//! speaks.

use edge_common::list::{
    BLOCK, CLUSTER, Class, FIXED, Head, INNER, KEYS, Line, NONE, RECORDS, SEVERAL, TAG, V6, VALUES,
    hash,
};

use super::table::{Address, Item, State};

/// An image has fewer lines than its lists need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writes the image; how many of its lines are used.
pub(super) fn compile(
    v4: &[Item<u32>],
    v6: &[Item<u128>],
    lines: &mut [Line],
) -> Result<u64, Full> {
    let mut room = Room::new(lines)?;
    let mut addresses = Records::default();
    sweep(v4, &mut room, |room, first, last, value| addresses.range(room, first, last, value))?;
    addresses.flush(&mut room)?;
    let mut prefixes = Prefixes::default();
    sweep(v6, &mut room, |room, first, last, value| prefixes.range(room, first, last, value))?;
    prefixes.finish(&mut room)?;
    Ok(room.used())
}

/// What is left of the image: words are taken from the front, lines from the back.
struct Room<'a> {
    lines: &'a mut [Line],
    word: usize,
    line: usize,
}

impl<'a> Room<'a> {
    fn new(lines: &'a mut [Line]) -> Result<Self, Full> {
        lines.get_mut(..FIXED as usize).ok_or(Full)?.fill([0; 8]);
        let line = lines.len();
        Ok(Self { lines, word: FIXED as usize * 8, line })
    }

    fn used(&self) -> u64 {
        (self.word.div_ceil(8) + self.lines.len() - self.line) as u64
    }

    fn words(&mut self, count: usize) -> Result<usize, Full> {
        let first = self.word;
        self.word += count;
        if self.word.div_ceil(8) > self.line { Err(Full) } else { Ok(first) }
    }

    /// Zeroed.
    fn lines(&mut self, count: usize) -> Result<usize, Full> {
        self.line = self.line.checked_sub(count).ok_or(Full)?;
        if self.word.div_ceil(8) > self.line {
            return Err(Full);
        }
        self.lines[self.line..][..count].fill([0; 8]);
        Ok(self.line)
    }

    fn set_word(&mut self, index: usize, word: u64) {
        self.lines[index / 8][index % 8] = word;
    }

    /// Sets a half of a word that was zero.
    fn set_half(&mut self, index: usize, half: u32) {
        self.lines[index / 16][index / 2 % 8] |= u64::from(half) << (index % 2 * 32);
    }

    /// The value that names these entries.
    fn value(&mut self, best: [State; 3]) -> Result<u32, Full> {
        let mut named = Class::ALL.into_iter().zip(best).filter(|(_, state)| state.id != 0);
        let Some((class, state)) = named.next() else { return Ok(NONE) };
        if named.next().is_none() {
            return Ok((class as u32) << TAG | state.id);
        }
        self.word += self.word % 2;
        let at = self.words(2)?;
        let [allow, deny, watch] = best.map(|state| u64::from(state.id));
        self.set_word(at, allow | deny << 32);
        self.set_word(at + 1, watch);
        Ok(SEVERAL << TAG | (at / 2) as u32)
    }
}

/// An entry that covers the place of the sweep.
struct Cover<A> {
    last: A,
    best: [State; 3],
    value: u32,
}

/// Gives every range of one value, in order; neighbours of the same value are one range.
fn sweep<A: Address>(
    items: &[Item<A>],
    room: &mut Room<'_>,
    mut give: impl FnMut(&mut Room<'_>, A, A, u32) -> Result<(), Full>,
) -> Result<(), Full> {
    let mut covers: Vec<Cover<A>> = Vec::new();
    let mut pending: Option<(A, A, u32)> = None;
    let mut range = |room: &mut Room<'_>, first: A, last: A, value: u32| {
        if let Some((_, end, same)) = &mut pending
            && *same == value
            && end.next() == Some(first)
        {
            *end = last;
            return Ok(());
        }
        match pending.replace((first, last, value)) {
            Some((first, last, value)) => give(room, first, last, value),
            None => Ok(()),
        }
    };
    // What lies before it has been given; `None`: everything has.
    let mut place: Option<A> = None;
    for item in items {
        while let Some(cover) = covers.pop_if(|cover| cover.last < item.first) {
            if let Some(from) = place.filter(|place| *place <= cover.last) {
                range(room, from, cover.last, cover.value)?;
            }
            place = cover.last.next();
        }
        if let (Some(cover), Some(from)) = (covers.last(), place)
            && from < item.first
        {
            range(room, from, item.first.previous(), cover.value)?;
        }
        place = Some(item.first);
        let mut best = covers.last().map_or([State::OFF; 3], |cover| cover.best);
        let mut value = covers.last().map_or(NONE, |cover| cover.value);
        let own = &mut best[item.class as usize - 1];
        if own.until <= item.until {
            *own = State { until: item.until, id: item.id };
            value = room.value(best)?;
        }
        covers.push(Cover { last: item.first.last_of(item.bits), best, value });
    }
    while let Some(cover) = covers.pop() {
        if let Some(from) = place.filter(|place| *place <= cover.last) {
            range(room, from, cover.last, cover.value)?;
            place = cover.last.next();
        }
    }
    pending.map_or(Ok(()), |(first, last, value)| give(room, first, last, value))
}

/// The IPv4 records, of which one is in the making.
#[derive(Default)]
struct Records {
    record: usize,
    pieces: Vec<Piece>,
}

/// A range inside of a /24, of one value.
struct Piece {
    net: u8,
    first: u8,
    last: u8,
    value: u32,
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.first == 0 && self.last == 255
    }
}

impl Records {
    fn range(
        &mut self,
        room: &mut Room<'_>,
        first: u32,
        last: u32,
        value: u32,
    ) -> Result<(), Full> {
        let mut at = first;
        loop {
            let (record, end) = ((at >> 14) as usize, last.min(at | 0x3fff));
            if record != self.record {
                self.flush(room)?;
                self.record = record;
            }
            if at & 0x3fff == 0 && end & 0x3fff == 0x3fff {
                self.set(room, u64::MAX, u64::from(value) << 32);
            } else {
                self.split(at, end, value);
            }
            if end == last {
                return Ok(());
            }
            at = end + 1;
        }
    }

    fn split(&mut self, first: u32, last: u32, value: u32) {
        for net in first >> 8..=last >> 8 {
            let (first, last) = (first.max(net << 8), last.min(net << 8 | 255));
            let net = (net & 63) as u8;
            self.pieces.push(Piece { net, first: first as u8, last: last as u8, value });
        }
    }

    fn flush(&mut self, room: &mut Room<'_>) -> Result<(), Full> {
        let Some(Piece { value, .. }) = self.pieces.first() else { return Ok(()) };
        let occupied = self.pieces.iter().fold(0, |bits, piece| bits | 1_u64 << piece.net);
        if self.pieces.iter().all(|piece| piece.is_whole() && piece.value == *value) {
            self.set(room, occupied, u64::from(*value) << 32);
        } else {
            let first = room.words(occupied.count_ones() as usize)?;
            for (index, pieces) in self.pieces.chunk_by(|a, b| a.net == b.net).enumerate() {
                let leaf = leaf(room, pieces)?;
                room.set_word(first + index, leaf);
            }
            self.set(room, occupied, first as u64);
        }
        self.pieces.clear();
        Ok(())
    }

    fn set(&self, room: &mut Room<'_>, occupied: u64, leaves: u64) {
        room.set_word(self.record * 2, occupied);
        room.set_word(self.record * 2 + 1, leaves);
    }
}

fn leaf(room: &mut Room<'_>, pieces: &[Piece]) -> Result<u64, Full> {
    if let [Piece { first, last, value, .. }] = pieces {
        return Ok(u64::from(*value) | u64::from(*first) << 32 | u64::from(*last) << 40);
    }
    // Where each value begins, the gaps included.
    let (mut runs, mut at) = (Vec::with_capacity(2 * pieces.len() + 1), 0_u16);
    for piece in pieces {
        if u16::from(piece.first) > at {
            runs.push((at, NONE));
        }
        runs.push((piece.first.into(), piece.value));
        at = u16::from(piece.last) + 1;
    }
    if at < 256 {
        runs.push((at, NONE));
    }
    let line = room.lines((VALUES as usize + runs.len()).div_ceil(16))?;
    let mut sums = [0_u8; 4];
    for (index, (begin, value)) in runs.into_iter().enumerate() {
        let part = usize::from(begin / 64);
        room.lines[line][part] |= 1 << (begin % 64);
        for sum in &mut sums[part + 1..] {
            *sum += 1;
        }
        room.set_half(line * 16 + VALUES as usize + index, value);
    }
    room.set_half(line * 16 + VALUES as usize - 1, u32::from_le_bytes(sums));
    Ok(BLOCK | line as u64)
}

/// Where the values of a row of keys change, in order.
type Boundaries = Vec<(u64, u32)>;

/// The IPv6 half of an image, in the making.
#[derive(Default)]
struct Prefixes {
    /// By the first 64 bits.
    tree: Boundaries,
    /// The /64 in the making that is not of one piece, and its ranges by the last 64 bits.
    net: u64,
    pieces: Boundaries,
    /// Whole /16s in which something wide is listed, a bit each.
    wide: Vec<u64>,
    /// The /32s of the others.
    nets: Vec<u32>,
}

impl Prefixes {
    fn range(
        &mut self,
        room: &mut Room<'_>,
        first: u128,
        last: u128,
        value: u32,
    ) -> Result<(), Full> {
        self.note(first, last);
        let (from, to) = ((first >> 64) as u64, (last >> 64) as u64);
        let (head, tail) = (first as u64, last as u64);
        if from == to && (head, tail) != (0, u64::MAX) {
            return self.piece(room, from, (head, tail), value);
        }
        let mut whole = (from, to);
        if head != 0 {
            self.piece(room, from, (head, u64::MAX), value)?;
            whole.0 += 1;
        }
        // `to` is above `from` here, unless both ends are whole.
        whole.1 -= u64::from(tail != u64::MAX);
        if whole.0 <= whole.1 {
            self.flush(room)?;
            put(&mut self.tree, whole, value);
        }
        if tail == u64::MAX { Ok(()) } else { self.piece(room, to, (0, tail), value) }
    }

    fn piece(
        &mut self,
        room: &mut Room<'_>,
        net: u64,
        range: (u64, u64),
        value: u32,
    ) -> Result<(), Full> {
        if net != self.net {
            self.flush(room)?;
            self.net = net;
        }
        put(&mut self.pieces, range, value);
        Ok(())
    }

    fn flush(&mut self, room: &mut Room<'_>) -> Result<(), Full> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let nodes = nodes(&self.pieces);
        let line = if self.pieces.len() <= CLUSTER {
            let line = room.lines(1)?;
            let end = self.pieces.last().map_or(NONE, |(_, value)| *value);
            self.pieces.resize(CLUSTER, (u64::MAX, end));
            for (index, (key, value)) in self.pieces.iter().enumerate() {
                room.lines[line][index] = *key;
                room.set_half(line * 16 + 2 * CLUSTER + index, *value);
            }
            line
        } else {
            let line = room.lines(1 + tree_lines(nodes))?;
            room.lines[line][7] = (nodes as u64) << 32;
            write_tree(room, line + 1, &self.pieces);
            line
        };
        put(&mut self.tree, (self.net, self.net), INNER << TAG | line as u32);
        self.pieces.clear();
        Ok(())
    }

    /// Marks the range for the filters.
    fn note(&mut self, first: u128, last: u128) {
        self.wide.resize(WIDE_WORDS, 0);
        let (from, to) = ((first >> 96) as u32, (last >> 96) as u32);
        if to - from < WIDE {
            self.nets.extend(from..=to);
        } else {
            for net in from >> 16..=to >> 16 {
                self.wide[net as usize / 64] |= 1 << (net % 64);
            }
        }
    }

    fn finish(mut self, room: &mut Room<'_>) -> Result<(), Full> {
        self.flush(room)?;
        self.wide.resize(WIDE_WORDS, 0);
        self.nets.dedup();
        let bits = (self.nets.len() * 16).next_power_of_two().clamp(512, FILTER_MAX);
        let wide = room.lines(WIDE_WORDS / 8)?;
        for (index, word) in self.wide.iter().enumerate() {
            room.set_word(wide * 8 + index, *word);
        }
        let filter = room.lines(bits / 512)?;
        let mask = bits as u64 - 1;
        for net in &self.nets {
            let bit = (hash(u64::from(*net)) & mask) as usize;
            room.lines[filter + bit / 512][bit / 64 % 8] |= 1 << (bit % 64);
        }
        let nodes = nodes(&self.tree);
        let tree = room.lines(tree_lines(nodes))?;
        write_tree(room, tree, &self.tree);
        let head = &mut room.lines[V6 as usize];
        head[Head::Wide as usize] = wide as u64;
        head[Head::Filter as usize] = filter as u64;
        head[Head::Mask as usize] = mask;
        head[Head::Tree as usize] = tree as u64;
        head[Head::Nodes as usize] = nodes as u64;
        Ok(())
    }
}

/// Adds a range behind all others.
fn put(boundaries: &mut Boundaries, (first, last): (u64, u64), value: u32) {
    // What ended the one before begins this one.
    boundaries.pop_if(|(begin, _)| *begin == first);
    boundaries.push((first, value));
    if let Some(behind) = last.checked_add(1) {
        boundaries.push((behind, NONE));
    }
}

fn nodes(boundaries: &Boundaries) -> usize {
    boundaries.len().div_ceil(KEYS as usize)
}

/// Lines of a tree with its values.
fn tree_lines(nodes: usize) -> usize {
    nodes + nodes.div_ceil(2)
}

fn write_tree(room: &mut Room<'_>, tree: usize, boundaries: &Boundaries) {
    let end = (u64::MAX, boundaries.last().map_or(NONE, |(_, value)| *value));
    let mut sorted = boundaries.iter().copied().chain(std::iter::repeat(end));
    fill(room, tree, nodes(boundaries), 0, &mut sorted);
}

/// Fills a node and all below it with the next keys, in their order.
fn fill(
    room: &mut Room<'_>,
    tree: usize,
    nodes: usize,
    node: usize,
    sorted: &mut impl Iterator<Item = (u64, u32)>,
) {
    if node >= nodes {
        return;
    }
    let (keys, child) = (KEYS as usize, node * (KEYS as usize + 1) + 1);
    for index in 0..keys {
        fill(room, tree, nodes, child + index, sorted);
        if let Some((key, value)) = sorted.next() {
            room.lines[tree + node][index] = key;
            room.set_half((tree + nodes) * 16 + node * keys + index, value);
        }
    }
    fill(room, tree, nodes, child + keys, sorted);
}

impl State {
    pub(super) const OFF: Self = Self { until: 0, id: 0 };
}

/// Words of the filter of /16s.
const WIDE_WORDS: usize = (1 << 16) / 64;
/// /32s from which on a range is marked by its /16s.
const WIDE: u32 = 64;
/// Bits of the largest filter of /32s: 512 KiB.
const FILTER_MAX: usize = 1 << 22;

const _: () = assert!(RECORDS == V6);
