//! HTTP/2 as it goes over the wire, frame by frame: how much of it is of no use to anybody.
//!
//! Each frame that a client sends beside requests and bodies costs a little, and a bit more what it makes
//! the edge reset; what is transferred and what is answered earns, and data pays for what clients
//! say to it. A client has a credit that refills; who uses it up abuses the protocol, whichever flood
//! it is: resets of one's own (CVE-2023-44487) or provoked ones (CVE-2025-8671), pings, settings, empty
//! frames, continuations, windows that open byte by byte.

mod faults;
mod frames;
mod hpack;
mod windows;

use std::collections::VecDeque;

pub use self::faults::Fault;
use self::{
    faults::Faults,
    frames::{CONTINUATION, DATA, END, Frame, Frames, HEADERS, PING, RESET, SETTINGS, WINDOW},
    windows::Windows,
};

/// Which flood it was that used up the credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// Requests that the client broke off itself.
    Resets,
    /// Frames for which the edge has to break a request off.
    Mistakes,
    /// `PING`, and answers to none.
    Pings,
    /// `SETTINGS`.
    Settings,
    /// `DATA` without data.
    EmptyData,
    /// `CONTINUATION`.
    Continuations,
    /// `WINDOW_UPDATE`.
    Windows,
    /// `PRIORITY` and what nobody knows.
    Others,
}

impl Abuse {
    /// For the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resets => "resets",
            Self::Mistakes => "mistakes",
            Self::Pings => "pings",
            Self::Settings => "settings",
            Self::EmptyData => "empty_data",
            Self::Continuations => "continuations",
            Self::Windows => "windows",
            Self::Others => "others",
        }
    }
}

/// One connection's frames, in both directions.
#[derive(Debug)]
pub struct Conduct {
    received: Frames,
    sent: Frames,
    /// In thousandths of a frame.
    credit: u64,
    most: u64,
    refilled_ms: u64,
    abuse: Option<Abuse>,
    /// Since when a head has come of which a part is missing.
    head_since_ms: Option<u64>,
    /// Whether the client has begun.
    has_begun: bool,
    faults: Faults,
    fault: Option<Fault>,
    /// Streams whose requests were handed on and are not answered to their end, and whether their answers are made.
    open: Vec<(u32, bool)>,
    /// Streams that the client reset before they were handed on: both may come at once.
    reset: Vec<u32>,
    /// Streams that the client reset later, the latest of them: their answers may be on their way.
    given_up: VecDeque<u32>,
    /// The last that was handed on; they are in the order of their numbers.
    begun: u32,
    /// Streams that the edge refuses for reasons of its own and whose resets are on their way.
    turned_away: Vec<u32>,
    /// Pings of the edge that the client has not answered.
    pings: u32,
    windows: Windows,
    noted: Noted,
}

/// What the library did by itself since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Requests beyond the streams that a connection may have.
    pub refused: u32,
    /// Requests whose fields were too large to be handed on.
    pub oversized: u32,
    /// Requests that were none.
    pub malformed: u32,
    /// Requests that it did not read, through no fault of their client.
    pub unread: u32,
}

impl Conduct {
    /// A connection that begins now, whose client may waste so many frames at once.
    #[must_use]
    pub fn new(waste_max: u32, now_ms: u64) -> Self {
        let most = u64::from(waste_max) * FRAME;
        Self {
            received: Frames::new(PREFACE_BYTES, &[HEADERS, RESET, SETTINGS, WINDOW, CONTINUATION]),
            sent: Frames::new(0, &[RESET]),
            credit: most,
            most,
            refilled_ms: now_ms,
            abuse: None,
            head_since_ms: None,
            has_begun: false,
            faults: Faults::default(),
            fault: None,
            open: Vec::new(),
            reset: Vec::new(),
            given_up: VecDeque::new(),
            begun: 0,
            turned_away: Vec::new(),
            pings: 0,
            windows: Windows::new(),
            noted: Noted::default(),
        }
    }

    /// Bytes that came from the client; how many of them may go on: nothing of a frame that has a fault,
    /// and nothing behind it.
    pub fn received(&mut self, bytes: &[u8], now_ms: u64) -> usize {
        let (mut rest, mut begins) = (bytes, 0);
        while self.fault.is_none()
            && let Some(frame) = self.received.next(&mut rest)
        {
            self.look(&frame);
            if self.fault.is_some() {
                break;
            }
            if frame.ends_head() {
                self.head_since_ms = None;
            }
            begins = bytes.len() - rest.len() + self.received.ahead;
            match frame.kind {
                DATA if frame.content == 0 && !frame.has(END) => {
                    self.spend(2, Abuse::EmptyData, now_ms);
                }
                DATA => self.earn(frame.content),
                RESET => {
                    let was_open = self.close(frame.stream);
                    // Both may reset it: then the edge's own need not go out.
                    self.takes_leave(frame.stream);
                    self.faults.is_unread(frame.stream);
                    if was_open {
                        self.given_up.truncate(GIVEN_UP_MAX - 1);
                        self.given_up.push_front(frame.stream);
                    }
                    let is_early = !was_open && frame.stream > self.begun;
                    if is_early && self.reset.len() < EARLY_MAX {
                        self.reset.push(frame.stream);
                    }
                    self.spend(2, Abuse::Resets, now_ms);
                }
                // The library takes no acknowledgement that it has not asked for.
                SETTINGS if !frame.has(END) => {
                    self.windows.settings(self.received.payload());
                    self.spend(5, Abuse::Settings, now_ms);
                }
                PING if frame.has(END) && self.pings > 0 => self.pings -= 1,
                PING if !frame.has(END) && self.windows.ping() => {}
                PING => self.spend(2, Abuse::Pings, now_ms),
                HEADERS => self.windows.begin(frame.stream),
                SETTINGS => {}
                WINDOW if self.windows.open(frame.stream, self.received.payload()) => {}
                WINDOW => self.spend(1, Abuse::Windows, now_ms),
                CONTINUATION => self.spend(5, Abuse::Continuations, now_ms),
                _ => self.spend(1, Abuse::Others, now_ms),
            }
        }
        let is_within = self.received.is_within_head() || self.faults.is_within_head();
        self.head_since_ms = is_within.then(|| self.head_since_ms.unwrap_or(now_ms));
        if self.fault.is_some() { begins } else { bytes.len() }
    }

    /// Since when a head has come of which a part is missing, if one has.
    #[must_use]
    pub const fn head_since_ms(&self) -> Option<u64> {
        self.head_since_ms
    }

    fn look(&mut self, frame: &Frame) {
        let first = !std::mem::replace(&mut self.has_begun, true);
        let looked = match first && (frame.kind != SETTINGS || frame.has(END)) {
            true => Err(Fault::Protocol),
            false => self.faults.look(frame, self.received.payload()),
        };
        self.fault = looked.err();
    }

    /// Bytes that went to the client.
    pub fn sent(&mut self, mut bytes: &[u8], now_ms: u64) {
        while let Some(frame) = self.sent.next(&mut bytes) {
            let is_known = |stream| self.at(stream).is_some() || self.given_up.contains(&stream);
            if frame.kind == HEADERS && !is_known(frame.stream) {
                // The library answers by itself what has too many fields.
                self.noted.oversized += 1;
                self.windows.end(frame.stream);
                self.spend(5, Abuse::Mistakes, now_ms);
                continue;
            }
            if frame.kind == DATA {
                self.windows.sent(frame.stream, frame.length);
            }
            let ends = matches!(frame.kind, DATA | HEADERS) && frame.has(END);
            let was_open = (ends || frame.kind == RESET) && self.close(frame.stream);
            let code = if frame.kind == RESET { self.sent.code() } else { 0 };
            if frame.kind == RESET && self.takes_leave(frame.stream) {
                continue;
            }
            match (frame.kind, code) {
                (DATA, _) => self.earn(frame.content),
                (PING, _) if !frame.has(END) => self.pings += 1,
                (HEADERS, _) => self.credit = (self.credit + FRAME).min(self.most),
                (RESET, REFUSED_STREAM) => {
                    self.noted.refused += 1;
                    self.spend(2, Abuse::Mistakes, now_ms);
                }
                (RESET, PROTOCOL_ERROR) => {
                    let (noted, cost) = match self.faults.is_unread(frame.stream) {
                        true => (&mut self.noted.unread, 2),
                        false => (&mut self.noted.malformed, 5),
                    };
                    // Of the others, somebody hears that they broke off.
                    *noted += u32::from(!was_open);
                    self.spend(cost, Abuse::Mistakes, now_ms);
                }
                (RESET, FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR | CALM) => {
                    self.spend(5, Abuse::Mistakes, now_ms);
                }
                _ => {}
            }
        }
    }

    /// Whether what is handed on now is no request, and its stream is to be reset as malformed.
    pub fn is_malformed(&mut self, stream: u32) -> bool {
        let is_malformed = self.faults.is_malformed(stream);
        if is_malformed {
            self.pass(stream);
        }
        is_malformed
    }

    /// Whether the trailers to which somebody has come are none: what they belong to is not to go on without them.
    pub fn is_cut(&mut self, stream: u32) -> bool {
        self.faults.is_cut(stream)
    }

    /// A request was handed on.
    pub fn begun(&mut self, stream: u32) {
        if !self.reset.contains(&stream) {
            self.open.push((stream, false));
        }
        self.pass(stream);
    }

    /// All of a stream's answer is made: what is not out yet waits for the client.
    pub fn made(&mut self, stream: u32) {
        if let Some(at) = self.at(stream) {
            self.open[at].1 = true;
        }
    }

    /// Whether the client is to take the rest of an answer that is made.
    #[must_use]
    pub fn has_untaken(&self) -> bool {
        self.open.iter().any(|(_, is_made)| *is_made)
    }

    /// No stream up to this one is still to be handed on.
    fn pass(&mut self, stream: u32) {
        self.begun = stream;
        self.reset.retain(|reset| *reset > stream);
    }

    /// A request was handed on, and the edge refuses it by a reset for no fault of the client: that reset costs nothing, and
    /// nobody is told of it again.
    pub fn turned_away(&mut self, stream: u32) {
        if !self.reset.contains(&stream) {
            self.turned_away.push(stream);
        }
        self.pass(stream);
    }

    /// A request came long after its client had to know that the connection ends.
    pub fn overstays(&mut self, now_ms: u64) {
        self.spend(2, Abuse::Mistakes, now_ms);
    }

    /// Whether the edge has turned such a stream away; it is forgotten.
    fn takes_leave(&mut self, stream: u32) -> bool {
        let found = self.turned_away.iter().position(|turned| *turned == stream);
        found.map(|at| self.turned_away.swap_remove(at)).is_some()
    }

    fn close(&mut self, stream: u32) -> bool {
        // Nobody comes to what is behind it any more.
        self.faults.is_cut(stream);
        self.windows.end(stream);
        self.at(stream).map(|at| self.open.swap_remove(at)).is_some()
    }

    fn at(&self, stream: u32) -> Option<usize> {
        self.open.iter().position(|(open, _)| *open == stream)
    }

    /// Why the connection cannot go on, if it cannot. It may have begun with anything but settings
    /// (RFC 9113, 3.4).
    #[must_use]
    pub const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// What the client has done too much of, if it has.
    #[must_use]
    pub const fn abuse(&self) -> Option<Abuse> {
        self.abuse
    }

    /// What the library did by itself since this was last asked.
    pub fn take_noted(&mut self) -> Noted {
        std::mem::take(&mut self.noted)
    }

    fn earn(&mut self, bytes: u32) {
        self.credit = (self.credit + u64::from(bytes) * FRAME / EARNING_BYTES).min(self.most);
    }

    fn spend(&mut self, frames: u64, kind: Abuse, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.refilled_ms);
        self.refilled_ms = now_ms;
        let refill = self.most.saturating_mul(passed_ms) / REFILL_MS;
        self.credit = self.credit.saturating_add(refill).min(self.most);
        match self.credit.checked_sub(frames * FRAME) {
            Some(left) => self.credit = left,
            None => _ = self.abuse.get_or_insert(kind),
        }
    }
}

// Codes of errors (RFC 9113, 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CALM: u32 = 11;

/// What a client sends before its first frame (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
/// One frame, in the unit of the credit.
const FRAME: u64 = 1000;
/// Content that earns one frame.
const EARNING_BYTES: u64 = 1024;
/// Resets ahead of their requests that are remembered: far more than come at once for free.
const EARLY_MAX: usize = 1024;
/// Answers that may be on their way to who no longer wants them.
const GIVEN_UP_MAX: usize = 128;
/// How long an empty credit takes to fill.
const REFILL_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::{frames::PADDED, *};

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    fn fresh() -> Conduct {
        let mut conduct = Conduct::new(100, 0);
        conduct.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0);
        conduct
    }

    fn begun() -> Conduct {
        let mut conduct = fresh();
        conduct.received(&frame(SETTINGS, 0, 0, &[]), 0);
        conduct
    }

    #[test]
    fn an_answer_on_its_way_to_who_reset_it_is_no_mistake() {
        let mut conduct = begun();
        for stream in [1, 3] {
            conduct.received(&frame(HEADERS, 5, stream, &[0x82]), 0);
            conduct.begun(stream);
        }
        // It was in the buffer of the library when the socket took no more.
        conduct.received(&frame(RESET, 0, 1, &[0, 0, 0, 8]), 0);
        conduct.sent(&frame(HEADERS, 4, 1, &[0x88]), 0);
        assert_eq!(conduct.take_noted(), Noted::default());
        assert_eq!(conduct.open, [(3, false)]);
        // What was never handed on is answered by the library.
        conduct.sent(&frame(HEADERS, 5, 5, &[0x88]), 0);
        assert_eq!(conduct.take_noted().oversized, 1);
    }

    #[test]
    fn every_flood_uses_up_the_credit() {
        for (kind, flags, payload, abuse) in [
            (RESET, 0, &[0, 0, 0, 8][..], Abuse::Resets),
            (PING, 0, &[0; 8], Abuse::Pings),
            (PING, END, &[0; 8], Abuse::Pings),
            (SETTINGS, 0, &[], Abuse::Settings),
            (DATA, 0, &[], Abuse::EmptyData),
            (DATA, PADDED, &[2, 0, 0], Abuse::EmptyData),
            (DATA, PADDED, &[0], Abuse::EmptyData),
            (CONTINUATION, 0, &[1], Abuse::Continuations),
            (WINDOW, 0, &[0, 0, 0, 1], Abuse::Windows),
            (2, 0, &[0; 5], Abuse::Others),
            (0xfa, 0, &[], Abuse::Others),
        ] {
            let mut conduct = begun();
            let one = frame(kind, flags, 1, payload);
            conduct.received(&one, 0);
            assert_eq!(conduct.abuse(), None, "{abuse:?}");
            conduct.received(&one.repeat(101), 0);
            assert_eq!(conduct.abuse(), Some(abuse));
        }
    }

    #[test]
    fn a_head_is_open_from_its_first_byte_to_its_last_and_none_stands_for_another() {
        let mut conduct = begun();
        let parts = [frame(HEADERS, 1, 1, &[0x82]), frame(CONTINUATION, 4, 1, &[0x84])].concat();
        for (at, byte) in parts.iter().enumerate() {
            conduct.received(&[*byte], 10 + at as u64);
            // Of what a frame is, its own head tells.
            let is_open = at >= 8 && at + 1 < parts.len();
            assert_eq!(conduct.head_since_ms(), is_open.then_some(18), "{at}");
        }
        let (begin, end) = parts.split_at(9);
        conduct.received(begin, 50);
        conduct.received(&[end, begin].concat(), 60);
        assert_eq!(conduct.head_since_ms(), Some(60));
    }

    #[test]
    fn an_answer_to_a_ping_of_the_edge_is_free_once() {
        let mut conduct = begun();
        conduct.credit = 0;
        conduct.sent(&frame(PING, 0, 0, &[7; 8]), 0);
        conduct.sent(&frame(PING, END, 0, &[7; 8]), 0);
        conduct.received(&frame(PING, END, 0, &[7; 8]), 0);
        assert_eq!(conduct.abuse(), None);
        conduct.received(&frame(PING, END, 0, &[7; 8]), 0);
        assert_eq!(conduct.abuse(), Some(Abuse::Pings));
    }

    #[test]
    fn data_pays_for_a_ping_and_two_windows_however_small_it_is() {
        let mut conduct = begun();
        let ping = frame(PING, 0, 0, &[7; 8]);
        let window = |stream| frame(WINDOW, 0, stream, &[0, 0, 0, 7]);
        let answers = |stream| [&ping[..], &window(0), &window(stream)].concat();
        // One stream of messages, and many short answers.
        conduct.received(&frame(HEADERS, 5, 1, &[0x82]), 0);
        conduct.begun(1);
        for _ in 0..5_000 {
            conduct.sent(&frame(DATA, 0, 1, &[7; 7]), 0);
            conduct.received(&answers(1), 0);
        }
        for stream in (3..10_000).step_by(2) {
            conduct.received(&frame(HEADERS, 5, stream, &[0x82]), 0);
            conduct.begun(stream);
            conduct.sent(&frame(DATA, END, stream, &[7; 7]), 0);
            conduct.received(&answers(stream), 0);
        }
        assert_eq!((conduct.abuse(), conduct.credit), (None, conduct.most));
        // Each is paid for once, nothing else is, and nobody saves up any number of them.
        conduct.received(&[&ping[..], &window(0)].concat(), 0);
        assert_eq!(conduct.credit, conduct.most - 3 * FRAME);
        for _ in 0..100_000 {
            conduct.received(&window(0), 0);
            conduct.credit = conduct.most;
            conduct.sent(&frame(DATA, 0, 1, &[7]), 0);
            conduct.received(&window(1), 0);
        }
        conduct.received(&frame(RESET, 0, 9, &[0, 0, 0, 8]), 0);
        assert_eq!(conduct.credit, conduct.most - 2 * FRAME);
        conduct.received(&ping.repeat(4_200), 0);
        assert_eq!(conduct.abuse(), Some(Abuse::Pings));
    }

    #[test]
    fn data_that_the_client_makes_small_pays_for_nothing() {
        // By the window of the stream, by what it begins with, and by that of the connection.
        for (initial, opened, stream) in [(7_u32, 1_u8, 1_u32), (0, 1, 1), (1 << 20, 7, 0)] {
            let mut conduct = fresh();
            let initial = [&[0, 4][..], &initial.to_be_bytes()].concat();
            conduct.received(&frame(SETTINGS, 0, 0, &initial), 0);
            conduct.received(&frame(HEADERS, 5, 1, &[0x82]), 0);
            conduct.begun(1);
            if stream == 0 {
                (0..5).for_each(|_| conduct.sent(&frame(DATA, 0, 1, &[7; 13_107]), 0));
                (conduct.windows.pings, conduct.windows.updates) = (0, 0);
            }
            for _ in 0..200 {
                conduct.received(&frame(WINDOW, 0, stream, &[0, 0, 0, opened]), 0);
                conduct.sent(&frame(DATA, 0, 1, &vec![7; opened.into()]), 0);
            }
            assert_eq!(conduct.abuse(), Some(Abuse::Windows), "{stream}");
        }
    }

    #[test]
    fn a_connection_begins_with_settings() {
        for (first, is_bad) in [
            (frame(SETTINGS, 0, 0, &[]), false),
            (frame(SETTINGS, END, 0, &[]), true),
            (frame(PING, 0, 0, &[0; 8]), true),
            (frame(HEADERS, 5, 1, &[0x82]), true),
        ] {
            let mut conduct = fresh();
            conduct.received(&first, 0);
            conduct.received(&frame(PING, 0, 0, &[0; 8]), 0);
            assert_eq!(conduct.fault(), is_bad.then_some(Fault::Protocol), "{first:?}");
        }
    }

    #[test]
    fn nothing_of_a_frame_with_a_fault_goes_on() {
        let block = |stream, bytes: &[u8]| frame(HEADERS, 5, stream, bytes);
        for (bad, fault) in [
            (frame(PING, 0, 0, &[0; 7]), Fault::FrameSize),
            (frame(RESET, 0, 1, &[0; 5]), Fault::FrameSize),
            (frame(WINDOW, 0, 0, &[0; 3]), Fault::FrameSize),
            (frame(7, 0, 0, &[0; 7]), Fault::FrameSize),
            (frame(DATA, 8, 1, &[]), Fault::FrameSize),
            (frame(HEADERS, 0x25, 3, &[0; 4]), Fault::FrameSize),
            (frame(SETTINGS, END, 0, &[0, 1, 0, 0, 0, 0]), Fault::FrameSize),
            (frame(SETTINGS, 0, 0, &[0; 5]), Fault::FrameSize),
            (frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), Fault::FlowControl),
            (block(3, &[0x80]), Fault::Compression),
            // Padding before and behind, and a part of the head in a frame of its own.
            (frame(HEADERS, 0x2d, 3, &[1, 0, 0, 0, 0, 9, 0x82, 0xbe, 0]), Fault::Compression),
        ] {
            let good = [block(1, &[0x82, 0x84]), frame(DATA, 0, 1, &[7; 20])].concat();
            let bytes = [&good[..], &bad, &frame(PING, 0, 0, &[0; 8])].concat();
            for size in 1..bytes.len() {
                let mut conduct = begun();
                let parts = bytes.chunks(size).map(|part| conduct.received(part, 0));
                let passed: usize = parts.sum();
                assert_eq!(conduct.fault(), Some(fault), "{bad:x?}");
                assert!(passed < good.len() + bad.len(), "{passed} of {bad:x?} by {size}");
                assert!(passed + size >= good.len(), "{passed} of {good:x?} by {size}");
            }
        }
    }

    #[test]
    fn a_head_that_is_no_request_costs_only_its_own_stream() {
        let mut conduct = begun();
        let parts = [frame(HEADERS, 1, 3, &[0x44]), frame(CONTINUATION, 4, 3, &[2, b'/', b'#'])];
        let bytes = [&frame(HEADERS, 5, 1, &[0x82])[..], &parts.concat()].concat();
        let bytes = [&bytes[..], &frame(HEADERS, 5, 5, &[0x82]), &frame(HEADERS, 5, 7, &[0xbe])];
        assert_eq!(conduct.received(&bytes.concat(), 0), bytes.concat().len());
        let malformed = [1, 3, 5, 7].map(|stream| conduct.is_malformed(stream));
        assert_eq!((malformed, conduct.fault()), ([false, true, false, true], None));
        conduct.sent(&frame(RESET, 0, 3, &[0, 0, 0, 1]), 0);
        assert_eq!(conduct.take_noted().malformed, 1, "it is told of once");
        // More than may wait to be handed on are not remembered.
        (0..200).for_each(|n| _ = conduct.received(&frame(HEADERS, 5, 2 * n + 9, &[0xbe]), 0));
        assert_eq!(conduct.fault(), Some(Fault::Protocol));
    }

    #[test]
    fn a_path_that_the_library_does_not_read_is_no_fault_of_its_client() {
        let mut conduct = begun();
        let path = |stream| frame(HEADERS, 5, stream, &[0x82, 0x87, 4, 2, b'/', b'<']);
        conduct.received(&[path(1), path(3), path(5)].concat(), 0);
        conduct.received(&frame(RESET, 0, 3, &[0, 0, 0, 8]), 0);
        for stream in [1, 3, 1] {
            conduct.sent(&frame(RESET, 0, stream, &[0, 0, 0, 1]), 0);
        }
        let noted = conduct.take_noted();
        assert_eq!((noted.unread, noted.malformed, conduct.fault()), (1, 2, None));
    }

    #[test]
    fn trailers_that_are_none_cost_only_their_own_stream() {
        let mut conduct = begun();
        let head = |stream| frame(HEADERS, 4, stream, &[0x83, 0x84]);
        let trailers = |stream| frame(HEADERS, 5, stream, &[0x82]);
        let all = [head(1), head(3), head(5), trailers(1), trailers(5)].concat();
        assert_eq!(conduct.received(&all, 0), all.len());
        conduct.begun(1);
        conduct.begun(5);
        conduct.received(&frame(RESET, 0, 5, &[0, 0, 0, 8]), 0);
        let cut = [1, 3, 5, 1].map(|stream| conduct.is_cut(stream));
        assert_eq!((cut, conduct.fault()), ([true, false, false, false], None));
        // More than may wait for somebody are not remembered.
        (0..200).for_each(|_| _ = conduct.received(&trailers(3), 0));
        assert_eq!(conduct.fault(), Some(Fault::Protocol));
    }

    #[test]
    fn what_is_of_use_costs_nothing() {
        let mut conduct = begun();
        for stream in 0..10_000 {
            conduct.received(&frame(HEADERS, 5, 2 * stream + 1, &[0x82]), 0);
            conduct.begun(2 * stream + 1);
            conduct.received(&frame(DATA, 0, 2 * stream + 1, &[7; 64]), 0);
            conduct.received(&frame(DATA, END, 2 * stream + 1, &[]), 0);
            conduct.sent(&frame(HEADERS, 4, 2 * stream + 1, &[0x88]), 0);
            conduct.sent(&frame(HEADERS, 5, 2 * stream + 1, &[0x88]), 0);
            conduct.received(&frame(WINDOW, 0, 0, &[0, 0, 8, 0]), 0);
            conduct.received(&frame(SETTINGS, END, 0, &[]), 0);
        }
        assert_eq!((conduct.abuse(), conduct.take_noted()), (None, Noted::default()));
        assert!(conduct.open.is_empty());
    }

    #[test]
    fn a_reset_that_comes_with_its_request_leaves_nothing() {
        let mut conduct = begun();
        for n in 0..1_000 {
            let (stream, now_ms) = (4 * n + 1, u64::from(n) * 1000);
            let block = |stream| frame(HEADERS, 5, stream, &[0x82]);
            let both = [block(stream), frame(RESET, 0, stream, &[0, 0, 0, 8]), block(stream + 2)];
            conduct.received(&both.concat(), now_ms);
            conduct.begun(stream);
            conduct.begun(stream + 2);
            assert_eq!(conduct.open, [(stream + 2, false)]);
            conduct.sent(&frame(HEADERS, 5, stream + 2, &[0x88]), now_ms);
        }
        assert_eq!((conduct.open.len(), conduct.reset.len(), conduct.abuse()), (0, 0, None));
    }

    #[test]
    fn an_answer_waits_for_its_client_from_when_it_is_made_until_it_is_out_or_unwanted() {
        let mut conduct = begun();
        let block = |stream| frame(HEADERS, 5, stream, &[0x82]);
        let reset = |stream| frame(RESET, 0, stream, &[0, 0, 0, 8]);
        for (stream, bytes, is_out) in [(1, frame(DATA, END, 1, &[7]), true), (5, reset(5), false)]
        {
            conduct.received(&block(stream), 0);
            conduct.begun(stream);
            assert!(!conduct.has_untaken());
            conduct.made(stream);
            assert!(conduct.has_untaken());
            // However many requests come and go beside it.
            conduct.received(&[block(stream + 2), reset(stream + 2)].concat(), 0);
            conduct.begun(stream + 2);
            assert!(conduct.has_untaken());
            match is_out {
                true => conduct.sent(&bytes, 0),
                false => _ = conduct.received(&bytes, 0),
            }
            conduct.made(stream + 2);
            assert!(!conduct.has_untaken() && conduct.open.is_empty());
        }
    }

    #[test]
    fn who_overstays_uses_up_the_credit() {
        let mut conduct = fresh();
        (0..50).for_each(|_| conduct.overstays(0));
        assert_eq!(conduct.abuse(), None);
        conduct.overstays(0);
        assert_eq!(conduct.abuse(), Some(Abuse::Mistakes));
    }

    #[test]
    fn whom_the_edge_turns_away_for_its_own_reasons_pays_nothing() {
        let mut conduct = begun();
        for n in 0..300 {
            let stream = 2 * n + 1;
            conduct.received(&frame(HEADERS, 5, stream, &[0x82]), 0);
            conduct.turned_away(stream);
            conduct.sent(&frame(RESET, 0, stream, &[0, 0, 0, 7]), 0);
        }
        assert_eq!((conduct.abuse(), conduct.take_noted()), (None, Noted::default()));
        // What the library refuses costs as ever, and so does a stream that was turned away once already.
        conduct.sent(&frame(RESET, 0, 1, &[0, 0, 0, 7]), 0);
        assert_eq!(conduct.take_noted().refused, 1);
    }

    #[test]
    fn who_is_turned_away_and_resets_the_stream_himself_leaves_nothing() {
        let mut conduct = begun();
        let block = |stream| frame(HEADERS, 5, stream, &[0x82]);
        let reset = |stream| frame(RESET, 0, stream, &[0, 0, 0, 8]);
        conduct.received(&[block(1), reset(1), block(3)].concat(), 0);
        conduct.turned_away(1);
        conduct.turned_away(3);
        assert_eq!(conduct.turned_away, [3]);
        conduct.received(&reset(3), 0);
        assert!(conduct.turned_away.is_empty() && conduct.reset.is_empty());
    }

    #[test]
    fn time_refills_the_credit() {
        let mut conduct = begun();
        for second in 0..1_000 {
            // Five pings a second are the ten frames that a second refills.
            conduct.received(&frame(PING, 0, 0, &[0; 8]).repeat(5), second * 1000);
        }
        assert_eq!(conduct.abuse(), None);
    }

    #[test]
    fn mistakes_are_told_apart_and_cost() {
        let mut conduct = fresh();
        conduct.sent(&frame(RESET, 0, 1, &[0, 0, 0, 7]), 0);
        conduct.sent(&frame(RESET, 0, 3, &[0, 0, 0, 1]), 0);
        conduct.sent(&frame(HEADERS, 5, 5, &[0x8e]), 0);
        conduct.begun(6);
        conduct.sent(&frame(RESET, 0, 6, &[0, 0, 0, 1]), 0);
        conduct.sent(&frame(RESET, 0, 7, &[0, 0, 0, 8]), 0);
        let noted = Noted { refused: 1, oversized: 1, malformed: 1, unread: 0 };
        assert_eq!(conduct.take_noted(), noted);
        conduct.sent(&frame(RESET, 0, 9, &[0, 0, 0, 5]).repeat(20), 0);
        assert_eq!(conduct.abuse(), Some(Abuse::Mistakes));
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(frame(DATA, 0, 1, &[3; 300]));
        bytes.extend(frame(RESET, 0, 1, &[0, 0, 0, 8]).repeat(51));
        for size in 1..40 {
            let mut conduct = Conduct::new(100, 0);
            bytes.chunks(size).for_each(|part| _ = conduct.received(part, 0));
            assert_eq!(conduct.abuse(), Some(Abuse::Resets), "{size}");
        }
    }
}
