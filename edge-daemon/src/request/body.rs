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
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::{Worker, upstream::Lease, watch::Progress};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A client's body on its way upstream: no longer than its bound.
pub(crate) struct Upload {
    /// `None`: there is no body.
    incoming: Option<Incoming>,
    left: u64,
    state: Rc<UploadState>,
}

/// What the rest of the request sees of an [`Upload`].
pub(crate) struct UploadState {
    /// When a part of it last went upstream.
    pub(crate) moved: Cell<Instant>,
    /// Why it was broken off, if the client is to blame.
    pub(crate) fault: Cell<Option<Reason>>,
}

impl Upload {
    pub(crate) fn new(incoming: Incoming, bytes_max: u64) -> (Self, Rc<UploadState>) {
        let state =
            Rc::new(UploadState { moved: Cell::new(Instant::now()), fault: Cell::new(None) });
        let incoming = Some(incoming).filter(|body| !body.is_end_stream());
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
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        self.state.moved.set(Instant::now());
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                // A chunk that does not parse is the client's fault, like one that never ends.
                let gone = error.is_incomplete_message() || error.is_closed();
                let fault = if gone { Reason::ClientGone } else { Reason::MalformedRequest };
                self.state.fault.set(Some(fault));
                return Poll::Ready(Some(Err(error.into())));
            }
            None => return Poll::Ready(None),
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = self.left.checked_sub(length) else {
            self.state.fault.set(Some(Reason::BodyTooLarge));
            return Poll::Ready(Some(Err("the body is larger than the bound".into())));
        };
        self.left = left;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer on its way to the client.
pub(crate) struct Answer {
    content: Content,
    ending: Ending,
}

enum Content {
    /// Made by the edge.
    Whole(Option<Bytes>),
    /// Passed on from the upstream; the connection to it is held as long.
    Passed(Incoming, Option<Lease>),
}

impl Answer {
    pub(crate) fn whole(bytes: Bytes, ending: Ending) -> Self {
        Self { content: Content::Whole(Some(bytes).filter(|b| !b.is_empty())), ending }
    }

    pub(crate) fn passed(incoming: Incoming, lease: Lease, ending: Ending) -> Self {
        Self { content: Content::Passed(incoming, Some(lease)), ending }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Passed(incoming, lease) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                match &frame {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => this.ending.settle(Reason::UpstreamInvalid),
                    None => {
                        this.ending.settle(Reason::Serve);
                        give_back(lease);
                    }
                }
                Poll::Ready(frame.map(|f| f.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Passed(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Content::Passed(incoming, _) => incoming.size_hint(),
        }
    }
}

impl Drop for Answer {
    /// A body of known length is not asked for its end once its last byte is out.
    fn drop(&mut self) {
        if let Content::Passed(incoming, lease) = &mut self.content
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
    started: Instant,
    /// The status of the answer that is passed on.
    pub(crate) status: StatusCode,
    reason: Option<Reason>,
}

impl Ending {
    /// Begins a request, and tells how many are in flight with it.
    pub(crate) fn begin(worker: Rc<Worker>, progress: Rc<Progress>) -> (Self, usize) {
        progress.begin_request();
        let in_flight = worker.edge.metrics.requests.fetch_add(1, Relaxed) + 1;
        let started = Instant::now();
        (Self { worker, progress, started, status: StatusCode::OK, reason: None }, in_flight)
    }

    /// States how the request ended; the first statement counts.
    pub(crate) fn settle(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.worker.edge.metrics.requests.fetch_sub(1, Relaxed);
        self.progress.end_request();
        let counters = &self.worker.counters;
        match self.reason {
            Some(Reason::Serve) => counters.serve(self.status),
            Some(reason) => counters.count(reason),
            None => counters.count(Reason::ClientGone),
        }
        counters.request.observe(self.started.elapsed());
    }
}
