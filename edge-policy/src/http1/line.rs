//! First lines.

use super::{Fault, Span, TOKEN, VALUE, Version, all};

/// What a head begins with.
pub trait Line: Sized {
    /// Empty lines that may come before it.
    const EMPTY_MAX: u8;

    /// Reads the line that lies at `at` of its buffer.
    ///
    /// # Errors
    /// If it is none.
    fn read(line: &[u8], at: usize) -> Result<Self, Fault>;

    /// Whether a line may begin so, when no more of it has come.
    fn may_begin(byte: u8) -> bool;
}

/// `GET /path HTTP/1.1`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLine {
    /// A token.
    pub method: Span,
    /// Visible ASCII without `#`; never empty.
    pub target: Span,
    /// The version.
    pub version: Version,
}

impl Line for RequestLine {
    const EMPTY_MAX: u8 = 1;

    fn read(line: &[u8], at: usize) -> Result<Self, Fault> {
        let method = line.iter().position(|b| *b == b' ').ok_or(Fault::Malformed)?;
        // Every other space would be inside the target, where there may be none.
        let target = line.len().checked_sub(VERSION_BYTES + 1).ok_or(Fault::Malformed)?;
        let version = version(&line[target + 1..])?;
        let (name, rest) = (&line[..method], line.get(method + 1..target));
        let rest = rest.filter(|rest| !rest.is_empty()).ok_or(Fault::Malformed)?;
        let visible = rest.iter().all(|b| b.is_ascii_graphic() && *b != b'#');
        if line[target] != b' ' || name.is_empty() || !all(name, TOKEN) || !visible {
            return Err(Fault::Malformed);
        }
        Ok(Self {
            method: Span::new(at, at + method),
            target: Span::new(at + method + 1, at + target),
            version,
        })
    }

    fn may_begin(byte: u8) -> bool {
        all(&[byte], TOKEN)
    }
}

/// `HTTP/1.1 200 OK`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// The version.
    pub version: Version,
    /// 100 to 599: what is beyond means nothing (RFC 9110, 15).
    pub status: u16,
}

impl Line for StatusLine {
    const EMPTY_MAX: u8 = 0;

    fn read(line: &[u8], _at: usize) -> Result<Self, Fault> {
        let (start, rest) = line.split_at_checked(VERSION_BYTES + 4).ok_or(Fault::Malformed)?;
        let version = version(&start[..VERSION_BYTES])?;
        let [b' ', a @ b'1'..=b'5', b, c] = start[VERSION_BYTES..] else {
            return Err(Fault::Malformed);
        };
        // Servers that have nothing to say after the number leave out the space as well.
        let spaced = rest.first().is_none_or(|byte| *byte == b' ');
        if !b.is_ascii_digit() || !c.is_ascii_digit() || !spaced || !all(rest, VALUE) {
            return Err(Fault::Malformed);
        }
        let digit = |byte: u8| u16::from(byte - b'0');
        Ok(Self { version, status: digit(a) * 100 + digit(b) * 10 + digit(c) })
    }

    fn may_begin(byte: u8) -> bool {
        byte == b'H'
    }
}

fn version(text: &[u8]) -> Result<Version, Fault> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Fault::Malformed),
    }
}

const VERSION_BYTES: usize = 8;
