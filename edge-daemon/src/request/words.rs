//! The edge's own words where the HTTP/1 library would speak: what it cannot parse, it answers by
//! itself, with a bare status and before anybody is asked.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use edge_common::Reason;
use edge_policy::denied::Denied;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Worker, answer, watch::Progress};

/// A stream on which a bare refusal goes out as a problem document.
pub(crate) struct Worded<IO> {
    io: IO,
    worker: Rc<Worker>,
    progress: Rc<Progress>,
    /// What goes out before anything else, and how much of it has.
    words: Vec<u8>,
    written: usize,
}

impl<IO: AsyncWrite + Unpin> Worded<IO> {
    pub(crate) fn new(io: IO, worker: Rc<Worker>, progress: Rc<Progress>) -> Self {
        Self { io, worker, progress, words: Vec::new(), written: 0 }
    }

    fn poll_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.words.len() {
            let written =
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.words[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Worded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_words(cx))?;
        match bare_refusal(bytes) {
            // Only where a head was begun and no answer is due can it be the library's.
            Some(reason) if self.progress.awaits_head() => {
                let id = self.worker.request_id();
                self.words = in_http1(&answer::problem(&Denied::new(reason), &id));
                self.written = 0;
                self.progress.refused.replace(Some((reason, id)));
                Poll::Ready(Ok(bytes.len()))
            }
            _ => Pin::new(&mut self.io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_words(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_words(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Worded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

/// The reason behind a head that the library made by itself: empty, and without the request id
/// that every answer of the edge carries.
fn bare_refusal(bytes: &[u8]) -> Option<Reason> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= BARE_MAX)?;
    let is_bare = text.ends_with("\r\n\r\n")
        && text.contains("\r\ncontent-length: 0\r\n")
        && !text.contains("\r\nx-request-id: ");
    match text.strip_prefix("HTTP/1.1 ")?.get(..4).filter(|_| is_bare)? {
        "400 " => Some(Reason::MalformedRequest),
        "414 " => Some(Reason::UriTooLong),
        "431 " => Some(Reason::HeadersTooLarge),
        _ => None,
    }
}

fn in_http1(problem: &http::Response<Vec<u8>>) -> Vec<u8> {
    let status = problem.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut words = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in problem.headers() {
        words.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    let length = problem.body().len();
    words.extend(format!("connection: close\r\ncontent-length: {length}\r\n\r\n").into_bytes());
    words.extend(problem.body());
    words
}

/// The library's heads have a status line and three fields.
const BARE_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_librarys_own_heads_are_bare() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: Sun, 22 Nov 2026 06:38:37 GMT\r\n\r\n";
        assert_eq!(bare_refusal(bare.as_bytes()), Some(Reason::HeadersTooLarge));
        for other in [
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nx-request-id: 7\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "",
        ] {
            assert_eq!(bare_refusal(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_problem_is_written_as_http1() {
        let problem = answer::problem(&Denied::new(Reason::MalformedRequest), "id-1");
        let text = String::from_utf8(in_http1(&problem)).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("x-request-id: id-1") && body.contains("id-1"), "{text}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{text}");
    }
}
