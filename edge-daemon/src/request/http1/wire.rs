//! The bytes of one connection: what has come and was not used, what is to go and has not.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    io::{self, IoSlice, Write as _},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use edge_policy::http1;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::coop,
};

use crate::{
    tls::{self, TlsStream},
    upstream::dial,
};

/// What a connection's bytes come and go by.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Once the other side has said that it will send no more: ready when its end of the
    /// connection is closed as well. Over TLS, the former is an alert, the latter the socket's.
    fn poll_hung_up(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Takes what is the last that is written, to be flushed. Over TLS, word that it is the last goes
    /// with it and not in a packet of its own. `None`: the stream does not take it so, or not now.
    fn write_last(&mut self, _last: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        None
    }

    /// Whether it ended because the other side broke the protocol of the stream itself, TLS.
    fn is_abused(&mut self) -> bool {
        false
    }
}

impl Stream for TcpStream {}

impl Stream for dial::Stream {}

impl Stream for TlsStream<TcpStream> {
    fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Bytes behind the alert are nobody's: who sends them is done for, too.
        self.get_ref().0.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map(|_| ())
    }

    fn write_last(&mut self, last: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let session = self.get_mut().1;
        let whole: usize = last.iter().map(|part| part.len()).sum();
        let written = session.writer().write_vectored(last);
        match written {
            Ok(0) => return None,
            Ok(bytes) if bytes == whole => session.send_close_notify(),
            _ => {}
        }
        Some(written)
    }

    fn is_abused(&mut self) -> bool {
        tls::is_abused(self.get_mut().1)
    }
}

/// One connection's bytes.
pub(crate) struct Wire {
    io: Box<dyn Stream>,
    /// What has come and was not used.
    pub(crate) input: BytesMut,
    /// What is to go, before `tail`; `written` of it has gone.
    output: Vec<u8>,
    written: usize,
    /// A part of a body that was not worth copying.
    tail: Bytes,
    /// Whether a chunk is still to be closed.
    owes_line_end: bool,
    /// Whether the stream has taken bytes that it may not have sent.
    is_dirty: bool,
    /// Whether nothing comes behind what is to go.
    is_last: bool,
    /// How much to ask for at once.
    appetite: usize,
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Stream>) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
            tail: Bytes::new(),
            owes_line_end: false,
            is_dirty: false,
            is_last: false,
            appetite: READ_MIN,
        }
    }

    /// Reads more; 0 is the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if SPARING.get() {
            self.appetite = READ_MIN;
        }
        // A head that comes in parts does not make its buffer grow before it is full.
        let is_scarce = self.input.capacity() - self.input.len() < self.appetite / 2;
        if is_scarce && !self.input.try_reclaim(self.appetite) {
            if self.input.capacity() < READ_MIN && self.appetite == READ_MIN {
                // There is no buffer, or what a pause has left of a head: it goes on in one with room.
                let left = std::mem::replace(&mut self.input, take_buffer());
                self.input.extend_from_slice(&left);
            } else {
                self.input.reserve(self.appetite);
            }
        }
        let room = self.input.capacity() - self.input.len();
        let read = pin!(self.io.read_buf(&mut self.input)).poll(cx);
        match &read {
            Poll::Ready(Ok(bytes)) if *bytes == room => {
                self.appetite = (self.appetite * 2).min(READ_MAX);
            }
            Poll::Ready(_) => {}
            Poll::Pending => self.rest(),
        }
        read
    }

    /// Whether it ended because the other side broke the protocol of the stream itself.
    pub(crate) fn is_abused(&mut self) -> bool {
        self.io.is_abused()
    }

    /// Ready when the other side, which has ended what it sends, is gone altogether.
    pub(crate) fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.poll_hung_up(cx)
    }

    /// Gives back the memory that a connection without work does not need: all of it, or what the begin of a
    /// head does not fill, since who trickles it is in no hurry.
    fn rest(&mut self) {
        if self.input.len() <= PART_MAX {
            let part = BytesMut::from(&*self.input);
            give_buffer(std::mem::replace(&mut self.input, part));
            self.appetite = READ_MIN;
        }
    }

    /// Where to write what is to go.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.tail.is_empty(), "whoever writes on has flushed");
        if self.output.capacity() == 0 {
            self.output = OUTPUTS.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        if std::mem::take(&mut self.owes_line_end) {
            self.output.extend_from_slice(b"\r\n");
        }
        &mut self.output
    }

    /// Adds a part of a body. Afterwards the wire may be full.
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.len() <= COPIED_MAX {
            self.output().extend_from_slice(&data);
        } else {
            self.tail = data;
        }
    }

    /// Adds a part of a body as a chunk.
    pub(crate) fn push_chunk(&mut self, data: Bytes) {
        http1::open_chunk(self.output(), data.len());
        self.push(data);
        // Goes with what comes next, so that it need not go alone.
        self.owes_line_end = true;
    }

    /// Whether to flush before anything more is added: it would wait behind what the other side does not take.
    pub(crate) fn is_full(&self) -> bool {
        self.is_dirty || !self.tail.is_empty() || self.output.len() - self.written >= OUTPUT_FULL
    }

    /// Writes all that is to go, because nothing comes after it for now. Adds up how much moved.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        moved: &mut usize,
    ) -> Poll<io::Result<()>> {
        if self.owes_line_end {
            ready!(self.poll_write(cx, moved))?;
            self.output();
        }
        self.poll_write(cx, moved)
    }

    /// Says that nothing comes behind what is in the buffer.
    pub(crate) fn ends_here(&mut self) {
        self.is_last = true;
    }

    /// Writes what is to go; ready when there is room again.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        moved: &mut usize,
    ) -> Poll<io::Result<()>> {
        while self.written < self.output.len() || !self.tail.is_empty() {
            let head = &self.output[self.written..];
            let both = [IoSlice::new(head), IoSlice::new(&self.tail)];
            let fits = self.is_last && head.len() + self.tail.len() <= OUTPUT_FULL;
            let last = if fits { self.io.write_last(&both) } else { None };
            let io = Pin::new(&mut *self.io);
            let written = match last {
                Some(written) => written?,
                None if self.tail.is_empty() => ready!(io.poll_write(cx, head))?,
                None if head.is_empty() => ready!(io.poll_write(cx, &self.tail))?,
                None => ready!(io.poll_write_vectored(cx, &both))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_dirty = true;
            *moved += written;
            let of_head = written.min(head.len());
            self.written += of_head;
            self.tail.advance(written - of_head);
        }
        if self.written > 0 {
            self.written = 0;
            self.output.clear();
            if self.output.capacity() <= OUTPUT_KEPT_MAX {
                give(&OUTPUTS, std::mem::take(&mut self.output));
            } else {
                self.output = Vec::new();
            }
        }
        if self.is_dirty {
            ready!(Pin::new(&mut *self.io).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more will go.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    /// Whether all that was to go has gone.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.is_dirty
            && !self.owes_line_end
            && self.tail.is_empty()
            && self.written == self.output.len()
    }

    /// Whether the other side has ended the connection, or has said something that nobody asked it.
    pub(crate) fn is_stale(&mut self) -> bool {
        if !self.input.is_empty() {
            return true;
        }
        // A task that has had its share of work is told by the runtime that there is nothing, whatever there is.
        let look = coop::unconstrained(poll_fn(|cx| self.poll_fill(cx)));
        pin!(look).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

/// Whether this worker's connections are to hold little, because memory is scarce: who is slow then
/// holds buffers that are as small as they can be.
pub(crate) fn spare(is_scarce: bool) {
    if SPARING.replace(is_scarce) != is_scarce && is_scarce {
        INPUTS.take();
        OUTPUTS.take();
    }
}

thread_local! {
    static SPARING: Cell<bool> = const { Cell::new(false) };
    /// Buffers that no connection of this worker needs just now.
    static INPUTS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> BytesMut {
    INPUTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(READ_MIN))
}

fn give_buffer(mut buffer: BytesMut) {
    buffer.clear();
    // What was used of it comes back, unless somebody holds a part of it still.
    let _ = buffer.try_reclaim(READ_MIN);
    if (READ_MIN..=READ_MAX).contains(&buffer.capacity()) {
        give(&INPUTS, buffer);
    }
}

fn give<T>(pool: &'static std::thread::LocalKey<RefCell<Vec<T>>>, buffer: T) {
    pool.with_borrow_mut(|kept| {
        if kept.len() < KEPT_MAX && !SPARING.get() {
            kept.push(buffer);
        }
    });
}

/// Bytes that a read has room for: a head with a small body at first, more once reads fill it.
const READ_MIN: usize = 8 * 1024;
const READ_MAX: usize = 64 * 1024;
/// What has come of a head up to this size is kept in a buffer of its own size while nothing comes.
const PART_MAX: usize = 2 * 1024;
/// A part of a body up to this size is copied behind what is to go, so that both go at once.
const COPIED_MAX: usize = 8 * 1024;
/// So much is written before more is taken: the content of a TLS record.
const OUTPUT_FULL: usize = 16 * 1024;
const OUTPUT_KEPT_MAX: usize = 32 * 1024;
/// Buffers that a worker keeps for the next who needs one.
const KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// Takes whatever it is given, and never gets rid of it.
    struct Stuck;

    impl Stream for Stuck {}

    impl AsyncRead for Stuck {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Stuck {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_look_at_a_connection_is_not_put_off() -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        drop(listener.accept().await?);
        stream.readable().await?;
        let mut wire = Wire::new(Box::new(stream));
        while coop::has_budget_remaining() {
            coop::consume_budget().await;
        }
        assert!(wire.is_stale());
        Ok(())
    }

    #[test]
    fn nothing_is_added_behind_what_nobody_takes() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut wire = Wire::new(Box::new(Stuck));
        assert!(!wire.is_full());
        wire.push(Bytes::from_static(b"hello"));
        assert!(wire.poll_write(&mut cx, &mut 0).is_pending() && wire.is_full());
    }

    #[test]
    fn buffers_are_small_and_nobodys_where_memory_is_scarce() {
        give(&OUTPUTS, Vec::with_capacity(OUTPUT_KEPT_MAX));
        let mut wire = Wire::new(Box::new(Stuck));
        wire.appetite = READ_MAX;
        spare(true);
        assert!(OUTPUTS.with_borrow(Vec::is_empty));
        give_buffer(BytesMut::with_capacity(READ_MAX));
        assert!(INPUTS.with_borrow(Vec::is_empty));
        let _ = wire.poll_fill(&mut Context::from_waker(std::task::Waker::noop()));
        assert_eq!(wire.appetite, READ_MIN);
        spare(false);
        give_buffer(BytesMut::with_capacity(READ_MAX));
        assert!(!INPUTS.with_borrow(Vec::is_empty));
    }

    #[test]
    fn a_buffer_that_was_used_is_the_next_ones_whole() {
        let kept =
            || INPUTS.with_borrow(|kept| kept.iter().map(BytesMut::capacity).collect::<Vec<_>>());
        let mut buffer = BytesMut::with_capacity(READ_MIN);
        buffer.extend_from_slice(b"a head, and a part");
        buffer.advance(6);
        drop(buffer.split_to(6).freeze());
        give_buffer(buffer);
        assert_eq!(kept(), [READ_MIN]);
        let mut next = take_buffer();
        next.extend_from_slice(b"a body");
        let part = next.split_to(2).freeze();
        give_buffer(next);
        assert_eq!((kept().len(), &part[..]), (0, &b"a "[..]), "somebody holds a part of it");
    }

    /// What was taken, and whether as the last.
    type Taken = Rc<RefCell<Vec<(bool, Vec<u8>)>>>;

    /// Takes so much as the last, and tells of all that it takes.
    struct Telling(usize, Taken);

    impl Stream for Telling {
        fn write_last(&mut self, last: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
            let mut bytes: Vec<u8> = last.iter().flat_map(|part| part.to_vec()).collect();
            bytes.truncate(self.0);
            self.0 -= bytes.len();
            let written = bytes.len();
            (written > 0).then(|| self.1.borrow_mut().push((true, bytes)))?;
            Some(Ok(written))
        }
    }

    impl AsyncRead for Telling {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Telling {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.borrow_mut().push((false, bytes.to_vec()));
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn the_stream_is_told_what_is_the_last() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let told = Taken::default();
        let mut wire = Wire::new(Box::new(Telling(7, Rc::clone(&told))));
        wire.push(Bytes::from_static(b"first"));
        assert!(wire.poll_flush(&mut cx, &mut 0).is_ready());
        wire.push(Bytes::from_static(b"the last"));
        wire.ends_here();
        let mut moved = 0;
        assert!(wire.poll_flush(&mut cx, &mut moved).is_ready());
        let all = [(false, b"first".to_vec()), (true, b"the las".to_vec()), (false, b"t".to_vec())];
        assert_eq!((moved, &**told.borrow()), (8, &all[..]));
    }
}
