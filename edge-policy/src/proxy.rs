//! The PROXY protocol, versions 1 and 2: what a trusted proxy says of its client before anything
//! else (HAProxy's `proxy-protocol.txt`, revision of 2020-03-05).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that it takes up; what follows is the client's.
    pub length: usize,
    /// The client, as the proxy saw it; `None`: the proxy speaks for itself, as health checks do.
    pub client: Option<SocketAddr>,
    /// The port of the proxy that the client came to, if there is one.
    pub port: Option<u16>,
}

/// Why the beginning of a connection is no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It begins otherwise.
    Absent,
    /// It is longer than [`HEADER_MAX`], or a line than the protocol allows.
    TooLong,
    /// A line that does not follow the form.
    Line,
    /// A version or a command that is not known.
    Version,
    /// Not TCP over IPv4 or IPv6.
    Family,
    /// The addresses or the additions are cut short.
    Short,
    /// The checksum is another.
    Checksum,
}

/// Reads a header from the begin of a connection; `None`: there must be more of it to come.
///
/// # Errors
/// If whatever follows could not make it a header.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    if begins(bytes, SIGNATURE) {
        return if bytes.len() < FIXED { Ok(None) } else { binary(bytes) };
    }
    if begins(bytes, LINE) {
        return line(bytes);
    }
    Err(Fault::Absent)
}

/// Whether both are the same as far as both go.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(a, b)| a == b)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`
fn line(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_MAX { Ok(None) } else { Err(Fault::TooLong) };
    };
    let length = end + 1;
    if length > LINE_MAX {
        return Err(Fault::TooLong);
    }
    let text = bytes[..end].strip_suffix(b"\r").ok_or(Fault::Line)?;
    let text = std::str::from_utf8(text).map_err(|_| Fault::Line)?;
    let mut words = text.split(' ').skip(1);
    let family = words.next().ok_or(Fault::Line)?;
    let (client, own): (IpAddr, IpAddr) = match family {
        // What else it says is to be ignored.
        "UNKNOWN" => return Ok(Some(Header { length, client: None, port: None })),
        "TCP4" => (word::<Ipv4Addr>(words.next())?.into(), word::<Ipv4Addr>(words.next())?.into()),
        "TCP6" => (word::<Ipv6Addr>(words.next())?.into(), word::<Ipv6Addr>(words.next())?.into()),
        _ => return Err(Fault::Family),
    };
    let (from, to) = (port(words.next())?, port(words.next())?);
    if words.next().is_some() || own.is_unspecified() && client.is_unspecified() {
        return Err(Fault::Line);
    }
    let client = Some(SocketAddr::new(client.to_canonical(), from));
    Ok(Some(Header { length, client, port: Some(to) }))
}

fn word<T: std::str::FromStr>(word: Option<&str>) -> Result<T, Fault> {
    word.and_then(|word| word.parse().ok()).ok_or(Fault::Line)
}

/// A port, in decimal digits without leading zeros.
fn port(text: Option<&str>) -> Result<u16, Fault> {
    let text = text.ok_or(Fault::Line)?;
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { word(Some(text)) } else { Err(Fault::Line) }
}

fn binary(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let (version_command, family) = (bytes[12], bytes[13]);
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if version_command >> 4 != 2 || version_command & 15 > 1 {
        return Err(Fault::Version);
    }
    if length > HEADER_MAX {
        return Err(Fault::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if version_command & 15 == LOCAL {
        return Ok(Some(Header { length, client: None, port: None }));
    }
    let body = &header[FIXED..];
    let port = |at| taken(body, at).map(u16::from_be_bytes);
    let (client, port, addresses) = match family {
        UNSPECIFIED => (None, None, 0),
        TCP4 => {
            let address = Ipv4Addr::from(taken::<4>(body, 0)?);
            (Some(SocketAddr::new(address.into(), port(8)?)), Some(port(10)?), 12)
        }
        TCP6 => {
            let address = IpAddr::from(Ipv6Addr::from(taken::<16>(body, 0)?)).to_canonical();
            (Some(SocketAddr::new(address, port(32)?)), Some(port(34)?), 36)
        }
        _ => return Err(Fault::Family),
    };
    additions(header, FIXED + addresses)?;
    Ok(Some(Header { length, client, port }))
}

fn taken<const N: usize>(body: &[u8], at: usize) -> Result<[u8; N], Fault> {
    body.get(at..at + N).and_then(|part| part.try_into().ok()).ok_or(Fault::Short)
}

/// Steps over what a header says besides, and checks its checksum if it has one.
fn additions(header: &[u8], mut at: usize) -> Result<(), Fault> {
    if at > header.len() {
        return Err(Fault::Short);
    }
    while at < header.len() {
        let [kind, high, low] = taken(header, at)?;
        let (value, size) = (at + 3, usize::from(u16::from_be_bytes([high, low])));
        let said = header.get(value..value + size).ok_or(Fault::Short)?;
        if kind == CRC32C {
            let said: [u8; 4] = said.try_into().map_err(|_| Fault::Short)?;
            let (before, after) = (&header[..value], &header[value + 4..]);
            if crc32c([before, &[0; 4], after]) != u32::from_be_bytes(said) {
                return Err(Fault::Checksum);
            }
        }
        at = value + size;
    }
    Ok(())
}

/// The CRC-32C of the parts, one after the other (RFC 9260, appendix A).
fn crc32c(parts: [&[u8]; 3]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let bytes = parts.into_iter().flatten();
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// The longest header that is taken, in bytes: room for a certificate among the additions.
pub const HEADER_MAX: usize = 4096;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included.
const LINE_MAX: usize = 107;
/// What comes before the addresses in version 2.
const FIXED: usize = 16;
const LOCAL: u8 = 0;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const CRC32C: u8 = 0x03;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, body].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 187];

    fn client(bytes: &[u8]) -> Result<Option<SocketAddr>, Fault> {
        read(bytes).map(|header| header.expect("whole").client)
    }

    #[test]
    fn lines_are_read() {
        let address = |text: &str| Ok(Some(text.parse().unwrap()));
        for (line, said) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", address("192.0.2.7:56324")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", address("[2001:db8::7]:56324")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", address("192.0.2.7:1")),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN anything 1 2\r\n", Ok(None)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.07 198.51.100.1 56324 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 056 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 +56 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7  198.51.100.1 1 443\r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 443 \r\n", Err(Fault::Line)),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", Err(Fault::Line)),
            ("PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", Err(Fault::Family)),
            ("PROXY \r\n", Err(Fault::Family)),
            ("GET / HTTP/1.1\r\n", Err(Fault::Absent)),
            ("\x16\x03\x01", Err(Fault::Absent)),
        ] {
            assert_eq!(client(line.as_bytes()), said, "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(read(long.as_bytes()), Err(Fault::TooLong));
        assert_eq!(read(format!("{long}\r\n").as_bytes()), Err(Fault::TooLong));
    }

    #[test]
    fn what_follows_is_left() {
        let bytes = [&v2(1, TCP4, &V4)[..], b"\x16\x03"].concat();
        let header = read(&bytes).unwrap().unwrap();
        assert_eq!((header.length, header.client), (28, Some("192.0.2.7:56324".parse().unwrap())));
        let line = b"PROXY UNKNOWN\r\n\x16\n\x03";
        assert_eq!(read(line).unwrap().unwrap().length, 15);
    }

    #[test]
    fn the_binary_form_is_read() {
        let mut six = [0; 36];
        six[..2].copy_from_slice(&[0x20, 1]);
        (six[15], six[33]) = (9, 80);
        assert_eq!(client(&v2(1, TCP6, &six)), Ok(Some("[2001::9]:80".parse().unwrap())));
        // A health check of the proxy's own; what else it says is skipped unread.
        assert_eq!(client(&v2(0, 0, b"")), Ok(None));
        assert_eq!(client(&v2(0, TCP4, b"xyz")), Ok(None));
        assert_eq!(client(&v2(1, 0, &[4, 0, 1, 0])), Ok(None));
        for (bytes, fault) in [
            (v2(2, TCP4, &V4), Fault::Version),
            (v2(1, TCP4, &V4[..11]), Fault::Short),
            (v2(1, TCP6, &V4), Fault::Short),
            (v2(1, 0x12, &V4), Fault::Family),
            (v2(1, 0x31, &[0; 216]), Fault::Family),
            (v2(1, TCP4, &[&V4[..], &[4, 0, 2, 0]].concat()), Fault::Short),
            (v2(1, TCP4, &[&V4[..], &[4, 0]].concat()), Fault::Short),
            (v2(1, TCP4, &[0; HEADER_MAX]), Fault::TooLong),
        ] {
            assert_eq!(read(&bytes), Err(fault), "{bytes:x?}");
        }
        let mut other = v2(1, TCP4, &V4);
        other[12] = 0x11;
        assert_eq!(read(&other), Err(Fault::Version));
    }

    #[test]
    fn the_checksum_counts() {
        // The check value of the algorithm's catalogue entry.
        assert_eq!(crc32c([b"123", b"456", b"789"]), 0xe306_9283);
        let tail = [4, 0, 1, 7];
        let with = |sum: [u8; 4]| v2(1, TCP4, &[&V4[..], &[CRC32C, 0, 4], &sum, &tail].concat());
        let sum = crc32c([&with([0; 4]), &[], &[]]);
        assert!(client(&with(sum.to_be_bytes())).is_ok());
        assert_eq!(read(&with((sum ^ 1).to_be_bytes())), Err(Fault::Checksum));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            prefix in 0_usize..13, bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for begin in [&SIGNATURE[..prefix.min(12)], &LINE[..prefix.min(6)]] {
                let bytes = [begin, &bytes].concat();
                if let Ok(Some(header)) = read(&bytes) {
                    prop_assert!(header.length <= bytes.len());
                }
            }
        }

        /// A header that comes in pieces is waited for, and then read as if it had come at once.
        #[test]
        fn pieces_make_the_whole(port: u16, cut in 1_usize..200, additions in 0_usize..40) {
            let line = format!("PROXY TCP4 192.0.2.7 198.51.100.1 {port} 443\r\n");
            let more = [&[4, 0, additions as u8][..], &vec![7; additions]].concat();
            for header in [line.into_bytes(), v2(1, TCP4, &[&V4[..], &more].concat())] {
                let cut = cut % header.len();
                prop_assert_eq!(read(&header[..cut]), Ok(None));
                prop_assert_eq!(read(&header).unwrap().unwrap().length, header.len());
            }
        }
    }
}
