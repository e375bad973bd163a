//! One client's connection: head, answer, body, and again.

use std::{
    cell::RefCell,
    future::Future as _,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use edge_common::Reason;
use edge_policy::http1::{self, Fields, Framing, Head, RequestLine, RequestReader, Version};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};

use super::{Body, Inbound, Stream, Wire};
use crate::request::{
    Worker, answer,
    body::Answer,
    front::Visitor,
    incoming::{Frame, Incoming},
    path,
    serve::Entrance,
    timers::ms,
    watch::{Turn, Who},
};

/// Serves a client until one side has had enough.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    io: Box<dyn Stream>,
) {
    let inbound = Inbound::new(Wire::new(io), worker.view().plan.head);
    let turn = Rc::new(Turn::new(worker.timers.alarm()));
    let mut client = Client {
        worker,
        visitor,
        entrance,
        turn,
        reader: RequestReader::default(),
        inbound: Rc::new(RefCell::new(inbound)),
        served: 0,
    };
    client.converse().await;
}

struct Client {
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    turn: Rc<Turn>,
    reader: RequestReader,
    inbound: Rc<RefCell<Inbound>>,
    /// Requests so far.
    served: u64,
}

/// What a client's bytes come to.
enum Next {
    /// Nothing more.
    End,
    /// A head that is complete.
    Head(Head<RequestLine>),
    /// What no request begins with, or not in time.
    Refuse(Reason),
}

/// A request as it is handed on, and what its answer has to keep to.
struct Asked {
    request: Request<Incoming>,
    version: Version,
    to_head: bool,
    keeps: bool,
}

/// How a connection goes on after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request may come.
    Keep,
    /// The answer was the last, and all of it is out.
    Close,
    /// The client is gone, or was given up.
    Gone,
}

impl Client {
    async fn converse(&mut self) {
        loop {
            self.await_head();
            let mut has_begun = false;
            let next = std::future::poll_fn(|cx| self.poll_head(&mut has_begun, cx));
            let asked = match next.await {
                Next::End => return,
                Next::Head(head) => self.take(head),
                Next::Refuse(reason) => Err(reason),
            };
            let after = match asked {
                Ok(asked) => self.serve_one(asked).await,
                Err(reason) => self.refuse(reason).await,
            };
            match after {
                After::Keep => {}
                After::Close => return self.linger().await,
                After::Gone => return,
            }
        }
    }

    /// Sets the deadline of a connection without a request. Who connects has something to ask, and soon.
    fn await_head(&self) {
        let view = self.worker.view();
        let bounds = &view.plan.bounds;
        let idle = match self.served {
            0 => bounds.idle_timeout.min(bounds.header_timeout),
            _ => bounds.idle_timeout,
        };
        self.turn.alarm().set(self.turn.alarm().now_ms() + ms(idle));
    }

    fn poll_head(&mut self, has_begun: &mut bool, cx: &mut Context<'_>) -> Poll<Next> {
        let wire = &mut self.inbound.borrow_mut().wire;
        loop {
            if !wire.input.is_empty() {
                let view = self.worker.view();
                match self.reader.read(&wire.input, &view.plan.head) {
                    Ok(Some(head)) => return Poll::Ready(Next::Head(head)),
                    Ok(None) if !std::mem::replace(has_begun, true) => {
                        let alarm = self.turn.alarm();
                        alarm.set(alarm.now_ms() + ms(view.plan.bounds.header_timeout));
                    }
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Next::Refuse(fault.into())),
                }
            } else if self.worker.ends_idle.get() {
                return Poll::Ready(Next::End);
            }
            if self.worker.edge.metrics.memory.is_full() {
                // What would come of it would be refused.
                return Poll::Ready(match wire.input.is_empty() {
                    true => Next::End,
                    false => Next::Refuse(Reason::Overload),
                });
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        ready!(self.turn.alarm().poll(cx));
        if wire.input.is_empty() {
            self.worker.counters.count(Reason::IdleConnection);
            return Poll::Ready(Next::End);
        }
        Poll::Ready(Next::Refuse(Reason::RequestTimeout))
    }

    /// Makes a request of a head that is complete.
    fn take(&mut self, head: Head<RequestLine>) -> Result<Asked, Reason> {
        let Head { first: RequestLine { method, target, version }, length } = head;
        let inbound = &mut *self.inbound.borrow_mut();
        // A copy of its own size: the buffer goes on being the connection's.
        let bytes = Bytes::copy_from_slice(&inbound.wire.input[..length]);
        inbound.wire.input.advance(length);
        let fields = self.reader.fields();
        let framing = http1::of_request(version, &bytes, fields)?;
        let headers = http1::headers(&bytes, fields)?;
        self.reader.clear();
        let view = self.worker.view();
        self.turn.begin(&view.plan.bounds);
        inbound.body = Body::new(framing, view.plan.head);
        // What else may be expected is judged with the rest of the head.
        inbound.awaits_continue = version == Version::Http11
            && framing != Framing::Empty
            && headers.contains_key(header::EXPECT);
        self.served += 1;
        let mut keeps = http1::persists(version, &headers);
        if keeps && self.served >= view.plan.bounds.requests_per_connection {
            self.worker.counters.count(Reason::ConnectionSpent);
            keeps = false;
        }
        let body = match framing {
            // What a change of protocol would have it send comes the same way as a body.
            Framing::Empty if !headers.contains_key(header::UPGRADE) => Incoming::Empty,
            _ => Incoming::Http1(Rc::clone(&self.inbound)),
        };
        let malformed = |_| Reason::MalformedRequest;
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(method.of(&bytes)).map_err(malformed)?;
        *request.uri_mut() =
            Uri::from_maybe_shared(target.slice(&bytes)).map_err(|_| Reason::MalformedRequest)?;
        *request.version_mut() = version.into();
        *request.headers_mut() = headers;
        let to_head = request.method() == Method::HEAD;
        // What follows it may be meant for somebody else (RFC 9110, 9.3.6).
        keeps &= request.method() != Method::CONNECT;
        Ok(Asked { request, version, to_head, keeps })
    }

    async fn serve_one(&mut self, asked: Asked) -> After {
        let Asked { request, version, to_head, keeps } = asked;
        let (worker, visitor) = (Rc::clone(&self.worker), self.visitor.clone());
        let turn = Rc::clone(&self.turn);
        // On the heap, so that a connection between requests does not carry it along.
        let mut answer = Box::pin(path::answer(worker, visitor, self.entrance, turn, request));
        let response = std::future::poll_fn(|cx| {
            let polled = answer.as_mut().poll(cx);
            // Those who speak HTTP/1.0 know none (RFC 9110, 15.2).
            let interims = answer::interims(&self.turn).filter(|_| version == Version::Http11);
            self.inbound.borrow_mut().tell(interims, cx);
            match polled {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.poll_gone(cx).map(|()| None),
            }
        });
        match response.await {
            Some(response) => {
                drop(answer);
                self.answer(response, version, to_head, keeps).await
            }
            None => After::Gone,
        }
    }

    /// Answers what is no request, for the last time.
    async fn refuse(&mut self, reason: Reason) -> After {
        let turn = Rc::clone(&self.turn);
        turn.begin(&self.worker.view().plan.bounds);
        let response = path::refuse(&self.worker, &self.visitor, turn, reason);
        self.inbound.borrow_mut().awaits_continue = false;
        self.answer(response, Version::Http11, false, false).await
    }

    /// Ready when the client has hung up while it waits for its answer.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inbound = &mut *self.inbound.borrow_mut();
        // Otherwise somebody else reads, or there is something to read.
        if !inbound.body.is_done() || !inbound.wire.input.is_empty() {
            return Poll::Pending;
        }
        match inbound.wire.poll_fill(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            // It may only have said that it will ask for nothing more.
            Poll::Ready(Ok(0)) if self.worker.view().plan.aborts_on_close => {
                inbound.wire.poll_hung_up(cx)
            }
            _ => Poll::Pending,
        }
    }

    async fn answer(
        &mut self,
        response: Response<Answer>,
        version: Version,
        to_head: bool,
        mut keeps: bool,
    ) -> After {
        let (parts, mut answer) = response.into_parts();
        let changes = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let framing = if changes { Framing::Close } else { framing(&answer, version) };
        let bodiless = to_head || matches!(parts.status.as_u16(), 204 | 304);
        keeps &= !answer.is_last && !answer.leaves_unread() && !self.worker.stopping.get();
        keeps &= framing != Framing::Close || bodiless;
        {
            let inbound = &mut *self.inbound.borrow_mut();
            inbound.awaits_continue = false;
            let connection = match (keeps, version) {
                _ if changes => Some("upgrade"),
                (false, _) => Some("close"),
                (true, Version::Http10) => Some("keep-alive"),
                (true, Version::Http11) => None,
            };
            let fields = Fields { lines: &answer.lines, map: &parts.headers, framing, connection };
            http1::response(inbound.wire.output(), parts.status, fields, bodiless);
        }
        let has_body = !bodiless && framing != Framing::Empty;
        let how = (framing, has_body, keeps);
        let sent = std::future::poll_fn(|cx| self.poll_answer(&mut answer, how, cx));
        if !sent.await {
            return After::Gone;
        }
        drop(answer);
        match keeps && self.inbound.borrow().body.is_done() {
            true => After::Keep,
            false => After::Close,
        }
    }

    /// Sends the body of an answer; whether all of it is out.
    fn poll_answer(
        &self,
        answer: &mut Answer,
        (framing, mut has_body, keeps): (Framing, bool, bool),
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        loop {
            let full = self.inbound.borrow().wire.is_full();
            if full && !ready!(self.poll_flush(true, cx)) {
                return Poll::Ready(false);
            }
            if !has_body || answer.is_end_stream() && framing != Framing::Chunked {
                if !keeps {
                    self.inbound.borrow_mut().wire.ends_here();
                }
                return self.poll_flush(false, cx);
            }
            match answer.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    let wire = &mut self.inbound.borrow_mut().wire;
                    match framing {
                        Framing::Chunked => wire.push_chunk(data),
                        _ => wire.push(data),
                    }
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.finish(framing, Some(&trailers));
                    has_body = false;
                }
                Poll::Ready(None) => {
                    self.finish(framing, None);
                    has_body = false;
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Pending => {
                    if !ready!(self.poll_flush(false, cx)) {
                        return Poll::Ready(false);
                    }
                    return self.turn.poll(answer.waits_for(), cx).map(|_| false);
                }
            }
        }
    }

    fn finish(&self, framing: Framing, trailers: Option<&HeaderMap>) {
        if framing == Framing::Chunked {
            http1::last_chunk(self.inbound.borrow_mut().wire.output(), trailers);
        }
    }

    /// Writes what is in the buffer: only until there is `room`, or all of it. False: the client
    /// is gone, or takes too long.
    fn poll_flush(&self, room: bool, cx: &mut Context<'_>) -> Poll<bool> {
        let wire = &mut self.inbound.borrow_mut().wire;
        let mut moved = 0;
        let flushed = match room {
            true => wire.poll_write(cx, &mut moved),
            false => wire.poll_flush(cx, &mut moved),
        };
        if moved > 0 {
            self.turn.moved(Who::Taker, moved);
        }
        match flushed {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => self.turn.poll(Who::Taker, cx).map(|_| false),
        }
    }

    /// Ends the connection so that the client reads its last answer: what it still sends is read for a
    /// while, because a reset would take the answer from it.
    async fn linger(&mut self) {
        let alarm = self.turn.alarm();
        alarm.set(alarm.now_ms() + LINGER_MS);
        let (mut is_shut, mut unread) = (false, 0);
        std::future::poll_fn(|cx| {
            let wire = &mut self.inbound.borrow_mut().wire;
            loop {
                if !is_shut {
                    match wire.poll_shutdown(cx) {
                        Poll::Ready(Ok(())) => is_shut = true,
                        Poll::Ready(Err(_)) => return Poll::Ready(()),
                        Poll::Pending => return self.turn.alarm().poll(cx),
                    }
                }
                wire.input.clear();
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(bytes @ 1..)) if unread < LINGER_BYTES => unread += bytes,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return self.turn.alarm().poll(cx),
                }
            }
        })
        .await;
    }
}

/// How the end of an answer's body is told to a client of this version.
fn framing(answer: &Answer, version: Version) -> Framing {
    match (answer.length(), version) {
        (Some(0), _) => Framing::Empty,
        (Some(length), _) => Framing::Length(length),
        (None, Version::Http11) => Framing::Chunked,
        (None, Version::Http10) => Framing::Close,
    }
}

const LINGER_MS: u64 = 2_000;
/// Bytes that a client may still send after its last answer.
const LINGER_BYTES: usize = 1 << 20;
