//! One client's HTTP/2 connection: `h2` speaks the protocol, and each stream is a task of its own.

mod library;

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_common::Reason;
use edge_policy::http2::{Abuse, Conduct, Fault, Noted};
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::Request;
use tokio::task::spawn_local;

use super::{
    Worker,
    entry::Entry,
    exchange::Exchange,
    front::Visitor,
    http1::Stream,
    observed::{Observed, Outbox},
    serve::Entrance,
    timers::{Alarm, ms},
    watch::{SHORT_MS, Turn, Who},
};

/// Serves a client until one side has had enough.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    io: Box<dyn Stream>,
) {
    let bounds = worker.view().plan.bounds.clone();
    let turn = Rc::new(Turn::new(worker.timers.alarm()));
    turn.begin(&bounds);
    let alarm = turn.alarm();
    alarm.set_with_short(alarm.now_ms() + ms(bounds.header_timeout), alarm.now_ms() + SHORT_MS);
    let (memory, in_flight) = (&worker.edge.metrics.memory, &worker.edge.metrics.requests);
    let is_scarce = memory.is_scarce(in_flight.load(Relaxed));
    let builder = library::settings(&bounds, is_scarce);
    let conduct = Conduct::new(bounds.http2_waste_max, alarm.now_ms());
    let conduct = Rc::new(RefCell::new(conduct));
    let outbox = Rc::new(RefCell::new(Outbox::new(io, Rc::clone(&turn))));
    let io = Observed { outbox: Rc::clone(&outbox), conduct: Rc::clone(&conduct) };
    let mut handshake = pin!(builder.handshake::<_, Bytes>(io));
    let greeted = std::future::poll_fn(|cx| {
        let greeted = handshake.as_mut().poll(cx);
        // Whether it hears of it shows in what it says.
        let _ = outbox.borrow_mut().poll_send(cx);
        greeted
    });
    let connection = tokio::select! {
        biased;
        connection = greeted => connection,
        () = std::future::poll_fn(|cx| alarm.poll(cx)) => {
            worker.counters.count(Reason::IdleConnection);
            return;
        }
    };
    match connection {
        Ok(connection) => {
            let mut client = Client {
                head: worker.timers.alarm(),
                worker,
                visitor,
                entrance,
                connection,
                outbox,
                conduct,
                turn,
                open: Rc::default(),
                was_busy: Cell::new(false),
                served: 0,
                heard_ms: u64::MAX,
                belated: 0,
            };
            client.accept().await;
            client.note();
            note_end(&client.worker, &client.visitor, &client.outbox);
        }
        Err(error) => {
            broken_off(&worker, &visitor, &error);
            note_end(&worker, &visitor, &outbox);
        }
    }
}

struct Client {
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    connection: Connection<Observed<Box<dyn Stream>>, Bytes>,
    outbox: Rc<RefCell<Outbox<Box<dyn Stream>>>>,
    conduct: Rc<RefCell<Conduct>>,
    /// The deadline of a connection without a request, and of answers that nobody takes.
    turn: Rc<Turn>,
    /// The deadline of a head of which a part has come.
    head: Alarm,
    /// Requests between head and end of answer, as far as their tasks go: what is left of an answer
    /// may be with `h2`.
    open: Rc<Cell<usize>>,
    /// Whether there was a request when it was last looked at.
    was_busy: Cell<bool>,
    /// Requests so far.
    served: u64,
    /// From when on whoever was asked to stop has heard of it, and how many requests came later still.
    heard_ms: u64,
    belated: u64,
}

/// What a connection comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// It is asked to end.
    Stop,
    /// It was asked, and has not.
    Cut,
    /// Its client does not take the answers.
    Untaken,
    /// Its client abuses the protocol.
    Abused,
    /// Its client does not end a head.
    Late,
    /// Its client cannot be told anything.
    Gone,
}

impl Client {
    async fn accept(&mut self) {
        let mut asked = None;
        loop {
            let next = std::future::poll_fn(|cx| {
                // The connection first: whatever else is due, it was most likely what woke us.
                let next = self.connection.poll_accept(cx);
                if !is_given_up(asked) && self.is_misbehaving() {
                    return Poll::Ready(Err(Idle::Abused));
                }
                if let Poll::Ready(next) = next {
                    return Poll::Ready(Ok(next));
                }
                let sent = self.outbox.borrow_mut().poll_send(cx);
                match sent {
                    Poll::Ready(Err(_)) => Poll::Ready(Err(Idle::Gone)),
                    _ => self.poll_idle(asked, cx).map(Err),
                }
            });
            match next.await {
                Ok(Some(Ok((request, respond)))) => self.begin(request, respond),
                // It was told of when it was noticed.
                Ok(Some(Err(_))) if is_given_up(asked) || self.is_misbehaving() => return,
                Ok(Some(Err(error))) => return broken_off(&self.worker, &self.visitor, &error),
                Ok(None) | Err(Idle::Cut | Idle::Gone) => return,
                Err(Idle::Untaken) => {
                    // The requests were counted as served.
                    self.worker.counters.count(Reason::IdleConnection);
                    let Self { worker, visitor, .. } = self;
                    if let Some(reason @ Reason::AnswerNotTaken) = self.turn.overdue() {
                        worker.report_connection(visitor, reason, visitor.ja4());
                    }
                    return;
                }
                Err(idle) => {
                    asked = Some(idle);
                    self.heard_ms = self.heard_ms.min(self.turn.alarm().now_ms() + STOP_GRACE_MS);
                    match idle {
                        Idle::Abused => self.give_up(),
                        Idle::Late => self.time_out(),
                        _ => self.connection.graceful_shutdown(),
                    }
                    self.wait(STOP_GRACE_MS);
                }
            }
        }
    }

    /// Sets the deadline of a connection without a request.
    fn wait(&self, time_ms: u64) {
        let alarm = self.turn.alarm();
        alarm.set(alarm.now_ms().saturating_add(time_ms));
    }

    fn poll_idle(&self, asked: Option<Idle>, cx: &mut Context<'_>) -> Poll<Idle> {
        self.note();
        let (alarm, open) = (self.turn.alarm(), self.open.get());
        let (worker, view) = (&self.worker, self.worker.view());
        let bounds = &view.plan.bounds;
        let is_shed = open == 0 && worker.edge.metrics.memory.is_full();
        if asked.is_none() && self.served >= bounds.requests_per_connection {
            worker.counters.count(Reason::ConnectionSpent);
            return Poll::Ready(Idle::Stop);
        }
        let is_over = worker.stopping.get() || self.visitor.is_uncertified(&view.plan);
        if asked.is_none() && (is_over || is_shed) {
            return Poll::Ready(Idle::Stop);
        }
        if is_given_up(asked) {
            return alarm.poll(cx).map(|()| Idle::Cut);
        }
        let head_since = self.conduct.borrow().head_since_ms();
        if let Some(since) = head_since {
            // Until it is whole, no other stream can go on.
            self.head.set_with_short(since + ms(bounds.header_timeout), since + SHORT_MS);
            if self.head.poll(cx).is_ready() {
                return Poll::Ready(Idle::Late);
            }
        }
        // Answers whose tasks are done with them are with the library until the client takes them, and then here.
        if self.conduct.borrow().has_untaken() || self.outbox.borrow().is_waiting() {
            self.was_busy.set(true);
            return self.turn.poll(Who::Taker, cx).map(|_| Idle::Untaken);
        }
        self.turn.begin(bounds);
        if head_since.is_some() && asked.is_none() {
            return Poll::Pending;
        }
        let is_busy = open > 0;
        // Every other stream has a deadline of its own. When the last one ends, it begins anew.
        if self.was_busy.replace(is_busy) || is_busy {
            self.wait(if asked.is_some() { STOP_GRACE_MS } else { ms(bounds.idle_timeout) });
        }
        let due = alarm.poll(cx);
        if is_busy {
            return Poll::Pending;
        }
        ready!(due);
        if asked.is_some() {
            return Poll::Ready(Idle::Cut);
        }
        worker.counters.count(Reason::IdleConnection);
        Poll::Ready(Idle::Stop)
    }

    fn is_misbehaving(&self) -> bool {
        let conduct = self.conduct.borrow();
        conduct.abuse().is_some() || conduct.fault().is_some()
    }

    /// Closes the connection of a client that abuses the protocol, with all that it asked for.
    fn give_up(&mut self) {
        let fault = self.conduct.borrow().fault();
        if let Some(fault) = fault {
            self.worker.refuse_connection(&self.visitor, Reason::MalformedRequest);
            return self.connection.abrupt_shutdown(match fault {
                Fault::Protocol => h2::Reason::PROTOCOL_ERROR,
                Fault::FlowControl => h2::Reason::FLOW_CONTROL_ERROR,
                Fault::FrameSize => h2::Reason::FRAME_SIZE_ERROR,
                Fault::Compression => h2::Reason::COMPRESSION_ERROR,
            });
        }
        let abuse = self.conduct.borrow().abuse().map(Abuse::name);
        let address = self.visitor.address;
        tracing::debug!(%address, abuse, "protocol abused");
        self.worker.refuse_connection(&self.visitor, Reason::ProtocolAbuse);
        self.connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
    }

    /// Closes the connection of a client whose head has not come in time, with all that it asked for.
    fn time_out(&mut self) {
        let reason = if self.head.is_early() { Reason::Overload } else { Reason::RequestTimeout };
        self.worker.refuse_connection(&self.visitor, reason);
        Entry::write_reset(&self.worker, &self.visitor, reason);
        self.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    }

    /// Counts what the library refused by itself, and tells the access log.
    fn note(&self) {
        let Noted { refused, oversized, malformed, unread } =
            self.conduct.borrow_mut().take_noted();
        let (worker, visitor) = (&self.worker, &self.visitor);
        for (count, reason, is_clients) in [
            (refused, Reason::StreamsFull, false),
            (oversized, Reason::HeadersTooLarge, true),
            (malformed, Reason::MalformedRequest, true),
            (unread, Reason::MalformedRequest, false),
        ] {
            for _ in 0..count {
                match is_clients {
                    true => worker.refuse_connection(visitor, reason),
                    false => worker.counters.count(reason),
                }
                Entry::write_reset(worker, visitor, reason);
            }
        }
    }

    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        if self.conduct.borrow_mut().is_malformed(respond.stream_id().as_u32()) {
            // It is counted as the reset goes out.
            return respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        }
        self.served += 1;
        let view = self.worker.view();
        let bounds = &view.plan.bounds;
        let late = u64::from(bounds.streams_max);
        let beyond = self.served.saturating_sub(bounds.requests_per_connection);
        if beyond > late {
            // What was under way when it heard that the connection ends was still answered. As much again may have been
            // asked for upon answers from before.
            if beyond > 2 * late {
                self.conduct.borrow_mut().overstays(self.turn.alarm().now_ms());
            }
            return self.turn_away(respond, Reason::ConnectionSpent);
        }
        // The library takes what it is asked for until the client says that it has heard of the end, and a daemon that
        // ends knows no more of what is revoked.
        if self.worker.stopping.get() && self.turn.alarm().now_ms() >= self.heard_ms {
            self.belated += 1;
            if self.belated > late {
                self.conduct.borrow_mut().overstays(self.turn.alarm().now_ms());
            }
            return self.turn_away(respond, Reason::ConnectionSpent);
        }
        let metrics = &self.worker.edge.metrics;
        let in_flight = metrics.requests.load(Relaxed) + 1;
        // At the ceiling of memory a refusal in words is kept for whoever reads it: one at a time. It is the edge that
        // has no room, so nobody is blamed, and only how many requests a connection may have bounds it.
        let open = self.open.get();
        if open > 0 && metrics.memory.refuses_request(in_flight) {
            return self.turn_away(respond, Reason::MemoryFull);
        }
        let turn = Rc::new(Turn::new(self.worker.timers.alarm()));
        turn.begin(bounds);
        let id = respond.stream_id().as_u32();
        self.conduct.borrow_mut().begun(id);
        self.open.set(open + 1);
        let open = Open(Rc::clone(&self.open));
        let (entrance, conduct) = (self.entrance, Rc::clone(&self.conduct));
        let (worker, visitor) = (Rc::clone(&self.worker), self.visitor.clone());
        spawn_local(async move {
            let mut stream = Exchange { entrance, turn, respond, conduct };
            stream.run(worker, visitor, request).await;
            stream.conduct.borrow_mut().made(id);
            drop(open);
        });
    }

    /// Refuses a request for a reason of the edge's own, which a client may repeat as it was.
    fn turn_away(&self, mut respond: SendResponse<Bytes>, reason: Reason) {
        self.worker.counters.count(reason);
        Entry::write_reset(&self.worker, &self.visitor, reason);
        self.conduct.borrow_mut().turned_away(respond.stream_id().as_u32());
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
}

/// Whether a connection is at its end, whatever its client has asked for.
const fn is_given_up(asked: Option<Idle>) -> bool {
    matches!(asked, Some(Idle::Abused | Idle::Late))
}

/// A request that is counted as open.
struct Open(Rc<Cell<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts and tells of a client that broke the protocol below.
fn note_end(worker: &Worker, visitor: &Visitor, outbox: &RefCell<Outbox<Box<dyn Stream>>>) {
    if outbox.borrow_mut().is_abused() {
        worker.refuse_connection(visitor, Reason::ProtocolAbuse);
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
