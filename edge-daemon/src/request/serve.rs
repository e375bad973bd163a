//! From the listening socket to the requests on a connection: one worker's accept loops.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use edge_common::Reason;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::spawn_local,
    time::sleep,
};

use super::{
    Worker,
    certificate::disowned,
    front::{self, Visitor},
    http1, http2,
};
use crate::{metrics::Metrics, tls::TlsStream};

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It makes ready: no connection is accepted.
    Waiting,
    /// It serves.
    Serving,
    /// It ends.
    Draining,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Requests over TLS, by the number of the listener.
    Https(usize),
    /// Redirects to HTTPS.
    Http,
}

/// Accepts while the daemon serves.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    entrance: Entrance,
    mut phase: watch::Receiver<Phase>,
) {
    let _ = phase.wait_for(|phase| *phase != Phase::Waiting).await;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase == Phase::Draining) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(slot) = Slot::take(&worker) else { continue };
                let visit = connection(Rc::clone(&worker), stream, peer, entrance);
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
        let metrics = slot.metrics();
        let open = metrics.connections.fetch_add(1, Relaxed) + 1;
        let refusal = if open > worker.view().plan.bounds.connections_max {
            Some(Reason::ConnectionsFull)
        } else {
            metrics.memory.refuses_connection(open).then_some(Reason::MemoryFull)
        };
        if let Some(reason) = refusal {
            worker.counters.count(reason);
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

async fn connection(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, entrance: Entrance) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match entrance {
        Entrance::Http => {
            let mut visitor = Visitor::new(peer);
            if visitor.take_place(&worker) {
                http1::serve(worker, visitor, entrance, Box::new(stream)).await;
            }
        }
        Entrance::Https(listener) => {
            let Some((visitor, stream)) = front::enter(&worker, stream, peer, listener).await
            else {
                return;
            };
            if visitor.tls.as_ref().is_none_or(|facts| facts.peer.is_none()) {
                return converse(worker, visitor, entrance, stream).await;
            }
            let (own, guest) = (Rc::clone(&worker), visitor.clone());
            tokio::select! {
                // First of all: a request that comes after the revocation must not be begun.
                biased;
                () = disowned(&own, &guest) => {
                    tracing::info!(address = %guest.address, "closed: its certificate is disowned");
                }
                () = converse(worker, visitor, entrance, stream) => {}
            }
        }
    }
}

/// Serves requests over TLS, in whichever version was agreed on.
async fn converse(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    stream: TlsStream<TcpStream>,
) {
    if visitor.speaks_h2() {
        http2::serve(worker, visitor, entrance, stream).await;
    } else {
        http1::serve(worker, visitor, entrance, Box::new(stream)).await;
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
