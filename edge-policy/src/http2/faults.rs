//! Faults of a client's frames for which the library has another word than RFC 9113, or none.

use std::collections::VecDeque;

use super::{
    frames::{
        CONTINUATION, DATA, END, END_HEADERS, Frame, GOAWAY, HEADERS, PADDED, PING, PRIORITY,
        RESET, SETTINGS, WINDOW,
    },
    hpack::{self, Table},
    windows::INITIAL_WINDOW,
};

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A frame that should not be there, or a request that is none.
    Protocol,
    /// A window larger than any.
    FlowControl,
    /// A frame of a length that its type does not have.
    FrameSize,
    /// Fields that do not decode.
    Compression,
}

/// Looks for them, frame by frame.
#[derive(Debug, Default)]
pub(super) struct Faults {
    table: Table,
    /// The head whose last part is still to come: its stream, and what it has so far.
    open: Option<u32>,
    block: Vec<u8>,
    is_trailers: bool,
    /// The last stream that had a head.
    last: u32,
    /// Streams whose heads are no request's (RFC 9113, 8.1.1), until they are handed on.
    malformed: Vec<u32>,
    /// Streams whose heads the library does not read though they mean something, until it has reset them.
    unread: VecDeque<u32>,
    /// Streams whose trailers are none, until somebody comes to them.
    cut: Vec<u32>,
}

impl Faults {
    /// Looks at a frame, which is whole if its payload matters.
    pub(super) fn look(&mut self, frame: &Frame, payload: &[u8]) -> Result<(), Fault> {
        let length = frame.length as usize;
        let fits = match frame.kind {
            DATA | HEADERS => length >= ahead_of_fields(frame),
            RESET | WINDOW => length == 4,
            SETTINGS if frame.has(END) => length == 0,
            SETTINGS => length.is_multiple_of(SETTING_BYTES),
            PING => length == 8,
            GOAWAY => length >= 8,
            _ => true,
        };
        if !fits {
            return Err(Fault::FrameSize);
        }
        match frame.kind {
            SETTINGS => settings(payload),
            HEADERS => {
                self.is_trailers = frame.stream <= self.last;
                self.last = self.last.max(frame.stream);
                self.open = Some(frame.stream);
                self.block.clear();
                let padding = payload.first().filter(|_| frame.has(PADDED));
                let end = payload.len().checked_sub(padding.map_or(0, |bytes| (*bytes).into()));
                let part = end.and_then(|end| payload.get(ahead_of_fields(frame)..end));
                // Of padding that is longer than its frame, the library says what is to be said.
                part.map_or(Ok(()), |part| self.fields(part, frame))
            }
            CONTINUATION if self.open == Some(frame.stream) => self.fields(payload, frame),
            _ => Ok(()),
        }
    }

    /// Takes a part of a head or of trailers.
    fn fields(&mut self, part: &[u8], frame: &Frame) -> Result<(), Fault> {
        let is_last = frame.has(END_HEADERS);
        if self.block.len() + part.len() > BLOCK_BYTES_MAX {
            return Err(Fault::Compression);
        }
        // Most come in one part.
        if !is_last || !self.block.is_empty() {
            self.block.extend_from_slice(part);
        }
        if !is_last {
            return Ok(());
        }
        self.open = None;
        let gathered = std::mem::take(&mut self.block);
        let block = if gathered.is_empty() { part } else { &gathered };
        self.table.read(block, self.is_trailers).or_else(|fault| match fault {
            hpack::Fault::Compression => Err(Fault::Compression),
            hpack::Fault::Unread if self.is_trailers => Ok(()),
            hpack::Fault::Unread => {
                self.unread.truncate(MALFORMED_MAX - 1);
                self.unread.push_front(frame.stream);
                Ok(())
            }
            hpack::Fault::Malformed => {
                let streams = if self.is_trailers { &mut self.cut } else { &mut self.malformed };
                if streams.len() == MALFORMED_MAX {
                    return Err(Fault::Protocol);
                }
                streams.push(frame.stream);
                Ok(())
            }
        })
    }

    /// Whether another part of a head is to come.
    pub(super) const fn is_within_head(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the head of a stream that is handed on is no request's; of none up to it will be asked again.
    pub(super) fn is_malformed(&mut self, stream: u32) -> bool {
        let is_malformed = self.malformed.contains(&stream);
        self.malformed.retain(|malformed| *malformed > stream);
        is_malformed
    }

    /// Whether the library did not read the head of a stream though it means something; it is forgotten.
    pub(super) fn is_unread(&mut self, stream: u32) -> bool {
        let found = self.unread.iter().position(|unread| *unread == stream);
        found.and_then(|at| self.unread.remove(at)).is_some()
    }

    /// Whether the trailers of a stream, to which somebody has come, are none; it is forgotten.
    pub(super) fn is_cut(&mut self, stream: u32) -> bool {
        let found = self.cut.iter().position(|cut| *cut == stream);
        found.map(|at| self.cut.swap_remove(at)).is_some()
    }
}

/// Bytes of a payload before what it is about.
fn ahead_of_fields(frame: &Frame) -> usize {
    let priority = if frame.kind == HEADERS && frame.has(PRIORITY) { 5 } else { 0 };
    usize::from(frame.has(PADDED)) + priority
}

fn settings(payload: &[u8]) -> Result<(), Fault> {
    let is_beyond = |setting: &[u8; SETTING_BYTES]| {
        let [a, b, value @ ..] = *setting;
        u16::from_be_bytes([a, b]) == INITIAL_WINDOW && u32::from_be_bytes(value) > WINDOW_MAX
    };
    let (settings, _) = payload.as_chunks();
    if settings.iter().any(is_beyond) { Err(Fault::FlowControl) } else { Ok(()) }
}

const SETTING_BYTES: usize = 6;
/// How large a window may be (RFC 9113, 6.5.2).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Streams with such heads that wait to be handed on, or with such trailers.
const MALFORMED_MAX: usize = 128;
/// Bytes of one head in all its parts: more than the library takes before it has had enough.
const BLOCK_BYTES_MAX: usize = 1 << 20;
