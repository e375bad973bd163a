//! Frames of HTTP/2 as tests want them, well-formed or not.

/// What a client sends first: the preface and empty settings.
#[must_use]
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Takes the first frame of what came, if it is whole: its type, its flags and its payload.
pub fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, u8, &'a [u8])> {
    let (&[a, b, c, kind, flags, ..], rest) = bytes.split_at_checked(HEAD_BYTES)? else {
        return None;
    };
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize)?;
    *bytes = rest;
    Some((kind, flags, payload))
}

/// The fields of a `GET`, by literals that no table keeps (RFC 7541, 6.2.2).
#[must_use]
pub fn get(host: &str, path: &str) -> Vec<u8> {
    // `:method: GET` and `:scheme: https` are in the static table.
    let mut block = vec![0x82, 0x87];
    block.extend(literal(":path", path));
    block.extend(literal(":authority", host));
    block
}

/// One field.
#[must_use]
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        length(&mut out, text.len());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// The length of a text, with a prefix of seven bits (RFC 7541, 5.1).
pub fn length(out: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return out.push(length as u8);
    }
    out.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// What comes before each payload.
const HEAD_BYTES: usize = 9;
/// Types of frames, and flags (RFC 9113, 6).
pub const DATA: u8 = 0;
/// A request or an answer begins.
pub const HEADERS: u8 = 1;
/// Which of them comes first.
pub const PRIORITY: u8 = 2;
/// A stream is given up.
pub const RESET: u8 = 3;
/// How the sender wants to be talked to.
pub const SETTINGS: u8 = 4;
/// Whether anybody is there.
pub const PING: u8 = 6;
/// The connection ends.
pub const GOAWAY: u8 = 7;
/// The receiver takes more.
pub const WINDOW: u8 = 8;
/// The rest of a head.
pub const CONTINUATION: u8 = 9;
/// Nothing comes after this on its stream.
pub const END_STREAM: u8 = 1;
/// The head is complete.
pub const END_HEADERS: u8 = 4;
/// `ACK` of pings and settings.
pub const ACK: u8 = 1;
/// `PADDED` of data and heads.
pub const PADDED: u8 = 8;
