//! The two bodies that stream through the edge, and the one place where a request ends.

use std::{
    cell::Cell,
    rc::Rc,
    sync::atomic::Ordering::{Relaxed, Release},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use edge_common::{Blame, Reason};
use edge_policy::{denied, limit::Held, lines::Lines, shield};
use http::{HeaderMap, StatusCode, header};

use super::{
    Visitor, Worker,
    entry::Entry,
    incoming::{Broken, Frame, Incoming},
    report::Known,
    upstream::Lease,
    watch::{Turn, Who},
};
use crate::clock;

/// A client's body on its way upstream: no longer than its bound.
pub(crate) struct Upload {
    incoming: Incoming,
    left: u64,
    is_whole: bool,
    state: Rc<UploadState>,
}

/// What the rest of the request sees of an [`Upload`].
pub(crate) struct UploadState {
    /// Whose move the request waits for.
    pub(crate) turn: Rc<Turn>,
    /// Why it was broken off, if the client is to blame or gone.
    pub(crate) fault: Cell<Option<Reason>>,
}

impl Upload {
    pub(crate) fn new(
        incoming: Incoming,
        bytes_max: u64,
        turn: &Rc<Turn>,
    ) -> (Self, Rc<UploadState>) {
        let state = Rc::new(UploadState { turn: Rc::clone(turn), fault: Cell::new(None) });
        (Self { incoming, left: bytes_max, is_whole: true, state: Rc::clone(&state) }, state)
    }

    /// The same body once more, which only an empty one can be.
    pub(crate) fn again(&self) -> Option<Self> {
        let incoming = self.incoming.empty().filter(|_| self.is_whole)?;
        Some(Self { incoming, left: 0, is_whole: true, state: Rc::clone(&self.state) })
    }

    /// The rest of the client's connection in the place of a body, without a bound. Whether it can be.
    pub(crate) fn open_tunnel(&mut self) -> bool {
        self.left = u64::MAX;
        self.incoming.open_tunnel()
    }

    /// Whether nothing of it has been asked for.
    pub(crate) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What nobody has asked it for.
    pub(crate) fn rest(self) -> Incoming {
        self.incoming
    }

    /// Its length, if the client said it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.incoming.length()
    }

    /// Whose move its request waits for.
    pub(crate) fn turn(&self) -> &Rc<Turn> {
        &self.state.turn
    }

    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        self.is_whole = false;
        let Some(frame) = ready!(self.incoming.poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.inspect_err(|broken| self.state.fault.set(Some(fault(*broken))))?;
        let length = if let Frame::Data(data) = &frame { data.len() } else { 0 };
        let Some(left) = self.left.checked_sub(length as u64) else {
            self.state.fault.set(Some(Reason::BodyTooLarge));
            return Poll::Ready(Some(Err(Broken::Malformed)));
        };
        self.left = left;
        self.state.turn.moved(Who::Sender, length);
        Poll::Ready(Some(Ok(frame)))
    }
}

/// The length of a body as its head says it.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A client that breaks off is gone, which is no misdeed; one whose chunks do not parse is wrong.
pub(super) fn fault(broken: Broken) -> Reason {
    match broken {
        Broken::Gone => Reason::ClientGone,
        Broken::Malformed => Reason::MalformedRequest,
        Broken::Forged => Reason::BodyDigest,
    }
}

/// An answer on its way to the client.
pub(crate) struct Answer {
    content: Content,
    /// What the edge says in its head.
    pub(crate) lines: Lines,
    /// Whether nothing more is to be read from this client.
    pub(crate) is_last: bool,
    pub(crate) ending: Ending,
}

enum Content {
    /// Made by the edge. A request body that nobody read is kept until the answer is out: to
    /// drop it earlier resets an HTTP/2 stream, answer and all.
    Whole { bytes: Option<Bytes>, _unread: Option<Incoming> },
    /// Passed on from the upstream; the connection to it is held as long as it sends.
    Passed { incoming: Incoming, lease: Option<Lease>, upload: Rc<UploadState> },
}

impl Answer {
    pub(crate) fn whole(bytes: Bytes, unread: Option<Incoming>, ending: Ending) -> Self {
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
        let content = Content::Whole { bytes, _unread: unread };
        Self { content, lines: Lines::default(), is_last: false, ending }
    }

    pub(crate) fn passed(
        incoming: Incoming,
        lease: Lease,
        upload: Rc<UploadState>,
        ending: Ending,
    ) -> Self {
        let content = Content::Passed { incoming, lease: Some(lease), upload };
        Self { content, lines: Lines::default(), is_last: false, ending }
    }

    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let frame = ready!(match &mut self.content {
            Content::Whole { bytes, .. } => Poll::Ready(bytes.take().map(|b| Ok(Frame::Data(b)))),
            Content::Passed { .. } => self.poll_passed(cx),
        });
        if let Some(Ok(Frame::Data(data))) = &frame {
            self.ending.bytes += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        let Content::Passed { incoming, lease, upload } = &mut self.content else {
            return Poll::Ready(None);
        };
        let mut frame = ready!(incoming.poll_frame(cx));
        if let Some(Ok(Frame::Trailers(trailers))) = &mut frame {
            shield::strip_trailers(trailers);
        }
        self.ending.turn.heard();
        match &frame {
            Some(Err(_)) if self.ending.is_tunnel() => {}
            // An upload that breaks off takes its answer along.
            Some(Err(_)) => {
                let reason = upload.fault.get().unwrap_or(Reason::UpstreamInvalid);
                break_off(lease, reason, &self.ending.turn);
                self.ending.settle(reason);
            }
            Some(Ok(_)) if !incoming.is_end_stream() => {
                lease.iter_mut().for_each(Lease::goes_on);
            }
            // The upstream has done its part, however long the client takes over his.
            Some(Ok(_)) => give_back(lease),
            None => {
                self.ending.settle(Reason::Serve);
                give_back(lease);
            }
        }
        Poll::Ready(frame)
    }

    /// Whose move it is while nothing comes.
    pub(crate) fn waits_for(&self) -> Who {
        match &self.content {
            Content::Whole { .. } => Who::Taker,
            Content::Passed { incoming, .. } => incoming.waits_for(),
        }
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole { bytes, .. } => bytes.is_none(),
            Content::Passed { incoming, .. } => incoming.is_end_stream(),
        }
    }

    /// Bytes that are still to come, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.content {
            Content::Whole { bytes, .. } => Some(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Passed { incoming, .. } => incoming.length(),
        }
    }

    /// Whether more of the request's body may be read while this goes out.
    pub(crate) const fn reads_on(&self) -> bool {
        matches!(self.content, Content::Passed { .. })
    }
}

impl Drop for Answer {
    /// A body of known length is not asked for its end once its last byte is out.
    fn drop(&mut self) {
        let Content::Passed { incoming, lease, .. } = &mut self.content else { return };
        if self.ending.is_tunnel() {
            // Both who speak another protocol can bring its end about, unless a bound did.
            if self.ending.turn.overdue().is_none() {
                self.ending.settle(Reason::Serve);
            }
        } else if incoming.is_end_stream() || incoming.length() == Some(0) {
            self.ending.settle(Reason::Serve);
            give_back(lease);
        } else if let Some(reason) = self.ending.turn.overdue() {
            break_off(lease, reason, &self.ending.turn);
        }
    }
}

fn give_back(lease: &mut Option<Lease>) {
    if let Some(lease) = lease.take() {
        lease.give_back();
    }
}

/// Blames the server if it may be to blame.
fn break_off(lease: &mut Option<Lease>, reason: Reason, turn: &Turn) {
    if let Some(lease) = lease.take().filter(|_| !turn.is_held_up() && !turn.is_excused()) {
        lease.broke_off(reason);
    }
}

/// The one exit of a request: when it is dropped, the request is counted, once.
pub(crate) struct Ending {
    pub(super) worker: Rc<Worker>,
    pub(crate) turn: Rc<Turn>,
    /// In boot time.
    started_ns: u64,
    /// The status of the answer, once the head of the upstream's is there, or where its reason does not tell.
    pub(crate) status: Option<StatusCode>,
    /// Bytes of the answer's body.
    bytes: u64,
    reason: Option<Reason>,
    /// The client as proven, once it is.
    pub(crate) visitor: Option<Visitor>,
    /// What is known of the request, once its answer begins.
    pub(super) known: Option<Known>,
    /// What the access log will tell of it.
    pub(crate) entry: Option<Box<Entry>>,
    /// Its places among the requests in flight that limits count.
    pub(crate) held: Vec<Held>,
}

impl Ending {
    /// Begins a request, and tells how many are in flight with it.
    pub(crate) fn begin(worker: Rc<Worker>, turn: Rc<Turn>, started_ns: u64) -> (Self, usize) {
        let in_flight = worker.edge.metrics.requests.fetch_add(1, Relaxed) + 1;
        let (status, bytes, reason, visitor, known, entry, held) = Default::default();
        let this =
            Self { worker, turn, started_ns, status, bytes, reason, visitor, known, entry, held };
        (this, in_flight)
    }

    fn is_tunnel(&self) -> bool {
        self.status == Some(StatusCode::SWITCHING_PROTOCOLS)
    }

    /// States how the request ended; the first statement counts.
    pub(crate) fn settle(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    /// The same, where it is answered as what ended in another way.
    pub(crate) fn settle_as(&mut self, reason: Reason, answered: Reason) {
        if reason != answered && self.reason.is_none() {
            self.status = Some(denied::status(answered));
        }
        self.settle(reason);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let counters = &self.worker.counters;
        // Nobody stated the end of it: its connection is gone, or was given up.
        let unstated = || {
            let reason = self.turn.overdue().unwrap_or(Reason::ClientGone);
            if reason.blame() == Blame::Client
                && let Some(visitor) = &self.visitor
            {
                self.worker.report_given_up(visitor, reason, self.known.as_ref(), self.status);
            }
            reason
        };
        let reason = self.reason.unwrap_or_else(unstated);
        match reason {
            Reason::Serve => counters.serve(self.status.unwrap_or_default()),
            reason => counters.count(reason),
        }
        let ended_ns = clock::boot_ns();
        if let (Some(entry), Some(visitor)) = (&self.entry, &self.visitor) {
            let end = (reason, self.status, [self.started_ns, ended_ns]);
            entry.write(&self.worker, visitor, end, [self.turn.received(), self.bytes]);
        }
        counters.request.observe(Duration::from_nanos(ended_ns.saturating_sub(self.started_ns)));
        // Last: whoever sees none in flight sees all counted.
        self.worker.edge.metrics.requests.fetch_sub(1, Release);
    }
}
