//! JA4: a fingerprint of the TLS library behind a ClientHello.
//!
//! The algorithm is FoxIO's (JA4+ technical details, `JA4.md`): what the client offers, without
//! the values that it draws at random (GREASE, RFC 8701), without their order where clients shuffle it.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A fingerprint: 36 characters, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ja4([u8; 36]);

impl Ja4 {
    /// The fingerprint in letters, digits and underscores.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only `Hello::ja4` and `parse` make one, and both of ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// A fingerprint as it is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 36] = text.as_bytes().try_into().ok()?;
        let hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
        let fits = bytes[..10].iter().all(u8::is_ascii_alphanumeric)
            && (bytes[10], bytes[23]) == (b'_', b'_')
            && hex(&bytes[11..23])
            && hex(&bytes[24..]);
        fits.then_some(Self(bytes))
    }
}

impl fmt::Display for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Ja4 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Debug for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What of a ClientHello the fingerprint and the choice of the key exchange go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The version of the record's own field, or the highest of `supported_versions`.
    pub version: u16,
    /// Cipher suites in the client's order, GREASE included, as in all that follow.
    pub suites: Vec<u16>,
    /// The types of its extensions.
    pub extensions: Vec<u16>,
    /// The first protocol that it would speak.
    pub alpn: Option<Vec<u8>>,
    /// Signature algorithms.
    pub signatures: Vec<u16>,
    /// Groups of the key exchange.
    pub groups: Vec<u16>,
}

impl Hello {
    /// Reads the ClientHello at the begin of a stream of TLS records, over as many records as it
    /// takes; `None` if it is not there or not whole.
    #[must_use]
    pub fn read(stream: &[u8]) -> Option<Self> {
        let mut message = Vec::with_capacity(stream.len());
        let mut records = Reader(stream);
        loop {
            if records.byte()? != HANDSHAKE {
                return None;
            }
            records.take(2)?;
            message.extend_from_slice(records.counted(2)?);
            let mut reader = Reader(&message);
            let Some(kind) = reader.byte() else { continue };
            if kind != CLIENT_HELLO {
                return None;
            }
            if let Some(body) = reader.counted(3) {
                return Self::body(Reader(body));
            }
        }
    }

    fn body(mut hello: Reader<'_>) -> Option<Self> {
        let mut read = Self { version: hello.number()?, ..Self::default() };
        hello.take(RANDOM)?;
        hello.counted(1)?;
        read.suites = Reader(hello.counted(2)?).numbers();
        hello.counted(1)?;
        // Before TLS 1.3 a hello may end here.
        let mut extensions = Reader(hello.counted(2).unwrap_or_default());
        while !extensions.0.is_empty() {
            let (kind, body) = (extensions.number()?, extensions.counted(2)?);
            read.extensions.push(kind);
            let mut body = Reader(body);
            match kind {
                ALPN => read.alpn = Some(Reader(body.counted(2)?).counted(1)?.to_vec()),
                SIGNATURES => read.signatures = Reader(body.counted(2)?).numbers(),
                GROUPS => read.groups = Reader(body.counted(2)?).numbers(),
                VERSIONS => {
                    let versions = Reader(body.counted(1)?).numbers();
                    let highest = versions.into_iter().filter(|v| !is_grease(*v)).max();
                    read.version = highest.unwrap_or(read.version);
                }
                _ => {}
            }
        }
        Some(read)
    }

    /// The fingerprint of a client that came over TCP.
    #[must_use]
    pub fn ja4(&self) -> Ja4 {
        let real = |list: &[u16]| -> Vec<u16> {
            list.iter().copied().filter(|value| !is_grease(*value)).collect()
        };
        let (mut suites, mut extensions) = (real(&self.suites), real(&self.extensions));
        let name = if extensions.contains(&SERVER_NAME) { 'd' } else { 'i' };
        let (suites_n, extensions_n) = (suites.len().min(99), extensions.len().min(99));
        let alpn = ends(self.alpn.as_deref().unwrap_or_default());
        let version = version(self.version);
        suites.sort_unstable();
        extensions.retain(|kind| *kind != SERVER_NAME && *kind != ALPN);
        extensions.sort_unstable();
        let mut shape = String::new();
        if !self.extensions.is_empty() {
            commas(&extensions, &mut shape);
            let signatures = real(&self.signatures);
            if !signatures.is_empty() {
                shape.push('_');
                commas(&signatures, &mut shape);
            }
        }
        let mut listed = String::new();
        commas(&suites, &mut listed);
        let text = format!(
            "t{version}{name}{suites_n:02}{extensions_n:02}{alpn}_{}_{}",
            digest(&listed),
            digest(&shape)
        );
        let mut fingerprint = [b'0'; 36];
        fingerprint.copy_from_slice(text.as_bytes());
        Ja4(fingerprint)
    }
}

/// The two characters for a version.
const fn version(version: u16) -> &'static str {
    match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    }
}

/// First and last character of a protocol's name; of its hexadecimal form, if it is not a word.
fn ends(protocol: &[u8]) -> String {
    let ends = |text: &[u8]| [text[0], text[text.len() - 1]].map(char::from).iter().collect();
    match protocol {
        [] => "00".to_owned(),
        [first, .., last] if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() => {
            ends(protocol)
        }
        [only] if only.is_ascii_alphanumeric() => ends(protocol),
        _ => {
            let hex: String = protocol.iter().map(|byte| format!("{byte:02x}")).collect();
            ends(hex.as_bytes())
        }
    }
}

/// Adds the values in four hexadecimal digits each. By hand: every handshake lists some forty.
fn commas(values: &[u16], text: &mut String) {
    text.reserve(values.len() * 5);
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        value.to_be_bytes().iter().for_each(|byte| hex(*byte, text));
    }
}

fn hex(byte: u8, text: &mut String) {
    for digit in [byte >> 4, byte & 15] {
        text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
    }
}

/// The first twelve hexadecimal digits of the SHA-256; zeros for nothing.
fn digest(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(12);
    }
    let mut digits = String::with_capacity(12);
    Sha256::digest(text.as_bytes())[..6].iter().for_each(|byte| hex(*byte, &mut digits));
    digits
}

/// Whether a value is one of those that clients strew in so that servers keep ignoring the unknown.
const fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What a length of so many bytes stands before.
    fn counted(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.take(width)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        self.take(length)
    }

    fn numbers(&self) -> Vec<u16> {
        self.0.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Bytes of the client's random value.
const RANDOM: usize = 32;

const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const SIGNATURES: u16 = 13;
const ALPN: u16 = 16;
const VERSIONS: u16 = 43;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(text: &str) -> Vec<u16> {
        text.split(',').map(|number| u16::from_str_radix(number, 16).unwrap()).collect()
    }

    fn counted(width: usize, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32).to_be_bytes();
        [&length[4 - width..], body].concat()
    }

    fn bytes(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    /// A ClientHello with this content, in records of at most `record` bytes.
    fn hello(suites: &[u16], extensions: &[(u16, Vec<u8>)], record: usize) -> Vec<u8> {
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, body)| [kind.to_be_bytes().to_vec(), counted(2, body)].concat())
            .collect();
        let body = [
            vec![3, 3],
            vec![7; RANDOM],
            counted(1, &[9; 32]),
            counted(2, &bytes(suites)),
            counted(1, &[0]),
            counted(2, &extensions),
        ];
        let message = [vec![CLIENT_HELLO], counted(3, &body.concat())].concat();
        message
            .chunks(record)
            .flat_map(|chunk| [vec![HANDSHAKE, 3, 1], counted(2, chunk)].concat())
            .collect()
    }

    /// The browser's hello that FoxIO's description works through.
    fn browser(record: usize) -> Vec<u8> {
        let suites = numbers(
            "1a1a,1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035",
        );
        let signatures = numbers("0403,0804,0401,0503,0805,0501,0806,0601");
        let alpn = counted(2, &[counted(1, b"h2"), counted(1, b"http/1.1")].concat());
        let versions = counted(1, &bytes(&numbers("9a9a,0304,0303")));
        let mut extensions: Vec<(u16, Vec<u8>)> = numbers(
            "2a2a,001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015,3a3a",
        )
        .into_iter()
        .map(|kind| (kind, Vec::new()))
        .collect();
        for (kind, body) in &mut extensions {
            match *kind {
                ALPN => body.clone_from(&alpn),
                SIGNATURES => *body = counted(2, &bytes(&signatures)),
                VERSIONS => body.clone_from(&versions),
                GROUPS => *body = counted(2, &bytes(&numbers("4a4a,11ec,001d,0017"))),
                _ => {}
            }
        }
        hello(&suites, &extensions, record)
    }

    #[test]
    fn the_published_example_has_its_published_fingerprint() {
        let hello = Hello::read(&browser(usize::MAX)).unwrap();
        assert_eq!(hello.ja4().as_str(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
        assert_eq!((hello.version, &hello.groups[1..3]), (0x0304, &[0x11ec, 0x001d][..]));
        // Spread over many records it is the same hello.
        assert_eq!(Hello::read(&browser(5)), Some(hello));
    }

    #[test]
    fn what_is_absent_has_its_own_signs() {
        let bare = Hello::read(&hello(&[0x002f], &[], usize::MAX)).unwrap();
        let fingerprint = bare.ja4().to_string();
        assert!(fingerprint.starts_with("t12i010000_"), "{fingerprint}");
        assert!(fingerprint.ends_with("_000000000000"), "{fingerprint}");
        for (alpn, sign) in [(&b"h2"[..], "h2"), (b"http/1.1", "h1"), (b"x", "xx"), (b"", "00")] {
            assert_eq!(ends(alpn), sign);
        }
        // The examples of the description.
        for (alpn, sign) in [
            (&[0xab][..], "ab"),
            (&[0xab, 0xcd], "ad"),
            (&[0x30, 0xab], "3b"),
            (&[0x30, 0x31, 0xab, 0xcd], "3d"),
            (&[0x30, 0xab, 0xcd, 0x31], "01"),
        ] {
            assert_eq!(ends(alpn), sign, "{alpn:x?}");
        }
    }

    #[test]
    fn fingerprints_are_written_in_one_way() {
        let text = "t13d1516h2_8daaf6152771_e5627efa2ab1";
        assert_eq!(Ja4::parse(text).map(|ja4| ja4.to_string()).as_deref(), Some(text));
        for wrong in [
            "",
            "t13d1516h2_8daaf6152771_e5627efa2ab",
            &text.to_uppercase(),
            &text.replace('_', "-"),
        ] {
            assert_eq!(Ja4::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(hello) = Hello::read(&bytes) {
                prop_assert_eq!(hello.ja4().as_str().len(), 36);
            }
        }

        /// A hello cut short, or changed in one byte, never breaks the reader.
        #[test]
        fn damage_is_borne(at in 0_usize..400, byte: u8, cut in 0_usize..400, record in 1_usize..90) {
            let mut stream = browser(record);
            let at = at % stream.len();
            stream[at] = byte;
            if let Some(hello) = Hello::read(&stream) {
                prop_assert!(Ja4::parse(hello.ja4().as_str()).is_some());
            }
            let whole = browser(record);
            prop_assert_eq!(Hello::read(&whole[..cut.min(whole.len() - 1)]), None);
        }

        /// Neither the order of suites and extensions nor GREASE changes the fingerprint.
        #[test]
        fn order_and_grease_do_not_count(rotate in 0_usize..16, grease in 0_u16..16) {
            let plain = Hello::read(&browser(usize::MAX)).unwrap();
            let mut other = plain.clone();
            other.suites.rotate_left(rotate);
            other.extensions.rotate_left(rotate);
            other.suites.push(0x0a0a + 0x1010 * grease);
            prop_assert_eq!(plain.ja4(), other.ja4());
        }
    }
}
