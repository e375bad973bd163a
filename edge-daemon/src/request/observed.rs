//! A client's HTTP/2 bytes on their way past somebody who counts, and gathered: `h2` flushes behind each part of an
//! answer, and a record and a system call for each would cost more than the part.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use edge_policy::http2::Conduct;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    http1::Stream,
    watch::{Turn, Who},
};

/// The stream as `h2` has it. Its frames are counted as they pass, and its bytes as the client takes them. What is
/// written stays here until [`Outbox::poll_send`], or until it is enough for a record.
pub(super) struct Observed<IO> {
    pub(super) outbox: Rc<RefCell<Outbox<IO>>>,
    pub(super) conduct: Rc<RefCell<Conduct>>,
}

/// A stream, and what is to go out by it.
pub(super) struct Outbox<IO> {
    io: IO,
    waiting: Vec<u8>,
    turn: Rc<Turn>,
}

impl<IO> Outbox<IO> {
    pub(super) fn new(io: IO, turn: Rc<Turn>) -> Self {
        Self { io, waiting: Vec::new(), turn }
    }
}

impl Outbox<Box<dyn Stream>> {
    /// Whether the client broke the protocol below.
    pub(super) fn is_abused(&mut self) -> bool {
        self.io.is_abused()
    }
}

impl<IO: AsyncWrite + Unpin> Outbox<IO> {
    /// Whether the client is to take something.
    pub(super) const fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends all that waits. To be called whenever the connection has been polled: `h2` believes that it is out.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        // Memory of connections that are silent is for those that are not.
        self.waiting = Vec::new();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.turn.moved(Who::Taker, written);
            self.waiting.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Observed<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outbox = &mut *self.outbox.borrow_mut();
        ready!(Pin::new(&mut outbox.io).poll_read(cx, buf))?;
        let (came, now_ms) = (buf.filled().len() - before, outbox.turn.alarm().now_ms());
        let passed = self.conduct.borrow_mut().received(&buf.filled()[before..], now_ms);
        buf.set_filled(before + passed);
        // What has a fault is held back: the library has no word of its own for it. Whoever polls the
        // connection gives it up.
        if came > 0 && passed == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Observed<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outbox = &mut *self.outbox.borrow_mut();
        let whole = parts.iter().map(|part| part.len()).sum();
        if outbox.waiting.len() + whole > RECORD {
            ready!(outbox.poll_empty(cx))?;
        }
        let written = match whole > RECORD {
            true => ready!(Pin::new(&mut outbox.io).poll_write_vectored(cx, parts))?,
            false => whole,
        };
        let (mut conduct, now_ms) = (self.conduct.borrow_mut(), outbox.turn.alarm().now_ms());
        let mut left = written;
        for part in parts {
            let part = &part[..left.min(part.len())];
            conduct.sent(part, now_ms);
            left -= part.len();
            if whole <= RECORD {
                outbox.waiting.extend_from_slice(part);
            }
        }
        if whole > RECORD {
            outbox.turn.moved(Who::Taker, written);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outbox = &mut *self.outbox.borrow_mut();
        ready!(outbox.poll_send(cx))?;
        Pin::new(&mut outbox.io).poll_shutdown(cx)
    }
}

/// What one TLS record holds, in bytes.
const RECORD: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::request::timers::Timers;

    /// A socket that takes so much, and what it was given, write by write.
    #[derive(Default)]
    struct Socket {
        room: usize,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn observed(room: usize) -> Observed<Socket> {
        let socket = Socket { room, ..Socket::default() };
        let outbox = Outbox::new(socket, Rc::new(Turn::new(Timers::new().alarm())));
        let conduct = Rc::new(RefCell::new(Conduct::new(100, 0)));
        Observed { outbox: Rc::new(RefCell::new(outbox)), conduct }
    }

    #[test]
    fn what_is_written_leaves_together_and_whole() {
        let (mut observed, mut cx) = (observed(1_000_000), Context::from_waker(Waker::noop()));
        for _ in 0..3 {
            assert!(matches!(
                Pin::new(&mut observed).poll_write(&mut cx, &[7; 1_100]),
                Poll::Ready(Ok(1_100))
            ));
            assert!(Pin::new(&mut observed).poll_flush(&mut cx).is_ready());
        }
        assert!(observed.outbox.borrow().io.writes.is_empty());
        assert!(observed.outbox.borrow_mut().poll_send(&mut cx).is_ready());
        assert_eq!(observed.outbox.borrow().io.writes, [vec![7; 3_300]]);
        // What is more than a record goes by itself, behind what was there before.
        let _ = Pin::new(&mut observed).poll_write(&mut cx, &[8; 10]);
        let _ = Pin::new(&mut observed).poll_write(&mut cx, &[9; RECORD + 1]);
        let writes = observed.outbox.borrow().io.writes.clone();
        assert_eq!(writes[1..], [vec![8; 10], vec![9; RECORD + 1]]);
        assert!(!observed.outbox.borrow().is_waiting());
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_kept() {
        let (mut observed, mut cx) = (observed(5_000), Context::from_waker(Waker::noop()));
        let mut write = || Pin::new(&mut observed).poll_write(&mut cx, &[7; 4_000]);
        let accepted = (0..100).filter(|_| write().is_ready()).count();
        assert_eq!(accepted, 5, "5000 are out, and no more wait than a record holds");
        let outbox = &mut *observed.outbox.borrow_mut();
        assert!(outbox.poll_send(&mut cx).is_pending() && outbox.is_waiting());
        outbox.io.room = 1_000_000;
        assert!(outbox.poll_send(&mut cx).is_ready() && !outbox.is_waiting());
        assert_eq!(outbox.io.writes.concat(), vec![7; 20_000]);
    }
}
