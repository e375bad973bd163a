//! The two bodies that stream through the edge, and the one place where a request ends.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use edge_common::Reason;
use edge_policy::limit::Held;
use http::StatusCode;
use hyper::body::{Body, SizeHint};

use super::{
    Worker,
    incoming::{Broken, Frame, Incoming},
    upstream::Lease,
    watch::{Progress, RequestClock, Uploading, WaitsFor},
};

type Error = Box<dyn std::error::Error + Send + Sync>;
type HyperFrame = hyper::body::Frame<Bytes>;

/// A client's body on its way upstream: no longer than its bound.
pub(crate) struct Upload {
    /// `None`: there is no body.
    incoming: Option<(Incoming, Uploading)>,
    left: u64,
    state: Rc<UploadState>,
}

/// What the rest of the request sees of an [`Upload`].
pub(crate) struct UploadState {
    /// When the first byte was asked for.
    began: Instant,
    /// When it last changed between waiting for the client and waiting for the upstream.
    pub(crate) since: Cell<Instant>,
    /// Whether the client is to send more before anything else can happen.
    pub(crate) is_starved: Cell<bool>,
    /// Bytes that went upstream.
    bytes: Cell<u64>,
    /// Why it was broken off, if the client is to blame or gone.
    pub(crate) fault: Cell<Option<Reason>>,
}

impl UploadState {
    /// How long the client has been behind the slowest rate that is borne.
    pub(crate) fn lag_s(&self) -> u64 {
        self.began.elapsed().as_secs().saturating_sub(self.bytes.get() / UPLOAD_BYTES_PER_S_MIN)
    }
}

impl Upload {
    pub(crate) fn new(
        incoming: Incoming,
        bytes_max: u64,
        progress: &Rc<Progress>,
    ) -> (Self, Rc<UploadState>) {
        let state = Rc::new(UploadState {
            began: Instant::now(),
            since: Cell::new(Instant::now()),
            is_starved: Cell::new(false),
            bytes: Cell::new(0),
            fault: Cell::new(None),
        });
        let incoming = (!incoming.is_end_stream()).then(|| (incoming, progress.upload()));
        (Self { incoming, left: bytes_max, state: Rc::clone(&state) }, state)
    }

    /// The same body once more, which only an empty one can be.
    pub(crate) fn again(&self) -> Option<Self> {
        let empty = self.incoming.is_none();
        empty.then(|| Self { incoming: None, left: 0, state: Rc::clone(&self.state) })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HyperFrame, Error>>> {
        let this = &mut *self;
        let Some((incoming, _)) = &mut this.incoming else { return Poll::Ready(None) };
        let frame = incoming.poll_frame(cx);
        if this.state.is_starved.replace(frame.is_pending()) != frame.is_pending()
            || frame.is_ready()
        {
            this.state.since.set(Instant::now());
        }
        let Some(frame) = ready!(frame) else {
            this.incoming = None;
            return Poll::Ready(None);
        };
        let frame = frame.inspect_err(|broken| this.state.fault.set(Some(fault(*broken))))?;
        let length = if let Frame::Data(data) = &frame { data.len() as u64 } else { 0 };
        let Some(left) = this.left.checked_sub(length) else {
            this.state.fault.set(Some(Reason::BodyTooLarge));
            return Poll::Ready(Some(Err("the body is larger than the bound".into())));
        };
        this.left = left;
        this.state.bytes.set(this.state.bytes.get() + length);
        Poll::Ready(Some(Ok(frame.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(|(incoming, _)| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let none = SizeHint::with_exact(0);
        self.incoming.as_ref().map_or(none, |(incoming, _)| size_hint(incoming))
    }
}

/// A client that breaks off is gone, which is no misdeed; one whose chunks do not parse is wrong.
fn fault(broken: Broken) -> Reason {
    match broken {
        Broken::Gone => Reason::ClientGone,
        Broken::Malformed => Reason::MalformedRequest,
        Broken::Forged => Reason::BodyDigest,
    }
}

fn size_hint(incoming: &Incoming) -> SizeHint {
    incoming.length().map_or_else(SizeHint::new, SizeHint::with_exact)
}

impl From<Frame> for HyperFrame {
    fn from(frame: Frame) -> Self {
        match frame {
            Frame::Data(data) => Self::data(data),
            Frame::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// An answer on its way to the client.
pub(crate) struct Answer {
    content: Content,
    ending: Ending,
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
        Self { content: Content::Whole { bytes, _unread: unread }, ending }
    }

    pub(crate) fn passed(
        incoming: Incoming,
        lease: Lease,
        upload: Rc<UploadState>,
        ending: Ending,
    ) -> Self {
        ending.clock.turn(WaitsFor::Client);
        Self { content: Content::Passed { incoming, lease: Some(lease), upload }, ending }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HyperFrame, Error>>> {
        let Self { content, ending } = self.get_mut();
        let (incoming, lease, upload) = match content {
            Content::Whole { bytes, .. } => {
                return Poll::Ready(bytes.take().map(|b| Ok(HyperFrame::data(b))));
            }
            Content::Passed { incoming, lease, upload } => (incoming, lease, upload),
        };
        let Poll::Ready(frame) = incoming.poll_frame(cx) else {
            if upload.is_starved.get() {
                ending.clock.wait(WaitsFor::Client);
                return Poll::Pending;
            }
            // The server has deadlines of its own, which its connection knows.
            ending.clock.wait(WaitsFor::Exchange);
            if let Some(lease) = lease {
                ready!(lease.poll_overdue(cx));
                lease.broke_off(Reason::UpstreamTimeout);
                ending.settle(Reason::UpstreamTimeout);
                return Poll::Ready(Some(Err("the upstream did not go on in time".into())));
            }
            return Poll::Pending;
        };
        if let Some(lease) = lease {
            lease.moved();
        }
        ending.clock.turn(WaitsFor::Client);
        match &frame {
            // An upload that breaks off takes its answer along.
            Some(Err(_)) => {
                let reason = upload.fault.get().unwrap_or(Reason::UpstreamInvalid);
                lease.iter().for_each(|lease| lease.broke_off(reason));
                ending.settle(reason);
            }
            Some(Ok(_)) if !incoming.is_end_stream() => {}
            // The upstream has done its part, however long the client takes over his.
            Some(Ok(_)) => give_back(lease),
            None => {
                ending.settle(Reason::Serve);
                give_back(lease);
            }
        }
        Poll::Ready(frame.map(|f| f.map(Into::into).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole { bytes, .. } => bytes.is_none(),
            Content::Passed { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Content::Passed { incoming, .. } => size_hint(incoming),
        }
    }
}

impl Drop for Answer {
    /// A body of known length is not asked for its end once its last byte is out.
    fn drop(&mut self) {
        if let Content::Passed { incoming, lease, .. } = &mut self.content
            && incoming.is_end_stream()
        {
            self.ending.settle(Reason::Serve);
            give_back(lease);
        }
    }
}

fn give_back(lease: &mut Option<Lease>) {
    if let Some(lease) = lease.take() {
        lease.give_back();
    }
}

/// The one exit of a request: when it is dropped, the request is counted, once.
pub(crate) struct Ending {
    worker: Rc<Worker>,
    progress: Rc<Progress>,
    pub(crate) clock: Rc<RequestClock>,
    started: Instant,
    /// The status of the answer that is passed on.
    pub(crate) status: StatusCode,
    reason: Option<Reason>,
    /// Its places among the requests in flight that limits count.
    pub(crate) held: Vec<Held>,
}

impl Ending {
    /// Begins a request, and tells how many are in flight with it.
    pub(crate) fn begin(worker: Rc<Worker>, progress: Rc<Progress>) -> (Self, usize) {
        let clock = progress.begin_request();
        let in_flight = worker.edge.metrics.requests.fetch_add(1, Relaxed) + 1;
        let (started, status) = (Instant::now(), StatusCode::OK);
        (
            Self { worker, progress, clock, started, status, reason: None, held: Vec::new() },
            in_flight,
        )
    }

    /// States how the request ended; the first statement counts.
    pub(crate) fn settle(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    /// How a request ended that nobody stated the end of: its connection is gone.
    fn unstated(&self) -> Reason {
        match self.clock.overdue() {
            Some(WaitsFor::Client | WaitsFor::Exchange) => Reason::RequestTimeout,
            None => Reason::ClientGone,
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.worker.edge.metrics.requests.fetch_sub(1, Relaxed);
        self.progress.end_request(&self.clock);
        let counters = &self.worker.counters;
        match self.reason.unwrap_or_else(|| self.unstated()) {
            Reason::Serve => counters.serve(self.status),
            reason => counters.count(reason),
        }
        counters.request.observe(self.started.elapsed());
    }
}

/// The slowest upload that is borne, on average, beyond the time that any body may pause.
const UPLOAD_BYTES_PER_S_MIN: u64 = 1024;
