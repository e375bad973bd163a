//! What a connection is doing, seen from its bytes: the one source of all its deadlines.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The state of one client connection that its deadlines go by.
pub(crate) struct Progress {
    /// When a byte last moved, either way.
    moved: Cell<Instant>,
    /// When the first byte of a request came whose head is not complete yet.
    head_since: Cell<Option<Instant>>,
    /// Requests between head and end of answer.
    requests: Cell<u32>,
    /// Requests that wait for an upstream, during which no byte need move.
    waits: Cell<u32>,
}

/// A deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// A request's head was begun and not completed.
    Head,
    /// Nothing moved while a request was open: a body that stopped, an answer nobody reads.
    Stalled,
    /// No request was open.
    Idle,
}

impl Progress {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            moved: Cell::new(Instant::now()),
            head_since: Cell::new(None),
            requests: Cell::new(0),
            waits: Cell::new(0),
        })
    }

    pub(crate) fn begin_request(&self) {
        self.head_since.set(None);
        self.requests.set(self.requests.get() + 1);
    }

    pub(crate) fn end_request(&self) {
        self.moved.set(Instant::now());
        self.requests.set(self.requests.get() - 1);
    }

    /// Suspends the deadlines for as long as the guard lives.
    pub(crate) fn wait(&self) -> Wait<'_> {
        self.waits.set(self.waits.get() + 1);
        Wait(self)
    }

    /// The deadline that has passed, or else how long to sleep before asking again.
    pub(crate) fn overdue(&self, head_max: Duration, idle_max: Duration) -> Result<Overdue, Duration> {
        if self.waits.get() > 0 {
            return Err(idle_max.min(head_max));
        }
        let head = self.head_since.get().map(|since| head_max.saturating_sub(since.elapsed()));
        let idle = idle_max.saturating_sub(self.moved.get().elapsed());
        match (head, idle) {
            (Some(Duration::ZERO), _) => Ok(Overdue::Head),
            (_, Duration::ZERO) if self.requests.get() > 0 => Ok(Overdue::Stalled),
            (_, Duration::ZERO) => Ok(Overdue::Idle),
            // A head may begin right after this look, so none is longer than `head_max`.
            (head, idle) => Err(head.unwrap_or(head_max).min(idle)),
        }
    }

    fn read(&self, heads: bool) {
        let now = Instant::now();
        self.moved.set(now);
        if heads && self.requests.get() == 0 && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
    }
}

/// Suspends a connection's deadlines while it lives.
pub(crate) struct Wait<'a>(&'a Progress);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.waits.set(self.0.waits.get() - 1);
        self.0.moved.set(Instant::now());
    }
}

/// A stream whose bytes are noted in a [`Progress`].
pub(crate) struct Watched<IO> {
    pub(crate) io: IO,
    pub(crate) progress: Rc<Progress>,
    /// Whether bytes outside of a request begin one. So in HTTP/1; HTTP/2 has other frames.
    pub(crate) heads: bool,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.read(self.heads);
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        if matches!(result, Poll::Ready(Ok(n)) if n > 0) {
            self.progress.moved.set(Instant::now());
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(100);
    const SHORT: Duration = Duration::ZERO;

    #[test]
    fn the_deadline_is_that_of_what_goes_on() {
        let progress = Progress::new();
        assert_eq!(progress.overdue(LONG, SHORT), Ok(Overdue::Idle));
        assert!(progress.overdue(SHORT, LONG).is_err(), "no head was begun");
        progress.read(true);
        assert_eq!(progress.overdue(SHORT, LONG), Ok(Overdue::Head));
        progress.begin_request();
        assert!(progress.overdue(SHORT, LONG).is_err(), "the head is complete");
        assert_eq!(progress.overdue(LONG, SHORT), Ok(Overdue::Stalled));
        let wait = progress.wait();
        assert!(progress.overdue(SHORT, SHORT).is_err(), "the upstream is being waited for");
        drop(wait);
        progress.end_request();
        assert_eq!(progress.overdue(LONG, SHORT), Ok(Overdue::Idle));
    }

    #[test]
    fn frames_of_http2_begin_no_head() {
        let progress = Progress::new();
        progress.read(false);
        assert!(progress.overdue(SHORT, LONG).is_err());
    }
}
