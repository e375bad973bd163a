//! Bodies in chunks.

use super::{Fault, VALUE, all, is_token, read::Section};
use crate::head::Bounds;

/// Reads a body in chunks from a buffer that begins where the last call left off.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    state: State,
    /// Bytes of extensions so far.
    extensions: usize,
    trailers: Option<Box<Section>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a chunk's size; whether it is the first.
    #[default]
    Size,
    /// Inside a chunk of which so many bytes are left.
    Data(u64),
    /// Before the line end that follows a chunk's data.
    DataEnd,
    /// After the last chunk.
    Trailers,
}

/// What comes next of a body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing, until the buffer holds more; so many bytes of it are done with.
    More {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
    },
    /// So many bytes of content, after so many to drop.
    Data {
        /// Bytes to drop from the front of the buffer.
        skipped: usize,
        /// Bytes of content behind them.
        length: usize,
    },
    /// The body has ended, with its trailers.
    End {
        /// Bytes to drop from the front of the buffer.
        skipped: usize,
        /// Bytes of trailers behind them, the empty line included.
        length: usize,
    },
}

impl Chunks {
    /// Reads on.
    ///
    /// # Errors
    /// If the bytes are no chunks, or their extensions or trailers exceed their bounds.
    pub fn read(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Chunk, Fault> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.state {
                State::Size => {
                    let Some((size, length)) = self.size(rest)? else {
                        return Ok(Chunk::More { consumed: at });
                    };
                    at += length;
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) if rest.is_empty() => {
                    debug_assert!(left > 0);
                    return Ok(Chunk::More { consumed: at });
                }
                State::Data(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - length as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Chunk::Data { skipped: at, length });
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Chunk::More { consumed: at }),
                    _ => return Err(Fault::Malformed),
                },
                State::Trailers => {
                    // Trailers are read where they lie until they are complete.
                    let section = self.trailers.get_or_insert_default();
                    let Some(length) = section.read(rest, bounds)? else {
                        return Ok(Chunk::More { consumed: at });
                    };
                    if section.fields.iter().any(|f| is_forbidden(f.name.of(rest))) {
                        return Err(Fault::Malformed);
                    }
                    return Ok(Chunk::End { skipped: at, length });
                }
            }
        }
    }

    /// The trailers, when the body has ended: fields of the bytes that [`Chunk::End`] tells of.
    #[must_use]
    pub fn trailers(&self) -> &[super::Field] {
        self.trailers.as_ref().map_or(&[], |section| &section.fields)
    }

    /// A chunk's size, and the bytes of its line.
    fn size(&mut self, bytes: &[u8]) -> Result<Option<(u64, usize)>, Fault> {
        let mut size = 0_u64;
        let mut digits = 0;
        while let Some(digit) = bytes.get(digits).and_then(|b| char::from(*b).to_digit(16)) {
            digits += 1;
            if digits > SIZE_DIGITS {
                return Err(Fault::Malformed);
            }
            size = size << 4 | u64::from(digit);
        }
        let rest = &bytes[digits..];
        match rest {
            _ if digits == 0 && !bytes.is_empty() => Err(Fault::Malformed),
            [] | [b'\r'] => Ok(None),
            [b'\r', b'\n', ..] => Ok(Some((size, digits + 2))),
            [b';', ..] => {
                let Some(end) = rest.iter().position(|b| *b == b'\n') else {
                    let whole = rest.strip_suffix(b"\r").unwrap_or(rest);
                    let fits = self.extensions + rest.len() <= EXTENSIONS_MAX && all(whole, VALUE);
                    return if fits { Ok(None) } else { Err(Fault::Malformed) };
                };
                let extension = rest[..end].strip_suffix(b"\r").ok_or(Fault::Malformed)?;
                self.extensions += extension.len();
                let fits = self.extensions <= EXTENSIONS_MAX;
                if !fits || !all(extension, VALUE) || !are_extensions(extension) {
                    return Err(Fault::Malformed);
                }
                Ok(Some((size, digits + end + 1)))
            }
            _ => Err(Fault::Malformed),
        }
    }
}

/// Whether visible bytes are extensions, each a semicolon with a name and perhaps a value (RFC 9112, 7.1.1).
fn are_extensions(mut rest: &[u8]) -> bool {
    while let [b';', after @ ..] = rest {
        let Some(named) = token(after.trim_ascii_start()) else { return false };
        rest = named;
        if let [b'=', value @ ..] = named.trim_ascii_start() {
            let value = value.trim_ascii_start();
            let Some(after) = token(value).or_else(|| quoted(value)) else { return false };
            rest = after;
        }
        // Spaces may stand before a semicolon, and nowhere at the end.
        if let next @ [b';', ..] = rest.trim_ascii_start() {
            rest = next;
        }
    }
    rest.is_empty()
}

/// What follows a token, if there is one.
fn token(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take_while(|byte| is_token(**byte)).count();
    (length > 0).then(|| &bytes[length..])
}

/// What follows a text in quotes, if there is one.
fn quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', _, after @ ..] | [_, after @ ..] => after,
            [] => return None,
        };
    }
}

/// The line before a chunk of so many bytes.
pub fn open_chunk(out: &mut Vec<u8>, length: usize) {
    super::write::number(out, length as u64, 16);
    out.extend_from_slice(b"\r\n");
}

/// What ends a body in chunks: the last chunk, the trailers, the empty line.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&http::HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        super::write::field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Fields that may not come after the body that they would have been about (RFC 9110, 6.5.1).
fn is_forbidden(name: &[u8]) -> bool {
    NOT_IN_TRAILERS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

const NOT_IN_TRAILERS: [&[u8]; 16] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// More would not fit into 64 bits.
const SIZE_DIGITS: usize = 16;
/// Bytes of all extensions of one body.
const EXTENSIONS_MAX: usize = 4096;
