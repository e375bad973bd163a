//! Frames in bytes that come in parts (RFC 9113, 4.1).

/// Finds frames.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes that are still to come ahead of the next frame.
    pub(super) ahead: usize,
    /// Types whose frames are told of when they are whole. The others are as soon as they begin.
    kinds: &'static [u8],
    begun: Option<Frame>,
    payload: Vec<u8>,
}

/// A frame, but for its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) length: u32,
}

impl Frames {
    /// Behind so many bytes. Of frames of these types the payload is kept.
    pub(super) const fn new(ahead: usize, kinds: &'static [u8]) -> Self {
        let head = [0; HEAD_BYTES];
        Self { head, filled: 0, ahead, kinds, begun: None, payload: Vec::new() }
    }

    /// The next frame; `None` if more is to come first.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        loop {
            let (part, rest) = bytes.split_at(self.ahead.min(bytes.len()));
            *bytes = rest;
            self.ahead -= part.len();
            if self.begun.is_some() {
                self.payload.extend_from_slice(part);
            }
            if self.ahead > 0 {
                return None;
            }
            if let Some(whole) = self.begun.take() {
                return Some(whole);
            }
            let (part, rest) = bytes.split_at((HEAD_BYTES - self.filled).min(bytes.len()));
            *bytes = rest;
            self.head[self.filled..self.filled + part.len()].copy_from_slice(part);
            self.filled += part.len();
            if self.filled < HEAD_BYTES {
                return None;
            }
            let [a, b, c, kind, flags, d, e, f, g] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            (self.filled, self.ahead) = (0, length as usize);
            let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
            let frame = Frame { kind, flags, stream, length };
            if !self.kinds.contains(&kind) {
                return Some(frame);
            }
            self.payload.clear();
            self.payload.shrink_to(PAYLOAD_BYTES);
            self.begun = Some(frame);
        }
    }

    /// The payload of the last frame whose payload is kept.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Of a reset: why.
    pub(super) fn code(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |code| u32::from_be_bytes(*code))
    }
}

impl Frame {
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

// Types of frames (RFC 9113, 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// `END_STREAM` of data, `ACK` of settings and pings.
pub(super) const END: u8 = 1;
/// Of a head: no part of it comes behind this one.
pub(super) const END_HEADERS: u8 = 4;
/// Of data and heads: the payload begins with the length of the padding behind it.
pub(super) const PADDED: u8 = 8;
/// Of heads: an obsolete word about priority comes next.
pub(super) const PRIORITY: u8 = 0x20;

const HEAD_BYTES: usize = 9;
/// Room for a payload that is kept from one frame to the next.
const PAYLOAD_BYTES: usize = 512;
