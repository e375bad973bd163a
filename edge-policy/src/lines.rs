//! Header fields that the edge itself adds to a head, as lines of text.
//!
//! Most heads leave as text, and most of what is in them is the edge's own: a map would hash every
//! name and hold every value in memory of its own.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields in the order in which they were added: `name: value`, CR and LF after each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    /// None yet, and room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Adds a field; the name is a token in lower case. A value that no field can hold is left out,
    /// name and all: who reads the head sees no claim rather than a false one.
    pub fn add(&mut self, name: &str, value: &str) {
        let start = self.begin(name);
        self.0.push_str(value);
        self.end(start, value.len());
    }

    /// The same with a value that has yet to be written.
    pub fn write(&mut self, name: &str, value: impl Display) {
        let start = self.begin(name);
        let at = self.0.len();
        match write!(self.0, "{value}") {
            Ok(()) => self.end(start, self.0.len() - at),
            Err(_) => self.0.truncate(start),
        }
    }

    fn begin(&mut self, name: &str) -> usize {
        let start = self.0.len();
        self.0.push_str(name);
        self.0.push_str(": ");
        start
    }

    fn end(&mut self, start: usize, value: usize) {
        let value = &self.0.as_bytes()[self.0.len() - value..];
        // Without a way out in the middle, many bytes are looked at in one step.
        let visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
        if value.iter().fold(true, |all, byte| all & visible(byte)) {
            self.0.push_str("\r\n");
        } else {
            self.0.truncate(start);
        }
    }

    /// Adds all of another's fields.
    pub fn extend(&mut self, others: &Self) {
        self.0.push_str(&others.0);
    }

    /// The lines.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split_terminator("\r\n").filter_map(|line| line.split_once(": "))
    }

    /// The value of the first field of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(own, value)| (own == name).then_some(value))
    }

    /// Puts them into a map, each in the place of what it has under that name. Values share the memory of
    /// the lines; one that is another each time is marked as such, so that HTTP/2 does not put it into its table.
    pub fn set(self, headers: &mut HeaderMap) {
        // No more room than they take: an answer may wait for long.
        let text = Bytes::from(self.0.into_boxed_str().into_boxed_bytes());
        headers.reserve(memchr::memchr_iter(b'\n', &text).count());
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\r', &text[at..]) {
            let line = text.slice(at..at + length);
            at += length + 2;
            let Some(colon) = memchr::memchr(b':', &line) else { continue };
            let own = OWN.iter().find(|own| own.as_str().as_bytes() == &line[..colon]).cloned();
            let name = own.map_or_else(|| HeaderName::from_bytes(&line[..colon]), Ok);
            let value = HeaderValue::from_maybe_shared(line.slice(colon + 2..));
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(CHANGING.contains(&name.as_str()));
                headers.insert(name, value);
            }
        }
    }
}

/// Names that are in most answers and that nobody but the edge gives a place in memory.
static OWN: [HeaderName; 9] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("cross-origin-opener-policy"),
    HeaderName::from_static("cross-origin-resource-policy"),
    HeaderName::from_static("permissions-policy"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// Fields whose values hardly ever come again.
const CHANGING: [&str; 4] =
    ["x-request-id", "ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_field_is_one_line_or_none(values in proptest::collection::vec(any::<String>(), 0..5)) {
            let (mut lines, mut written) = (Lines::default(), Lines::default());
            let mut map = HeaderMap::new();
            for (at, value) in values.iter().enumerate() {
                let name = format!("x-{at}");
                lines.add(&name, value);
                written.write(&name, value);
                if let Some(value) =
                    HeaderValue::from_str(value).ok().filter(|value| value.to_str().is_ok())
                {
                    map.insert(HeaderName::try_from(name).unwrap(), value);
                }
            }
            prop_assert_eq!(&written, &lines);
            let mut set = HeaderMap::new();
            lines.clone().set(&mut set);
            prop_assert_eq!(&set, &map);
            for (name, value) in &map {
                prop_assert_eq!(lines.get(name.as_str()).map(str::as_bytes), Some(value.as_bytes()));
            }
        }
    }
}
