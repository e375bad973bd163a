//! One client's connection: head, answer, body, and again.

mod sending;

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use edge_common::Reason;
use edge_policy::{
    http1::{self, Framing, Head, RequestLine, RequestReader, Version},
    target,
};
use http::{Method, Request, Response, Uri, header};

use self::sending::Sending;
use super::{Body, Inbound, Stream, Wire};
use crate::request::{
    Worker, answer,
    body::Answer,
    front::Visitor,
    incoming::Incoming,
    path,
    serve::Entrance,
    timers::ms,
    watch::{SHORT_MS, Turn},
};

/// Serves a client until one side has had enough. The future is what every idle connection holds.
pub(crate) fn serve(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    io: Box<dyn Stream>,
) -> impl Future<Output = ()> {
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
    async move {
        client.converse().await;
        client.note_end();
    }
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

/// What is made of a head.
enum Begun {
    /// A request that is decided on; on the heap, so that a connection between requests does not carry it along.
    Asked(Pin<Box<dyn Future<Output = Response<Answer>>>>, Terms),
    /// The last answer.
    Refused(Box<Sending>),
}

/// What the answer to a request has to keep to.
#[derive(Clone, Copy)]
struct Terms {
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
            let begun = match next.await {
                Next::End => return,
                Next::Head(head) => self.begin(head),
                Next::Refuse(reason) => Begun::Refused(Box::new(self.refuse(reason))),
            };
            let after = match begun {
                Begun::Asked(deciding, terms) => self.serve_one(deciding, terms).await,
                Begun::Refused(mut sending) => {
                    std::future::poll_fn(|cx| self.poll_sent(&mut sending, cx)).await
                }
            };
            match after {
                After::Keep => {}
                After::Close => return self.linger().await,
                After::Gone => return,
            }
        }
    }

    /// Counts and tells of a client that broke the protocol below.
    fn note_end(&self) {
        if self.inbound.borrow_mut().wire.is_abused() {
            self.worker.refuse_connection(&self.visitor, Reason::ProtocolAbuse);
        }
    }

    fn begin(&mut self, head: Head<RequestLine>) -> Begun {
        match self.take(head) {
            Ok((request, terms)) => {
                let (worker, visitor) = (Rc::clone(&self.worker), self.visitor.clone());
                let turn = Rc::clone(&self.turn);
                let answer = path::answer(worker, visitor, self.entrance, turn, request);
                Begun::Asked(Box::pin(answer), terms)
            }
            Err(reason) => Begun::Refused(Box::new(self.refuse(reason))),
        }
    }

    /// Answers what is no request, for the last time.
    fn refuse(&self, reason: Reason) -> Sending {
        let turn = Rc::clone(&self.turn);
        turn.begin(&self.worker.view().plan.bounds);
        let response = path::refuse(&self.worker, &self.visitor, turn, reason);
        let terms = Terms { version: Version::Http11, to_head: false, keeps: false };
        self.open(response, terms)
    }

    /// Sets the deadline of a connection without a request. Who connects has something to ask, and soon.
    fn await_head(&self) {
        let view = self.worker.view();
        let bounds = &view.plan.bounds;
        let (alarm, now_ms) = (self.turn.alarm(), self.turn.alarm().now_ms());
        match self.served {
            0 => {
                let idle = bounds.idle_timeout.min(bounds.header_timeout);
                alarm.set_with_short(now_ms + ms(idle), now_ms + SHORT_MS);
            }
            _ => alarm.set(now_ms + ms(bounds.idle_timeout)),
        }
    }

    fn poll_head(&mut self, has_begun: &mut bool, cx: &mut Context<'_>) -> Poll<Next> {
        let wire = &mut self.inbound.borrow_mut().wire;
        loop {
            if !wire.input.is_empty() {
                let view = self.worker.view();
                match self.reader.read(&wire.input, &view.plan.head) {
                    Ok(Some(head)) => return Poll::Ready(Next::Head(head)),
                    Ok(None) if !std::mem::replace(has_begun, true) => {
                        let (alarm, now_ms) = (self.turn.alarm(), self.turn.alarm().now_ms());
                        let due_ms = now_ms + ms(view.plan.bounds.header_timeout);
                        alarm.set_with_short(due_ms, now_ms + SHORT_MS);
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
        Poll::Ready(Next::Refuse(match self.turn.alarm().is_early() {
            true => Reason::Overload,
            false => Reason::RequestTimeout,
        }))
    }

    /// Makes a request of a head that is complete.
    fn take(&mut self, head: Head<RequestLine>) -> Result<(Request<Incoming>, Terms), Reason> {
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
        let mut request = Request::new(body);
        *request.method_mut() =
            Method::from_bytes(method.of(&bytes)).map_err(|_| Reason::MalformedRequest)?;
        let target = target.slice(&bytes);
        let target = target::escaped(&target).map_or(target, Bytes::from);
        *request.uri_mut() =
            Uri::from_maybe_shared(target).map_err(|_| Reason::MalformedRequest)?;
        *request.version_mut() = version.into();
        *request.headers_mut() = headers;
        let to_head = request.method() == Method::HEAD;
        // What follows it may be meant for somebody else (RFC 9110, 9.3.6).
        keeps &= request.method() != Method::CONNECT;
        Ok((request, Terms { version, to_head, keeps }))
    }

    async fn serve_one(
        &self,
        deciding: Pin<Box<dyn Future<Output = Response<Answer>>>>,
        terms: Terms,
    ) -> After {
        let (mut deciding, mut sending) = (Some(deciding), None);
        std::future::poll_fn(|cx| {
            if let Some(future) = &mut deciding {
                let polled = future.as_mut().poll(cx);
                // Those who speak HTTP/1.0 know none (RFC 9110, 15.2).
                let is_told = terms.version == Version::Http11;
                let interims = answer::interims(&self.turn).filter(|_| is_told);
                self.inbound.borrow_mut().tell(interims, cx);
                let Poll::Ready(response) = polled else {
                    return self.poll_gone(cx).map(|()| After::Gone);
                };
                deciding = None;
                sending = Some(self.open(response, terms));
            }
            match &mut sending {
                Some(sending) => self.poll_sent(sending, cx),
                None => Poll::Ready(After::Gone),
            }
        })
        .await
    }

    /// Ready when the client has hung up while it waits for its answer, or for more of it.
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

const LINGER_MS: u64 = 2_000;
/// Bytes that a client may still send after its last answer.
const LINGER_BYTES: usize = 1 << 20;
