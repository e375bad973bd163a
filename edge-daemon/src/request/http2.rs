//! One client's HTTP/2 connection: `h2` speaks the protocol, and each stream is a task of its own.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_common::Reason;
use edge_policy::http2::{Abuse, Conduct, Noted};
use h2::{
    RecvStream, SendStream,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
};

use super::{
    Worker,
    body::Answer,
    front::Visitor,
    incoming::{Frame, Incoming},
    observed::Observed,
    path,
    serve::Entrance,
    timers::{Alarm, ms},
    watch::{Turn, Who},
};

/// Serves a client until one side has had enough.
pub(crate) async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    io: IO,
) {
    let bounds = worker.view().plan.bounds.clone();
    let alarm = worker.timers.alarm();
    alarm.set(alarm.now_ms() + ms(bounds.header_timeout));
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(bounds.streams_max)
        // A little beyond the bound, so that the path refuses it, with an answer and a count.
        .max_header_list_size(u32::try_from(2 * bounds.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MISTAKES_MAX));
    let conduct = Conduct::new(bounds.http2_waste_max, alarm.now_ms());
    let conduct = Rc::new(RefCell::new(conduct));
    let timers = Rc::clone(&worker.timers);
    let io = Observed { io, conduct: Rc::clone(&conduct), timers };
    let handshake = builder.handshake::<_, Bytes>(io);
    let connection = tokio::select! {
        biased;
        connection = handshake => connection,
        () = std::future::poll_fn(|cx| alarm.poll(cx)) => {
            worker.counters.count(Reason::IdleConnection);
            return;
        }
    };
    match connection {
        Ok(connection) => {
            let open = Rc::default();
            let mut client = Client { worker, visitor, entrance, connection, conduct, alarm, open };
            client.accept().await;
            client.note();
        }
        Err(error) => broken_off(&worker, &visitor, &error),
    }
}

struct Client<IO: AsyncRead + AsyncWrite + Unpin> {
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    connection: Connection<Observed<IO>, Bytes>,
    conduct: Rc<RefCell<Conduct>>,
    /// The deadline of a connection without a request.
    alarm: Alarm,
    /// Requests between head and end of answer.
    open: Rc<Cell<usize>>,
}

/// What a connection without a request comes to.
enum Idle {
    /// It is asked to end.
    Stop,
    /// It was asked, and has not.
    Cut,
    /// Its client abuses the protocol.
    Abused,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    async fn accept(&mut self) {
        let mut is_asked = false;
        loop {
            let next = std::future::poll_fn(|cx| {
                // The connection first: whatever else is due, it was most likely what woke us.
                let next = self.connection.poll_accept(cx);
                if !is_asked && self.is_misbehaving() {
                    return Poll::Ready(Err(Idle::Abused));
                }
                match next {
                    Poll::Ready(next) => Poll::Ready(Ok(next)),
                    Poll::Pending => self.poll_idle(is_asked, cx).map(Err),
                }
            });
            match next.await {
                Ok(Some(Ok((request, respond)))) => self.begin(request, respond),
                // Of abuse, it was told when it was noticed.
                Ok(Some(Err(_))) if self.is_misbehaving() => return,
                Ok(Some(Err(error))) => return broken_off(&self.worker, &self.visitor, &error),
                Ok(None) | Err(Idle::Cut) => return,
                Err(idle) => {
                    is_asked = true;
                    match idle {
                        Idle::Abused => self.give_up(),
                        _ => self.connection.graceful_shutdown(),
                    }
                    self.alarm.set(self.alarm.now_ms() + STOP_GRACE_MS);
                }
            }
        }
    }

    fn poll_idle(&self, is_asked: bool, cx: &mut Context<'_>) -> Poll<Idle> {
        self.note();
        let is_shed = self.open.get() == 0 && self.worker.edge.metrics.memory.is_full();
        if !is_asked && (self.worker.stopping.get() || is_shed) {
            return Poll::Ready(Idle::Stop);
        }
        // Every stream has a deadline of its own.
        if self.open.get() > 0 {
            self.alarm.set(u64::MAX);
            return self.alarm.poll(cx).map(|()| Idle::Cut);
        }
        ready!(self.alarm.poll(cx));
        if is_asked {
            return Poll::Ready(Idle::Cut);
        }
        self.worker.counters.count(Reason::IdleConnection);
        Poll::Ready(Idle::Stop)
    }

    fn is_misbehaving(&self) -> bool {
        let conduct = self.conduct.borrow();
        conduct.abuse().is_some() || conduct.is_preface_bad()
    }

    /// Closes the connection of a client that abuses the protocol, with all that it asked for.
    fn give_up(&mut self) {
        if self.conduct.borrow().is_preface_bad() {
            self.worker.refuse_connection(&self.visitor, Reason::MalformedRequest);
            return self.connection.abrupt_shutdown(h2::Reason::PROTOCOL_ERROR);
        }
        let abuse = self.conduct.borrow().abuse().map(Abuse::name);
        let address = self.visitor.address;
        tracing::debug!(%address, abuse, "protocol abused");
        self.worker.refuse_connection(&self.visitor, Reason::ProtocolAbuse);
        self.connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
    }

    /// Counts what the library refused by itself.
    fn note(&self) {
        let Noted { refused, oversized, malformed } = self.conduct.borrow_mut().take_noted();
        let (worker, visitor) = (&self.worker, &self.visitor);
        (0..refused).for_each(|_| worker.counters.count(Reason::StreamsFull));
        (0..oversized).for_each(|_| worker.refuse_connection(visitor, Reason::HeadersTooLarge));
        (0..malformed).for_each(|_| worker.refuse_connection(visitor, Reason::MalformedRequest));
    }

    fn begin(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let metrics = &self.worker.edge.metrics;
        let in_flight = metrics.requests.load(Relaxed) + 1;
        // At the ceiling of memory a refusal in words is kept for whoever reads it: one at a time.
        if self.open.get() > 0 && metrics.memory.refuses_request(in_flight) {
            self.worker.counters.count(Reason::MemoryFull);
            return respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        let turn = Rc::new(Turn::new(self.worker.timers.alarm()));
        turn.begin(&self.worker.view().plan.bounds);
        self.conduct.borrow_mut().begun(respond.stream_id().as_u32());
        self.open.set(self.open.get() + 1);
        let open = Open(Rc::clone(&self.open));
        let entrance = self.entrance;
        let (worker, visitor) = (Rc::clone(&self.worker), self.visitor.clone());
        let idle_ms = ms(worker.view().plan.bounds.idle_timeout);
        self.alarm.set(self.alarm.now_ms().saturating_add(idle_ms));
        spawn_local(async move {
            let mut stream = Exchange { entrance, turn, respond };
            stream.run(worker, visitor, request).await;
            drop(open);
        });
    }
}

/// A request that is counted as open.
struct Open(Rc<Cell<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One request and its answer.
struct Exchange {
    entrance: Entrance,
    turn: Rc<Turn>,
    respond: SendResponse<Bytes>,
}

impl Exchange {
    async fn run(&mut self, worker: Rc<Worker>, visitor: Visitor, request: Request<RecvStream>) {
        let to_head = request.method() == Method::HEAD;
        let stated = request.headers().get(header::CONTENT_LENGTH);
        let stated = stated.and_then(|value| value.to_str().ok()?.parse().ok());
        let request = request.map(|body| match body.is_end_stream() {
            true => Incoming::Empty,
            false => Incoming::Http2(body, stated),
        });
        let turn = Rc::clone(&self.turn);
        let own = Rc::clone(&worker);
        let mut answer = Box::pin(path::answer(own, visitor, self.entrance, turn, request));
        let response = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => self.respond.poll_reset(cx).map(|_| None),
        });
        let Some(response) = response.await else { return };
        drop(answer);
        self.answer(response, to_head).await;
    }

    async fn answer(&mut self, response: Response<Answer>, to_head: bool) {
        let (mut parts, mut answer) = response.into_parts();
        std::mem::take(&mut answer.lines).set(&mut parts.headers);
        let bodiless = to_head || matches!(parts.status.as_u16(), 204 | 304);
        if parts.status == StatusCode::NO_CONTENT {
            parts.headers.remove(header::CONTENT_LENGTH);
        } else if let Some(length) = answer.length().filter(|_| !bodiless) {
            parts.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let is_end = bodiless || answer.is_end_stream();
        let Ok(mut stream) = self.respond.send_response(Response::from_parts(parts, ()), is_end)
        else {
            return;
        };
        if is_end {
            return;
        }
        let mut waiting = None;
        let sent =
            std::future::poll_fn(|cx| self.poll_body(&mut stream, &mut answer, &mut waiting, cx));
        if !sent.await {
            stream.send_reset(h2::Reason::CANCEL);
        }
    }

    /// Sends a body; whether all of it is with `h2`.
    fn poll_body(
        &self,
        stream: &mut SendStream<Bytes>,
        answer: &mut Answer,
        waiting: &mut Option<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        loop {
            if let Some(data) = waiting {
                let Some(room) = ready!(self.poll_room(stream, data.len(), cx)) else {
                    return Poll::Ready(false);
                };
                let part = data.split_to(room.min(data.len()));
                self.turn.moved(Who::Taker, part.len());
                let is_end = data.is_empty() && answer.is_end_stream();
                if stream.send_data(part, is_end).is_err() || is_end {
                    return Poll::Ready(is_end);
                }
                if !data.is_empty() {
                    continue;
                }
                *waiting = None;
            }
            match answer.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => *waiting = Some(data),
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    return Poll::Ready(stream.send_trailers(trailers).is_ok());
                }
                Poll::Ready(None) => {
                    return Poll::Ready(stream.send_data(Bytes::new(), true).is_ok());
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Pending => {
                    if stream.poll_reset(cx).is_ready() {
                        return Poll::Ready(false);
                    }
                    return self.turn.poll(answer.waits_for(), cx).map(|_| false);
                }
            }
        }
    }

    /// How much the client takes now; `None`: it is gone, or has taken nothing for too long.
    fn poll_room(
        &self,
        stream: &mut SendStream<Bytes>,
        wanted: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<usize>> {
        stream.reserve_capacity(wanted);
        if stream.capacity() > 0 {
            return Poll::Ready(Some(stream.capacity()));
        }
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(room))) if room > 0 => Poll::Ready(Some(room)),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(None);
                }
                self.turn.poll(Who::Taker, cx).map(|_| None)
            }
            Poll::Ready(_) => Poll::Ready(None),
        }
    }
}

/// A connection that `h2` gave up on.
fn broken_off(worker: &Worker, visitor: &Visitor, error: &h2::Error) {
    let address = visitor.address;
    tracing::debug!(%address, %error, "connection broken off");
    // Otherwise it was the client who ended it.
    if error.is_library() {
        let is_abuse = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        let reason = if is_abuse { Reason::ProtocolAbuse } else { Reason::MalformedRequest };
        worker.refuse_connection(visitor, reason);
    }
}

/// How long a connection that was asked to stop may take over it.
const STOP_GRACE_MS: u64 = 2_000;
/// What h2 keeps of one stream's answer until the client takes it, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that h2 may reset for a client's mistakes before it gives the connection up.
const MISTAKES_MAX: usize = 16;
