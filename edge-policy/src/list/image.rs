//! The image of both lists, as `edge_common::list` lays it out.
//!
//! One sweep over the entries in order, with a stack of those that cover the place, gives disjoint
//! ranges; each has the latest-ending entry of every class that covers it, so that an entry that
//! ends early never opens a hole in one that lasts. Of two that end together the longer prefix
//! speaks.

use edge_common::{
    list::{BLOCK, Class, FIXED, LASTING, Line, NONE, SEVERAL, TAG, VALUES, range},
    map::FOREVER,
};

use super::{
    prefixes::Prefixes,
    table::{Address, Item, State},
};

/// An image has fewer lines than its lists need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The lines of an image that are used: it is filled from both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Lines from the first on.
    pub front: usize,
    /// Lines up to the last.
    pub back: usize,
}

impl Used {
    /// How many they are.
    #[must_use]
    pub const fn lines(self) -> usize {
        self.front + self.back
    }

    /// Both parts of an image, the one behind the other.
    pub fn parts<L>(self, image: &[L]) -> [&[L]; 2] {
        [&image[..self.front], &image[image.len() - self.back..]]
    }
}

/// Writes the image; which of its lines are used.
pub(super) fn compile(
    v4: &[Item<u32>],
    v6: &[Item<u128>],
    lines: &mut [Line],
) -> Result<Used, Full> {
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
pub(super) struct Room<'a> {
    pub(super) lines: &'a mut [Line],
    word: usize,
    line: usize,
}

impl<'a> Room<'a> {
    fn new(lines: &'a mut [Line]) -> Result<Self, Full> {
        lines.get_mut(..FIXED as usize).ok_or(Full)?.fill([0; 8]);
        let line = lines.len();
        Ok(Self { lines, word: FIXED as usize * 8, line })
    }

    fn used(&self) -> Used {
        Used { front: self.word.div_ceil(8), back: self.lines.len() - self.line }
    }

    fn words(&mut self, count: usize) -> Result<usize, Full> {
        let first = self.word;
        self.word += count;
        if self.word.div_ceil(8) > self.line { Err(Full) } else { Ok(first) }
    }

    /// Zeroed.
    pub(super) fn lines(&mut self, count: usize) -> Result<usize, Full> {
        self.line = self.line.checked_sub(count).ok_or(Full)?;
        if self.word.div_ceil(8) > self.line {
            return Err(Full);
        }
        self.lines[self.line..][..count].fill([0; 8]);
        Ok(self.line)
    }

    pub(super) fn set_word(&mut self, index: usize, word: u64) {
        self.lines[index / 8][index % 8] = word;
    }

    /// Sets a half of a word that was zero.
    pub(super) fn set_half(&mut self, index: usize, half: u32) {
        self.lines[index / 16][index / 2 % 8] |= u64::from(half) << (index % 2 * 32);
    }

    /// The value that names these entries.
    fn value(&mut self, best: [State; Class::COUNT]) -> Result<u32, Full> {
        let mut named = Class::ALL.into_iter().zip(best).filter(|(_, state)| state.id != 0);
        let Some((class, state)) = named.next() else { return Ok(NONE) };
        if named.next().is_none() {
            let lasting = if state.until == FOREVER { LASTING } else { 0 };
            return Ok((class as u32) << TAG | lasting | state.id);
        }
        self.word += self.word % 2;
        let at = self.words(2)?;
        let [allow, spare, deny, watch] = best.map(|state| u64::from(state.id));
        self.set_word(at, allow | spare << 32);
        self.set_word(at + 1, deny | watch << 32);
        Ok(SEVERAL << TAG | (at / 2) as u32)
    }
}

/// An entry that covers the place of the sweep.
struct Cover<A> {
    last: A,
    best: [State; Class::COUNT],
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
        let mut best = covers.last().map_or([State::OFF; Class::COUNT], |cover| cover.best);
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
    /// As words of the record.
    ranges: Vec<u64>,
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
                self.ranges.push(range(at, end, value));
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
        if let [first, rest @ ..] = &self.ranges[..]
            && rest.len() <= 1
        {
            self.set(room, rest.first().copied().unwrap_or(0), *first);
        } else if self.pieces.iter().all(|piece| piece.is_whole() && piece.value == *value) {
            self.set(room, occupied, u64::from(*value) << 32);
        } else {
            let first = room.words(occupied.count_ones() as usize)?;
            for (index, pieces) in self.pieces.chunk_by(|a, b| a.net == b.net).enumerate() {
                let leaf = leaf(room, pieces)?;
                room.set_word(first + index, leaf);
            }
            self.set(room, occupied, first as u64);
        }
        self.ranges.clear();
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

impl State {
    pub(super) const OFF: Self = Self { until: 0, id: 0 };
}
