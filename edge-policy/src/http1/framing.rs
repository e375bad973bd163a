//! Where a body ends: said once, in one way.

use http::{HeaderMap, header};

use super::{Fault, Field, Version};

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// It has so many bytes.
    Length(u64),
    /// In chunks, the last of which is empty.
    Chunked,
    /// By the end of the connection: an answer's alone.
    Close,
}

/// Where a request's body ends.
///
/// # Errors
/// If it is not said in one way.
pub fn of_request(version: Version, bytes: &[u8], fields: &[Field]) -> Result<Framing, Fault> {
    Ok(stated(version, bytes, fields)?.unwrap_or(Framing::Empty))
}

/// Where the body of an answer to a request ends; `to_head` is whether that was a `HEAD`.
///
/// # Errors
/// If it is not said in one way.
pub fn of_response(
    version: Version,
    status: u16,
    to_head: bool,
    bytes: &[u8],
    fields: &[Field],
) -> Result<Framing, Fault> {
    let stated = stated(version, bytes, fields)?;
    match (status, stated) {
        // They have neither (RFC 9112, 6.1), but for the length that many a server states of an empty
        // answer's content.
        (100..200, Some(_)) | (204, Some(Framing::Chunked)) => Err(Fault::Malformed),
        (100..200 | 204 | 304, _) => Ok(Framing::Empty),
        _ if to_head => Ok(Framing::Empty),
        (_, stated) => Ok(stated.unwrap_or(Framing::Close)),
    }
}

/// Whether the sender of this head keeps the connection after the exchange (RFC 9112, 9.3).
#[must_use]
pub fn persists(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &[u8]| {
        let values = headers.get_all(header::CONNECTION).iter();
        let mut words = values.flat_map(|value| value.as_bytes().split(|b| *b == b','));
        words.any(|given| given.trim_ascii().eq_ignore_ascii_case(word))
    };
    match version {
        Version::Http11 => !says(b"close"),
        Version::Http10 => says(b"keep-alive") && !says(b"close"),
    }
}

fn stated(version: Version, bytes: &[u8], fields: &[Field]) -> Result<Option<Framing>, Fault> {
    let mut found = None;
    for field in fields {
        let name = field.name.of(bytes);
        let framing = match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => length(field.value.of(bytes))?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let value = field.value.of(bytes);
                if version == Version::Http10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed);
                }
                Framing::Chunked
            }
            _ => continue,
        };
        if field.has_tab || found.replace(framing).is_some() {
            return Err(Fault::Malformed);
        }
    }
    Ok(found)
}

fn length(value: &[u8]) -> Result<Framing, Fault> {
    let plain = match value {
        [] | [b'0', _, ..] => false,
        // So many digits always fit.
        _ => value.len() <= LENGTH_DIGITS && value.iter().all(u8::is_ascii_digit),
    };
    if !plain {
        return Err(Fault::Malformed);
    }
    let digits = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Ok(if digits == 0 { Framing::Empty } else { Framing::Length(digits) })
}

const LENGTH_DIGITS: usize = 18;
