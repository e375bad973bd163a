//! PEM (RFC 7468) and as much of DER as a public key needs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The first block of this label in a text, decoded.
#[must_use]
pub fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let body = text.split_once(&begin)?.1.split_once(&end)?.0;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}

/// A DER element: its tag, its content, and what follows it. Lengths up to 65535.
pub(super) fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, rest) = match der.get(1..)? {
        [length @ ..=0x7f, rest @ ..] | [0x81, length @ 0x80..=0xff, rest @ ..] => {
            (usize::from(*length), rest)
        }
        [0x82, high @ 1..=0xff, low, rest @ ..] => {
            (usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    Some((der[0], rest.get(..length)?, rest.get(length..)?))
}

/// What a `SubjectPublicKeyInfo` (RFC 5280, 4.1.2.7) holds.
pub(super) struct Spki<'a> {
    /// Object identifier of the algorithm.
    pub(super) algorithm: &'a [u8],
    /// The algorithm's parameters: an encoded element or nothing.
    pub(super) parameters: &'a [u8],
    /// The key, as its algorithm writes it.
    pub(super) key: &'a [u8],
}

/// Reads a `SubjectPublicKeyInfo`, which must be the whole input.
pub(super) fn spki(der: &[u8]) -> Option<Spki<'_>> {
    let (SEQUENCE, info, []) = element(der)? else { return None };
    let (SEQUENCE, identifier, rest) = element(info)? else { return None };
    let (OBJECT_IDENTIFIER, algorithm, parameters) = element(identifier)? else { return None };
    // The first byte of a bit string is how many bits of the last do not count.
    let (BIT_STRING, [0, key @ ..], []) = element(rest)? else { return None };
    Some(Spki { algorithm, parameters, key })
}

/// The modulus and the exponent of an `RSAPublicKey` (RFC 8017, A.1.1), without leading zeros.
pub(super) fn rsa(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (SEQUENCE, key, []) = element(der)? else { return None };
    let (INTEGER, modulus, rest) = element(key)? else { return None };
    let (INTEGER, exponent, []) = element(rest)? else { return None };
    let bare = |number: &'_ [u8]| number.iter().position(|byte| *byte != 0);
    Some((&modulus[bare(modulus)?..], &exponent[bare(exponent)?..]))
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
