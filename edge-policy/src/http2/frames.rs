//! Frames in bytes that come in parts (RFC 9113, 4.1).

/// Finds frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// And the length of the padding, where it decides how much content there is.
    head: [u8; HEAD_BYTES + 1],
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
    /// What of the payload of data is no padding.
    pub(super) content: u32,
}

impl Frames {
    /// Behind so many bytes. Of frames of these types the payload is kept.
    pub(super) const fn new(ahead: usize, kinds: &'static [u8]) -> Self {
        let head = [0; HEAD_BYTES + 1];
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
            self.fill(HEAD_BYTES, bytes)?;
            let [a, b, c, kind, flags, d, e, f, g, _] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let is_padded = kind == DATA && flags & PADDED != 0 && length > 0;
            let (mut ahead, mut content) = (length, length);
            if is_padded {
                self.fill(HEAD_BYTES + 1, bytes)?;
                ahead -= 1;
                content = ahead.saturating_sub(self.head[HEAD_BYTES].into());
            }
            (self.filled, self.ahead) = (0, ahead as usize);
            let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
            let frame = Frame { kind, flags, stream, length, content };
            if !self.kinds.contains(&kind) {
                return Some(frame);
            }
            self.payload.clear();
            self.payload.shrink_to(PAYLOAD_BYTES);
            self.begun = Some(frame);
        }
    }

    /// Whether a part of a frame is missing that belongs to a head.
    pub(super) fn is_within_head(&self) -> bool {
        self.begun.is_some_and(|frame| matches!(frame.kind, HEADERS | CONTINUATION))
    }

    /// Takes as many bytes of a head as are missing; `None` if more are to come first.
    fn fill(&mut self, wanted: usize, bytes: &mut &[u8]) -> Option<()> {
        let missing = wanted.saturating_sub(self.filled);
        let (part, rest) = bytes.split_at(missing.min(bytes.len()));
        *bytes = rest;
        self.head[self.filled..self.filled + part.len()].copy_from_slice(part);
        self.filled += part.len();
        (self.filled >= wanted).then_some(())
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

    /// Whether it is the last part of a head.
    pub(super) const fn ends_head(&self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION) && self.has(END_HEADERS)
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
