//! Blocks of fields in HTTP/2 (RFC 7541) on their way past: whether they decode, and what of them means
//! nothing and would be left out. No field is kept, only what the table needs to know of it.

mod huffman;

use std::{borrow::Cow, collections::VecDeque};

use http::uri::{Authority, PathAndQuery, Scheme};

use crate::target;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not decode, so that none behind it would.
    Compression,
    /// It has a fragment in its path, or is of trailers and has a pseudo-field (RFC 9113, 8.1, 8.3.1).
    Malformed,
    /// It has signs in its path for which the library has no reading, plain as they are.
    Unread,
}

/// One direction's table, as large as it is unless somebody agrees on another size.
#[derive(Debug)]
pub(super) struct Table {
    /// The latest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
}

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    value_bytes: u32,
    has_fragment: bool,
    has_bare_signs: bool,
    /// Whether no head that has it is a request's.
    is_unfit: bool,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: u32,
    is_pseudo: bool,
    part: Part,
}

/// What a field is to the head that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Method,
    Scheme,
    Authority,
    Path,
    /// It may say but one thing (RFC 9113, 8.2.2).
    Te,
    /// How long the body is.
    Length,
    /// It is of a connection or of an answer.
    Foreign,
    Field,
}

/// What has come of a head, by which it is a request's or not (RFC 9113, 8.3.1).
#[derive(Debug, Default)]
struct Form {
    /// Pseudo-fields, a bit for each.
    parts: u8,
    has_fields: bool,
    is_unfit: bool,
}

impl Table {
    /// Reads a block, of a head or of trailers.
    ///
    /// # Errors
    /// If it does not decode, or is not what it should be.
    pub(super) fn read(&mut self, block: &[u8], is_trailers: bool) -> Result<(), Fault> {
        let (mut rest, mut has_begun, mut form) = (block, false, Form::default());
        let (mut is_malformed, mut is_unread) = (false, false);
        while let Some(first) = rest.first().copied() {
            let entry = match first {
                0x80.. => self.entry(number(&mut rest, 7)?)?,
                0x40.. => {
                    let entry = self.literal(&mut rest, 6)?;
                    self.keep(entry);
                    entry
                }
                // Only ahead of all fields (4.2).
                0x20.. => {
                    let size = number(&mut rest, 5)?;
                    if has_begun || size > SIZE_MAX {
                        return Err(Fault::Compression);
                    }
                    self.size_max = size;
                    self.evict(0);
                    continue;
                }
                _ => self.literal(&mut rest, 4)?,
            };
            has_begun = true;
            is_malformed |= entry.name.is_pseudo && is_trailers;
            is_malformed |= entry.name.part == Part::Path && entry.has_fragment;
            is_unread |= entry.name.part == Part::Path && entry.has_bare_signs;
            form.add(entry);
        }
        match is_malformed {
            true => Err(Fault::Malformed),
            // What is no request for another reason has no excuse.
            false if is_unread && form.is_request() => Err(Fault::Unread),
            false => Ok(()),
        }
    }

    fn literal(&self, rest: &mut &[u8], prefix: u32) -> Result<Entry, Fault> {
        let name = match number(rest, prefix)? {
            0 => Name::of(&text(rest)?),
            index => self.entry(index)?.name,
        };
        let value = text(rest)?;
        let has_fragment = value.contains(&b'#');
        let has_bare_signs = name.part == Part::Path && target::has_bare_signs(&value);
        let is_unfit = name.part.is_unfit(&value);
        Ok(Entry { name, value_bytes: length(&value), has_fragment, has_bare_signs, is_unfit })
    }

    /// A field of either table, by its number.
    fn entry(&self, index: usize) -> Result<Entry, Fault> {
        let at = index.checked_sub(1).ok_or(Fault::Compression)?;
        if let Some(name) = NAMES.get(at) {
            let name = Name::of(name.as_bytes());
            let (value_bytes, has_fragment, has_bare_signs) = Default::default();
            // What the table has of lengths is an empty one.
            let is_unfit = matches!(name.part, Part::Foreign | Part::Length);
            return Ok(Entry { name, value_bytes, has_fragment, has_bare_signs, is_unfit });
        }
        self.entries.get(at - NAMES.len()).copied().ok_or(Fault::Compression)
    }

    fn keep(&mut self, entry: Entry) {
        self.evict(entry.size());
        // One that is larger than the table has emptied it (4.4).
        if entry.size() <= self.size_max {
            self.size += entry.size();
            self.entries.push_front(entry);
        }
    }

    /// Makes room.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.size_max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: SIZE_MAX }
    }
}

impl Entry {
    fn size(self) -> usize {
        self.name.bytes as usize + self.value_bytes as usize + OVERHEAD
    }
}

impl Name {
    fn of(name: &[u8]) -> Self {
        let is_pseudo = name.starts_with(b":");
        Self { bytes: length(name), is_pseudo, part: Part::of(name, is_pseudo) }
    }
}

impl Part {
    fn of(name: &[u8], is_pseudo: bool) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b"te" => Self::Te,
            b"content-length" => Self::Length,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => Self::Foreign,
            _ if is_pseudo => Self::Foreign,
            _ => Self::Field,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Whether a request's head cannot say that here. Names and values of other fields that are none end the
    /// connection.
    fn is_unfit(self, value: &[u8]) -> bool {
        match self {
            Self::Scheme => Scheme::try_from(value).is_err(),
            Self::Authority => Authority::try_from(value).is_err(),
            // Without the signs that it may have.
            Self::Path => target::escaped(value)
                .is_some_and(|escaped| PathAndQuery::try_from(escaped).is_err()),
            Self::Te => value != b"trailers",
            // `h2` reads no number of more digits.
            Self::Length => {
                !(1..=19).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit)
            }
            Self::Method => value == b"CONNECT",
            Self::Foreign => true,
            Self::Field => false,
        }
    }
}

impl Form {
    fn add(&mut self, entry: Entry) {
        let Name { part, is_pseudo, .. } = entry.name;
        self.is_unfit |= entry.is_unfit;
        if !is_pseudo {
            self.has_fields = true;
            return;
        }
        self.is_unfit |= self.has_fields || self.parts & part.bit() != 0;
        self.parts |= part.bit();
    }

    fn is_request(&self) -> bool {
        let needed = [Part::Method, Part::Scheme, Part::Path].map(Part::bit);
        !self.is_unfit && needed.iter().all(|bit| self.parts & bit != 0)
    }
}

/// Of what is part of a block, and so no longer than a few of it.
fn length(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// A number whose first byte has a prefix of so many bits (5.1).
fn number(rest: &mut &[u8], prefix: u32) -> Result<usize, Fault> {
    let (first, mut behind) = rest.split_first().ok_or(Fault::Compression)?;
    let most = (1 << prefix) - 1;
    let mut number = usize::from(*first) & most;
    if number == most {
        for shift in (0..=LONGEST).step_by(7) {
            let (next, after) = behind.split_first().ok_or(Fault::Compression)?;
            if shift == LONGEST {
                return Err(Fault::Compression);
            }
            behind = after;
            number += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = behind;
    Ok(number)
}

/// A text, in Huffman's code or as it is (5.2).
fn text<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Fault> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = number(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Fault::Compression)?;
    *rest = behind;
    match is_coded {
        true => huffman::decode(text).map(Cow::Owned).ok_or(Fault::Compression),
        false => Ok(Cow::Borrowed(text)),
    }
}

/// Of a table, unless somebody asks for another (RFC 9113, 6.5.2), which the edge does not.
const SIZE_MAX: usize = 4096;
/// What a field counts beyond its bytes (4.1).
const OVERHEAD: usize = 32;
/// Bits of a number behind its prefix.
const LONGEST: u32 = 28;

/// The names of the static table (appendix A).
const NAMES: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
    }

    fn sizes(table: &Table) -> Vec<usize> {
        table.entries.iter().map(|entry| entry.size()).collect()
    }

    /// Three requests (RFC 7541, C.3 and C.4), without Huffman's code and with it.
    #[test]
    fn requests_of_the_specification_fill_the_table_as_it_says() {
        for blocks in [
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut table = Table::default();
            for (block, kept) in blocks.iter().zip([&[57][..], &[53, 57], &[54, 53, 57]]) {
                assert_eq!(table.read(&bytes(block), false), Ok(()));
                assert_eq!(sizes(&table), kept);
            }
            assert_eq!(table.size, 164);
        }
    }

    /// Answers with a table of 256 bytes (RFC 7541, C.6).
    #[test]
    fn the_oldest_make_room() {
        let mut table = Table { size_max: 256, ..Table::default() };
        for (block, size) in [
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                222,
            ),
            ("4883 640e ffc1 c0bf", 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab \
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f \
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                215,
            ),
        ] {
            assert_eq!(table.read(&bytes(block), false), Ok(()), "{block}");
            assert_eq!(table.size, size);
        }
    }

    #[test]
    fn what_means_nothing_is_found_wherever_it_is_written() {
        // A path with a fragment: plain, coded, by a name that was kept, and as a whole.
        for block in ["04 03 2f2361", "44 03 2f2361 be", "04 83 63fe87", "00 05 3a70617468 01 23"] {
            let read = Table::default().read(&bytes(block), false);
            assert_eq!(read, Err(Fault::Malformed), "{block}");
        }
        let mut table = Table::default();
        assert_eq!(table.read(&bytes("44 03 2f2361"), false), Err(Fault::Malformed));
        assert_eq!(table.read(&bytes("82 be"), false), Err(Fault::Malformed));
        // "/<", plain, kept, and with a fragment.
        let mut table = Table::default();
        assert_eq!(table.read(&bytes("82 87 44 02 2f3c"), false), Err(Fault::Unread));
        assert_eq!(table.read(&bytes("82 87 be"), false), Err(Fault::Unread));
        assert_eq!(table.read(&bytes("be 04 03 2f2361"), false), Err(Fault::Malformed));
        // The same sign elsewhere is nobody's.
        assert_eq!(Table::default().read(&bytes("0f25 02 2361"), false), Ok(()));
        for block in ["82", "88", "00 02 3a78 00", "41 01 61", "04 01 2f"] {
            let read = |is_trailers| Table::default().read(&bytes(block), is_trailers);
            assert_eq!((read(false), read(true)), (Ok(()), Err(Fault::Malformed)), "{block}");
        }
        assert_eq!(Table::default().read(&bytes("00 01 78 00"), true), Ok(()));
    }

    #[test]
    fn a_path_that_is_not_read_excuses_nothing_else() {
        let path = "04 02 2f3c";
        // With an authority, other fields and the one word that `te` may say.
        for fine in
            ["", "01 01 61", "0f25 02 2361", "00 02 7465 08 747261696c657273", "0f0d 02 3130"]
        {
            let block = bytes(&format!("82 87 {path} {fine}"));
            assert_eq!(Table::default().read(&block, false), Err(Fault::Unread), "{fine}");
        }
        for wrong in [
            path.to_owned(),
            format!("82 {path}"),
            format!("87 {path}"),
            format!("82 82 87 {path}"),
            format!("82 87 {path} 84"),
            format!("82 87 88 {path}"),
            format!("82 0f25 01 61 87 {path}"),
            format!("82 87 {path} 00 0a 636f6e6e656374696f6e 01 61"),
            format!("82 87 {path} 0f2a 01 61"),
            format!("82 87 {path} 00 02 7465 01 61"),
            // Lengths that are no number.
            format!("82 87 {path} 0f0d 02 2b31"),
            format!("82 87 {path} 0f0d 00"),
            format!("82 87 {path} 9c"),
            // Schemes and authorities that are none, and a path with a space.
            format!("02 07 434f4e4e454354 87 {path}"),
            format!("82 06 01 20 {path}"),
            format!("82 87 01 01 20 {path}"),
            "82 87 04 03 2f3c20".to_owned(),
        ] {
            assert_eq!(Table::default().read(&bytes(&wrong), false), Ok(()), "{wrong}");
        }
    }

    #[test]
    fn what_does_not_decode_is_told() {
        for block in [
            "80",
            "be",
            "ff00",
            "ff",
            "ff80",
            "ff80808080808000",
            "82 20 82",
            "82 20",
            "3fe21f",
            "00 0578",
            "00 0178 0561",
            "00 0178",
            "00 0178 8118",
            "00 0178 821fff",
            "00 0178 81ff",
            "00 0178 84ffffffff",
            "00 0178 88ffffffffffffffff",
            "40 0178 0179 bf",
            "7e 0179",
            "0f7f 0179",
            "10 0178 0179 be",
        ] {
            let read = Table::default().read(&bytes(block), false);
            assert_eq!(read, Err(Fault::Compression), "{block}");
        }
        for block in ["", "20", "20 3fe11f", "40 0178 0179 be be", "00 0178 811f", "00 00 80"] {
            assert_eq!(Table::default().read(&bytes(block), false), Ok(()), "{block}");
        }
        let mut table = Table::default();
        assert_eq!(table.read(&bytes("40 0178 0179"), false), Ok(()));
        assert_eq!(table.read(&bytes("be"), false), Ok(()));
        assert_eq!(table.read(&bytes("20 be"), false), Err(Fault::Compression));
    }
}
