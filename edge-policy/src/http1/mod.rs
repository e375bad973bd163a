//! HTTP/1 on the wire: bytes in, heads and bodies out, and back. One meaning, or a [`Fault`].
//!
//! Requests of clients and answers of upstreams are read by the same code and as strictly. What the
//! grammar of RFC 9112 leaves open is settled here, once:
//!
//! - A line ends in CR LF. A lone CR or LF, NUL and every other control character is a fault, even
//!   before its line is complete; so is a folded line. One empty line before a request is borne
//!   (RFC 9112, 2.2), a second is not.
//! - Words of the first line are apart by one space. The version is `HTTP/1.1` or `HTTP/1.0`.
//! - A name is a token with the colon at its end. A value is visible bytes, spaces and tabs.
//! - The length of a body is said once: one `Content-Length` of plain digits without leading zeros, or
//!   one `Transfer-Encoding` that is `chunked` and nothing else, from a peer that speaks 1.1.
//!   The two together, either twice, or a tab around either, are faults.
//! - A chunk's size is 1 to 16 hex digits. Extensions follow the digits at once; they are bounded
//!   and never passed on. No trailer may be a field by which a message is framed or routed.

mod chunk;
mod framing;
mod line;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;

use edge_common::Reason;

pub use self::{
    chunk::{Chunk, Chunks, last_chunk, open_chunk},
    framing::{Framing, of_request, of_response, persists},
    line::{RequestLine, StatusLine},
    read::{Head, Reader, RequestReader, ResponseReader, headers},
    write::{Fields, request, response},
};

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They have no single meaning.
    Malformed,
    /// The first line is longer than the bound.
    LineTooLong,
    /// The fields are more than the bound.
    FieldsTooLarge,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "has no single meaning",
            Self::LineTooLong => "the first line is longer than the bound",
            Self::FieldsTooLarge => "the header fields are more than the bound",
        })
    }
}

impl std::error::Error for Fault {}

/// Of a request; an answer's fault is the upstream's.
impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed => Self::MalformedRequest,
            Fault::LineTooLong => Self::UriTooLong,
            Fault::FieldsTooLarge => Self::HeadersTooLarge,
        }
    }
}

/// The version that a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunks, and the connection ends with the answer unless agreed otherwise.
    Http10,
    /// HTTP/1.1
    Http11,
}

impl From<Version> for http::Version {
    fn from(version: Version) -> Self {
        match version {
            Version::Http10 => Self::HTTP_10,
            Version::Http11 => Self::HTTP_11,
        }
    }
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        // A head is bounded far below this.
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: clamp(start), end: clamp(end) }
    }

    /// The bytes, of the buffer that was read.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.range()]
    }

    /// The bytes, sharing the memory of the buffer that was read.
    #[must_use]
    pub fn slice(self, bytes: &bytes::Bytes) -> bytes::Bytes {
        bytes.slice(self.range())
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A header field in a buffer: its name, and its value without the spaces around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    name: Span,
    value: Span,
    /// Whether a tab stands around the value.
    has_tab: bool,
}

/// `tchar` of RFC 9110, 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// A table of [`is_token`] and of what a value may hold, so that a byte costs one load.
const CLASSES: [u8; 256] = {
    let (mut classes, mut byte) = ([0; 256], 0);
    while byte < 256 {
        let b = byte as u8;
        if is_token(b) {
            classes[byte] |= TOKEN;
        }
        if b == b'\t' || b >= b' ' && b != 0x7f {
            classes[byte] |= VALUE;
        }
        byte += 1;
    }
    classes
};
const TOKEN: u8 = 1;
const VALUE: u8 = 2;

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().fold(class, |seen, byte| seen & CLASSES[*byte as usize]) != 0
}
