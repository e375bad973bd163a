//! An answer on its way to an HTTP/1 client.

use std::task::{Context, Poll, ready};

use edge_policy::http1::{self, Fields, Framing, Version};
use http::{HeaderMap, Response, StatusCode};

use super::{After, Client, Terms};
use crate::request::{body::Answer, incoming::Frame, watch::Who};

/// An answer whose head is written.
pub(super) struct Sending {
    answer: Answer,
    framing: Framing,
    /// Whether some of its body is to come still.
    has_body: bool,
    keeps: bool,
}

impl Client {
    /// Writes the head of an answer.
    pub(super) fn open(&self, response: Response<Answer>, terms: Terms) -> Sending {
        let Terms { version, to_head, mut keeps } = terms;
        let (parts, answer) = response.into_parts();
        let changes = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let framing = if changes { Framing::Close } else { framing(&answer, version) };
        let bodiless = to_head || matches!(parts.status.as_u16(), 204 | 304);
        keeps &= !answer.is_last && !self.worker.stopping.get();
        keeps &= !self.visitor.is_uncertified(&self.worker.view().plan);
        keeps &= framing != Framing::Close || bodiless;
        let inbound = &mut *self.inbound.borrow_mut();
        // Who refuses early hardly waits for the rest of the body; an answer that is none may be given to it as it comes.
        let is_refusal = parts.status.as_u16() >= 400;
        keeps &= inbound.body.is_done() || answer.reads_on() && !is_refusal;
        inbound.awaits_continue = false;
        let connection = match (keeps, version) {
            _ if changes => Some("upgrade"),
            (false, _) => Some("close"),
            (true, Version::Http10) => Some("keep-alive"),
            (true, Version::Http11) => None,
        };
        let fields = Fields { lines: &answer.lines, map: &parts.headers, framing, connection };
        http1::response(inbound.wire.output(), parts.status, fields, bodiless);
        Sending { answer, framing, has_body: !bodiless && framing != Framing::Empty, keeps }
    }

    /// Sends an answer, to its end.
    pub(super) fn poll_sent(&self, sending: &mut Sending, cx: &mut Context<'_>) -> Poll<After> {
        let is_out = ready!(self.poll_answer(sending, cx));
        Poll::Ready(match is_out {
            false => After::Gone,
            true if sending.keeps && self.inbound.borrow().body.is_done() => After::Keep,
            true => After::Close,
        })
    }

    /// Sends the body of an answer; whether all of it is out.
    fn poll_answer(&self, sending: &mut Sending, cx: &mut Context<'_>) -> Poll<bool> {
        let Sending { answer, framing, has_body, keeps } = sending;
        loop {
            let full = self.inbound.borrow().wire.is_full();
            if full && !ready!(self.poll_flush(true, cx)) {
                return Poll::Ready(false);
            }
            if !*has_body || answer.is_end_stream() && *framing != Framing::Chunked {
                if !*keeps {
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
                    self.finish(*framing, Some(&trailers));
                    *has_body = false;
                }
                Poll::Ready(None) => {
                    self.finish(*framing, None);
                    *has_body = false;
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Pending => {
                    if !ready!(self.poll_flush(false, cx)) {
                        return Poll::Ready(false);
                    }
                    let waits_for = answer.waits_for();
                    // Who ends his side of a tunnel may wait for the other's.
                    if waits_for != Who::Either && self.poll_gone(cx).is_ready() {
                        return Poll::Ready(false);
                    }
                    return self.turn.poll(waits_for, cx).map(|_| false);
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
