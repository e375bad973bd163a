//! Header fields that the edge itself adds to a head, as lines of text.
//!
//! Most heads leave as text, and most of what is in them is the edge's own: a map would hash every
//! name and hold every value in memory of its own.

use std::fmt::{Display, Write as _};

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
    pub fn add(&mut self, name: &str, value: impl Display) {
        let start = self.0.len();
        self.0.push_str(name);
        self.0.push_str(": ");
        let at = self.0.len();
        let written = write!(self.0, "{value}");
        let visible = |byte| matches!(byte, b'\t' | b' '..=b'~');
        if written.is_ok() && self.0.bytes().skip(at).all(visible) {
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

    /// Puts them into a map, each in the place of what it has under that name.
    pub fn set(&self, headers: &mut HeaderMap) {
        for (name, value) in self.iter() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::from_str(value))
            {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_field_is_one_line_or_none(values in proptest::collection::vec(any::<String>(), 0..5)) {
            let mut lines = Lines::default();
            let mut map = HeaderMap::new();
            for (at, value) in values.iter().enumerate() {
                let name = format!("x-{at}");
                lines.add(&name, value);
                if let Some(value) =
                    HeaderValue::from_str(value).ok().filter(|value| value.to_str().is_ok())
                {
                    map.insert(HeaderName::try_from(name).unwrap(), value);
                }
            }
            let mut set = HeaderMap::new();
            lines.set(&mut set);
            prop_assert_eq!(&set, &map);
            for (name, value) in &map {
                prop_assert_eq!(lines.get(name.as_str()).map(str::as_bytes), Some(value.as_bytes()));
            }
        }
    }
}
