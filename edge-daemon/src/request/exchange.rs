//! One request over HTTP/2 and its answer, from head to last byte.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_policy::http2::Conduct;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode, header};

use super::{
    Worker, answer,
    body::Answer,
    front::Visitor,
    incoming::{Frame, Incoming},
    path,
    serve::Entrance,
    watch::{Turn, Who},
};

/// One request and its answer.
pub(super) struct Exchange {
    pub(super) entrance: Entrance,
    pub(super) turn: Rc<Turn>,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) conduct: Rc<RefCell<Conduct>>,
}

impl Exchange {
    pub(super) async fn run(
        &mut self,
        worker: Rc<Worker>,
        visitor: Visitor,
        request: Request<RecvStream>,
    ) {
        let to_head = request.method() == Method::HEAD;
        let stated = request.headers().get(header::CONTENT_LENGTH);
        let stated = stated.and_then(|value| value.to_str().ok()?.parse().ok());
        let asks = request.headers().contains_key(header::EXPECT).then(Rc::<Cell<bool>>::default);
        let asked = asks.clone();
        let request = request.map(|body| match body.is_end_stream() {
            true => Incoming::Empty,
            false => Incoming::Http2(body, stated, asks, Rc::clone(&self.conduct)),
        });
        let turn = Rc::clone(&self.turn);
        let own = Rc::clone(&worker);
        let mut answer = Box::pin(path::answer(own, visitor, self.entrance, turn, request));
        let response = std::future::poll_fn(|cx| {
            let polled = answer.as_mut().poll(cx);
            let is_asked = polled.is_pending() && asked.as_ref().is_some_and(|asked| asked.take());
            let go_on = is_asked.then(|| {
                let mut go_on = Response::new(());
                *go_on.status_mut() = StatusCode::CONTINUE;
                go_on
            });
            for interim in answer::interims(&self.turn).chain(go_on) {
                // If it cannot be told, the answer cannot either.
                let _ = self.respond.send_informational(interim);
            }
            match polled {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.respond.poll_reset(cx).map(|_| None),
            }
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
