//! How a key looks: `<prefix>_<43 base62>_<6 base62>`, 256 random bits and the CRC-32 of all
//! before it, so that a mistyped key is refused before any lookup and a leaked one is found by
//! scanners. The checksum is no security check: anybody can compute it.

use std::fmt;

use zeroize::Zeroizing;

/// A whole key, or a secret bound to one, in the clear: shown once to its owner, never kept, never
/// printed.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The key that these 256 random bits make.
    #[must_use]
    pub fn mint(prefix: &str, random: &[u8; 32]) -> Self {
        // Room for all of it at once: a string that grows leaves copies behind.
        let mut text = String::with_capacity(prefix.len() + BODY_LENGTH + CHECKSUM_LENGTH + 2);
        text.push_str(prefix);
        text.push('_');
        push_base62(&mut text, random);
        let checksum = checksum(&text);
        text.push('_');
        text.extend(checksum.map(char::from));
        Self(Zeroizing::new(text))
    }

    /// The secret that these 256 random bits make, to be bound to a key.
    #[must_use]
    pub fn mint_bound(random: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(BODY_LENGTH);
        push_base62(&mut text, random);
        Self(Zeroizing::new(text))
    }

    /// The key itself, for its owner or for its digest.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(masked)")
    }
}

/// Whether the text has the form of a key with this prefix, checksum included.
#[must_use]
pub fn well_formed(text: &str, prefix: &str) -> bool {
    split(text).is_some_and(|found| found == prefix)
}

/// What in a text has the form of a key, with any prefix and whatever is around it.
pub fn find_keys(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('_').filter_map(|(body, _)| {
        let end = body + 1 + BODY_LENGTH;
        let sum = text.get(end..)?.strip_prefix('_')?.get(..CHECKSUM_LENGTH)?;
        // Checksums are the dear part: whoever writes separators alone is to make nobody compute them.
        if !text.get(body + 1..end)?.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let is_start = |start: &usize| {
            text.get(*start..end).is_some_and(|signed| sum.as_bytes() == checksum(signed))
        };
        let start = (body.saturating_sub(PREFIX_LENGTH_MAX)..body).find(is_start);
        start.and_then(|start| text.get(start..=end + CHECKSUM_LENGTH))
    })
}

/// The prefix of a well-formed key.
fn split(text: &str) -> Option<&str> {
    let (signed, sum) = text.rsplit_once('_')?;
    let (prefix, body) = signed.rsplit_once('_')?;
    let formed = !prefix.is_empty()
        && body.len() == BODY_LENGTH
        // Without a way out in the middle, many are looked at in one step.
        && body.bytes().fold(true, |all, byte| all & byte.is_ascii_alphanumeric())
        && sum.as_bytes() == checksum(signed);
    formed.then_some(prefix)
}

/// The longest prefix of a key, in bytes.
pub const PREFIX_LENGTH_MAX: usize = 16;

/// 62^43 is just above 2^256.
const BODY_LENGTH: usize = 43;

/// 62^6 is above 2^32.
const CHECKSUM_LENGTH: usize = 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn checksum(text: &str) -> [u8; CHECKSUM_LENGTH] {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [0; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// A big-endian number in base 62, zeros in front.
fn push_base62(text: &mut String, number: &[u8; 32]) {
    let mut number = Zeroizing::new(*number);
    let mut digits = Zeroizing::new([0; BODY_LENGTH]);
    for digit in digits.iter_mut().rev() {
        let mut rest = 0;
        for byte in number.iter_mut() {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = ALPHABET[rest as usize];
    }
    text.extend(digits.map(char::from));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_its_stated_form() {
        // Computed apart from this code; keys in the field rest on it.
        let counted = Secret::mint("edged", &std::array::from_fn(|i| i as u8));
        assert_eq!(counted.expose(), "edged_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf_1oplit");
        let lowest = Secret::mint("edged", &[0; 32]);
        assert!(lowest.expose().starts_with(&format!("edged_{}_", "0".repeat(43))));
        let highest = Secret::mint("edged", &[0xff; 32]);
        assert_eq!(highest.expose().len(), 5 + 1 + 43 + 1 + 6);
        assert!(well_formed(highest.expose(), "edged"));
        assert!(!well_formed(highest.expose(), "other"));
        assert!(well_formed(Secret::mint("a_b", &[1; 32]).expose(), "a_b"));
        for text in ["", "_", "__", "edged__", "edged_x_y", "edged"] {
            assert!(!well_formed(text, "edged"), "{text}");
        }
        assert_eq!(Secret::mint_bound(&[0xff; 32]).expose().len(), 43);
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::mint("edged", &[3; 32]);
        assert!(!format!("{secret:?}").contains(&secret.expose()[6..20]));
    }

    proptest! {
        #[test]
        fn every_key_is_well_formed_and_its_own(a: [u8; 32], b: [u8; 32]) {
            let (x, y) = (Secret::mint("edged", &a), Secret::mint("edged", &b));
            prop_assert!(well_formed(x.expose(), "edged"));
            prop_assert_eq!(x.expose() == y.expose(), a == b);
        }

        #[test]
        fn a_key_is_found_whatever_is_around_it(
            random: [u8; 32],
            before in "(\\PC{0,20}[^a-z0-9])?",
            after in "\\PC{0,60}",
        ) {
            for prefix in ["edged", "k", "abcdefghijklmnop"] {
                let key = Secret::mint(prefix, &random);
                let text = format!("{before}{}{after}", key.expose());
                prop_assert!(find_keys(&text).eq([key.expose()]), "{text}");
                let damaged = text.replacen(key.expose(), &key.expose()[1..], 1);
                prop_assert_eq!(find_keys(&damaged).next(), None, "{}", damaged);
            }
        }

        #[test]
        fn one_changed_character_is_refused(random: [u8; 32], at in 0_usize..56, by in 1_u8..127) {
            let mut text = Secret::mint("edged", &random).expose().as_bytes().to_vec();
            text[at] = (text[at] ^ by) & 0x7f;
            prop_assert!(!well_formed(std::str::from_utf8(&text).unwrap(), "edged"));
        }

        #[test]
        fn no_text_breaks_the_check(text in "\\PC{0,80}") {
            prop_assert!(!well_formed(&text, "edged"));
        }
    }
}
