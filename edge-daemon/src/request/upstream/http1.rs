//! A connection to a server that carries one request at a time.
//!
//! Nothing drives it but whoever uses it: the request's own task sends its body and reads the answer.

mod reply;

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use edge_common::Reason;
use edge_policy::{
    head::Bounds,
    http1::{self, Fields, Framing, ResponseReader, StatusLine},
    upgrade,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

pub(crate) use self::reply::Reply;
use super::{
    super::{
        body::Upload,
        http1::{Body, Stream, Wire},
        incoming::{Broken, Frame, Incoming},
        timers::ms,
        watch::{Turn, Who},
    },
    Head,
    connection::{self, Failed, Patience},
};

/// One connection to a server.
pub(super) struct Connection {
    link: Rc<RefCell<Link>>,
    pub(super) opened_ns: u64,
}

struct Link {
    wire: Wire,
    reader: ResponseReader,
    sending: Sending,
    /// Bytes of this request that have left, and whose move it waits for.
    sent: usize,
    turn: Option<Rc<Turn>>,
    /// Interim answers to it.
    interim: u32,
    body: Body,
    /// The protocol that this request asks for, and what is sent once the server agrees.
    upgrade: Option<(HeaderValue, Upload)>,
    /// Whether the server has agreed.
    is_tunnel: bool,
    state: State,
    /// Whether it may be used again once this answer is complete.
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between requests.
    Idle,
    /// Between the first byte of a request and the last of its answer.
    Busy,
    /// Of no more use.
    Closed,
}

enum Sending {
    /// A body, and how its end is told.
    Body { upload: Upload, framing: Framing },
    /// The whole request is written or in the buffer.
    Done,
    /// The client has ended its side of a tunnel.
    Ending,
    /// The server takes no more. It may still answer.
    Refused,
}

impl Connection {
    /// Begins to speak on a stream to the server.
    pub(super) fn new(stream: impl Stream + 'static, opened_ns: u64) -> Self {
        let link = Link {
            wire: Wire::new(Box::new(stream)),
            reader: ResponseReader::default(),
            sending: Sending::Done,
            sent: 0,
            turn: None,
            interim: 0,
            body: Body::new(Framing::Empty, ANSWER),
            upgrade: None,
            is_tunnel: false,
            state: State::Idle,
            keep: true,
        };
        Self { link: Rc::new(RefCell::new(link)), opened_ns }
    }

    /// Whether it was done with, or broke off.
    pub(super) fn is_closed(&self) -> bool {
        self.link.borrow().state == State::Closed
    }

    /// Whether it will take no request any more.
    pub(super) fn is_stale(&self) -> bool {
        let mut link = self.link.borrow_mut();
        match link.state {
            State::Idle => link.wire.is_stale(),
            State::Busy => false,
            State::Closed => true,
        }
    }

    /// Whether it is done with its last request.
    pub(super) fn is_ready(&self) -> bool {
        self.link.borrow().state == State::Idle
    }

    /// One request, to the head of its answer. Whoever's turn it is has a deadline.
    pub(super) async fn exchange(
        &mut self,
        head: &Head,
        upload: Upload,
        patience: &Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let spare = upload.again();
        self.link.borrow_mut().begin(head, upload);
        let to_head = head.parts.method == Method::HEAD;
        let answer =
            std::future::poll_fn(|cx| self.link.borrow_mut().poll_answer(to_head, patience, cx))
                .await;
        match answer {
            Ok(response) => Ok(response.map(|()| match self.link.borrow_mut().is_over() {
                true => Incoming::Empty,
                false => Incoming::Reply(connection::Reply::One(Reply::new(&self.link))),
            })),
            Err(reason) => {
                let link = &mut *self.link.borrow_mut();
                link.state = State::Closed;
                let whole = std::mem::replace(&mut link.sending, Sending::Refused).whole();
                let unsent = whole.or(spare).filter(|_| link.sent == 0);
                Err(Failed { reason, unsent, is_refused: false })
            }
        }
    }
}

impl Sending {
    /// The body, if nothing of it was asked for.
    fn whole(self) -> Option<Upload> {
        match self {
            Self::Body { upload, .. } if upload.is_whole() => Some(upload),
            _ => None,
        }
    }
}

impl Link {
    fn begin(&mut self, head: &Head, upload: Upload) {
        let framing = match upload.length() {
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let Head { parts, target, lines } = head;
        let protocol = parts.headers.get(header::UPGRADE).cloned();
        let connection = protocol.as_ref().map(|_| "upgrade");
        let fields = Fields { lines, map: &parts.headers, framing, connection };
        http1::request(self.wire.output(), &parts.method, target, fields);
        // A server that does not expect a body with this method may take it for the next request.
        let expected = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        self.keep = framing == Framing::Empty || expected;
        self.state = State::Busy;
        (self.sent, self.interim, self.turn) = (0, 0, Some(Rc::clone(upload.turn())));
        (self.sending, self.upgrade) = match protocol {
            Some(protocol) => (Sending::Done, Some((protocol, upload))),
            None => (Sending::Body { upload, framing }, None),
        };
        self.reader.clear();
    }

    fn poll_answer(
        &mut self,
        to_head: bool,
        patience: &Patience<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Reason>> {
        let upload = patience.upload;
        loop {
            let fault = |_| upload.fault.get().unwrap_or(Reason::UpstreamInvalid);
            let sent = self.poll_send(cx).map_err(fault)?;
            match self.reader.read(&self.wire.input, &ANSWER) {
                // Nobody can have answered what has not begun to leave.
                Ok(Some(_)) if self.sent == 0 => return Poll::Ready(Err(invalid())),
                Ok(Some(head)) => {
                    let answer = self.head(head, to_head).map_err(|_| invalid())?;
                    if self.is_tunnel || !answer.status().is_informational() {
                        return Poll::Ready(Ok(answer));
                    }
                    self.interim += 1;
                    if self.interim > INTERIM_MAX {
                        return Poll::Ready(Err(invalid()));
                    }
                    upload.turn.interim(answer);
                    continue;
                }
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(invalid())),
            }
            match self.wire.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(invalid())),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending if sent.is_pending() && self.is_starved() => {
                    return upload.turn.poll(Who::Sender, cx).map(Err);
                }
                Poll::Pending => {
                    let answer_ms = ms(patience.answer_max);
                    return upload.turn.poll_for(Who::Upstream, answer_ms, cx).map(Err);
                }
            }
        }
    }

    /// Takes a head that is complete: of the answer, or of one before it.
    fn head(
        &mut self,
        head: http1::Head<StatusLine>,
        to_head: bool,
    ) -> Result<Response<()>, http1::Fault> {
        let http1::Head { first: StatusLine { version, status }, length } = head;
        let bytes = self.wire.input.split_to(length).freeze();
        let fields = self.reader.fields();
        let framing = http1::of_response(version, status, to_head, &bytes, fields)?;
        let headers = http1::headers(&bytes, fields)?;
        self.reader.clear();
        match status {
            101 => self.open_tunnel(&headers).ok_or(http1::Fault::Malformed)?,
            // Nothing holds on to the client's connection for a change that does not come.
            200.. => self.upgrade = None,
            _ => {}
        }
        let framing = if self.is_tunnel { Framing::Close } else { framing };
        self.keep &= framing != Framing::Close && http1::persists(version, &headers);
        self.body = Body::new(framing, ANSWER);
        let mut response = Response::new(());
        let status = StatusCode::from_u16(status).map_err(|_| http1::Fault::Malformed)?;
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }

    /// Changes the protocol; `None` if nobody asked for this one.
    fn open_tunnel(&mut self, headers: &HeaderMap) -> Option<()> {
        let (asked, mut upload) = self.upgrade.take()?;
        if !upgrade::agreed(headers, &asked) || !upload.open_tunnel() {
            return None;
        }
        self.sending = Sending::Body { upload, framing: Framing::Close };
        self.is_tunnel = true;
        Some(())
    }

    /// Sends as much of the request as there is and the server takes. An error is the body's.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if self.wire.is_full() {
                ready!(self.poll_flush(true, cx));
            }
            let Sending::Body { upload, framing } = &mut self.sending else {
                ready!(self.poll_flush(false, cx));
                if matches!(self.sending, Sending::Ending) {
                    // Whether it could be told makes no difference.
                    let _ = ready!(self.wire.poll_shutdown(cx));
                    self.sending = Sending::Done;
                }
                return Poll::Ready(Ok(()));
            };
            match upload.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    if let Framing::Length(left) = framing {
                        // What came behind a body would be another request to the server.
                        *left = left.checked_sub(data.len() as u64).ok_or(Broken::Malformed)?;
                    }
                    match framing {
                        Framing::Chunked => self.wire.push_chunk(data),
                        _ => self.wire.push(data),
                    }
                }
                // What a client says after its body is for the edge alone.
                Poll::Ready(Some(Ok(Frame::Trailers(_)))) => {}
                Poll::Ready(None) => {
                    if *framing == Framing::Chunked {
                        http1::last_chunk(self.wire.output(), None);
                    }
                    self.sending = if self.is_tunnel { Sending::Ending } else { Sending::Done };
                }
                Poll::Ready(Some(Err(broken))) => return Poll::Ready(Err(broken)),
                Poll::Pending => {
                    ready!(self.poll_flush(false, cx));
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes what is in the buffer: only until there is `room`, or all of it.
    fn poll_flush(&mut self, room: bool, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.sending, Sending::Refused) {
            return Poll::Ready(());
        }
        let before = self.sent;
        let write = if room { Wire::poll_write } else { Wire::poll_flush };
        let flushed = write(&mut self.wire, cx, &mut self.sent);
        if let Some(turn) = self.turn.as_ref().filter(|_| self.sent > before) {
            turn.moved(Who::Upstream, self.sent - before);
        }
        if ready!(flushed).is_err() {
            self.sending = Sending::Refused;
        }
        Poll::Ready(())
    }

    /// Whether the client is to send more before anything else can happen.
    fn is_starved(&self) -> bool {
        matches!(self.sending, Sending::Body { .. }) && !self.wire.is_full()
    }

    /// Whether the answer is complete; if so, the connection is ready for the next or done with.
    fn is_over(&mut self) -> bool {
        if self.state == State::Busy && self.body.is_done() {
            let has_sent = matches!(self.sending, Sending::Done) && self.wire.is_flushed();
            let clean = has_sent && self.wire.input.is_empty();
            self.state = if self.keep && clean { State::Idle } else { State::Closed };
            self.turn = None;
        }
        self.state != State::Busy
    }
}

const fn invalid() -> Reason {
    Reason::UpstreamInvalid
}

/// How large the head of an answer may be, and the trailers after its body.
const ANSWER: Bounds =
    Bounds { uri_bytes_max: 1024, headers_max: 256, header_bytes_max: 64 * 1024 };
/// Interim answers (`103 Early Hints` among them) before the one that counts.
pub(super) const INTERIM_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io, pin::Pin, task::Waker, time::Duration};

    use edge_policy::lines::Lines;
    use http::Request;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;
    use crate::request::{http1::Inbound, timers::Timers, watch::Turn};

    /// Gives without end, and takes nothing.
    struct Giving;

    impl Stream for Giving {}

    impl AsyncRead for Giving {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            to.initialize_unfilled();
            to.set_filled(to.capacity());
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Giving {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Takes so many bytes, and gives what a test has it say.
    #[derive(Clone)]
    struct Told {
        takes: usize,
        parts: Rc<RefCell<VecDeque<&'static [u8]>>>,
    }

    impl Told {
        fn new(takes: usize) -> Self {
            Self { takes, parts: Rc::default() }
        }

        fn says(&self, part: &'static [u8]) {
            self.parts.borrow_mut().push_back(part);
        }
    }

    impl Stream for Told {}

    impl AsyncRead for Told {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(part) = self.parts.borrow_mut().pop_front() else { return Poll::Pending };
            to.put_slice(part);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Told {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.takes);
            self.takes -= taken;
            if taken > 0 { Poll::Ready(Ok(taken)) } else { Poll::Pending }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// One request to the head of its answer, or to what it failed of.
    fn ask(connection: &mut Connection) -> Result<Incoming, Failed> {
        let turn = Rc::new(Turn::new(Timers::new().alarm()));
        let (upload, state) = Upload::new(Incoming::Empty, 0, &turn);
        let (parts, ()) = Request::new(()).into_parts();
        let head = Head { parts, target: "/".to_owned(), lines: Lines::default() };
        let patience = Patience { upload: &state, answer_max: Duration::from_secs(1) };
        let mut cx = Context::from_waker(Waker::noop());
        let asked = std::pin::pin!(connection.exchange(&head, upload, &patience));
        let Poll::Ready(answer) = asked.poll(&mut cx) else { panic!("what comes of it is there") };
        answer.map(Response::into_body)
    }

    fn next(body: &mut Incoming) -> Option<Vec<u8>> {
        match body.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(Frame::Data(data)))) => Some(data.to_vec()),
            Poll::Ready(None) => None,
            _ => panic!("data or the end"),
        }
    }

    #[test]
    fn an_answer_that_is_over_has_no_part_in_the_next() {
        let server = Told::new(usize::MAX);
        let mut connection = Connection::new(server.clone(), 0);
        server.says(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
        let mut first = ask(&mut connection).ok().expect("a head");
        assert_eq!(next(&mut first), Some(b"one".to_vec()));
        assert!(connection.is_ready() && !connection.is_stale());
        // The first client has not taken all of its answer when another's begins.
        server.says(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanother");
        let mut second = ask(&mut connection).ok().expect("a head");
        assert!(first.is_end_stream());
        assert_eq!((first.length(), next(&mut first)), (Some(0), None));
        drop(first);
        assert!(!connection.is_ready(), "an answer is on its way");
        assert_eq!(second.length(), Some(6));
        assert_eq!(next(&mut second), Some(b"anothe".to_vec()));
        assert!(connection.is_closed(), "what comes behind an answer is nobody's");
    }

    #[test]
    fn a_connection_that_has_not_sent_all_of_a_request_takes_no_other() {
        let early = b"HTTP/1.1 413 S\r\nContent-Length: 3\r\n\r\nyou";
        let server = Told::new(10);
        let mut connection = Connection::new(server.clone(), 0);
        server.says(early);
        let mut refused = ask(&mut connection).ok().expect("a head");
        assert_eq!(next(&mut refused), Some(b"you".to_vec()));
        assert!(connection.is_closed());

        let server = Told::new(0);
        let mut connection = Connection::new(server.clone(), 0);
        server.says(early);
        let failed = ask(&mut connection).err();
        assert!(failed.is_some_and(|failed| failed.unsent.is_some()), "nobody can have read it");
    }

    #[test]
    fn nothing_follows_a_body_to_the_server() {
        let turn = Rc::new(Turn::new(Timers::new().alarm()));
        let mut client = Inbound::new(Wire::new(Box::new(Told::new(0))), ANSWER);
        client.body = Body::new(Framing::Length(30), ANSWER);
        client.wire.input.extend_from_slice(b"oneGET /another HTTP/1.1\r\n\r\n");
        let incoming = Incoming::Http1(Rc::new(RefCell::new(client)));
        let (upload, _) = Upload::new(incoming, u64::MAX, &turn);
        let connection = Connection::new(Told::new(usize::MAX), 0);
        let mut link = connection.link.borrow_mut();
        link.sending = Sending::Body { upload, framing: Framing::Length(3) };
        let sent = link.poll_send(&mut Context::from_waker(Waker::noop()));
        assert_eq!((sent, link.sent), (Poll::Ready(Err(Broken::Malformed)), 0));
    }

    #[test]
    fn what_is_left_of_an_upload_is_given_back_by_an_answer_that_was_begun() {
        let turn = Rc::new(Turn::new(Timers::new().alarm()));
        let (upload, _) = Upload::new(Incoming::Whole("rest".into()), u64::MAX, &turn);
        let connection = Connection::new(Told::new(0), 0);
        let mut link = connection.link.borrow_mut();
        link.sending = Sending::Body { upload, framing: Framing::Length(4) };
        link.turn = Some(turn);
        drop(link);
        let reply = connection::Reply::One(Reply::new(&connection.link));
        let mut begun = Incoming::Reply(reply).after("some".into(), None);
        assert_eq!(begun.abandon_upload().and_then(|rest| rest.length()), Some(4));
        assert!(connection.link.borrow().turn.is_none(), "the client may have another turn");
    }

    #[test]
    fn a_server_that_takes_nothing_from_the_beginning_is_sent_no_more() {
        let turn = Rc::new(Turn::new(Timers::new().alarm()));
        let framing = Framing::Length(64 << 20);
        let mut client = Inbound::new(Wire::new(Box::new(Giving)), ANSWER);
        client.body = Body::new(framing, ANSWER);
        let incoming = Incoming::Http1(Rc::new(RefCell::new(client)));
        let (upload, _) = Upload::new(incoming, u64::MAX, &turn);
        let connection = Connection::new(Giving, 0);
        let mut link = connection.link.borrow_mut();
        link.sending = Sending::Body { upload, framing };
        let sent = link.poll_send(&mut Context::from_waker(Waker::noop()));
        assert_eq!(sent, Poll::Ready(Ok(())));
        let read = turn.received();
        assert!(read < 1 << 20, "{read} bytes");
    }
}
