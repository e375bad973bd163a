//! What a client lets the edge send (RFC 9113, 5.2), and what it may say to data for nothing.
//!
//! Clients that measure their bandwidth, as those of gRPC, answer each frame of data with a ping and open their windows
//! again, however small it is. Such frames are paid for by the data, unless the client makes it small itself, by
//! windows that leave no room for more: then each frame would pay for the next.

/// The windows of one connection, and the frames of the client's that data has paid for.
#[derive(Debug)]
pub(super) struct Windows {
    /// What a stream begins with, in bytes. It may be made less than was sent, which leaves less than nothing.
    initial: i64,
    connection: i64,
    /// What is left of each stream that has begun and not ended, the latest last.
    streams: Vec<(u32, i64)>,
    pub(super) pings: u32,
    pub(super) updates: u32,
}

impl Windows {
    pub(super) const fn new() -> Self {
        let (initial, connection) = (INITIAL, INITIAL);
        Self { initial, connection, streams: Vec::new(), pings: 0, updates: 0 }
    }

    /// A head came, or trailers.
    pub(super) fn begin(&mut self, stream: u32) {
        if self.left(stream).is_some() {
            return;
        }
        if self.streams.len() == STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push((stream, self.initial));
    }

    pub(super) fn end(&mut self, stream: u32) {
        self.streams.retain(|(open, _)| *open != stream);
    }

    /// The client says what streams begin with; it holds for those that have.
    pub(super) fn settings(&mut self, payload: &[u8]) {
        for setting in payload.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *setting;
            if u16::from_be_bytes([a, b]) == INITIAL_WINDOW {
                let initial = i64::from(u32::from_be_bytes(value));
                self.streams.iter_mut().for_each(|(_, left)| *left += initial - self.initial);
                self.initial = initial;
            }
        }
    }

    /// The client opens a window; whether data has paid for that.
    pub(super) fn open(&mut self, stream: u32, payload: &[u8]) -> bool {
        let by = payload.first_chunk().map_or(0, |by| u32::from_be_bytes(*by) & 0x7fff_ffff);
        if let Some(left) = self.left(stream) {
            *left += i64::from(by);
        }
        take(&mut self.updates)
    }

    /// The client sends a ping; whether data has paid for that.
    pub(super) fn ping(&mut self) -> bool {
        take(&mut self.pings)
    }

    /// Data went out, padding and all.
    pub(super) fn sent(&mut self, stream: u32, length: u32) {
        self.connection -= i64::from(length);
        let left = self.left(stream).map(|left| {
            *left -= i64::from(length);
            *left
        });
        if self.connection.min(left.unwrap_or(0)) >= ROOM {
            self.pings = (self.pings + 1).min(PAID_MAX);
            self.updates = (self.updates + 2).min(2 * PAID_MAX);
        }
    }

    fn left(&mut self, stream: u32) -> Option<&mut i64> {
        if stream == 0 {
            return Some(&mut self.connection);
        }
        let found = self.streams.iter_mut().find(|(open, _)| *open == stream);
        found.map(|(_, left)| left)
    }
}

fn take(paid: &mut u32) -> bool {
    let left = paid.checked_sub(1);
    *paid = left.unwrap_or(0);
    left.is_some()
}

/// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, 6.5.2), and what every window is until it is said.
pub(super) const INITIAL_WINDOW: u16 = 4;
const INITIAL: i64 = 65_535;
/// What is left in both windows, in bytes, if it was not they that made a frame small: a library fills them to the last.
const ROOM: i64 = 1024;
/// Frames of data whose answers are still owed: so many as small messages make of a usual window. Who saves them up
/// sends as many pings at once, which is less than he was sent.
const PAID_MAX: u32 = 4096;
/// Streams whose windows are known: more than are open at once.
const STREAMS_MAX: usize = 1024;
