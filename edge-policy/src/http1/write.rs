//! Heads on their way out.

use http::{HeaderMap, Method, StatusCode, header};

use super::Framing;
use crate::lines::Lines;

/// The fields of a head.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// What the edge says.
    pub lines: &'a Lines,
    /// What others say; the fields of the framing are passed over.
    pub map: &'a HeaderMap,
    /// How the end of the body is told.
    pub framing: Framing,
    /// The value of `Connection`, if it needs saying.
    pub connection: Option<&'a str>,
}

/// A request's head.
pub fn request(out: &mut Vec<u8>, method: &Method, target: &str, fields: Fields<'_>) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // Without a length these would look as if it had been forgotten (RFC 9110, 8.6).
    let expects = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    rest(out, fields, expects);
}

/// An answer's head. One without a body, by its status or because it answers `HEAD`, tells of the
/// body that is not there what its map says.
pub fn response(out: &mut Vec<u8>, status: StatusCode, fields: Fields<'_>, bodiless: bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    if !bodiless {
        return rest(out, fields, true);
    }
    let told = fields.map.get(header::CONTENT_LENGTH);
    if let Some(length) = told.filter(|_| status != StatusCode::NO_CONTENT) {
        field(out, "content-length", length.as_bytes());
    }
    rest(out, Fields { framing: Framing::Close, ..fields }, false);
}

/// The fields, the framing (an empty body's only if it `must` be told) and the end of the head.
fn rest(out: &mut Vec<u8>, fields: Fields<'_>, must: bool) {
    out.extend_from_slice(fields.lines.as_bytes());
    for (name, value) in fields.map {
        if !matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::CONNECTION)
        {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    match fields.framing {
        Framing::Empty if must => out.extend_from_slice(b"content-length: 0\r\n"),
        Framing::Empty | Framing::Close => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            number(out, length, 10);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    if let Some(connection) = fields.connection {
        field(out, "connection", connection.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A number in this base, up to 16.
pub(super) fn number(out: &mut Vec<u8>, mut number: u64, base: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b"0123456789abcdef"[(number % base) as usize];
        number /= base;
        if number == 0 {
            return out.extend_from_slice(&digits[first..]);
        }
    }
}
