//! Peppers, and the digests that are made under them.

use std::fmt;
use std::str;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::record::KeyId;
use crate::hex;

/// The secret without which a stolen store is of no use. Kept outside the store.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pepper([u8; 32]);

/// Names a pepper and tells nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PepperId(pub [u8; 4]);

/// The pepper in use, and those under which keys are still looked up.
#[derive(Clone, Debug)]
pub struct Peppers {
    /// New digests are made under this one.
    pub current: Pepper,
    /// Digests under these are replaced when their key is seen.
    pub former: Vec<Pepper>,
}

impl Peppers {
    /// Whether digests under this pepper can be made.
    #[must_use]
    pub fn knows(&self, id: PepperId) -> bool {
        self.current.id() == id || self.former.iter().any(|pepper| pepper.id() == id)
    }
}

impl Pepper {
    /// The pepper of these random bytes.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The pepper of a secret: 32 bytes are it, others are condensed to it.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(secret.try_into().unwrap_or_else(|_| blake3::derive_key("edged pepper v1", secret)))
    }

    /// Its name, by which a digest tells under which pepper it was made.
    #[must_use]
    pub fn id(&self) -> PepperId {
        let [a, b, c, d, ..] = blake3::derive_key("edged pepper id v1", &self.0);
        PepperId([a, b, c, d])
    }

    /// What is kept of a key.
    #[must_use]
    pub fn digest(&self, key: &str) -> Digest {
        Digest(*blake3::keyed_hash(&self.0, key.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(masked)")
    }
}

/// The keyed BLAKE3 digest of a key. Compared in constant time.
#[derive(Clone, Copy, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The public name of the key with this digest, which tells nothing of the digest.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let hash = blake3::hash(&self.0);
        let [a, b, c, d, e, f, ..] = *hash.as_bytes();
        KeyId::of([a, b, c, d, e, f])
    }

    /// Bits that tell the key from others, and that nobody outside can choose or foresee.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.words()[3]
    }

    fn words(&self) -> [u64; 4] {
        let (words, _) = self.0.as_chunks();
        std::array::from_fn(|at| u64::from_le_bytes(words[at]))
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        // By words: the comparison of each element is a black box to the compiler.
        self.words().ct_eq(&other.words()).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest of {}", self.id())
    }
}

/// Hexadecimal for people, bytes for the store.
macro_rules! hex_for_people {
    ($type:ident, $bytes:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if !serializer.is_human_readable() {
                    return self.0.serialize(serializer);
                }
                let mut text = [0; 2 * $bytes];
                hex::write(&self.0, &mut text);
                serializer.serialize_str(str::from_utf8(&text).expect("digits are ASCII"))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return <[u8; $bytes]>::deserialize(deserializer).map(Self);
                }
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                let bytes = hex::read(&text).ok_or_else(|| {
                    serde::de::Error::custom(format_args!("not {} hexadecimal digits", 2 * $bytes))
                })?;
                Ok(Self(bytes))
            }
        }
    };
}

hex_for_people!(Digest, 32);
hex_for_people!(PepperId, 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_needs_the_pepper() {
        let (a, b) = (Pepper::new([1; 32]), Pepper::new([2; 32]));
        assert_ne!(a.digest("key"), b.digest("key"));
        assert_eq!(a.digest("key"), a.digest("key"));
        assert_ne!(a.id(), b.id());
        let peppers = Peppers { current: a.clone(), former: vec![b.clone()] };
        assert!(peppers.knows(a.id()) && peppers.knows(b.id()));
        assert!(!peppers.knows(PepperId([0; 4])));
    }

    #[test]
    fn a_pepper_of_32_bytes_is_taken_as_it_is() {
        assert_eq!(Pepper::of(&[1; 32]).id(), Pepper::new([1; 32]).id());
        assert_ne!(Pepper::of(&[1; 33]).id(), Pepper::of(&[1; 34]).id());
    }

    #[test]
    fn neither_is_printed() {
        let pepper = Pepper::new([9; 32]);
        let digest = pepper.digest("key");
        let shown = format!("{pepper:?} {digest:?}");
        let mut text = [0; 64];
        hex::write(&digest.0, &mut text);
        assert!(!shown.contains(str::from_utf8(&text).unwrap()), "{shown}");
    }

    #[test]
    fn digests_are_text_for_people_and_bytes_for_the_store() {
        let digest = Digest([0xa5; 32]);
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(text, format!("\"{}\"", "a5".repeat(32)));
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
        for bad in ["\"abcd\"", &text.replace('a', "A"), &text.replace("a5", "g5")] {
            assert!(serde_json::from_str::<Digest>(bad).is_err(), "{bad}");
        }
        assert_eq!(postcard::to_allocvec(&digest).unwrap(), [0xa5; 32]);
    }
}
