//! Where addresses are from: what a database may tell of one, and how that is written.

/// What a database may tell of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The country, as the two letters of its code.
    Country,
    /// The number of the network of networks that it is of.
    Asn,
}

impl Place {
    /// Either, by its number.
    pub const ALL: [Self; 2] = [Self::Country, Self::Asn];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Country => "country",
            Self::Asn => "asn",
        }
    }

    /// Reads one: two capital letters, or a number. As a number: the letters are its two bytes.
    #[must_use]
    pub fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Country => {
                let code = <[u8; 2]>::try_from(text.as_bytes()).ok()?;
                let is_code = code.iter().all(u8::is_ascii_uppercase);
                is_code.then(|| u64::from(u16::from_be_bytes(code)))
            }
            Self::Asn => {
                let is_number = text.bytes().all(|b| b.is_ascii_digit());
                text.parse::<u32>().ok().filter(|_| is_number).map(u64::from)
            }
        }
    }

    /// Writes one so that [`Self::parse`] would read the same.
    #[must_use]
    pub fn show(self, number: u64) -> String {
        match (self, u16::try_from(number)) {
            (Self::Country, Ok(code)) => {
                code.to_be_bytes().iter().map(|byte| char::from(*byte)).collect()
            }
            _ => number.to_string(),
        }
    }
}

/// What is known of where an address is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places([Option<u64>; 2]);

impl Places {
    /// What is found of each.
    #[must_use]
    pub fn find(find: impl FnMut(Place) -> Option<u64>) -> Self {
        Self(Place::ALL.map(find))
    }

    /// One of them, if it is known.
    #[must_use]
    pub const fn get(self, place: Place) -> Option<u64> {
        self.0[place as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for (place, text) in [(Place::Country, "NZ"), (Place::Asn, "64496"), (Place::Asn, "0")] {
            assert_eq!(place.show(place.parse(text).unwrap()), text);
        }
        for (place, text) in [
            (Place::Country, "nz"),
            (Place::Country, "NZL"),
            (Place::Country, ""),
            (Place::Asn, "AS1"),
            (Place::Asn, "+1"),
            (Place::Asn, ""),
            (Place::Asn, "4294967296"),
        ] {
            assert_eq!(place.parse(text), None, "{text}");
        }
        let places = Places::find(|place| (place == Place::Asn).then_some(7));
        assert_eq!((places.get(Place::Country), places.get(Place::Asn)), (None, Some(7)));
    }
}
