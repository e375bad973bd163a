//! A body on its way in: a client's or an upstream's, of either HTTP version.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_identity::signed::BodyCheck;
use edge_policy::http2::Conduct;
use http::HeaderMap;

use super::{body::Upload, http1::Inbound, upstream::Reply, watch::Who};

/// A body that comes in, frame by frame.
pub(crate) enum Incoming {
    /// There is none.
    Empty,
    /// A client's, over HTTP/1.
    Http1(Rc<RefCell<Inbound>>),
    /// A client's, over HTTP/2, with the length that its head states; what comes is held to it. Who
    /// waits to be told to go on is asked for when somebody waits for the first part.
    Http2(h2::RecvStream, Option<u64>, Option<Rc<Cell<bool>>>, Rc<RefCell<Conduct>>),
    /// An upstream's.
    Reply(Reply),
    /// All of it, in memory.
    Whole(Bytes),
    /// One whose digest was signed.
    Signed(Box<Signed>),
    /// One of which a part was read already.
    Begun(Box<Begun>),
}

/// What was read of a body, what came after that, and the rest.
pub(crate) struct Begun {
    read: Bytes,
    then: Option<Result<Frame, Broken>>,
    rest: Incoming,
}

/// A body of which the last part is held back until the whole is known to be the one that was signed.
pub(crate) struct Signed {
    body: Incoming,
    /// `None` once it was asked.
    check: Option<BodyCheck>,
    held: Option<Bytes>,
}

/// A part of a body.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Bytes of the content; never empty.
    Data(Bytes),
    /// The fields after the content: the last frame.
    Trailers(HeaderMap),
}

/// Why a body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// Whoever sent it went away before its end.
    #[error("broke off before its end")]
    Gone,
    /// What came is no body.
    #[error("is not framed as it should be")]
    Malformed,
    /// It is another than the one that was signed.
    #[error("is not the one that was signed")]
    Forged,
}

impl Incoming {
    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Http1(inbound) => Inbound::poll_frame(inbound, cx),
            Self::Http2(stream, _, asks, conduct) => {
                let frame = poll_stream(stream, cx);
                if let Some(asks) = asks.take() {
                    asks.set(frame.is_pending());
                }
                // The library leaves out what makes them none.
                if matches!(frame, Poll::Ready(Some(Ok(Frame::Trailers(_)))))
                    && conduct.borrow_mut().is_cut(stream.stream_id().as_u32())
                {
                    return Poll::Ready(Some(Err(Broken::Malformed)));
                }
                frame
            }
            Self::Reply(reply) => reply.poll_frame(cx),
            Self::Whole(bytes) => {
                let data = Some(std::mem::take(bytes)).filter(|data| !data.is_empty());
                Poll::Ready(data.map(|data| Ok(Frame::Data(data))))
            }
            Self::Signed(signed) => signed.poll_frame(cx),
            Self::Begun(begun) => begun.poll_frame(cx),
        }
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(inbound) => inbound.borrow().body.is_done(),
            Self::Http2(stream, ..) => stream.is_end_stream(),
            Self::Reply(reply) => reply.is_done(),
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Signed(signed) => signed.check.is_none(),
            Self::Begun(begun) => {
                begun.read.is_empty() && begun.then.is_none() && begun.rest.is_end_stream()
            }
        }
    }

    /// Bytes that are still to come, if its sender said how many.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Http1(inbound) => inbound.borrow().body.length(),
            Self::Http2(_, stated, ..) => *stated,
            Self::Reply(reply) => reply.length(),
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Signed(signed) => {
                let held = signed.held.as_ref().map_or(0, |held| held.len() as u64);
                signed.body.length().map(|length| length + held)
            }
            Self::Begun(begun) => begun.length(),
        }
    }

    /// The same body once more, if there is none: what may come in its place once the protocol is changed
    /// still can.
    pub(crate) fn empty(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Http1(inbound) if inbound.borrow().body.is_done() => {
                Some(Self::Http1(Rc::clone(inbound)))
            }
            _ => None,
        }
    }

    /// Makes the rest of a client's connection this body. Whether it can be.
    pub(crate) fn open_tunnel(&mut self) -> bool {
        if let Self::Http1(inbound) = self {
            inbound.borrow_mut().open_tunnel();
        }
        matches!(self, Self::Http1(_))
    }

    /// Sends the upstream no more of the request: what is left of its body.
    pub(crate) fn abandon_upload(&mut self) -> Option<Self> {
        match self {
            Self::Reply(reply) => reply.abandon_upload().map(Upload::rest),
            Self::Begun(begun) => begun.rest.abandon_upload(),
            _ => None,
        }
    }

    /// Whose move it is while nothing comes.
    pub(crate) fn waits_for(&self) -> Who {
        match self {
            Self::Reply(reply) => reply.waits_for(),
            Self::Begun(begun) => begun.rest.waits_for(),
            _ => Who::Sender,
        }
    }

    /// The same body once more, of which this much was read, and then this.
    pub(crate) fn after(self, read: Bytes, then: Option<Result<Frame, Broken>>) -> Self {
        Self::Begun(Box::new(Begun { read, then, rest: self }))
    }

    /// The same body, which breaks off before its end unless it is the one that was signed.
    pub(crate) fn signed(self, check: BodyCheck) -> Self {
        Self::Signed(Box::new(Signed { body: self, check: Some(check), held: None }))
    }
}

impl Begun {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::Data(std::mem::take(&mut self.read)))));
        }
        match self.then.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.rest.poll_frame(cx),
        }
    }

    /// Its sender said the length of all of it, or of nothing.
    fn length(&self) -> Option<u64> {
        let then = match &self.then {
            Some(Ok(Frame::Data(data))) => data.len(),
            _ => 0,
        };
        self.rest.length().map(|rest| rest + (self.read.len() + then) as u64)
    }
}

impl Signed {
    /// Trailers were not signed, and go no further.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        let Some(check) = &mut self.check else { return Poll::Ready(None) };
        while let Some(frame) = ready!(self.body.poll_frame(cx)) {
            let Frame::Data(data) = frame? else { continue };
            check.see(&data);
            if let Some(held) = self.held.replace(data) {
                return Poll::Ready(Some(Ok(Frame::Data(held))));
            }
        }
        let holds = self.check.take().is_some_and(BodyCheck::holds);
        let last = self.held.take();
        Poll::Ready(match holds {
            true => last.map(|last| Ok(Frame::Data(last))),
            false => Some(Err(Broken::Forged)),
        })
    }
}

/// The next part of what comes over HTTP/2.
pub(super) fn poll_stream(
    stream: &mut h2::RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame, Broken>>> {
    loop {
        match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // What is taken is passed on before more is asked for, so there is room again.
                let _ = stream.flow_control().release_capacity(data.len());
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(Broken::from(&error)))),
            None => break,
        }
    }
    match ready!(stream.poll_trailers(cx)) {
        Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
        Ok(None) => Poll::Ready(None),
        Err(error) => Poll::Ready(Some(Err(Broken::from(&error)))),
    }
}

impl From<&h2::Error> for Broken {
    fn from(error: &h2::Error) -> Self {
        if error.is_library() { Self::Malformed } else { Self::Gone }
    }
}
