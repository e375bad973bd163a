//! The compiled lists: one table of lines that gives, for every address, the entries that decide.
//!
//! The daemon compiles both lists into an image and the kernel programs look addresses up in it;
//! both run the functions below. An image is an array of 64-byte [`Line`]s, addressed from its own
//! first line, so that two of them can lie behind each other and take turns.
//!
//! | Lines | Content |
//! |---|---|
//! | [`RECORDS`] | IPv4: a record for each /18, four a line, by address |
//! | 1, at [`V6`] | IPv6: where the rest of it lies, [`Head`] |
//! | any | leaves, blocks, sets, filters and trees, wherever the former point |
//!
//! **IPv4.** A record is two words. Those of a /18 in which one or two ranges are listed are the
//! ranges. Else they are a bit for each /24 in which something is listed, and one value for all of
//! those /24s, or, if that is zero, the index of the first one's leaf. A leaf is a word:
//! the first and the last listed address of the /24 and their value, or the line of a block. A
//! block has a bit for each address at which another value begins, and the values. A source that
//! nobody listed is settled by one line, a listed one by one to three.
//!
//! **IPv6.** A filter over the first 32 bits settles most of those that nobody listed. Behind it
//! lies a search tree over the /64s at which another value begins; the value of a /64 that is not
//! of one piece leads to the tree of its interface identifiers.

/// 64 bytes: a cache line, and the unit of the table.
pub type Line = [u64; 8];

/// An image, seen from its first line.
pub trait Lines {
    /// A line; `None` if there is none of that index, which a whole image never leads to.
    fn line(&self, index: u64) -> Option<&Line>;

    /// The value of the last key of a tree that is not above this one; [`search`], which the
    /// kernel's verifier is to walk once.
    #[inline(always)]
    fn search(&self, tree: u64, nodes: u64, key: u64) -> u32 {
        search(self, tree, nodes, key)
    }
}

impl Lines for [Line] {
    fn line(&self, index: u64) -> Option<&Line> {
        self.get(usize::try_from(index).ok()?)
    }
}

/// What an entry does to the packets of its network, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Class {
    /// They pass, whatever else is said of them.
    Allow = 1,
    /// No list, ban or limit drops them; all else is asked.
    Spare = 2,
    /// They are dropped.
    Deny = 3,
    /// They are counted as if they were dropped.
    Watch = 4,
}

impl Class {
    /// In their order.
    pub const ALL: [Self; Self::COUNT] = [Self::Allow, Self::Spare, Self::Deny, Self::Watch];
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// What is in force, in one word, so that it changes at once: the first line of the image, and what
/// has changed since it was compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct State(pub u64);

impl State {
    /// This image, and whether anything has changed since.
    #[must_use]
    pub const fn new(first_line: u32, has_changed: bool) -> Self {
        Self(first_line as u64 | (has_changed as u64) << 32)
    }

    /// The line of the table at which the image begins.
    #[inline(always)]
    #[must_use]
    pub const fn first_line(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// Whether the overlay is to be asked, too, and an entry that has no end may have got one.
    #[inline(always)]
    #[must_use]
    pub const fn has_changed(self) -> bool {
        self.0 >> 32 != 0
    }
}

/// The deciding entry of each class, by number; 0: none. Indexed by `class as usize - 1`.
pub type Ids = [u32; Class::COUNT];

/// Networks that the overlay holds at most.
pub const OVERLAY_MAX: u32 = 8_192;

/// A value that names no entry.
pub const NONE: u32 = 0;
/// Where a value's tag begins: a [`Class`], [`SEVERAL`] or [`INNER`]. Below it lies an index.
pub const TAG: u32 = 29;
/// The bit of a value that names an entry without an end.
pub const LASTING: u32 = 1 << 28;
/// The bits of a value that are an index.
pub const INDEX: u32 = LASTING - 1;
/// Tag of a value whose index, in units of 16 bytes, is that of a set: [`Ids`].
pub const SEVERAL: u32 = 5;
/// Tag of a /64 whose index is that of a line: a [`CLUSTER`] of boundaries, or the head of a tree.
pub const INNER: u32 = 6;

/// Lines of IPv4 records: 4 MiB.
pub const RECORDS: u64 = 1 << 16;
/// The line of the [`Head`].
pub const V6: u64 = RECORDS;
/// Lines that every image has.
pub const FIXED: u64 = RECORDS + 1;
/// The tag of the second word of a record whose words are ranges; see [`range`].
pub const RANGES: u64 = 7;
/// Where it begins.
pub const RANGES_TAG: u32 = 61;
/// The bit of a leaf that tells a block's line from a range's value.
pub const BLOCK: u64 = 1 << 48;
/// Of a block, in halves of words: its values begin here, behind 256 bits and four sums of them.
pub const VALUES: u64 = 9;
/// Keys in a node of a tree; it has one child more.
pub const KEYS: u64 = 8;
/// Levels of the largest tree: 5.4 million nodes.
const LEVELS: u32 = 8;
/// Boundaries in a line of their own: five words, then five halves, then a half that is zero; in
/// the head of a larger tree that half is the number of its nodes.
pub const CLUSTER: usize = 5;

/// Words of the line at [`V6`].
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Head {
    /// The line at which the filter of whole /16s begins: 128 lines, a bit each.
    Wide,
    /// The line at which the filter of /32s begins.
    Filter,
    /// The bits of the filter of /32s, less one: a mask.
    Mask,
    /// The line at which the tree begins.
    Tree,
    /// The nodes of the tree; its values lie behind them.
    Nodes,
}

/// The value for an IPv4 address.
#[inline(always)]
#[must_use]
pub fn v4<L: Lines + ?Sized>(image: &L, address: u32) -> u32 {
    let address = u64::from(address);
    let record = address >> 14;
    let Some(line) = image.line(record >> 2) else { return NONE };
    let at = (record as usize & 3) * 2;
    let (occupied, leaves) = (line[at], line[at + 1]);
    if leaves >> RANGES_TAG == RANGES {
        return within(leaves, address) | within(occupied, address);
    }
    let bit = address >> 8 & 63;
    if occupied >> bit & 1 == 0 {
        return NONE;
    }
    let whole = (leaves >> 32) as u32;
    if whole != NONE {
        return whole;
    }
    let leaf = word(image, leaves + ones(occupied & ((1 << bit) - 1)));
    let host = address & 255;
    if leaf & BLOCK != 0 {
        return block(image, leaf & 0xffff_ffff, host);
    }
    let (first, last) = (leaf >> 32 & 255, leaf >> 40 & 255);
    if host < first || host > last { NONE } else { leaf as u32 }
}

/// A range of a /18, as one word of a record: from an address to an address, and its value.
#[must_use]
pub const fn range(first: u32, last: u32, value: u32) -> u64 {
    let (first, last) = (first as u64 & HOST, last as u64 & HOST);
    RANGES << RANGES_TAG | last << 46 | first << 32 | value as u64
}

/// The value of a [`range`] for an address of its /18; a word of zeros has none.
#[inline(always)]
fn within(range: u64, address: u64) -> u32 {
    let (first, last) = (range >> 32 & HOST, range >> 46 & HOST);
    let past = (address & HOST).wrapping_sub(first);
    if past <= last.wrapping_sub(first) { range as u32 } else { NONE }
}

/// The bits of an address inside of its /18.
const HOST: u64 = 0x3fff;

#[inline(always)]
fn block<L: Lines + ?Sized>(image: &L, index: u64, host: u64) -> u32 {
    let Some(line) = image.line(index) else { return NONE };
    let part = host >> 6;
    // Those at or before the host: at least one, or an earlier part has one.
    let begun = ones(line[part as usize & 3] << (63 - (host & 63)));
    let earlier = line[4] >> (part * 8) & 255;
    half(image, index * 16 + VALUES + earlier + begun - 1)
}

/// The value for an IPv6 address, of which these are the first and the last 64 bits.
#[inline(always)]
#[must_use]
pub fn v6<L: Lines + ?Sized>(image: &L, high: u64, low: u64) -> u32 {
    let Some(head) = image.line(V6) else { return NONE };
    if !passes(image, head, high >> 32) {
        return NONE;
    }
    let value = image.search(head[Head::Tree as usize], head[Head::Nodes as usize], high);
    if value >> TAG == INNER { inner(image, u64::from(value & INDEX), low) } else { value }
}

/// Whether anything may be listed in this /32.
#[inline(always)]
fn passes<L: Lines + ?Sized>(image: &L, head: &Line, net: u64) -> bool {
    let (wide, hashed) = (net >> 16, hash(net) & head[Head::Mask as usize]);
    let wide_word = word(image, head[Head::Wide as usize] * 8 + (wide >> 6));
    let word = word(image, head[Head::Filter as usize] * 8 + (hashed >> 6));
    (wide_word >> (wide & 63) | word >> (hashed & 63)) & 1 != 0
}

/// Where a /32 lies in the filter.
#[inline(always)]
#[must_use]
pub const fn hash(net: u64) -> u64 {
    net.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

#[inline(always)]
fn inner<L: Lines + ?Sized>(image: &L, index: u64, low: u64) -> u32 {
    let Some(line) = image.line(index) else { return NONE };
    let nodes = line[7] >> 32;
    if nodes != 0 {
        return image.search(index + 1, nodes, low);
    }
    let (mut begun, mut i) = (0, 0);
    while i < CLUSTER {
        begun += 1 - below(low, line[i]);
        i += 1;
    }
    if begun == 0 { NONE } else { half(image, index * 16 + 2 * CLUSTER as u64 + begun - 1) }
}

/// The value of the last key that is not above `key`, [`NONE`] before the first. A node's lines
/// are its keys in ascending order; node `n`'s children are `9n + 1` to `9n + 9`.
#[inline(always)]
#[must_use]
pub fn search<L: Lines + ?Sized>(image: &L, tree: u64, nodes: u64, key: u64) -> u32 {
    let (mut node, mut place) = (0, u64::MAX);
    let mut level = 0;
    while level < LEVELS && node < nodes {
        let Some(line) = image.line(tree + node) else { return NONE };
        let mut begun = 0;
        let mut i = 0;
        while i < KEYS as usize {
            begun += 1 - below(key, line[i]);
            i += 1;
        }
        if begun != 0 {
            place = node * KEYS + begun - 1;
        }
        node = node * (KEYS + 1) + 1 + begun;
        level += 1;
    }
    if place == u64::MAX { NONE } else { half(image, (tree + nodes) * 16 + place) }
}

/// 1 if `a < b`: the borrow of their difference, because a comparison would be a jump that
/// nobody can predict.
#[inline(always)]
const fn below(a: u64, b: u64) -> u64 {
    ((!a & b) | ((!a | b) & a.wrapping_sub(b))) >> 63
}

/// The entries that a value names.
#[inline(always)]
#[must_use]
pub fn ids<L: Lines + ?Sized>(image: &L, value: u32) -> Ids {
    let index = value & INDEX;
    match value >> TAG {
        1 => [index, 0, 0, 0],
        2 => [0, index, 0, 0],
        3 => [0, 0, index, 0],
        4 => [0, 0, 0, index],
        SEVERAL => {
            let at = u64::from(index) * 2;
            let [first, second] = [word(image, at), word(image, at + 1)];
            [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32]
        }
        _ => [0; Class::COUNT],
    }
}

#[inline(always)]
fn word<L: Lines + ?Sized>(image: &L, index: u64) -> u64 {
    image.line(index >> 3).map_or(0, |line| line[index as usize & 7])
}

/// A half of a word, the lower first.
#[inline(always)]
fn half<L: Lines + ?Sized>(image: &L, index: u64) -> u32 {
    (word(image, index >> 1) >> ((index & 1) * 32)) as u32
}

/// The bits that are set; BPF has no instruction for it.
#[inline(always)]
const fn ones(mut word: u64) -> u64 {
    word -= word >> 1 & 0x5555_5555_5555_5555;
    word = (word & 0x3333_3333_3333_3333) + (word >> 2 & 0x3333_3333_3333_3333);
    word = (word + (word >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    word.wrapping_mul(0x0101_0101_0101_0101) >> 56
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn borrow_and_population_are_what_the_processor_says(a: u64, b: u64) {
            prop_assert_eq!(below(a, b), u64::from(a < b));
            prop_assert_eq!(below(a, a), 0);
            prop_assert_eq!(ones(a), u64::from(a.count_ones()));
        }
    }

    #[test]
    fn an_image_of_zeros_lists_nobody() {
        let image = std::vec![[0; 8]; FIXED as usize];
        assert_eq!(v4(&image[..], 0x0102_0304), NONE);
        assert_eq!(v6(&image[..], u64::MAX, u64::MAX), NONE);
        assert_eq!(ids(&image[..], NONE), [0; Class::COUNT]);
    }
}
