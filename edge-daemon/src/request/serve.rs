//! From the listening socket to the requests on a connection: one worker's accept loops.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use edge_common::Reason;
use hyper::{
    Request,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::spawn_local,
    time::sleep,
};

use super::{
    Worker,
    certificate::disowned,
    front::{self, Visitor},
    path,
    watch::{Overdue, Watched},
    words::Worded,
};
use crate::{events::Event, metrics::Metrics};

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Requests over TLS, by the number of the listener.
    Https(usize),
    /// Redirects to HTTPS.
    Http,
}

/// Accepts until `stopping` turns true.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    entrance: Entrance,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(slot) = Slot::take(&worker) else { continue };
                let visit =
                    connection(Rc::clone(&worker), stream, peer, entrance, stopping.clone());
                spawn_local(async move {
                    visit.await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors or memory: it does not pass by asking again at once.
                if worker.complaints.may_log() {
                    tracing::warn!(%error, "cannot accept");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One of the connections that the edge may hold.
struct Slot(Rc<Worker>);

impl Slot {
    fn take(worker: &Rc<Worker>) -> Option<Self> {
        let slot = Self(Rc::clone(worker));
        worker.visitors.set(worker.visitors.get() + 1);
        let open = slot.metrics().connections.fetch_add(1, Relaxed) + 1;
        if open > worker.view().plan.bounds.connections_max {
            worker.counters.count(Reason::ConnectionsFull);
            return None;
        }
        Some(slot)
    }

    fn metrics(&self) -> &Metrics {
        &self.0.edge.metrics
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics().connections.fetch_sub(1, Relaxed);
        self.0.visitors.set(self.0.visitors.get() - 1);
        self.0.left.notify_one();
    }
}

async fn connection(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    entrance: Entrance,
    stopping: watch::Receiver<bool>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match entrance {
        Entrance::Http => {
            serve_http1(worker, Visitor::new(peer), stream, entrance, stopping).await;
        }
        Entrance::Https(listener) => {
            let Some((visitor, stream)) = front::enter(&worker, stream, peer, listener).await
            else {
                return;
            };
            if visitor.speaks_h2() {
                serve_http2(worker, visitor, stream, entrance, stopping).await;
            } else {
                serve_http1(worker, visitor, stream, entrance, stopping).await;
            }
        }
    }
}

async fn serve_http1<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: Rc<Worker>,
    visitor: Visitor,
    io: IO,
    entrance: Entrance,
    stopping: watch::Receiver<bool>,
) {
    let bounds = worker.view().plan.bounds.clone();
    let io = Watched { io, progress: Rc::clone(&visitor.progress) };
    let io = Worded::new(io, Rc::clone(&worker), Rc::clone(&visitor.progress));
    let (own, guest) = (Rc::clone(&worker), visitor.clone());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        path::answer(Rc::clone(&own), guest.clone(), entrance, request.map(Into::into))
    });
    let connection = http1::Builder::new()
        // The deadlines are `Progress`'s; hyper's would also end connections that merely wait.
        .header_read_timeout(None)
        .max_headers(bounds.headers_max)
        .max_buf_size(bounds.header_bytes_max.max(HYPER_BUFFER_MIN) + bounds.uri_bytes_max)
        .serve_connection(TokioIo::new(io), service);
    let stop = |c: Pin<&mut http1::Connection<_, _>>| c.graceful_shutdown();
    drive(&worker, &visitor, connection, stop, true, stopping).await;
}

async fn serve_http2<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: Rc<Worker>,
    visitor: Visitor,
    io: IO,
    entrance: Entrance,
    stopping: watch::Receiver<bool>,
) {
    let bounds = worker.view().plan.bounds.clone();
    let (own, guest) = (Rc::clone(&worker), visitor.clone());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        path::answer(Rc::clone(&own), guest.clone(), entrance, request.map(Into::into))
    });
    let connection = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams_max)
        // A little beyond the bound, so that the path refuses it, with an answer and a count.
        .max_header_list_size(u32::try_from(2 * bounds.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MISTAKES_MAX))
        .keep_alive_interval(Some(PING_EVERY))
        .keep_alive_timeout(bounds.header_timeout)
        .serve_connection(TokioIo::new(io), service);
    let stop = |c: Pin<&mut http2::Connection<_, _, _>>| c.graceful_shutdown();
    drive(&worker, &visitor, connection, stop, false, stopping).await;
}

/// Drives a connection to its end: its own, a deadline's or the daemon's.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    worker: &Worker,
    visitor: &Visitor,
    connection: C,
    stop: impl Fn(Pin<&mut C>),
    by_bytes: bool,
    mut stopping: watch::Receiver<bool>,
) {
    let view = worker.view();
    let bounds = &view.plan.bounds;
    let (mut connection, mut asked_to_stop) = (pin!(connection), false);
    let (mut look, mut disowned) = (Duration::ZERO, pin!(disowned(worker, visitor)));
    loop {
        tokio::select! {
            // The connection first: whatever else is due, it was most likely what woke us.
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    broken_off(worker, visitor, &error);
                }
                return;
            }
            _ = stopping.wait_for(|stop| *stop), if !asked_to_stop => {
                asked_to_stop = true;
                stop(connection.as_mut());
            }
            () = disowned.as_mut() => {
                tracing::info!(address = %visitor.address, "closed: its certificate is disowned");
                return;
            }
            () = sleep(look) => {
                let (head_max, idle_max) = (bounds.header_timeout, bounds.idle_timeout);
                match visitor.progress.overdue(head_max, idle_max, by_bytes) {
                    Err(later) => look = later.max(LOOK_MIN),
                    Ok(Overdue::Idle) if !asked_to_stop => {
                        worker.counters.count(Reason::IdleConnection);
                        asked_to_stop = true;
                        look = STOP_GRACE;
                        stop(connection.as_mut());
                    }
                    Ok(Overdue::Head) => {
                        worker.refuse_connection(visitor.address, Reason::RequestTimeout);
                        return;
                    }
                    Ok(Overdue::Idle | Overdue::Stalled) => return,
                }
            }
        }
    }
}

/// A connection that hyper gave up on, with words of the edge if there was somebody to hear them.
fn broken_off(worker: &Worker, visitor: &Visitor, error: &hyper::Error) {
    let address = visitor.address;
    tracing::debug!(%address, error = %Chain(error), "connection broken off");
    if let Some((reason, request_id)) = visitor.progress.refused.take() {
        worker.counters.count(reason);
        worker.misdeed(address, reason, Some(&request_id));
        worker.edge.events.tell(Event::RequestRefused {
            source: address,
            reason: reason.name(),
            request_id,
            method: String::new(),
            path: String::new(),
            principal: None,
            limit: None,
            ja4: visitor.tls.as_ref().and_then(|facts| facts.ja4),
            rule: None,
            detail: None,
        });
    } else if error.is_parse() || is_http2_misuse(error) {
        worker.refuse_connection(address, Reason::MalformedRequest);
    }
}

/// Whether h2 itself ended the connection because the client broke the protocol or its bounds.
fn is_http2_misuse(error: &hyper::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |e| e.source());
    causes.filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(h2::Error::is_library)
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |e| e.source()).try_for_each(|e| write!(f, ": {e}"))
    }
}

/// Runs a connection's tasks on its worker's thread.
#[derive(Clone)]
struct OnThisThread;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// What `path::answer` gives hyper: refusals are answers, so there is no error.
pub(crate) type Never = Infallible;

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that was asked to stop may take over it.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Deadlines are looked at no more often than this.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// A silent HTTP/2 peer is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(20);
/// What h2 keeps of one stream's answer until the client takes it, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that h2 may reset for a client's mistakes before it gives the connection up.
const MISTAKES_MAX: usize = 16;
/// hyper refuses to work with a smaller buffer.
const HYPER_BUFFER_MIN: usize = 8192;
