//! What a connection is doing: the one source of all its deadlines.
//!
//! HTTP/1 is judged by its bytes. HTTP/2 is judged by its requests, each for itself, because its
//! pings and window updates move bytes without moving anything.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use edge_common::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The state of one client connection that its deadlines go by.
pub(crate) struct Progress {
    /// When something last moved: a byte in HTTP/1, a request's begin or end in HTTP/2.
    moved: Cell<Instant>,
    /// When the first byte of a request came whose head is not complete yet.
    head_since: Cell<Option<Instant>>,
    /// Bodies that are still coming in, some of them after their request was answered.
    uploads: Cell<u32>,
    /// Requests between head and end of answer.
    requests: RefCell<Vec<Rc<RequestClock>>>,
    /// Whether a request has come at all.
    is_fresh: Cell<bool>,
    /// What was refused before it was a request: why, and under which id.
    pub(crate) refused: RefCell<Option<(Reason, String)>>,
}

/// What one request waits for, and since when.
pub(crate) struct RequestClock {
    since: Cell<Instant>,
    waits_for: Cell<WaitsFor>,
    /// Whether it was given up because nothing came.
    is_overdue: Cell<bool>,
}

/// Whose turn it is in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// The client, to send more or to take more.
    Client,
    /// Somebody with a deadline of his own.
    Exchange,
}

/// A deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// A request's head was begun and not completed.
    Head,
    /// Nothing moved while a request was open: a body that stopped, an answer nobody takes.
    Stalled,
    /// No request was open.
    Idle,
}

impl Progress {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            moved: Cell::new(Instant::now()),
            head_since: Cell::new(None),
            uploads: Cell::new(0),
            requests: RefCell::default(),
            is_fresh: Cell::new(true),
            refused: RefCell::default(),
        })
    }

    pub(crate) fn begin_request(&self) -> Rc<RequestClock> {
        self.is_fresh.set(false);
        self.head_since.set(None);
        self.moved.set(Instant::now());
        let clock = Rc::new(RequestClock {
            since: Cell::new(Instant::now()),
            waits_for: Cell::new(WaitsFor::Client),
            is_overdue: Cell::new(false),
        });
        self.requests.borrow_mut().push(Rc::clone(&clock));
        clock
    }

    pub(crate) fn end_request(&self, clock: &Rc<RequestClock>) {
        self.moved.set(Instant::now());
        self.requests.borrow_mut().retain(|other| !Rc::ptr_eq(other, clock));
    }

    /// Notes that a body comes in, for as long as the guard lives.
    pub(crate) fn upload(self: &Rc<Self>) -> Uploading {
        self.uploads.set(self.uploads.get() + 1);
        Uploading(Rc::clone(self))
    }

    /// The deadline that has passed, or else how long to sleep before asking again.
    ///
    /// `by_bytes` is whether any byte that moves keeps the requests alive: so in HTTP/1.
    pub(crate) fn overdue(
        &self,
        head_max: Duration,
        idle_max: Duration,
        by_bytes: bool,
    ) -> Result<Overdue, Duration> {
        let left = |since: Instant, max: Duration| max.saturating_sub(since.elapsed());
        let head = self.head_since.get().map_or(head_max, |since| left(since, head_max));
        if head.is_zero() {
            return Ok(Overdue::Head);
        }
        let requests = self.requests.borrow();
        let mut next = head;
        if requests.is_empty() {
            // Who connects has something to ask, and soon.
            let idle_max = if self.is_fresh.get() { head_max.min(idle_max) } else { idle_max };
            next = next.min(left(self.moved.get(), idle_max));
            return if next.is_zero() { Ok(Overdue::Idle) } else { Err(next) };
        }
        for clock in requests.iter().filter(|c| c.waits_for.get() != WaitsFor::Exchange) {
            let moved = if by_bytes { self.moved.get() } else { clock.since.get() };
            let idle = left(moved.max(clock.since.get()), idle_max);
            clock.is_overdue.set(idle.is_zero());
            next = next.min(idle);
        }
        if next.is_zero() { Ok(Overdue::Stalled) } else { Err(next) }
    }

    /// Whether a head was begun and no request is open.
    pub(crate) fn awaits_head(&self) -> bool {
        self.head_since.get().is_some() && self.requests.borrow().is_empty()
    }

    fn read(&self) {
        let now = Instant::now();
        self.moved.set(now);
        let is_head = self.requests.borrow().is_empty() && self.uploads.get() == 0;
        if is_head && self.head_since.get().is_none() {
            self.head_since.set(Some(now));
        }
    }
}

impl RequestClock {
    /// Notes that something moved, and whose turn it is now.
    pub(crate) fn turn(&self, waits_for: WaitsFor) {
        self.since.set(Instant::now());
        self.waits_for.set(waits_for);
    }

    /// Notes whose turn it is without anything having moved.
    pub(crate) fn wait(&self, waits_for: WaitsFor) {
        if self.waits_for.replace(waits_for) != waits_for {
            self.since.set(Instant::now());
        }
    }

    /// Whom the request was waiting for when it was given up.
    pub(crate) fn overdue(&self) -> Option<WaitsFor> {
        self.is_overdue.get().then(|| self.waits_for.get())
    }
}

/// A body that comes in.
pub(crate) struct Uploading(Rc<Progress>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.uploads.set(self.0.uploads.get() - 1);
    }
}

/// A stream whose bytes are noted in a [`Progress`], unless it carries HTTP/2.
pub(crate) struct Watched<IO> {
    pub(crate) io: IO,
    pub(crate) progress: Rc<Progress>,
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
            self.progress.read();
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
        assert_eq!(progress.overdue(LONG, SHORT, true), Ok(Overdue::Idle));
        progress.read();
        assert_eq!(progress.overdue(SHORT, LONG, true), Ok(Overdue::Head));
        let clock = progress.begin_request();
        assert!(progress.overdue(LONG, LONG, true).is_err(), "the head is complete");
        assert_eq!(progress.overdue(LONG, SHORT, true), Ok(Overdue::Stalled));
        assert_eq!(clock.overdue(), Some(WaitsFor::Client));
        clock.wait(WaitsFor::Exchange);
        assert!(progress.overdue(LONG, SHORT, true).is_err(), "it has a deadline of its own");
        progress.end_request(&clock);
        assert_eq!(progress.overdue(LONG, SHORT, true), Ok(Overdue::Idle));
    }

    #[test]
    fn a_fresh_connection_has_as_long_as_a_head() {
        let progress = Progress::new();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(progress.overdue(Duration::from_millis(1), LONG, false), Ok(Overdue::Idle));
        let clock = progress.begin_request();
        progress.end_request(&clock);
        assert!(progress.overdue(LONG, LONG, false).is_err());
    }

    #[test]
    fn a_request_of_http2_lives_by_itself() {
        let progress = Progress::new();
        let idle = Duration::from_millis(5);
        let (stuck, busy) = (progress.begin_request(), progress.begin_request());
        std::thread::sleep(idle);
        busy.turn(WaitsFor::Client);
        progress.moved.set(Instant::now());
        assert_eq!(progress.overdue(LONG, idle, false), Ok(Overdue::Stalled));
        assert_eq!((stuck.overdue(), busy.overdue()), (Some(WaitsFor::Client), None));
        assert!(progress.overdue(LONG, idle, true).is_err(), "bytes moved");
    }

    #[test]
    fn the_rest_of_a_body_begins_no_head() {
        let progress = Progress::new();
        let upload = progress.upload();
        progress.read();
        assert!(progress.overdue(SHORT + Duration::from_millis(1), LONG, true).is_err());
        drop(upload);
        progress.read();
        assert!(progress.head_since.get().is_some());
    }
}
