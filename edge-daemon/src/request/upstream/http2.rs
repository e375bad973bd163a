//! A connection to a server that carries many requests at once. `h2` speaks the protocol, and the
//! connection is a task of its own.

use std::{
    cell::Cell,
    future::Future as _,
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_common::Reason;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use tokio::task::spawn_local;

use super::{
    super::{
        body::Upload,
        incoming::{Broken, Frame, Incoming, poll_stream},
        timers::ms,
        watch::Who,
    },
    Head,
    connection::{self, Failed, Patience},
    http1::INTERIM_MAX,
};
use crate::{clock, upstream::dial::Stream};

/// A handle on a connection.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    scheme: &'static str,
    usage: Rc<Usage>,
    /// Whether it takes no further request: it is closed, or was silent for too long.
    is_closed: Rc<Cell<bool>>,
    pub(super) opened_ns: u64,
}

/// The body of an answer, and the rest of the request's on its way.
pub(crate) struct Reply {
    sending: Sending,
    body: RecvStream,
    /// Bytes that are still to come, if the server said how many.
    left: Option<u64>,
    _use: InUse,
}

/// How much a connection is used.
#[derive(Default)]
struct Usage {
    /// Requests under way.
    requests: Cell<usize>,
    /// When the last one ended, in boot time.
    ended_ns: Cell<u64>,
}

/// A request that is counted as under way.
struct InUse(Rc<Usage>);

/// A request's body on its way.
struct Sending {
    stream: SendStream<Bytes>,
    upload: Option<Upload>,
    waiting: Bytes,
}

impl Connection {
    /// Begins to speak on a stream to the server.
    pub(super) async fn open(stream: Stream, opened_ns: u64) -> io::Result<Self> {
        let scheme = stream.scheme();
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(STREAMS as u32 * WINDOW)
            // Small parts of answers whose clients are slow are no fault of the server.
            .data_frame_budget(STREAMS * WINDOW as usize * SMALLNESS)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER);
        let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        let is_closed = Rc::new(Cell::new(false));
        let closes = Rc::clone(&is_closed);
        spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            closes.set(true);
        });
        Ok(Self { sender, scheme, usage: Rc::default(), is_closed, opened_ns })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.is_closed()
            && self.usage.requests.get() < self.sender.current_max_send_streams().min(STREAMS)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.usage.requests.get() > 0
    }

    pub(super) fn used_ns(&self) -> u64 {
        self.usage.ended_ns.get()
    }

    /// One request, to the head of its answer. One that gets none in time is the last: whether only
    /// its answer is late or nobody is there any more, nothing tells.
    pub(super) async fn exchange(
        &mut self,
        head: &Head,
        upload: Upload,
        patience: &Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let asked = self.ask(head, upload, patience).await;
        let is_late = asked.as_ref().is_err_and(|failed| failed.reason == Reason::UpstreamTimeout);
        if is_late && !patience.upload.turn.is_excused() {
            self.is_closed.set(true);
        }
        asked
    }

    async fn ask(
        &mut self,
        head: &Head,
        upload: Upload,
        patience: &Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let in_use = InUse::new(&self.usage);
        let spare = upload.again();
        let (turn, answer_ms) = (&patience.upload.turn, ms(patience.answer_max));
        let ready = std::future::poll_fn(|cx| match self.sender.poll_ready(cx) {
            Poll::Ready(ready) => Poll::Ready(ready.map_err(|error| {
                // It broke off, or goes away: what it has begun may still come to its end.
                self.is_closed.set(true);
                (Reason::UpstreamInvalid, is_untouched(&error))
            })),
            Poll::Pending => {
                let overdue = turn.poll_for(Who::Upstream, answer_ms, cx);
                overdue.map(|reason| Err((reason, false)))
            }
        });
        if let Err((reason, is_refused)) = ready.await {
            return Err(Failed { reason, unsent: Some(upload), is_refused });
        }
        let is_end = upload.length() == Some(0);
        let asked = asked(head, self.scheme);
        let Some((response, stream)) =
            asked.and_then(|asked| self.sender.send_request(asked, is_end).ok())
        else {
            let reason = Reason::UpstreamInvalid;
            return Err(Failed { reason, unsent: Some(upload), is_refused: false });
        };
        let upload = Some(upload).filter(|_| !is_end);
        let mut sending = Sending { stream, upload, waiting: Bytes::new() };
        let (mut response, mut interims) = (pin!(response), 0);
        let answer = std::future::poll_fn(|cx| {
            let fault = |_| (patience.upload.fault.get().unwrap_or(Reason::UpstreamInvalid), false);
            let sent = sending.poll(cx).map_err(fault)?;
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                interims += 1;
                // Over HTTP/2 no connection changes its protocol (RFC 9113, 8.6).
                if interims > INTERIM_MAX || interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err((Reason::UpstreamInvalid, false)));
                }
                turn.interim(interim);
            }
            match response.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(|error| {
                    // Whatever is no fault of this stream alone, none can be begun after.
                    self.is_closed.set(self.is_closed() || !error.is_reset());
                    (Reason::UpstreamInvalid, is_untouched(&error))
                })),
                Poll::Pending if sent.is_pending() && sending.is_starved() => {
                    turn.poll(Who::Sender, cx).map(|reason| Err((reason, false)))
                }
                Poll::Pending => {
                    let overdue = turn.poll_for(Who::Upstream, answer_ms, cx);
                    overdue.map(|reason| Err((reason, false)))
                }
            }
        });
        let (parts, body) = match answer.await {
            Ok(answer) => answer.into_parts(),
            Err((reason, is_refused)) => {
                return Err(Failed { reason, unsent: spare.filter(|_| is_refused), is_refused });
            }
        };
        // A status beyond 599 means nothing (RFC 9110, 15).
        let valid = declared(&parts.headers).ok().filter(|_| parts.status.as_u16() < 600);
        let Some(mut left) = valid else {
            let reason = Reason::UpstreamInvalid;
            return Err(Failed { reason, unsent: None, is_refused: false });
        };
        if head.parts.method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304) {
            // The length is that of what does not come (RFC 9110, 8.6).
            left = Some(0);
        }
        let body = match body.is_end_stream() {
            true => Incoming::Empty,
            false => {
                let reply = Reply { sending, body, left, _use: in_use };
                Incoming::Reply(connection::Reply::Many(Box::new(reply)))
            }
        };
        Ok(Response::from_parts(parts, body))
    }
}

impl Sending {
    /// Sends as much of the body as there is and the server takes. An error is the body's.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while let Some(upload) = &mut self.upload {
            if self.waiting.is_empty() {
                match ready!(upload.poll_frame(cx)) {
                    Some(Ok(Frame::Data(data))) => self.waiting = data,
                    // What a client says after its body is for the edge alone.
                    Some(Ok(Frame::Trailers(_))) => continue,
                    Some(Err(broken)) => return Poll::Ready(Err(broken)),
                    None => {
                        self.upload = None;
                        let _ = self.stream.send_data(Bytes::new(), true);
                        break;
                    }
                }
            }
            self.stream.reserve_capacity(self.waiting.len());
            let room = match self.stream.capacity() {
                0 => ready!(self.stream.poll_capacity(cx)),
                room => Some(Ok(room)),
            };
            match room {
                Some(Ok(room)) => {
                    let part = self.waiting.split_to(room.min(self.waiting.len()));
                    upload.turn().moved(Who::Upstream, part.len());
                    if !part.is_empty() && self.stream.send_data(part, false).is_err() {
                        self.upload = None;
                    }
                }
                // The server takes no more. It may still answer.
                Some(Err(_)) | None => self.upload = None,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the client is to send more before anything else can happen.
    fn is_starved(&self) -> bool {
        self.upload.is_some() && self.waiting.is_empty()
    }
}

impl Reply {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        if let Poll::Ready(Err(broken)) = self.sending.poll(cx) {
            return Poll::Ready(Some(Err(broken)));
        }
        let frame = ready!(poll_stream(&mut self.body, cx));
        if let (Some(Ok(Frame::Data(data))), Some(left)) = (&frame, &mut self.left) {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    pub(super) fn abandon_upload(&mut self) -> Option<Upload> {
        self.sending.upload.take()
    }

    pub(super) fn is_done(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) const fn length(&self) -> Option<u64> {
        self.left
    }

    pub(super) fn waits_for(&self) -> Who {
        if self.sending.is_starved() { Who::Listener } else { Who::Upstream }
    }
}

impl InUse {
    fn new(usage: &Rc<Usage>) -> Self {
        usage.requests.set(usage.requests.get() + 1);
        Self(Rc::clone(usage))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        self.0.ended_ns.set(clock::boot_ns());
    }
}

/// Whether the server says that it did not look at a request, which had no effect then (RFC 9113, 8.7). A GOAWAY is the
/// end of those streams alone that came after the last that it did look at; one that names a fault may be that of the
/// request, which is not taken on to the next connection.
fn is_untouched(error: &h2::Error) -> bool {
    let is = |reason| error.reason() == Some(reason);
    error.is_reset() && is(h2::Reason::REFUSED_STREAM)
        || error.is_go_away() && error.is_remote() && is(h2::Reason::NO_ERROR)
}

/// The request's head as HTTP/2 has it; `None` if it cannot be written so.
fn asked(head: &Head, scheme: &'static str) -> Option<Request<()>> {
    let Head { parts, target, lines } = head;
    let host = lines.get(header::HOST.as_str())?;
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(target.as_str())
        .build()
        .ok()?;
    let mut asked = Request::new(());
    parts.method.clone_into(asked.method_mut());
    *asked.uri_mut() = uri;
    *asked.version_mut() = Version::HTTP_2;
    let headers = asked.headers_mut();
    parts.headers.clone_into(headers);
    lines.clone().set(headers);
    headers.remove(header::HOST);
    headers.remove(header::UPGRADE);
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        // Servers take its absence for a proxy in between that loses trailers.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Some(asked)
}

/// The length that an answer states, if it does; it must be one.
fn declared(headers: &HeaderMap) -> Result<Option<u64>, Broken> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let length = digits.and_then(|digits| digits.parse().ok()).ok_or(Broken::Malformed)?;
    if values.next().is_some() { Err(Broken::Malformed) } else { Ok(Some(length)) }
}

/// What the edge takes of an answer before its client has taken it, in bytes. The connection has room
/// for that of every request on it, so that those whose clients are slow hold up no other; which is
/// why it is no more than lets an answer have 64 MB a second where a round trip takes a millisecond.
const WINDOW: u32 = 64 * 1024;
/// What h2 may keep for each byte of that, in bytes, since it keeps as much for a small part as for one of 256 bytes: parts
/// of 16 bytes may fill all of it.
const SMALLNESS: usize = 16;
const SEND_BUFFER: usize = 64 * 1024;
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Requests on one connection before another is opened.
const STREAMS: usize = 100;
