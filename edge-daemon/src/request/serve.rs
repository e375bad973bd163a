//! From the listening socket to the requests on a connection: one worker's accept loops.

use std::{net::SocketAddr, pin::Pin, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

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
                if let Some(slot) = Slot::take(&worker) {
                    spawn_local(connection(slot, stream, peer, entrance));
                }
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

/// One connection, from its begin to its end. Its stages are on the heap, each in its own size and gone when it is over:
/// else the task of a connection that says nothing would be as large as the largest of them.
async fn connection(slot: Slot, stream: TcpStream, peer: SocketAddr, entrance: Entrance) {
    let worker = &slot.0;
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match entrance {
        Entrance::Http => {
            let mut visitor = Visitor::new(peer);
            if visitor.take_place(worker) {
                let own = Rc::clone(worker);
                Box::pin(http1::serve(own, visitor, entrance, Box::new(stream))).await;
            }
        }
        Entrance::Https(listener) => {
            if let Some((visitor, stream)) =
                Box::pin(front::enter(worker, stream, peer, listener)).await
            {
                converse(Rc::clone(worker), visitor, entrance, stream).await;
            }
        }
    }
}

/// Serves requests over TLS, in whichever version was agreed on, for as long as the client's certificate is good, if it
/// has one.
fn converse(
    worker: Rc<Worker>,
    visitor: Visitor,
    entrance: Entrance,
    stream: Box<TlsStream<TcpStream>>,
) -> Pin<Box<dyn Future<Output = ()>>> {
    let certified = visitor.tls.as_ref().is_some_and(|facts| facts.peer.is_some());
    let guest = certified.then(|| (Rc::clone(&worker), visitor.clone()));
    let conversation: Pin<Box<dyn Future<Output = ()>>> = match visitor.speaks_h2() {
        true => Box::pin(http2::serve(worker, visitor, entrance, stream)),
        false => Box::pin(http1::serve(worker, visitor, entrance, stream)),
    };
    let Some((worker, guest)) = guest else { return conversation };
    Box::pin(async move {
        tokio::select! {
            // First of all: a request that comes after the revocation must not be begun.
            biased;
            () = disowned(&worker, &guest) => {
                tracing::info!(address = %guest.address, "closed: its certificate is disowned");
            }
            () = conversation => {}
        }
    })
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
