//! A client's HTTP/2 bytes on their way past somebody who counts.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use edge_policy::http2::Conduct;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::watch::{Turn, Who};

/// A stream whose frames are counted as they pass, and whose bytes as the client takes them.
pub(super) struct Observed<IO> {
    pub(super) io: IO,
    pub(super) conduct: Rc<RefCell<Conduct>>,
    pub(super) turn: Rc<Turn>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Observed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let (came, now_ms) = (buf.filled().len() - before, self.turn.alarm().now_ms());
        let passed = self.conduct.borrow_mut().received(&buf.filled()[before..], now_ms);
        buf.set_filled(before + passed);
        // What has a fault is held back: the library has no word of its own for it. Whoever polls the
        // connection gives it up.
        if came > 0 && passed == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Observed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.turn.moved(Who::Taker, written);
        self.conduct.borrow_mut().sent(&buf[..written], self.turn.alarm().now_ms());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, parts))?;
        self.turn.moved(Who::Taker, written);
        let (mut conduct, now_ms) = (self.conduct.borrow_mut(), self.turn.alarm().now_ms());
        let mut left = written;
        for part in parts {
            let gone = left.min(part.len());
            conduct.sent(&part[..gone], now_ms);
            left -= gone;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
