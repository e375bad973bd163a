//! The IPv6 half of an image: filters, the tree of /64s, and what is inside of them.

use edge_common::list::{CLUSTER, Head, INNER, KEYS, NONE, TAG, V6, hash};

use super::image::{Full, Room};

/// Where the values of a row of keys change, in order.
type Boundaries = Vec<(u64, u32)>;

/// The IPv6 half of an image, in the making.
#[derive(Default)]
pub(super) struct Prefixes {
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
    pub(super) fn range(
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

    pub(super) fn finish(mut self, room: &mut Room<'_>) -> Result<(), Full> {
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

/// Words of the filter of /16s.
const WIDE_WORDS: usize = (1 << 16) / 64;
/// /32s from which on a range is marked by its /16s.
const WIDE: u32 = 64;
/// Bits of the largest filter of /32s: 512 KiB.
const FILTER_MAX: usize = 1 << 22;
