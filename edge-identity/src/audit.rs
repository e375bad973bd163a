//! The chain of the audit log: each line carries the seal of the one before, and its own.
//!
//! A seal is the keyed BLAKE3 of everything before it in its line, cut to 128 bits. It is keyed, since
//! whoever can write to the file could compute an unkeyed chain anew from any line on. Seals
//! prove that nothing was changed, taken out or put in between two lines; that nothing was cut
//! off at the end, only a number of lines that was kept elsewhere can prove.

use std::fmt;

use serde::{Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::hex;

/// The secret of the seals.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ChainKey([u8; 32]);

impl ChainKey {
    /// The key that this secret makes.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(blake3::derive_key("edged audit chain v1", secret))
    }

    fn seal(&self, text: &[u8]) -> Seal {
        let mut seal = [0; 16];
        seal.copy_from_slice(&blake3::keyed_hash(&self.0, text).as_bytes()[..16]);
        Seal(seal)
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(masked)")
    }
}

/// What seals a line.
#[derive(Clone, Copy, Default, Eq)]
pub struct Seal([u8; 16]);

impl PartialEq for Seal {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Seal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The end of a chain: the number of its last line, and that one's seal. Before the first line both
/// are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The number of the line; the first has 1.
    pub number: u64,
    /// Its seal.
    pub seal: Seal,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// It does not have the form of a line.
    #[error("it is no line of an audit log")]
    Form,
    /// Its seal is another line's.
    #[error("it was changed, or sealed with another key")]
    Seal,
    /// Its number does not follow.
    #[error("its number is {found} where {expected} follows")]
    Number {
        /// What would follow.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// It does not follow on the line before.
    #[error("it follows on another line than the one before it")]
    Before,
}

/// Adds a line behind `last`: a JSON object of these members, without its braces. The new end.
pub fn append(key: &ChainKey, last: Link, members: &[u8], lines: &mut Vec<u8>) -> Link {
    let (start, number) = (lines.len(), last.number + 1);
    lines.extend_from_slice(format!("{{\"n\":{number},").as_bytes());
    lines.extend_from_slice(members);
    lines.extend_from_slice(BEFORE);
    push_hex(lines, last.seal);
    lines.push(b'"');
    let seal = key.seal(&lines[start..]);
    lines.extend_from_slice(SEAL);
    push_hex(lines, seal);
    lines.extend_from_slice(END);
    Link { number, seal }
}

fn push_hex(lines: &mut Vec<u8>, seal: Seal) {
    let mut digits = [0; SEAL_DIGITS];
    hex::write(&seal.0, &mut digits);
    lines.extend_from_slice(&digits);
}

/// Checks a line, without its end, by itself and as the one behind `last`. What it makes the end.
///
/// # Errors
/// What is wrong with it.
pub fn check(key: &ChainKey, last: Option<Link>, line: &[u8]) -> Result<Link, LinkFault> {
    let form = LinkFault::Form;
    let (sealed, seal) = split_end(line, SEAL, b"\"}").ok_or(form)?;
    if key.seal(sealed) != seal {
        return Err(LinkFault::Seal);
    }
    let (_, before) = split_end(sealed, BEFORE, b"\"").ok_or(form)?;
    let digits = sealed.strip_prefix(b"{\"n\":").ok_or(form)?;
    let digits = digits.split(|byte| *byte == b',').next().unwrap_or_default();
    let number =
        std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(form)?;
    let link = Link { number, seal };
    let Some(last) = last else { return Ok(link) };
    let expected = last.number + 1;
    if number != expected {
        return Err(LinkFault::Number { expected, found: number });
    }
    if before != last.seal {
        return Err(LinkFault::Before);
    }
    Ok(link)
}

/// What stands before `mark`, a seal and `end`; and that seal.
fn split_end<'l>(line: &'l [u8], mark: &[u8], end: &[u8]) -> Option<(&'l [u8], Seal)> {
    let rest = line.strip_suffix(end)?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(SEAL_DIGITS)?)?;
    let seal = Seal(hex::read(std::str::from_utf8(digits).ok()?)?);
    Some((rest.strip_suffix(mark)?, seal))
}

const BEFORE: &[u8] = b",\"prev\":\"";
const SEAL: &[u8] = b",\"seal\":\"";
const END: &[u8] = b"\"}\n";
const SEAL_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(count: u64) -> (ChainKey, Vec<Vec<u8>>) {
        let key = ChainKey::of(b"a secret");
        let (mut lines, mut last) = (Vec::new(), Link::default());
        for n in 0..count {
            last = append(&key, last, format!("\"event\":\"e{n}\"").as_bytes(), &mut lines);
        }
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (key, lines.map(<[u8]>::to_vec).collect())
    }

    /// The number of the first line that is wrong, from 0, and what is wrong with it.
    fn first_fault(key: &ChainKey, lines: &[Vec<u8>]) -> Option<(usize, LinkFault)> {
        let mut last = Some(Link::default());
        lines.iter().enumerate().find_map(|(n, line)| match check(key, last, line) {
            Ok(link) => {
                last = Some(link);
                None
            }
            Err(fault) => Some((n, fault)),
        })
    }

    #[test]
    fn a_line_is_json_and_holds_both_seals() {
        let (key, lines) = log(2);
        let read = |n: usize| serde_json::from_slice::<serde_json::Value>(&lines[n]).unwrap();
        assert_eq!((&read(0)["n"], &read(0)["event"]), (&1.into(), &"e0".into()));
        assert_eq!(read(0)["prev"], "0".repeat(32));
        assert_eq!(read(1)["prev"], read(0)["seal"]);
        assert_eq!(first_fault(&key, &lines), None);
        assert_eq!(first_fault(&ChainKey::of(b"another"), &lines), Some((0, LinkFault::Seal)));
        assert!(check(&key, None, &lines[1]).is_ok(), "a file may begin anywhere");
    }

    #[test]
    fn what_was_done_to_a_log_is_found_where_it_was_done() {
        let (key, lines) = log(6);
        let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut lines = lines.clone();
            change(&mut lines);
            first_fault(&key, &lines)
        };
        let number = |expected, found| LinkFault::Number { expected, found };
        assert_eq!(with(&|l| drop(l.remove(2))), Some((2, number(3, 4))));
        assert_eq!(with(&|l| l.swap(2, 3)), Some((2, number(3, 4))));
        assert_eq!(with(&|l| l.insert(2, l[1].clone())), Some((2, number(3, 2))));
        assert_eq!(with(&|l| l[3] = b"{}".to_vec()), Some((3, LinkFault::Form)));
        assert_eq!(with(&|l| l[3].clear()), Some((3, LinkFault::Form)));
        // A line of another log under the same key, with the right number.
        let mut foreign = Vec::new();
        let other = Link { number: 3, seal: Seal([9; 16]) };
        append(&key, other, b"\"event\":\"x\"", &mut foreign);
        foreign.pop();
        assert_eq!(with(&|l| l[3].clone_from(&foreign)), Some((3, LinkFault::Before)));
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_found(line in 0_usize..5, at in 0_usize..100, by in 1_u8..) {
            let (key, mut lines) = log(5);
            let at = at % lines[line].len();
            lines[line][at] ^= by;
            let (found, _) = first_fault(&key, &lines).expect("a fault");
            prop_assert_eq!(found, line);
        }

        #[test]
        fn no_bytes_break_the_check(line in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(check(&ChainKey::of(b"k"), None, &line).is_err());
        }
    }
}
