//! Connections to one upstream's servers, kept by one worker.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use edge_common::Reason;
use http::{Method, Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use super::{
    Throttle,
    body::{Upload, UploadState},
};
use crate::config::settings;

/// One upstream, as one worker sees it.
pub(crate) struct Upstream {
    settings: settings::Upstream,
    /// Connections that wait for a request, the latest last: the warmest is taken first and
    /// the others get a chance to grow old.
    idle: RefCell<Vec<Idle>>,
    slots: std::sync::Arc<Semaphore>,
    /// The server that the next new connection tries first.
    turn: Cell<usize>,
    complaints: Throttle,
}

struct Idle {
    sender: SendRequest<Upload>,
    since: Instant,
}

/// A connection in use. Given back when its answer is complete, closed when dropped.
pub(crate) struct Lease {
    upstream: Rc<Upstream>,
    sender: SendRequest<Upload>,
    _slot: OwnedSemaphorePermit,
}

impl Lease {
    pub(crate) fn give_back(self) {
        if !self.sender.is_closed() {
            let idle = Idle { sender: self.sender, since: Instant::now() };
            self.upstream.idle.borrow_mut().push(idle);
        }
    }
}

impl Upstream {
    pub(crate) fn new(settings: settings::Upstream) -> Rc<Self> {
        let slots = std::sync::Arc::new(Semaphore::new(settings.connections_max));
        Rc::new(Self {
            settings,
            idle: RefCell::default(),
            slots,
            turn: Cell::new(0),
            complaints: Throttle::default(),
        })
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// A kept connection may have been closed by the other side just now. A request that never
    /// left is sent again; one that may have arrived is too, once, if repeating it is safe.
    pub(crate) async fn send(
        self: &Rc<Self>,
        mut request: Request<Upload>,
        upload: &UploadState,
        pause_max: Duration,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let slot = self.slot().await?;
        while let Some(mut sender) = self.take_idle() {
            let copy = repeatable(&request);
            match (self.exchange(&mut sender, request, upload, pause_max).await, copy) {
                (Ok(response), _) => return Ok((response, self.lease(sender, slot))),
                (Err(Failed { unsent: Some(unsent), .. }), _) => request = *unsent,
                (Err(Failed { reason: Reason::UpstreamInvalid, .. }), Some(copy)) => {
                    request = copy;
                    break;
                }
                (Err(failed), _) => return Err(failed.reason),
            }
        }
        let mut sender = self.connect().await?;
        let response = self.exchange(&mut sender, request, upload, pause_max).await;
        response.map(|r| (r, self.lease(sender, slot))).map_err(|failed| failed.reason)
    }

    /// One of the connections that this worker may hold. The timer is for those who have to wait.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, Reason> {
        let slots = || std::sync::Arc::clone(&self.slots);
        if let Ok(slot) = slots().try_acquire_owned() {
            return Ok(slot);
        }
        let slot = timeout(self.settings.connect_timeout, slots().acquire_owned());
        slot.await.ok().and_then(Result::ok).ok_or(Reason::Overload)
    }

    fn lease(self: &Rc<Self>, sender: SendRequest<Upload>, slot: OwnedSemaphorePermit) -> Lease {
        Lease { upstream: Rc::clone(self), sender, _slot: slot }
    }

    /// The warmest connection that is done with its last request. One that still sends somebody's
    /// body, because the answer came early, is left to finish or to grow old.
    fn take_idle(&self) -> Option<SendRequest<Upload>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|kept| kept.since.elapsed() < IDLE_MAX && !kept.sender.is_closed());
        let ready = idle.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(idle.remove(ready).sender)
    }

    /// One request on one connection. Whoever's turn it is has a deadline: the client may pause
    /// its body for `pause_max`, the upstream may take `response_timeout` from the last part of it.
    async fn exchange(
        &self,
        sender: &mut SendRequest<Upload>,
        request: Request<Upload>,
        upload: &UploadState,
        pause_max: Duration,
    ) -> Result<Response<Incoming>, Failed> {
        upload.since.set(Instant::now());
        let mut response = std::pin::pin!(sender.try_send_request(request));
        loop {
            let waited = upload.since.get().elapsed();
            let (reason, max) = if upload.is_starved.get() {
                (Reason::RequestTimeout, pause_max)
            } else {
                (Reason::UpstreamTimeout, self.settings.response_timeout)
            };
            if waited >= max {
                return Err(Failed { reason, unsent: None });
            }
            if upload.is_starved.get() && Duration::from_secs(upload.lag_s()) >= pause_max {
                return Err(Failed { reason: Reason::RequestTimeout, unsent: None });
            }
            tokio::select! {
                biased;
                result = &mut response => return result.map_err(|mut error| Failed {
                    reason: upload.fault.get().unwrap_or(Reason::UpstreamInvalid),
                    unsent: error.take_message().map(Box::new),
                }),
                // Turns change without a wake-up here, hence no longer than a second.
                () = sleep((max - waited).min(LOOK_MAX)) => {}
            }
        }
    }

    /// A new connection to the first server that accepts one, each tried once, in turn.
    async fn connect(&self) -> Result<SendRequest<Upload>, Reason> {
        let servers = &self.settings.servers;
        let first = self.turn.replace((self.turn.get() + 1) % servers.len());
        let mut reason = Reason::UpstreamUnreachable;
        for server in servers.iter().cycle().skip(first).take(servers.len()) {
            match timeout(self.settings.connect_timeout, open(*server)).await {
                Ok(Ok(sender)) => return Ok(sender),
                Ok(Err(error)) => {
                    if self.complaints.may_log() {
                        tracing::warn!(upstream = self.settings.name, %server, %error, "unreachable");
                    }
                    reason = Reason::UpstreamUnreachable;
                }
                Err(_) => {
                    if self.complaints.may_log() {
                        tracing::warn!(upstream = self.settings.name, %server, "connect timed out");
                    }
                    reason = Reason::UpstreamTimeout;
                }
            }
        }
        Err(reason)
    }
}

/// Why one exchange failed, and the request if it never left.
struct Failed {
    reason: Reason,
    unsent: Option<Box<Request<Upload>>>,
}

async fn open(server: SocketAddr) -> Result<SendRequest<Upload>, Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%server, %error, "upstream connection ended");
        }
    });
    Ok(sender)
}

/// A copy of the request, if sending it twice does no harm: a safe method (RFC 9110, 9.2.1)
/// without a body.
fn repeatable(request: &Request<Upload>) -> Option<Request<Upload>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let body = request.body().again().filter(|_| safe)?;
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// How long a connection is kept without a request: less than the 5 s after which common
/// servers (Node among them) close it, so that the race is rare.
const IDLE_MAX: Duration = Duration::from_secs(4);
const LOOK_MAX: Duration = Duration::from_secs(1);
