//! A body as it comes off the wire.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use edge_policy::{
    head,
    http1::{self, Chunk, Chunks, Fields, Framing},
    lines::Lines,
};
use http::Response;

use super::Wire;
use crate::request::incoming::{Broken, Frame};

/// What is still to come of a body.
pub(crate) struct Body {
    left: Left,
    bounds: head::Bounds,
}

enum Left {
    Nothing,
    Length(u64),
    Chunks(Box<Chunks>),
    /// All, up to the end of the connection.
    Close,
    /// It broke off.
    Broken,
}

impl Body {
    pub(crate) fn new(framing: Framing, bounds: head::Bounds) -> Self {
        let left = match framing {
            Framing::Empty => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks(Box::default()),
            Framing::Close => Left::Close,
        };
        Self { left, bounds }
    }

    /// Whether it has come to its end.
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.left, Left::Nothing)
    }

    /// Bytes that are still to come, if it is known.
    pub(crate) const fn length(&self) -> Option<u64> {
        match self.left {
            Left::Nothing => Some(0),
            Left::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let frame = ready!(self.poll_next(wire, cx));
        if matches!(frame, Some(Err(_))) {
            self.left = Left::Broken;
        }
        Poll::Ready(frame)
    }

    fn poll_next(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        loop {
            match &mut self.left {
                Left::Nothing => return Poll::Ready(None),
                Left::Broken => return Poll::Ready(Some(Err(Broken::Gone))),
                Left::Length(left) if !wire.input.is_empty() => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX);
                    let data = wire.input.split_to(length.min(wire.input.len())).freeze();
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.left = Left::Nothing;
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Left::Close if !wire.input.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::Data(wire.input.split().freeze()))));
                }
                Left::Chunks(chunks) => match chunks.read(&wire.input, &self.bounds) {
                    Ok(Chunk::More { consumed }) => wire.input.advance(consumed),
                    Ok(Chunk::Data { skipped, length }) => {
                        wire.input.advance(skipped);
                        let data = wire.input.split_to(length).freeze();
                        return Poll::Ready(Some(Ok(Frame::Data(data))));
                    }
                    Ok(Chunk::End { skipped, length }) => {
                        wire.input.advance(skipped);
                        let section = wire.input.split_to(length).freeze();
                        let trailers = http1::headers(&section, chunks.trailers());
                        self.left = Left::Nothing;
                        return Poll::Ready(match trailers {
                            Ok(none) if none.is_empty() => None,
                            Ok(trailers) => Some(Ok(Frame::Trailers(trailers))),
                            Err(_) => Some(Err(Broken::Malformed)),
                        });
                    }
                    Err(_) => return Poll::Ready(Some(Err(Broken::Malformed))),
                },
                Left::Length(_) | Left::Close => {}
            }
            match ready!(wire.poll_fill(cx)) {
                Ok(0) if matches!(self.left, Left::Close) => self.left = Left::Nothing,
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Broken::Gone))),
                Ok(_) => {}
            }
        }
    }
}

/// A client's connection while a request is served: its wire, and what is to come of the body.
pub(crate) struct Inbound {
    pub(crate) wire: Wire,
    pub(crate) body: Body,
    /// Whether the client waits to be told to go on (RFC 9110, 10.1.1).
    pub(crate) awaits_continue: bool,
}

impl Inbound {
    /// A connection before its first request.
    pub(crate) fn new(wire: Wire, bounds: head::Bounds) -> Self {
        Self { wire, body: Body::new(Framing::Empty, bounds), awaits_continue: false }
    }

    /// From now on all that comes is of another protocol, up to the end of the connection.
    pub(crate) fn open_tunnel(&mut self) {
        self.body.left = Left::Close;
    }

    /// Tells the client of interim answers, if it takes what it is sent.
    pub(crate) fn tell(
        &mut self,
        interims: impl Iterator<Item = Response<()>>,
        cx: &mut Context<'_>,
    ) {
        for interim in interims {
            if self.wire.is_full() {
                return;
            }
            let (lines, map) = (&Lines::default(), interim.headers());
            let fields = Fields { lines, map, framing: Framing::Empty, connection: None };
            http1::response(self.wire.output(), interim.status(), fields, true);
            // What does not go at once goes with the answer.
            let _ = self.wire.poll_flush(cx, &mut 0);
        }
    }

    /// The next part of the body. Whoever asks for the first tells the client to send it.
    pub(crate) fn poll_frame(
        this: &Rc<RefCell<Self>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let Self { wire, body, awaits_continue } = &mut *this.borrow_mut();
        if std::mem::take(awaits_continue) && wire.input.is_empty() {
            wire.output().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // What does not go at once goes with the answer.
            let _ = wire.poll_flush(cx, &mut 0);
        }
        body.poll_frame(wire, cx)
    }
}
