//! Heads and trailers, line by line as they come: no byte is looked at twice.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;

use super::{
    CLASSES, Fault, Field, Span, TOKEN, VALUE, all,
    line::{Line, RequestLine, StatusLine},
};
use crate::{head::Bounds, shield::X_API_KEY};

/// Reads the heads of requests.
pub type RequestReader = Reader<RequestLine>;

/// Reads the heads of answers.
pub type ResponseReader = Reader<StatusLine>;

/// Reads one head after the other, each from a buffer that begins with it and grows until the
/// head is complete.
#[derive(Debug)]
pub struct Reader<L> {
    first: Option<L>,
    empty: u8,
    section: Section,
}

/// A complete head. Its fields stay in the reader, and its bytes in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<L> {
    /// Its first line.
    pub first: L,
    /// Bytes of the buffer that it takes up.
    pub length: usize,
}

impl<L: Line + Copy> Reader<L> {
    /// Reads on. `None`: the head is not complete yet.
    ///
    /// # Errors
    /// If it never will be; the reader is then of no more use.
    pub fn read(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<Head<L>>, Fault> {
        let first = match self.first {
            Some(first) => first,
            None => match self.first_line(bytes, bounds)? {
                Some(first) => *self.first.insert(first),
                None => return Ok(None),
            },
        };
        let complete = self.section.read(bytes, bounds)?;
        Ok(complete.map(|length| Head { first, length }))
    }

    fn first_line(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<L>, Fault> {
        let line_max = bounds.uri_bytes_max + AROUND_TARGET;
        loop {
            let at = self.section.lines.at;
            let Some(line) = self.section.lines.next(bytes)? else {
                if bytes.len() - at > line_max {
                    return Err(Fault::LineTooLong);
                }
                let begins = bytes.get(at).is_none_or(|b| *b == b'\r' || L::may_begin(*b));
                return if begins { Ok(None) } else { Err(Fault::Malformed) };
            };
            if line.is_empty() && self.empty < L::EMPTY_MAX {
                self.empty += 1;
                continue;
            }
            if line.len() > line_max {
                return Err(Fault::LineTooLong);
            }
            return L::read(line.of(bytes), at).map(Some);
        }
    }

    /// The fields of the head that was read.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.section.fields
    }

    /// Makes ready for the next head.
    pub fn clear(&mut self) {
        (self.first, self.empty) = (None, 0);
        self.section.clear();
    }
}

impl<L> Default for Reader<L> {
    fn default() -> Self {
        Self { first: None, empty: 0, section: Section::default() }
    }
}

/// Field lines up to the empty one: the rest of a head, or trailers.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    lines: Lines,
    pub(super) fields: Vec<Field>,
    size: usize,
}

impl Section {
    /// Reads on; at the empty line, where it ends in the buffer.
    pub(super) fn read(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<usize>, Fault> {
        loop {
            let at = self.lines.at;
            let Some(line) = self.lines.next(bytes)? else {
                let so_far = self.size + bytes.len() - at;
                let fits = so_far <= bounds.header_bytes_max;
                return if fits { Ok(None) } else { Err(Fault::FieldsTooLarge) };
            };
            if line.is_empty() {
                return Ok(Some(self.lines.at));
            }
            // Four bytes for the colon, the space and the line end.
            self.size += line.len() + 2;
            if self.fields.len() >= bounds.headers_max || self.size > bounds.header_bytes_max {
                return Err(Fault::FieldsTooLarge);
            }
            self.fields.push(field(line.of(bytes), at)?);
        }
    }

    pub(super) fn clear(&mut self) {
        (self.lines, self.size) = (Lines::default(), 0);
        self.fields.clear();
    }
}

/// Finds the ends of lines.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    /// Where the line begins.
    at: usize,
    /// Where to go on looking for its end.
    scanned: usize,
}

impl Lines {
    fn next(&mut self, bytes: &[u8]) -> Result<Option<Span>, Fault> {
        let fresh = &bytes[self.scanned..];
        let Some(found) = memchr(b'\n', fresh) else {
            // All but a CR at the very end, which may be half of a line's end.
            let whole = fresh.strip_suffix(b"\r").unwrap_or(fresh);
            self.scanned += whole.len();
            return if all(whole, VALUE) { Ok(None) } else { Err(Fault::Malformed) };
        };
        let end = self.scanned + found;
        if end == self.at || bytes[end - 1] != b'\r' {
            return Err(Fault::Malformed);
        }
        let line = Span::new(self.at, end - 1);
        self.at = end + 1;
        self.scanned = self.at;
        Ok(Some(line))
    }
}

impl Span {
    fn len(self) -> usize {
        self.range().len()
    }

    fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// `name: value`, at `at` of its buffer.
fn field(line: &[u8], at: usize) -> Result<Field, Fault> {
    let colon = line.iter().position(|b| CLASSES[*b as usize] & TOKEN == 0);
    let colon = colon.filter(|colon| *colon > 0 && line[*colon] == b':').ok_or(Fault::Malformed)?;
    let around = &line[colon + 1..];
    if !all(around, VALUE) {
        return Err(Fault::Malformed);
    }
    let is_space = |b: &u8| matches!(*b, b' ' | b'\t');
    let before = around.iter().position(|b| !is_space(b)).unwrap_or(around.len());
    let after = around.iter().rposition(|b| !is_space(b)).map_or(before, |last| last + 1);
    let has_tab = around[..before].contains(&b'\t') || around[after..].contains(&b'\t');
    let value = at + colon + 1;
    Ok(Field {
        name: Span::new(at, at + colon),
        value: Span::new(value + before, value + after),
        has_tab,
    })
}

/// The fields as a map; the values share the bytes.
///
/// # Errors
/// If a name is longer than anybody's.
pub fn headers(bytes: &Bytes, fields: &[Field]) -> Result<HeaderMap, Fault> {
    let mut map = HeaderMap::with_capacity(fields.len() + ROOM);
    for field in fields {
        let name = name(field.name.of(bytes))?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(field.value.range()));
        map.append(name, value.map_err(|_| Fault::Malformed)?);
    }
    Ok(map)
}

fn name(bytes: &[u8]) -> Result<HeaderName, Fault> {
    // The one that comes with most requests and that the library has to find memory for.
    if bytes.eq_ignore_ascii_case(X_API_KEY.as_str().as_bytes()) {
        return Ok(X_API_KEY);
    }
    HeaderName::from_bytes(bytes).map_err(|_| Fault::Malformed)
}

/// Bytes of a first line around its target or reason: the longest method, two spaces and a version.
const AROUND_TARGET: usize = 64;

/// Fields that are added on the way, so that the map need not grow: what the edge says is lines, but for `Upgrade`.
const ROOM: usize = 1;
